package nbd

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vdbridge/test/ramdisk"
)

// kernelSide is what the kernel's driver would do on a connection.
func kernelSide(t *testing.T, srv *Server, x *Export) (*rawClient, <-chan error) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ends := [2]net.Conn{fileConn(t, fds[0]), fileConn(t, fds[1])}
	t.Cleanup(func() { ends[0].Close() })
	ends[0].SetDeadline(time.Now().Add(60 * time.Second))
	done := make(chan error, 1)
	go func() { done <- srv.ServeKernel(ends[1], x) }()
	return &rawClient{t: t, c: ends[0], style: styleSimple}, done
}

func fileConn(t testing.TB, fd int) net.Conn {
	t.Helper()
	f := os.NewFile(uintptr(fd), "pair")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func kernelServer(t *testing.T) *Server {
	t.Helper()
	srv, err := NewServer(Config{Resolver: Exports{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { srv.Close() })
	return srv
}

// A write whose connection the kernel has given up is still on its way to the disk when the kernel sends it again and then writes something newer.
// The newer must be what stays.
func TestKernelResendsDoNotOvertake(t *testing.T) {
	d := ramdisk.New(1<<20, 512)
	old, newer := pattern(4096, 1), pattern(4096, 2)
	release, begun := make(chan struct{}), make(chan struct{})
	var mu sync.Mutex
	calls := 0
	d.SetHook(func(ctx context.Context, op ramdisk.Op, off, n int64) error {
		if op != ramdisk.Write {
			return nil
		}
		mu.Lock()
		calls++
		first := calls == 1
		mu.Unlock()
		if first {
			close(begun)
			select {
			case <-release:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	settled := NewSettled(t.Context(), d)
	x := &Export{Disk: settled}
	srv := kernelServer(t)
	a, aDone := kernelSide(t, srv, x)
	b, _ := kernelSide(t, srv, x)
	a.request(wireRequest{cmd: cmdWrite, cookie: 1, length: 4096}, old)
	<-begun
	a.request(wireRequest{cmd: cmdWrite, cookie: 9, offset: 512, length: 512}, old[:512]) // waits behind the first
	for srv.budget.used.Load() < 2*requestCost+4096+512 {
		<-time.After(time.Millisecond)
	}
	before := srv.budget.used.Load()
	a.c.Close() // the kernel gives up
	// What had not begun is dropped at once, not after the time that a client gets that may still listen.
	for deadline := time.Now().Add(srv.cfg.DrainTimeout / 2); srv.budget.used.Load() >= before; {
		if time.Now().After(deadline) {
			t.Fatal("a request that had not begun is kept though its connection is dead")
		}
		<-time.After(time.Millisecond)
	}
	b.request(wireRequest{cmd: cmdWrite, cookie: 2, length: 4096}, old)
	// The disk answers reads, and other places can be written, while the old write is stuck.
	b.expect(0, wireRequest{cmd: cmdRead, cookie: 3, offset: 8192, length: 512}, nil)
	b.expect(0, wireRequest{cmd: cmdWrite, cookie: 4, offset: 8192, length: 512}, pattern(512, 9))
	mu.Lock()
	if calls != 2 {
		t.Errorf("the disk has seen %d writes while the first one was on its way; the repeated one has overtaken it", calls)
	}
	mu.Unlock()
	select {
	case err := <-aDone:
		t.Fatalf("the connection ended (%v) before its write had", err)
	default:
	}
	close(release)
	if ans := b.answer(nil); ans.errno != 0 || ans.cookie != 2 {
		t.Fatalf("the repeated write: %+v", ans)
	}
	b.expect(0, wireRequest{cmd: cmdWrite, cookie: 5, length: 4096}, newer)
	if err := <-aDone; err == nil {
		t.Error("a connection that was shut down without goodbye counts as a good end")
	}
	if got := b.read(0, 4096); !bytes.Equal(got, newer) {
		t.Error("the old write undid the newer one")
	}
	if n := settled.InProgress(); n != 0 {
		t.Errorf("%d changes are still entered", n)
	}
}

// Requests that only wait behind another are dropped with their connection, so that repeating does not pile up.
func TestSettledWaitersGoWithTheirContext(t *testing.T) {
	d := ramdisk.New(1<<20, 512)
	release, begun := make(chan struct{}), make(chan struct{}, 8)
	d.SetHook(func(ctx context.Context, op ramdisk.Op, _, _ int64) error {
		begun <- struct{}{}
		<-release
		return nil
	})
	s := NewSettled(t.Context(), d)
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 3)
	go func() { errs <- s.Write(ctx, make([]byte, 4096), 0, false) }()
	<-begun
	waiting, give := context.WithCancel(t.Context())
	go func() { errs <- s.Trim(waiting, 2048, 4096) }()
	go func() { errs <- s.WriteZeroes(waiting, 0, 512, true, false) }()
	give()
	for range 2 {
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Errorf("a waiter says %v", err)
		}
	}
	cancel() // the write has begun: it goes on
	select {
	case err := <-errs:
		t.Fatalf("the write ended with its caller's context: %v", err)
	default:
	}
	close(release)
	if err := <-errs; err != nil {
		t.Error(err)
	}
	if len(begun) != 0 {
		t.Error("a waiter that was given up reached the disk")
	}
	// Neighbours do not wait, and nothing is left.
	for _, off := range []int64{0, 4096} {
		if err := s.Write(t.Context(), make([]byte, 4096), off, false); err != nil {
			t.Error(err)
		}
	}
	if n := s.InProgress(); n != 0 {
		t.Errorf("%d changes are still entered", n)
	}
}

// When the server closes, the kernel hears nothing of what it sent too late; an error would reach the application.
func TestKernelConnectionEndsWithoutErrors(t *testing.T) {
	d := ramdisk.New(1<<20, 512)
	release, begun := make(chan struct{}), make(chan struct{})
	d.SetHook(func(_ context.Context, op ramdisk.Op, _, _ int64) error {
		if op == ramdisk.Flush {
			close(begun)
			<-release
		}
		return nil
	})
	srv := kernelServer(t)
	k, done := kernelSide(t, srv, &Export{Disk: d})
	k.request(wireRequest{cmd: cmdFlush, cookie: 1}, nil)
	<-begun
	closed := make(chan error, 1)
	go func() { closed <- srv.Close() }()
	for !srv.draining.Load() {
		<-time.After(time.Millisecond)
	}
	k.request(wireRequest{cmd: cmdRead, cookie: 2, length: 512}, nil)
	close(release)
	if a := k.answer(nil); a.cookie != 1 || a.errno != 0 {
		t.Errorf("the request in flight: %+v", a)
	}
	k.gone()
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, ErrServerClosed) {
		t.Errorf("ServeKernel says %v", err)
	}
}

// grower is a disk that grows.
type grower struct {
	*ramdisk.Disk
	size func() int64
}

func (g grower) Size() int64 { return g.size() }

func TestKernelDeviceGrows(t *testing.T) {
	var mu sync.Mutex
	size := int64(1 << 20)
	d := grower{ramdisk.New(2<<20, 512), func() int64 { mu.Lock(); defer mu.Unlock(); return size }}
	k, done := kernelSide(t, kernelServer(t), &Export{Disk: d})
	q := wireRequest{cmd: cmdWrite, offset: 1 << 20, length: 512}
	k.expect(nbdENOSPC, q, make([]byte, 512))
	mu.Lock()
	size = 2 << 20
	mu.Unlock()
	k.expect(0, q, make([]byte, 512))
	k.bye()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestKernelFlags(t *testing.T) {
	d := ramdisk.New(1<<20, 512)
	f, err := KernelFlags(&Export{Disk: d})
	if want := uint64(txHasFlags | txSendFlush | txSendFUA | txSendTrim | txSendWriteZeroes | txCanMultiConn); err != nil || f&want != want || f&txReadOnly != 0 {
		t.Errorf("flags %#x, %v", f, err)
	}
	if f, _ := KernelFlags(&Export{Disk: d, ReadOnly: true, SingleConn: true}); f&(txReadOnly|txCanMultiConn|txSendTrim) != txReadOnly {
		t.Errorf("read-only flags %#x", f)
	}
}

func TestSettledWarmWriteAllocs(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	s := NewSettled(t.Context(), ramdisk.New(1<<20, 512))
	p := make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() {
		if err := s.Write(t.Context(), p, 4096, false); err != nil {
			t.Error(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations per write", n)
	}
}
