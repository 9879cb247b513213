package channels

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vdbridge/client"
	"vdbridge/server"
	"vdbridge/smb/auth"
	"vdbridge/smb/wire"
	"vdbridge/test/faultnet"
	"vdbridge/test/leak"
	"vdbridge/test/smbd"
)

// sut is a server under test, and the network before it.
type sut struct {
	t     testing.TB
	name  string
	addr  string // of the server itself
	dir   string // behind the share
	share string
	plain string // a share of the same folder that is not continuously available
	user  auth.Credentials
	net   *faultnet.Switch
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// must fails the test at once.
func must(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// ours starts our server. Its share is continuously available.
func ours(t testing.TB, change func(*server.Config)) *sut {
	t.Helper()
	leak.Check(t)
	dir := t.TempDir()
	cfg := server.Config{
		Shares: []server.Share{{Name: "plain", Dir: dir}, {Name: "share", Dir: dir, CA: true}}, Users: auth.NewUsers(map[string]string{"me": "secret", "you": "other"}),
	}
	if change != nil {
		change(&cfg)
	}
	srv, err := server.New(cfg)
	must(t, "server", err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, "listen", err)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Errorf("close server: %v", err)
		}
		if err := <-done; !errors.Is(err, server.ErrClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	return (&sut{t: t, name: "ours", addr: l.Addr().String(), dir: dir, share: "share", plain: "plain", user: auth.Credentials{User: "me", Password: "secret"}}).behind()
}

// samba starts Samba's server, which has multichannel and makes opens durable that have a lease.
func samba(t testing.TB) *sut {
	t.Helper()
	leak.Check(t)
	s := smbd.Start(t, smbd.Options{
		Global: []string{"server multi channel support = yes", "durable handles = yes"},
		Share:  []string{"kernel oplocks = no", "kernel share modes = no", "posix locking = no"},
	})
	return (&sut{t: t, name: "smbd", addr: s.Addr, dir: s.Dir, share: s.Share, plain: s.Share, user: auth.Credentials{User: s.User, Password: s.Password}}).behind()
}

// both runs a test against our server and Samba's.
func both(t *testing.T, f func(t *testing.T, s *sut)) {
	t.Run("ours", func(t *testing.T) { f(t, ours(t, nil)) })
	t.Run("smbd", func(t *testing.T) { f(t, samba(t)) })
}

// behind puts the network before the server.
func (s *sut) behind() *sut {
	n, err := faultnet.NewSwitch("127.0.0.1:0", s.addr, nil)
	must(s.t, "network", err)
	s.net = n
	s.t.Cleanup(func() { _ = n.Close() })
	return s
}

// file is where the server keeps a file.
func (s *sut) file(name string) string { return filepath.Join(s.dir, name) }

// connect dials and logs on.
func (s *sut) connect(cfg client.Config, opts client.SessionOptions) *client.Session {
	s.t.Helper()
	ctx := testContext(s.t)
	c, err := client.Dial(ctx, s.net.Addr(), cfg)
	must(s.t, "dial", err)
	s.t.Cleanup(func() { _ = c.Close() })
	sess, err := c.Session(ctx, s.user, opts)
	must(s.t, "logon", err)
	return sess
}

func (s *sut) mechs() []auth.MechInitiator {
	return []auth.MechInitiator{auth.NTLM(s.user, "cifs/127.0.0.1")}
}

// bind adds a channel through the network.
func (s *sut) bind(sess *client.Session) {
	s.t.Helper()
	ctx := testContext(s.t)
	c, err := sess.Conn().DialSibling(ctx, s.net.Addr())
	must(s.t, "dial a sibling", err)
	must(s.t, "bind", sess.Bind(ctx, c, s.mechs()...))
}

// open opens a file of the share for reading and writing, and makes it if it is missing.
func (s *sut) open(sess *client.Session, name string, durable *client.DurableRequest) *client.File {
	s.t.Helper()
	ctx := testContext(s.t)
	tree, err := sess.Tree(ctx, s.share)
	must(s.t, "tree", err)
	f, err := tree.Open(ctx, name, client.OpenOptions{
		Access: wire.AccessGenericRead | wire.AccessGenericWrite, Share: client.ShareAll, Disposition: wire.FileOpenIf, Durable: durable,
	})
	must(s.t, "open", err)
	return f
}

// eventually waits until ok, which changes without an event.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// writeFile makes a file of n bytes.
func writeFile(name string, n int) error { return os.WriteFile(name, make([]byte, n), 0o666) }

func readFile(name string) ([]byte, error) { return os.ReadFile(name) }

// hole makes a link a black hole in both directions.
func hole(s *sut, id int) {
	l := s.link(id)
	l.Hole(faultnet.Up)
	l.Hole(faultnet.Down)
}

// stays fails the test when the beginning of the file becomes something else than want: the server may still be about to execute what it has received.
func stays(t testing.TB, f *client.File, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	for range 100 {
		if _, err := f.ReadAt(testContext(t), got, 0); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("an old write came through, or %v", err)
		}
		time.Sleep(time.Millisecond)
	}
}

// live is how many channels the session has.
func live(sess *client.Session) int { return len(sess.Status().Channels) }

// load writes and reads blocks of the file until stop, each of the workers in its own part, and keeps account of what must be there.
type load struct {
	t     testing.TB
	f     *client.File
	want  []byte
	block int
	wg    sync.WaitGroup
	stop  chan struct{}
	ops   atomic.Int64
}

func startLoad(t testing.TB, f *client.File, workers, part, block int) *load {
	l := &load{t: t, f: f, want: make([]byte, workers*part), block: block, stop: make(chan struct{})}
	ctx := testContext(t)
	if _, err := f.WriteAt(ctx, l.want, 0); err != nil {
		t.Fatal(err)
	}
	for w := range workers {
		l.wg.Go(func() { l.work(ctx, w, l.want[w*part:(w+1)*part], int64(w*part)) })
	}
	return l
}

func (l *load) work(ctx context.Context, w int, mine []byte, base int64) {
	r := rand.New(rand.NewPCG(uint64(w), 7))
	fresh, got := make([]byte, l.block), make([]byte, l.block)
	for i := 0; ; i++ {
		select {
		case <-l.stop:
			return
		default:
		}
		at := r.IntN(len(mine)/l.block) * l.block
		now := mine[at : at+l.block]
		if i%2 == 0 {
			copy(fresh, fmt.Sprintf("worker %d round %d at %d|", w, i, at))
			if n, err := l.f.WriteAt(ctx, fresh, base+int64(at)); n != l.block || err != nil {
				l.t.Errorf("worker %d, write %d: %d, %v", w, i, n, err)
				return
			}
			copy(now, fresh)
		} else {
			if n, err := l.f.ReadAt(ctx, got, base+int64(at)); n != l.block || err != nil {
				l.t.Errorf("worker %d, read %d: %d, %v", w, i, n, err)
				return
			}
			if string(got) != string(now) {
				l.t.Errorf("worker %d, read %d at %d: %.40q, written was %.40q", w, i, base+int64(at), got, now)
				return
			}
		}
		l.ops.Add(1)
	}
}

// until waits until n more operations are done.
func (l *load) until(n int64) {
	l.t.Helper()
	n += l.ops.Load()
	eventually(l.t, "operations", func() bool { return l.ops.Load() >= n || l.t.Failed() })
}

// end stops the workers and returns how much they did.
func (l *load) end() int64 {
	close(l.stop)
	l.wg.Wait()
	return l.ops.Load()
}
