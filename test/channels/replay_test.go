package channels

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"vdbridge/client"
	"vdbridge/server"
	"vdbridge/smb/fscc"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
	"vdbridge/test/faultnet"
)

// link returns the connection with that number, which must live.
func (s *sut) link(id int) *faultnet.Link {
	s.t.Helper()
	for _, l := range s.net.Links() {
		if l.ID() == id {
			return l
		}
	}
	s.t.Fatalf("link %d is gone", id)
	return nil
}

// TestDelayedOldWrite has WRITEs arrive at the server on a connection that is lost, after they were sent again on another one and their blocks
// overwritten: they must not come through. [MS-SMB2] 3.3.5.2.10
func TestDelayedOldWrite(t *testing.T) {
	both(t, func(t *testing.T, s *sut) {
		ctx := testContext(t)
		sess := s.connect(client.Config{}, client.SessionOptions{})
		f := s.open(sess, "disk", nil)
		s.bind(sess)
		slow := s.link(0)
		slow.Stall(faultnet.Up)
		const blocks = 8
		var wg sync.WaitGroup
		for i := range blocks {
			wg.Go(func() {
				if _, err := f.WriteAt(ctx, bytes.Repeat([]byte("old!"), 1024), int64(i)*4096); err != nil {
					t.Error(err)
				}
			})
		}
		// About half of them are stuck, and nothing else is under way.
		eventually(t, "the writes to be sent", func() bool {
			st := sess.Status().Channels
			return st[0].InFlight > 2*4096 && st[1].InFlight == 0
		})
		slow.Orphan(time.Second)
		wg.Wait()
		if st := sess.Status(); st.Lost != 1 || st.Replayed == 0 {
			t.Fatalf("%+v", st)
		}
		want := bytes.Repeat([]byte("new."), blocks*1024)
		if _, err := f.WriteAt(ctx, want, 0); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the old writes to arrive", func() bool { return len(s.net.Links()) == 1 })
		stays(t, f, want)
		must(t, "close", f.Close())
	})
}

// TestOutcomeUnknown loses the replies to controls that may not be repeated: they fail in a way that says so, and the session lives.
func TestOutcomeUnknown(t *testing.T) {
	both(t, func(t *testing.T, s *sut) {
		ctx := testContext(t)
		sess := s.connect(client.Config{}, client.SessionOptions{})
		f := s.open(sess, "disk", nil)
		if _, err := f.WriteAt(ctx, bytes.Repeat([]byte{1}, 64<<10), 0); err != nil {
			t.Fatal(err)
		}
		s.bind(sess)
		s.link(0).Hole(faultnet.Down)
		var wg sync.WaitGroup
		var unknown, done int
		var mu sync.Mutex
		for i := range 8 {
			wg.Go(func() {
				in := fscc.AppendZeroData(nil, fscc.ZeroData{FileOffset: int64(i) * 4096, BeyondFinalZero: int64(i+1) * 4096})
				_, err := f.Ioctl(ctx, wire.FsctlSetZeroData, in, nil, nil, nil)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					done++
				case errors.Is(err, client.ErrConnectionLost) && errors.Is(err, client.ErrOutcomeUnknown):
					unknown++
				default:
					t.Error(err)
				}
			})
			wg.Go(func() {
				var out [16]byte
				if _, err := f.IoctlIdempotent(ctx, wire.FsctlQueryAllocatedRanges, fscc.AppendRange(nil, fscc.Range{Length: 4096}), nil, out[:], nil); err != nil {
					t.Error(err)
				}
			})
		}
		eventually(t, "requests without reply", func() bool {
			mu.Lock()
			defer mu.Unlock()
			st := sess.Status().Channels
			return done > 0 && st[1].InFlight == 0 && st[0].InFlight > 0
		})
		s.link(0).Cut()
		wg.Wait()
		if unknown == 0 || done == 0 {
			t.Errorf("%d done, %d unknown", done, unknown)
		}
		must(t, "settle", f.Settle(ctx))
		must(t, "the session", sess.Err())
		before := sess.Status().Replayed
		must(t, "settle again", f.Settle(ctx))
		if n := sess.Status().Replayed; n != before {
			t.Error("Settle worked twice for one loss")
		}
		must(t, "close", f.Close())
	})
}

// slowDisk is a disk in memory whose first write is executed when it is let go.
type slowDisk struct {
	mu    sync.Mutex
	b     []byte
	order []string
	began chan struct{} // closed when the first write has begun
	goOn  chan struct{}
	once  sync.Once
}

func (d *slowDisk) OpenDisk(context.Context, string, []byte, uint32, uint32) (server.DiskOpen, []byte, error) {
	return d, nil, nil
}
func (d *slowDisk) QuerySupport(string, server.DiskOpen) (uint32, uint32) { return 1, 1 }
func (d *slowDisk) Read(_ context.Context, p []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(p, d.b[off:])
	return nil
}
func (d *slowDisk) Write(_ context.Context, p []byte, off int64, _ bool) error {
	first := false
	d.once.Do(func() { first = true })
	if first {
		close(d.began)
		<-d.goOn
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.b[off:], p)
	d.order = append(d.order, string(p[:4]))
	return nil
}
func (d *slowDisk) Flush(context.Context) error { return nil }
func (d *slowDisk) Tunnel(context.Context, uint32, []byte, []byte) (int, error) {
	return 0, ntstatus.NotSupported
}
func (d *slowDisk) Size() int64  { return int64(len(d.b)) }
func (d *slowDisk) Close() error { return nil }

