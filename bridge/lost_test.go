package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"vdbridge/client"
	"vdbridge/client/link"
	"vdbridge/rsvd"
	"vdbridge/scsi"
	"vdbridge/test/faultnet"
	"vdbridge/test/leak"
	"vdbridge/test/smbd"
	"vdbridge/vhdx"
)

// away is a server behind a network that can fail.
type away struct {
	*embedded
	relay *faultnet.Relay
}

func embedAway(t *testing.T, o ServeOptions) *away {
	t.Helper()
	e := embed(t, o)
	r, err := faultnet.NewRelay("tcp", "127.0.0.1:0", e.addr, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return &away{e, r}
}

// hold opens the disk through the relay, to be held on to.
func (a *away) hold(t *testing.T, change func(*Options)) *Disk {
	t.Helper()
	via := &embedded{dir: a.dir, addr: a.relay.Addr()}
	return via.open(t, func(o *Options) {
		o.OnLoss, o.Timeout = link.Hold, 10*time.Second
		if change != nil {
			change(o)
		}
	})
}

// when waits for a state.
func when(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: it has not come to that", what)
		}
	}
}

func (a *away) state(t *testing.T, d *Disk, want string) {
	t.Helper()
	when(t, "state "+want, func() bool { return d.Status().State == want })
}

// forms are the ways to hold on to a disk.
var forms = []struct {
	name   string
	ca     bool
	change func(*Options)
	handle string
}{
	{"shared", false, func(o *Options) { o.Mode = ModeRSVD }, "none"},
	{"shared-scsi", false, func(o *Options) { o.Mode, o.IO = ModeRSVD, rsvd.IOSCSI }, "none"},
	{"shared-persistent", true, func(o *Options) { o.Mode = ModeRSVD }, "persistent"},
	{"shared-persistent-scsi", true, func(o *Options) { o.Mode, o.IO = ModeRSVD, rsvd.IOSCSI }, "persistent"},
	{"shared-none", true, func(o *Options) { o.Mode, o.Handle = ModeRSVD, HandleNone }, "none"},
	{"file", false, func(o *Options) { o.Mode = ModeFile }, ""},
	{"file-persistent", true, func(o *Options) { o.Mode = ModeFile }, "persistent"},
}

// Connections that are cut under load cost time and nothing else.
func TestCutUnderLoad(t *testing.T) {
	for _, form := range forms {
		t.Run(form.name, func(t *testing.T) {
			leak.Check(t)
			a := embedAway(t, ServeOptions{RSVDVersion: 1, CA: form.ca})
			d := a.hold(t, form.change)
			if s := d.Status(); form.handle != "" && s.Handle.Kind != form.handle {
				t.Errorf("the handle is %+v", s.Handle)
			}
			const workers, rounds = 16, 24
			var wg sync.WaitGroup
			for w := range workers {
				wg.Go(func() {
					ctx := context.Background()
					off := int64(w) << 20
					for i := range rounds {
						p := pattern(uint64(w*1000+i), 4096)
						if err := d.Write(ctx, p, off, i%4 == 1); err != nil {
							t.Errorf("write %d of %d: %v", i, w, err)
							return
						}
						if i%8 == 7 {
							if err := d.Flush(ctx); err != nil {
								t.Errorf("flush: %v", err)
							}
							if err := d.WriteZeroes(ctx, off+8192, 4096, true, false); err != nil {
								t.Errorf("zeroes: %v", err)
							}
						}
						q := make([]byte, 4096)
						if err := d.Read(ctx, q, off); err != nil || !bytes.Equal(p, q) {
							t.Errorf("read back %d of %d: %v, same %v", i, w, err, bytes.Equal(p, q))
							return
						}
						if w == 0 && i%6 == 3 {
							a.relay.CutAll()
						}
					}
				})
			}
			wg.Wait()
			s := d.Status()
			if s.Losses == 0 || s.State != StateConnected || len(s.Errors) > 0 {
				t.Errorf("%+v", s)
			}
			t.Logf("%d losses, %d requests repeated", s.Losses, s.Repeated)
			closeDisk(t, d)
			a.judge(t)
		})
	}
}

