package fusefs

import (
	"context"
	"errors"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vdbridge/test/ramdisk"
)

// The disks are shared ones: their reads are direct, so that the caller waits for this very request and a signal reaches it. Of a cached file it
// waits for the page, which only a deadly signal ends.

// signalled reads a block of v in a thread of its own, sends it a signal as often as told while the disk has the request, calls then, and
// returns what the read returned.
func signalled(t *testing.T, v *view, entered <-chan struct{}, then func()) (int, error) {
	t.Helper()
	fd := int(open(t, v.raw, os.O_RDONLY).Fd())
	tid := make(chan int, 1)
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		tid <- unix.Gettid()
		n, err := unix.Pread(fd, make([]byte, 4096), 0)
		done <- result{n, err}
	}()
	id := <-tid
	<-entered
	for range 20 {
		if err := unix.Tgkill(os.Getpid(), id, syscall.SIGURG); errors.Is(err, unix.ESRCH) {
			break // the read has ended, and its thread with it
		} else if err != nil {
			t.Fatal(err)
		}
		// The kernel sends the interruption before any request that comes later, so it has arrived when this is answered.
		var st unix.Statfs_t
		if err := unix.Statfs(v.dir, &st); err != nil {
			t.Fatal(err)
		}
	}
	then()
	r := <-done
	return r.n, r.err
}

// TestSignalDoesNotFailARead has a signal come while the disk works. The Go runtime sends itself such signals all the time.
func TestSignalDoesNotFailARead(t *testing.T) {
	d := ramdisk.New(1<<20, 512)
	v := show(t, sharedDisk{d}, Options{InterruptAfter: time.Hour})
	entered, release := make(chan struct{}, 10), make(chan struct{})
	d.SetHook(func(ctx context.Context, op ramdisk.Op, _, _ int64) error {
		if op != ramdisk.Read {
			return nil
		}
		entered <- struct{}{}
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	n, err := signalled(t, v, entered, func() { close(release) })
	if n != 4096 || err != nil {
		t.Errorf("read %d bytes: %v", n, err)
	}
	d.SetHook(nil)
}

// TestSignalEndsAHangingRead has a disk that never answers, and a user who has waited long enough.
func TestSignalEndsAHangingRead(t *testing.T) {
	d := ramdisk.New(1<<20, 512)
	v := show(t, sharedDisk{d}, Options{InterruptAfter: time.Millisecond})
	entered := make(chan struct{}, 10)
	d.SetHook(func(ctx context.Context, op ramdisk.Op, _, _ int64) error {
		if op != ramdisk.Read {
			return nil
		}
		entered <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	})
	if n, err := signalled(t, v, entered, func() {}); !errors.Is(err, unix.EINTR) {
		t.Errorf("read %d bytes: %v", n, err)
	}
	d.SetHook(nil)
}