// TestReplayWaits loses the connection of a WRITE that the server is still executing. Sent again it must not overtake itself, and Settle must wait for it.
func TestReplayWaits(t *testing.T) {
	for _, what := range []string{"WRITE", "Settle"} {
		t.Run(what, func(t *testing.T) {
			d := &slowDisk{b: make([]byte, 1<<20), began: make(chan struct{}), goOn: make(chan struct{})}
			s := ours(t, func(c *server.Config) { c.Disks = d })
			var open sync.Once
			letGo := func() { open.Do(func() { close(d.goOn) }) }
			t.Cleanup(letGo)
			must(t, "image", writeFile(s.file("disk.vhdx"), 4096))
			ctx := testContext(t)
			sess := s.connect(client.Config{}, client.SessionOptions{})
			tree, err := sess.Tree(ctx, s.share)
			must(t, "tree", err)
			f, err := tree.Open(ctx, "disk.vhdx:SharedVirtualDisk", client.OpenOptions{
				Access: wire.AccessGenericRead | wire.AccessGenericWrite, Share: client.ShareAll, Disposition: wire.FileOpen, Options: wire.OptNoIntermediateBuffering,
				Contexts: []wire.CreateContext{{Name: wire.CreateSVHDX, Data: make([]byte, 136)}},
			})
			must(t, "open", err)
			s.bind(sess)
			wctx, cancel := context.WithCancel(ctx)
			defer cancel()
			result := make(chan error, 1)
			go func() {
				_, err := f.WriteAt(wctx, []byte("old!"), 0)
				result <- err
			}()
			<-d.began
			if what == "Settle" { // the caller gives up, so that nobody sends the WRITE again
				cancel()
				if err := <-result; !errors.Is(err, context.Canceled) {
					t.Fatal(err)
				}
				go func() { result <- f.Settle(ctx) }()
			}
			st := sess.Status().Channels
			busy := 0
			if st[1].InFlight > 0 {
				busy = 1
			}
			if what == "Settle" {
				// Before the loss there is nothing to settle.
				must(t, "settle", <-result)
			}
			s.link(busy).Cut()
			if what == "Settle" {
				eventually(t, "the loss", func() bool { return live(sess) == 1 })
				go func() { result <- f.Settle(ctx) }()
			}
			eventually(t, "refusals", func() bool { return sess.Status().Replayed >= 4 })
			select {
			case err := <-result:
				t.Fatalf("it did not wait for the old WRITE: %v", err)
			default:
			}
			letGo()
			must(t, what, <-result)
			if _, err := f.WriteAt(ctx, []byte("new."), 0); err != nil {
				t.Fatal(err)
			}
			d.mu.Lock()
			defer d.mu.Unlock()
			want := "[old! old! new.]"
			if what == "Settle" {
				want = "[old! new.]"
			}
			if got := fmt.Sprint(d.order); got != want {
				t.Errorf("written was %s, not %s", got, want)
			}
		})
	}
}

// TestCreateReplayed loses the replies to CREATEs. They are sent again, and there is one open of each file. [MS-SMB2] 3.3.5.9, 3.2.7.1
func TestCreateReplayed(t *testing.T) {
	both(t, func(t *testing.T, s *sut) {
		ctx := testContext(t)
		sess := s.connect(client.Config{}, client.SessionOptions{})
		tree, err := sess.Tree(ctx, s.share)
		must(t, "tree", err)
		s.bind(sess)
		s.link(0).Hole(faultnet.Down)
		const n = 6
		files := make([]*client.File, n)
		var wg sync.WaitGroup
		exclusive := client.OpenOptions{Access: wire.AccessGenericRead | wire.AccessGenericWrite, Disposition: wire.FileOpenIf}
		for i := range n {
			wg.Go(func() {
				o := exclusive
				o.Durable = &client.DurableRequest{Persistent: true}
				f, err := tree.Open(ctx, fmt.Sprint("file", i), o)
				if err != nil {
					t.Errorf("open %d: %v", i, err)
					return
				}
				files[i] = f
			})
		}
		eventually(t, "CREATEs without reply", func() bool {
			st := sess.Status().Channels
			return st[0].InFlight >= 2*1024 && st[1].InFlight == 0
		})
		s.link(0).Cut()
		wg.Wait()
		if t.Failed() {
			return
		}
		if sess.Status().Replayed == 0 {
			t.Error("nothing was sent again")
		}
		for i, f := range files {
			if !f.Durable().Durable {
				t.Errorf("open %d: %+v", i, f.Durable())
			}
			if _, err := f.WriteAt(ctx, []byte("data"), 0); err != nil {
				t.Error(err)
			}
			must(t, "close", f.Close())
			// A second open that nobody knows of would exclude this one.
			g, err := tree.Open(ctx, fmt.Sprint("file", i), exclusive)
			must(t, "open again", err)
			must(t, "close", g.Close())
		}
	})
}