// Who was pre-empted while away has its outstanding writes fail, and they are never sent; nothing is written until it has registered again.
func TestPreemptedWhileAway(t *testing.T) {
	for _, form := range forms[:5] {
		t.Run(form.name, func(t *testing.T) {
			leak.Check(t)
			ctx := t.Context()
			a := embedAway(t, ServeOptions{RSVDVersion: 1, CA: form.ca})
			d := a.hold(t, form.change)
			other := a.open(t, func(o *Options) { o.Mode = ModeRSVD })
			const mine, theirs = 0xA1, 0xB2
			if err := errors.Join(d.RSVD().Register(ctx, 0, mine, false), d.RSVD().Reserve(ctx, mine, scsi.WriteExclusiveRegistrantsOnly), d.lookAround(ctx),
				other.RSVD().Register(ctx, 0, theirs, false), d.Write(ctx, pattern(1, 4096), 0, true)); err != nil {
				t.Fatal(err)
			}
			a.relay.SetDown(true)
			a.state(t, d, StateReconnecting)
			var outstanding []chan error
			for i := range 8 {
				c := make(chan error, 1)
				go func() { c <- d.Write(ctx, pattern(99, 4096), int64(i)*4096, i%2 == 0) }()
				outstanding = append(outstanding, c)
			}
			read := make(chan error, 1)
			go func() { read <- d.Read(ctx, make([]byte, 4096), 0) }()
			// Without a handle that is kept the registration goes with the connection, and the other one finds nobody to preempt.
			if err := other.RSVD().Preempt(ctx, theirs, mine, scsi.WriteExclusiveRegistrantsOnly); err != nil && form.handle == "persistent" {
				t.Fatal(err)
			}
			_ = other.RSVD().Release(ctx, theirs, scsi.WriteExclusiveRegistrantsOnly) // now nothing but our own conscience keeps us from writing
			a.relay.SetDown(false)
			for i, c := range outstanding {
				if err := <-c; !errors.Is(err, rsvd.ErrShutOut) || Classify(err) != ClassConflict {
					t.Errorf("outstanding write %d: %v", i, err)
				}
			}
			if err := <-read; err != nil {
				t.Errorf("read: %v", err)
			}
			if s := d.Status(); s.State != StateFenced || s.LastError == "" {
				t.Errorf("%+v", s)
			}
			if err := d.Write(ctx, pattern(99, 4096), 0, false); !errors.Is(err, rsvd.ErrShutOut) {
				t.Errorf("a new write: %v", err)
			}
			q := make([]byte, 32<<10)
			if err := other.Read(ctx, q, 0); err != nil || !bytes.Equal(q[:4096], pattern(1, 4096)) || !bytes.Equal(q[4096:], make([]byte, len(q)-4096)) {
				t.Errorf("one of the writes was sent (%v)", err)
			}
			if err := d.RSVD().RegisterIgnore(ctx, mine, false); err != nil {
				t.Fatalf("the way back in: %v", err)
			}
			when(t, "writing again", func() bool { return d.Write(ctx, pattern(2, 4096), 0, true) == nil })
			if s := d.Status(); s.State != StateConnected {
				t.Errorf("%+v", s)
			}
		})
	}
}

// A reservation stands over a lost connection where the server keeps the open.
func TestReservationIsKept(t *testing.T) {
	leak.Check(t)
	ctx := t.Context()
	a := embedAway(t, ServeOptions{RSVDVersion: 1, CA: true})
	d := a.hold(t, func(o *Options) { o.Mode = ModeRSVD })
	other := a.open(t, func(o *Options) { o.Mode = ModeRSVD })
	if err := errors.Join(d.RSVD().Register(ctx, 0, 0xA1, false), d.RSVD().Reserve(ctx, 0xA1, scsi.WriteExclusive), d.lookAround(ctx)); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		a.relay.CutAll()
		if err := other.Write(ctx, make([]byte, 512), 0, false); !errors.Is(err, rsvd.ErrReservationConflict) {
			t.Errorf("another host may write: %v", err)
		}
		if err := d.Write(ctx, pattern(uint64(i), 4096), 0, true); err != nil {
			t.Errorf("the holder cannot write: %v", err)
		}
		r, err := d.Reservation(ctx)
		if err != nil || !r.Ours {
			t.Errorf("%+v, %v", r, err)
		}
	}
	if s := d.Status(); s.Handle.Kind != "persistent" || s.Reconnects == 0 {
		t.Errorf("%+v", s)
	}
}

