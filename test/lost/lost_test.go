package lost

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vdbridge/test/faultnet"
	"vdbridge/test/lab"
	"vdbridge/test/leak"
)

const (
	depth = 64   // requests in flight
	unit  = 4096 // bytes of each
)

// world is a directory with a disk, and the program.
type world struct {
	t     *testing.T
	vd    *lab.Program
	disks string
	file  string
	args  []string // of serve
	serve *lab.Proc
	addr  string
}

func newWorld(t *testing.T, args ...string) *world {
	t.Helper()
	_ = lab.StartOn(func() error { return nil }) // its thread stays
	leak.Check(t)
	dir := t.TempDir()
	vd, err := lab.NewProgram(lab.Vdbridge(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, vd: vd, disks: filepath.Join(dir, "disks"), args: args}
	w.file = filepath.Join(w.disks, "a.vhdx")
	if err := os.Mkdir(w.disks, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := vd.Run(t.Context(), "create", w.file, "--size", "256M", "--block-size", "1M"); err != nil {
		t.Fatal(err)
	}
	w.start("127.0.0.1:0", args...)
	t.Cleanup(func() { w.serve.Kill() })
	return w
}

func (w *world) start(addr string, args ...string) {
	w.t.Helper()
	var err error
	if w.serve, w.addr, err = w.vd.Serve(context.Background(), w.disks, addr, args...); err != nil {
		w.t.Fatal(err)
	}
}

// restart kills the server without warning and starts it again. It returns when that was ready.
func (w *world) restart(args ...string) time.Time {
	w.t.Helper()
	w.serve.Kill()
	w.start(w.addr, args...)
	return time.Now()
}

// attach starts `vdbridge nbd`.
func (w *world) attach(args ...string) (*lab.Proc, *client) {
	w.t.Helper()
	sock := filepath.Join(w.t.TempDir(), "s")
	p, _, err := w.vd.NBD(w.t.Context(), lab.URL(w.addr, "a.vhdx"), sock, args...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(p.Kill)
	return p, connect(w.t, sock)
}

// freeAddr is an address that nobody listens on.
func freeAddr(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestMain builds the program once.
func TestMain(m *testing.M) {
	os.Exit(func() int {
		if os.Getenv(lab.Binary) == "" {
			dir, err := os.MkdirTemp("", "lost")
			if err != nil {
				panic(err)
			}
			defer os.RemoveAll(dir)
			bin := filepath.Join(dir, "vdbridge")
			if err := lab.Build(context.Background(), bin); err != nil {
				panic(err)
			}
			os.Setenv(lab.Binary, bin)
		}
		return m.Run()
	}())
}

// content is what the n-th write to a slot says.
func content(slot, n int) []byte {
	p := make([]byte, unit)
	for i := 0; i < unit; i += 16 {
		binary.LittleEndian.PutUint64(p[i:], uint64(slot))
		binary.LittleEndian.PutUint64(p[i+8:], uint64(n))
	}
	return p
}

// slotAt spreads the slots over the blocks of the image, so that some writes need new ones.
func slotAt(slot int) int64 { return int64(slot)<<20 | int64(slot)*unit }

// freshAt is a place for the slot in a block that the image does not have yet.
func freshAt(slot int) int64 { return slotAt(slot) + depth<<20 }

// The server is killed and started again under 64 requests. Every one is carried out, and what was acknowledged is there.
func TestKilledServer(t *testing.T) {
	kills := 1
	if s := os.Getenv("VDBRIDGE_KILLS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		kills = n
	}
	for _, tc := range []struct {
		name   string
		serve  []string
		attach []string
		lossy  bool // the server may lose what was not flushed, and the next flush says so
	}{
		{"shared", nil, []string{"--mode", "rsvd"}, true},
		{"shared-scsi", nil, []string{"--mode", "rsvd", "--io", "scsi"}, true},
		{"available", []string{"--ca"}, []string{"--mode", "rsvd"}, false},
		{"available-scsi", []string{"--ca"}, []string{"--mode", "rsvd", "--io", "scsi"}, false},
		{"available-channels", []string{"--ca"}, []string{"--mode", "rsvd", "--channels", "3"}, false},
		{"available-file", []string{"--ca"}, []string{"--mode", "file"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, tc.serve...)
			p, c := w.attach(tc.attach...)
			var last [depth]atomic.Int64 // the newest write that was acknowledged
			var replies, failed atomic.Int64
			var firstReply atomic.Pointer[chan struct{}]
			stop := make(chan struct{})
			var wg sync.WaitGroup
			for slot := range depth {
				wg.Go(func() {
					for n := 1; ; n++ {
						select {
						case <-stop:
							return
						default:
						}
						if err := c.write(slotAt(slot), content(slot, n)); err != nil {
							t.Errorf("write %d of slot %d: %v", n, slot, err)
							failed.Add(1)
							return
						}
						last[slot].Store(int64(n))
						replies.Add(1)
						if ch := firstReply.Swap(nil); ch != nil {
							close(*ch)
						}
					}
				})
			}
			reached := func(n int64) {
				tick := time.NewTicker(2 * time.Millisecond)
				defer tick.Stop()
				deadline := time.After(60 * time.Second)
				for start := replies.Load(); replies.Load() < start+n && failed.Load() == 0; {
					select {
					case <-tick.C:
					case <-deadline:
						t.Fatalf("nothing is carried out any more\n%s", p.Output())
					}
				}
			}
			var took []time.Duration
			for range kills {
				reached(4 * depth)
				w.serve.Kill()
				ch := make(chan struct{})
				firstReply.Store(&ch) // the replies that are under way are read before the restart
				reachedIdle(t, &replies)
				next := make(chan struct{})
				firstReply.Store(&next)
				w.start(w.addr, tc.serve...)
				ready := time.Now()
				select {
				case <-next:
					took = append(took, time.Since(ready))
				case <-time.After(60 * time.Second):
					t.Fatalf("it does not go on\n%s", p.Output())
				}
				if tc.lossy { // the flush that says so; the writes go on meanwhile
					_ = c.flush()
				}
			}
			slices.Sort(took)
			t.Logf("carried out again after the restart, with %d requests outstanding: %v", depth, took)
			reached(4 * depth)
			close(stop)
			wg.Wait()

			// The last time nobody writes the lost again.
			_ = c.flush()
			for slot := range depth {
				n := int(last[slot].Load()) + 1
				if err := c.write(freshAt(slot), content(slot, n)); err != nil {
					t.Fatal(err)
				}
			}
			w.restart(tc.serve...)
			err := c.flush()
			if told := err != nil; told != tc.lossy {
				t.Errorf("the flush after the restart says %v", err)
			}
			if err := c.flush(); err != nil {
				t.Errorf("the flush after that: %v", err)
			}
			lost := 0
			for slot := range depth {
				q := make([]byte, unit)
				if err := c.read(slotAt(slot), q); err != nil || !bytes.Equal(q, content(slot, int(last[slot].Load()))) {
					t.Errorf("slot %d is not what was flushed (%v)", slot, err)
				}
				if err := c.read(freshAt(slot), q); err != nil {
					t.Error(err)
				} else if !bytes.Equal(q, content(slot, int(last[slot].Load())+1)) {
					lost++
				}
			}
			if lost > 0 && !tc.lossy {
				t.Errorf("%d acknowledged writes are gone, and nobody said so", lost)
			}
			t.Logf("%d of %d writes that were not flushed are gone", lost, depth)
			if err := p.Stop(20 * time.Second); err != nil {
				t.Error(err)
			}
			if n := strings.Count(p.Output(), "the server is lost"); n != kills+1 {
				t.Errorf("%d losses were told, there were %d:\n%s", n, kills+1, p.Output())
			}
			if err := w.serve.Stop(20 * time.Second); err != nil {
				t.Error(err)
			}
			if out, err := w.vd.Run(t.Context(), "check", w.file); err != nil {
				t.Errorf("the image: %v\n%s", err, out)
			}
		})
	}
}

// reachedIdle waits until no more replies come.
func reachedIdle(t *testing.T, replies *atomic.Int64) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for before := int64(-1); ; {
		<-tick.C
		now := replies.Load()
		if now == before {
			return
		}
		before = now
	}
}

// With fail-after requests fail when the time is over, and work again when the server is back after all; with fail the attachment is over.
func TestFailing(t *testing.T) {
	w := newWorld(t)
	after, ca := w.attach("--on-loss", "fail-after=500ms", "--initiator", "after")
	fail, cf := w.attach("--on-loss", "fail", "--initiator", "fail")
	p := content(1, 1)
	if err := errors.Join(ca.write(0, p), cf.write(1<<20, p), ca.flush(), cf.flush()); err != nil {
		t.Fatal(err)
	}
	w.serve.Kill()
	start := time.Now()
	if err := cf.write(1<<20, p); err == nil {
		t.Error("fail: a write succeeded without a server")
	}
	if err := ca.write(0, p); err == nil || time.Since(start) < 400*time.Millisecond {
		t.Errorf("fail-after: %v after %v", err, time.Since(start))
	}
	if err := after.WaitOutput(t.Context(), "has not come back"); err != nil {
		t.Error(err)
	}
	w.start(w.addr)
	if err := cf.write(1<<20, p); err == nil {
		t.Error("fail: a write succeeded on a connection that was lost")
	}
	ok := false
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 1500 {
		if ok = ca.write(0, p) == nil; ok {
			break
		}
		<-tick.C
	}
	if !ok {
		t.Errorf("fail-after: the server is back and is not used\n%s", after.Output())
	}
	if err := ca.flush(); err != nil {
		t.Error(err)
	}
	if err := after.Stop(20 * time.Second); err != nil {
		t.Error(err)
	}
	if err := fail.Stop(20 * time.Second); err == nil || !strings.Contains(err.Error(), "exit status 9") {
		t.Errorf("fail: %v", err)
	}
}

// Another server at the same address is sent nothing, and the log says why; the right one is used when it is back.
func TestAnotherServer(t *testing.T) {
	w := newWorld(t)
	p, c := w.attach()
	if err := errors.Join(c.write(0, content(1, 1)), c.flush()); err != nil {
		t.Fatal(err)
	}
	w.serve.Kill()
	w.start(w.addr, "--state-dir", filepath.Join(t.TempDir(), "state"))
	pending := c.start(nbdWrite, nbdFUA, 0, unit, content(1, 2), nil)
	if err := p.WaitOutput(t.Context(), "another server"); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-pending:
		t.Errorf("the write has ended: %v", err)
	default:
	}
	w.restart()
	if err := <-pending; err != nil {
		t.Errorf("the right server is back: %v", err)
	}
	if err := p.Stop(20 * time.Second); err != nil {
		t.Error(err)
	}
}

// When the server dies, another one on the same directory is found at its own address.
func TestAddressesInTurn(t *testing.T) {
	w := newWorld(t, "--ca")
	second, err := lab.Start(exec.Command(w.vd.Bin, "serve", "--listen", freeAddr(t), "--share", lab.Share, "--users", filepath.Join(w.vd.Dir, "users"),
		"--ca", "--standby", w.disks), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(second.Kill)
	url, err := second.WaitLine(t.Context(), "standby ")
	if err != nil {
		t.Fatal(err)
	}
	at := strings.TrimPrefix(url, "smb://")
	at, _, _ = strings.Cut(at, "/")
	p, c := w.attach("--server-address", at, "--server-address", w.addr)
	if err := errors.Join(c.write(0, content(1, 1)), c.flush()); err != nil {
		t.Fatal(err)
	}
	var pending []chan error
	w.serve.Kill()
	for slot := range depth {
		pending = append(pending, c.start(nbdWrite, 0, slotAt(slot), unit, content(slot, 2), nil))
	}
	for slot, ch := range pending {
		if err := <-ch; err != nil {
			t.Fatalf("write of slot %d: %v\n%s", slot, err, p.Output())
		}
	}
	if err := c.flush(); err != nil {
		t.Error(err)
	}
	q := make([]byte, unit)
	for slot := range depth {
		if err := c.read(slotAt(slot), q); err != nil || !bytes.Equal(q, content(slot, 2)) {
			t.Errorf("slot %d: %v", slot, err)
		}
	}
	if !strings.Contains(p.Output(), at) {
		t.Errorf("the log does not name %s:\n%s", at, p.Output())
	}
	if err := p.Stop(20 * time.Second); err != nil {
		t.Error(err)
	}
}

// The end does not wait for a server that is lost.
func TestEndWhileLost(t *testing.T) {
	w := newWorld(t)
	p, c := w.attach()
	if err := errors.Join(c.write(0, content(1, 1)), c.flush()); err != nil {
		t.Fatal(err)
	}
	w.serve.Kill()
	pending := c.start(nbdWrite, 0, 0, unit, content(1, 2), nil)
	if err := p.WaitOutput(t.Context(), "the server is lost"); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := p.Stop(25 * time.Second); err == nil || !strings.Contains(err.Error(), "exit status 9") {
		t.Errorf("%v", err)
	}
	if err := <-pending; err == nil {
		t.Error("the write succeeded")
	}
	if d := time.Since(start); d > 15*time.Second {
		t.Errorf("it took %v", d)
	}
}

// A host that was pre-empted while it was away is shut out, and says so, until it is registered again from the command line.
func TestPreemptedWhileAway(t *testing.T) {
	w := newWorld(t, "--ca")
	relay, err := faultnet.NewRelay("tcp", "127.0.0.1:0", w.addr, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { relay.Close() })
	direct := w.addr
	_, cb := w.attach("--initiator", "b")
	w.addr = relay.Addr()
	a, ca := w.attach("--initiator", "a")
	pr := func(addr string, args ...string) {
		t.Helper()
		args = append(append([]string{"pr"}, args...), w.vd.ClientArgs()...)
		if out, err := w.vd.Run(t.Context(), append(args, lab.URL(addr, "a.vhdx"))...); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	pr(direct, "register", "--initiator", "b", "--key", "0xb2")
	pr(relay.Addr(), "register", "--initiator", "a", "--key", "0xa1")
	pr(relay.Addr(), "reserve", "--initiator", "a", "--key", "0xa1", "--type", "wero")
	if err := errors.Join(ca.write(0, content(0, 1)), ca.flush()); err != nil {
		t.Fatal(err)
	}
	relay.SetDown(true)
	if err := a.WaitOutput(t.Context(), "the server is lost"); err != nil {
		t.Fatal(err)
	}
	var pending []chan error
	for slot := range depth {
		pending = append(pending, ca.start(nbdWrite, 0, int64(slot)*unit, unit, content(slot, 2), nil))
	}
	pr(direct, "preempt", "--initiator", "b", "--key", "0xb2", "--victim", "0xa1", "--type", "wero")
	pr(direct, "release", "--initiator", "b", "--key", "0xb2", "--type", "wero") // now only the host's own conscience keeps it from writing
	relay.SetDown(false)
	for slot, ch := range pending {
		if err := <-ch; err == nil {
			t.Errorf("the outstanding write of slot %d was carried out", slot)
		}
	}
	if err := a.WaitOutput(t.Context(), "vdbridge pr register"); err != nil { // what to do
		t.Fatal(err)
	}
	if err := ca.write(0, content(0, 3)); err == nil {
		t.Error("a host that is shut out has written")
	}
	q, zero := make([]byte, unit), make([]byte, unit)
	for slot := range depth {
		want := zero
		if slot == 0 {
			want = content(0, 1)
		}
		if err := cb.read(int64(slot)*unit, q); err != nil || !bytes.Equal(q, want) {
			t.Errorf("slot %d was written (%v)", slot, err)
		}
	}
	pr(relay.Addr(), "register", "--initiator", "a", "--key", "0xa3")
	ok := false
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 1000 {
		if ok = ca.write(0, content(0, 4)) == nil; ok {
			break
		}
		<-tick.C
	}
	if !ok {
		t.Errorf("it is registered again, and cannot write:\n%s", a.Output())
	}
	if err := a.Stop(20 * time.Second); err != nil {
		t.Error(err)
	}
}