// Reservation commands that are under way when the connection is lost are carried out once, or the error says that it is not known.
func TestReservationsUnderCuts(t *testing.T) {
	for _, ca := range []bool{true, false} {
		t.Run(fmt.Sprintf("ca=%v", ca), func(t *testing.T) {
			leak.Check(t)
			ctx := t.Context()
			a := embedAway(t, ServeOptions{RSVDVersion: 1, CA: ca})
			d := a.hold(t, func(o *Options) { o.Mode = ModeRSVD })
			s := d.RSVD()
			for key := uint64(1); key <= 40; key++ {
				cuts := time.AfterFunc(rand.N(2*time.Millisecond), func() { a.relay.CutAll() })
				defer cuts.Stop()
				// Without a registration of before, which goes with the connection unless the open is kept, it may be undecided.
				if err := s.RegisterIgnore(ctx, key, false); err != nil && (key > 1 && ca || !errors.Is(err, rsvd.ErrUndecided)) {
					t.Fatalf("register %d: %v", key, err)
				} else if err != nil && ca {
					if err := s.RegisterIgnore(ctx, key, false); err != nil {
						t.Fatalf("register %d again: %v", key, err)
					}
				}
				if !ca { // the registration goes with the connection
					continue
				}
				if err := s.Reserve(ctx, key, scsi.WriteExclusive); err != nil {
					t.Fatalf("reserve with %d: %v", key, err)
				}
				if r, err := d.Reservation(ctx); err != nil || !r.Ours || r.Key != fmt.Sprintf("%#016x", key) {
					t.Fatalf("after %d: %+v, %v", key, r, err)
				}
				if err := s.Release(ctx, key, scsi.WriteExclusive); err != nil {
					t.Fatalf("release with %d: %v", key, err)
				}
			}
			if n := d.Status().Losses; n == 0 {
				t.Error("no connection was lost")
			}
		})
	}
}

// A dead network is noticed though no connection breaks, and what it had detained comes too late.
func TestLateRequests(t *testing.T) {
	for _, form := range forms {
		t.Run(form.name, func(t *testing.T) {
			leak.Check(t)
			ctx := t.Context()
			a := embedAway(t, ServeOptions{RSVDVersion: 1, CA: form.ca})
			d := a.hold(t, func(o *Options) {
				form.change(o)
				o.ServerTimeout = 400 * time.Millisecond
			})
			if err := d.Write(ctx, pattern(1, 64<<10), 0, true); err != nil { // the block has its place in the image
				t.Fatal(err)
			}
			thaw := a.relay.Freeze()
			defer thaw()
			for i := range 16 { // detained in the network, then sent again elsewhere
				if err := d.Write(ctx, pattern(2, 4096), int64(i)*4096, false); err != nil {
					t.Fatal(err)
				}
			}
			want := pattern(3, 64<<10)
			if err := d.Write(ctx, want, 0, true); err != nil {
				t.Fatal(err)
			}
			thaw()
			before := a.relay.Bytes()
			when(t, "detained bytes pass", func() bool { return a.relay.Bytes() > before })
			got := make([]byte, len(want))
			for range 50 {
				if err := d.Read(ctx, got, 0); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("an old write came through: %v", err)
				}
			}
			if s := d.Status(); s.Losses != 1 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// Close and cancelled contexts do not wait for a server that is lost.
func TestCloseWhileLost(t *testing.T) {
	for _, form := range forms {
		t.Run(form.name, func(t *testing.T) {
			leak.Check(t)
			a := embedAway(t, ServeOptions{RSVDVersion: 1, CA: form.ca})
			d := a.hold(t, form.change)
			ctx, cancel := context.WithCancel(t.Context())
			if err := d.Write(ctx, pattern(1, 4096), 0, false); err != nil {
				t.Fatal(err)
			}
			a.relay.SetDown(true)
			a.state(t, d, StateReconnecting)
			cancelled, waiting := make(chan error, 1), make(chan error, 1)
			go func() { cancelled <- d.Read(ctx, make([]byte, 4096), 0) }()
			go func() { waiting <- d.Write(context.Background(), pattern(2, 4096), 0, false) }()
			when(t, "both wait", func() bool { return d.Status().InFlight == 2 })
			cancel()
			if err := <-cancelled; !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled: %v", err)
			}
			start := time.Now()
			err := d.Close()
			if Classify(err) != ClassConnection {
				t.Errorf("close: %v", err)
			}
			if err := <-waiting; err == nil {
				t.Error("a write succeeded without a server")
			}
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("it took %v", d)
			}
		})
	}
}

// An image file that somebody else has opened for writing in the meantime is not used any further.
func TestImageChangedWhileAway(t *testing.T) {
	leak.Check(t)
	ctx := t.Context()
	a := embedAway(t, ServeOptions{RSVDVersion: 1})
	d := a.hold(t, func(o *Options) { o.Mode = ModeFile })
	if err := errors.Join(d.Write(ctx, pattern(1, 4096), 0, false), d.Flush(ctx)); err != nil {
		t.Fatal(err)
	}
	a.relay.SetDown(true)
	a.state(t, d, StateReconnecting)
	c := make(chan error, 1)
	go func() { c <- d.Write(ctx, pattern(2, 4096), 0, false) }()
	var other *Disk
	when(t, "the server has closed our open", func() bool {
		loc, err := ParseLocation("smb://me@" + a.addr + "/disks/a.vhdx")
		if err != nil {
			t.Fatal(err)
		}
		other, err = Open(ctx, loc, Options{Mode: ModeFile, Credentials: CredentialSource{Getenv: func(string) string { return "secret" }}})
		return err == nil
	})
	if err := errors.Join(other.Write(ctx, pattern(7, 4096), 0, true), other.Close()); err != nil {
		t.Fatal(err)
	}
	a.relay.SetDown(false)
	if err := <-c; !errors.Is(err, vhdx.ErrChanged) {
		t.Errorf("the outstanding write: %v", err)
	}
	if s := d.Status(); s.State != StateFailed || s.LastError == "" {
		t.Errorf("%+v", s)
	}
	_ = d.Close()
	a.stop()
	img, err := vhdx.OpenFile(ctx, filepath.Join(a.dir, "a.vhdx"), vhdx.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	q := make([]byte, 4096)
	if err := img.Read(ctx, q, 0); err != nil || !bytes.Equal(q, pattern(7, 4096)) {
		t.Errorf("what the other one wrote is gone (%v)", err)
	}
}

// A swap that was never sent is carried out when the server is back.
func TestDelayedSwap(t *testing.T) {
	leak.Check(t)
	ctx := t.Context()
	a := embedAway(t, ServeOptions{RSVDVersion: 1, CA: true})
	d := a.hold(t, func(o *Options) { o.Mode = ModeRSVD })
	zero, one := make([]byte, 512), bytes.Repeat([]byte{1}, 512)
	if err := d.Write(ctx, zero, 0, true); err != nil {
		t.Fatal(err)
	}
	a.relay.SetDown(true)
	a.state(t, d, StateReconnecting)
	c := make(chan error, 1)
	go func() { c <- d.RSVD().CompareAndWrite(ctx, 0, zero, one, true) }()
	a.relay.SetDown(false)
	if err := <-c; err != nil { // it was not sent before
		t.Errorf("swap: %v", err)
	}
	q := make([]byte, 512)
	if err := d.Read(ctx, q, 0); err != nil || !bytes.Equal(q, one) {
		t.Errorf("the swap was not done (%v)", err)
	}
	if err := d.RSVD().CompareAndWrite(ctx, 0, zero, one, true); err == nil || errors.Is(err, client.ErrConnectionLost) {
		t.Errorf("a swap that does not fit: %v", err)
	}
}

// A swap whose answer was lost is not carried out a second time, also if the blocks are again what they were to be: another host has seen it, and undone it.
func TestInterruptedSwap(t *testing.T) {
	for _, undone := range []bool{true, false} {
		t.Run(fmt.Sprint("undone ", undone), func(t *testing.T) {
			leak.Check(t)
			ctx := t.Context()
			e := embed(t, ServeOptions{RSVDVersion: 1, CA: true})
			s, err := faultnet.NewSwitch("127.0.0.1:0", e.addr, nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
			a := &away{embedded: &embedded{dir: e.dir, addr: s.Addr()}}
			d := a.open(t, func(o *Options) { o.OnLoss, o.Timeout, o.Mode = link.Hold, 10*time.Second, ModeRSVD })
			other := e.open(t, func(o *Options) { o.Mode = ModeRSVD })
			zero, one, q := make([]byte, 512), bytes.Repeat([]byte{1}, 512), make([]byte, 512)
			if err := d.Write(ctx, zero, 0, true); err != nil {
				t.Fatal(err)
			}
			for _, l := range s.Links() {
				l.Hole(faultnet.Down)
			}
			c := make(chan error, 1)
			go func() { c <- d.RSVD().CompareAndWrite(ctx, 0, zero, one, true) }()
			when(t, "the swap is done", func() bool {
				if err := other.Read(ctx, q, 0); err != nil {
					t.Fatal(err)
				}
				return bytes.Equal(q, one)
			})
			s.SetDown(true)
			want := one
			if undone {
				want = zero
				if err := other.Write(ctx, zero, 0, true); err != nil {
					t.Fatal(err)
				}
			}
			s.SetDown(false)
			if err := <-c; !errors.Is(err, rsvd.ErrUndecided) {
				t.Errorf("the swap: %v", err)
			}
			if err := other.Read(ctx, q, 0); err != nil || !bytes.Equal(q, want) {
				t.Errorf("the other host finds %x (%v)", q[0], err)
			}
			if err := d.RSVD().CompareAndWrite(ctx, 0, want, bytes.Repeat([]byte{2}, 512), true); err != nil {
				t.Errorf("the next swap: %v", err)
			}
		})
	}
}

// A session with several connections goes on when one of them is cut, and gets it back; nothing is lost.
func TestChannelCut(t *testing.T) {
	leak.Check(t)
	ctx := t.Context()
	a := embedAway(t, ServeOptions{RSVDVersion: 1, CA: true})
	second, err := faultnet.NewRelay("tcp", "127.0.0.1:0", a.addr, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { second.Close() })
	d := a.hold(t, func(o *Options) {
		o.Mode = ModeRSVD
		o.Channels = client.ChannelOptions{Count: 2, Addrs: []string{second.Addr()}, MinDelay: time.Millisecond}
	})
	two := func() bool { return len(d.Status().Channels) == 2 }
	when(t, "two channels", two)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 60 {
				p, q := pattern(uint64(w*100+i), 4096), make([]byte, 4096)
				if err := errors.Join(d.Write(ctx, p, int64(w)<<20, false), d.Read(ctx, q, int64(w)<<20)); err != nil || !bytes.Equal(p, q) {
					t.Errorf("%v", err)
					return
				}
				if w == 0 && i%20 == 10 {
					[]*faultnet.Relay{second, a.relay}[i/20%2].CutAll()
				}
			}
		})
	}
	wg.Wait()
	if s := d.Status(); s.State != StateConnected || len(s.Errors) > 0 {
		t.Errorf("%+v", s)
	}
	when(t, "two channels again", two)
}

// An image on Samba outlives cut connections. As Samba keeps the open nothing else is noticed; an open that it has not kept costs what was not flushed, as it does not
// say whether it was restarted.
func TestSambaLost(t *testing.T) {
	for _, tc := range []struct {
		name   string
		kind   HandleKind
		handle string
	}{
		{"kept", HandleAuto, "durable"},
		{"not kept", HandleNone, "none"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			leak.Check(t)
			ctx := t.Context()
			s := smbd.Start(t, smbd.Options{})
			relay, err := faultnet.NewRelay("tcp", "127.0.0.1:0", s.Addr, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { relay.Close() })
			loc, o := smbdOptions(s)
			if err := Create(ctx, loc, o, CreateOptions{Size: testDiskSize, BlockSize: 1 << 20}); err != nil {
				t.Fatal(err)
			}
			_, port, err := net.SplitHostPort(relay.Addr())
			if err != nil {
				t.Fatal(err)
			}
			if loc.Port, err = strconv.Atoi(port); err != nil {
				t.Fatal(err)
			}
			o.OnLoss, o.Mode, o.Handle = link.Hold, ModeFile, tc.kind
			d, err := Open(ctx, loc, o)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { d.Close() })
			if h := d.Status().Handle; h.Kind != tc.handle {
				t.Errorf("the handle is %+v", h)
			}
			rounds := 5
			if tc.handle == "none" {
				rounds = 0 // also what keeps an image whole is written behind the flush, so there is always something
			}
			for i := range rounds {
				p, q := pattern(uint64(i), 64<<10), make([]byte, 64<<10)
				if err := errors.Join(d.Write(ctx, p, int64(i)<<20, false), d.Flush(ctx)); err != nil {
					t.Fatal(err)
				}
				relay.CutAll()
				if err := d.Read(ctx, q, int64(i)<<20); err != nil || !bytes.Equal(p, q) {
					t.Fatalf("read back: %v", err)
				}
			}
			if err := d.Write(ctx, pattern(9, 4096), 0, false); err != nil {
				t.Fatal(err)
			}
			relay.CutAll()
			switch err := d.Flush(ctx); {
			case tc.handle == "none" && !errors.Is(err, link.ErrWritesLost):
				t.Errorf("the flush says %v", err)
			case tc.handle != "none" && err != nil:
				t.Errorf("flush: %v", err)
			}
			if s := d.Status(); int(s.Losses) != rounds+1 || s.State != StateConnected {
				t.Errorf("%+v", s)
			}
		})
	}
}
