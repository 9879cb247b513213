package attach

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vdbridge/bridge"
	"vdbridge/bridge/daemon"
	"vdbridge/nbd"
	"vdbridge/nbd/kernel"
	"vdbridge/test/ramdisk"
	"vdbridge/test/vm"
)

// inGuest tells this test binary that it runs inside a guest.
const inGuest = "VDBRIDGE_TEST_ATTACH"

// TestDirect boots a guest in which this test binary runs the tests that are called TestGuest….
func TestDirect(t *testing.T) {
	vm.Need(t, "modprobe", "sfdisk", "mkfs.ext4", "fio")
	share := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(share, "guest.test"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	out := vm.MustRun(t, vm.Options{Share: []string{share}, Memory: "1G", Timeout: 4 * time.Minute,
		Script: "cd " + share + " && " + inGuest + "=1 VDBRIDGE_VM=" + os.Getenv("VDBRIDGE_VM") + " ./guest.test -test.v -test.timeout 200s -test.run '^TestGuest' 2>&1"})
	passed := regexp.MustCompile(`(?m)^--- PASS: TestGuest`).FindAllString(out, -1)
	if len(passed) < 7 {
		t.Errorf("%d tests passed in the guest:\n%s", len(passed), out)
	}
	if testing.Verbose() {
		t.Log(out)
	}
}

func guest(t *testing.T) {
	t.Helper()
	if os.Getenv(inGuest) == "" {
		t.Skip("runs in a guest, started by TestDirect")
	}
	if err := kernel.Load(); err != nil {
		t.Fatal(err)
	}
}

// disk is a RAM disk that can be made larger, and whose requests can be held up.
type disk struct {
	*ramdisk.Disk
	size   atomic.Int64
	resize atomic.Pointer[func(int64)]
	writes atomic.Int64
}

func newDisk(size int64) *disk {
	d := &disk{Disk: ramdisk.New(1<<30, 512)}
	d.size.Store(size)
	// With a hook the disk counts as one that may block, as ours all are.
	d.SetHook(func(_ context.Context, op ramdisk.Op, _, _ int64) error {
		if op == ramdisk.Write {
			d.writes.Add(1)
		}
		return nil
	})
	return d
}

func (d *disk) Size() int64            { return d.size.Load() }
func (d *disk) OnResize(f func(int64)) { d.resize.Store(&f) }
func (d *disk) Status() bridge.DiskStatus {
	return bridge.DiskStatus{State: bridge.StateConnected, Size: d.Size()}
}
func (d *disk) Reservation(context.Context) (*bridge.ReservationStatus, error) { return nil, nil }
func (d *disk) setSize(n int64) {
	d.size.Store(n)
	if f := d.resize.Load(); f != nil && *f != nil {
		(*f)(n)
	}
}

// cutter is a driver that remembers the kernel's ends of the sockets, so that it can cut them.
type cutter struct {
	kernel.Driver
	mu    sync.Mutex
	socks []int
}

func (c *cutter) note(files []*os.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err == nil {
			c.socks = append(c.socks, fd)
		}
	}
}

func (c *cutter) Connect(cfg kernel.Config) (int, error) {
	c.note(cfg.Sockets)
	return c.Driver.Connect(cfg)
}

func (c *cutter) Reconnect(index int, ch kernel.Change) error {
	c.note(ch.Sockets)
	return c.Driver.Reconnect(index, ch)
}

// cut shuts all down that were given to the kernel before, from the nth on.
func (c *cutter) cut(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := n; i < len(c.socks); i++ {
		_ = unix.Shutdown(c.socks[i], unix.SHUT_RDWR)
	}
}

func (c *cutter) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, fd := range c.socks {
		unix.Close(fd)
	}
	c.socks = nil
}

type rig struct {
	*daemon.Manager
	driver *cutter
	disks  map[string]*disk
}

func newRig(t *testing.T, sizes map[string]int64) *rig {
	t.Helper()
	d, err := kernel.OpenNetlink()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{driver: &cutter{Driver: d}, disks: map[string]*disk{}}
	for url, n := range sizes {
		r.disks[url] = newDisk(n)
	}
	r.Manager, err = daemon.NewManager(daemon.Config{StateDir: t.TempDir(), Driver: r.driver, Logger: slog.New(slog.DiscardHandler),
		Open: func(_ context.Context, s *daemon.Spec, _ map[string]string) (daemon.Disk, error) {
			return r.disks[s.URL], nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, s := range r.Status() {
			if _, err := r.Detach(context.Background(), &daemon.Request{Target: s.Where, Force: true}); err != nil {
				t.Error(err)
			}
		}
		r.driver.forget()
		if err := errors.Join(r.Close(), d.Close()); err != nil {
			t.Error(err)
		}
	})
	return r
}

const url = "smb://u@h/s/a.vhdx"

func (r *rig) attach(t *testing.T, url string, change func(*daemon.Spec)) string {
	t.Helper()
	s := daemon.Spec{URL: url, Connections: 2, IOTimeout: 2 * time.Second}
	if change != nil {
		change(&s)
	}
	a, err := r.Attach(t.Context(), s, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Warnings) > 0 {
		t.Errorf("warnings: %q", a.Warnings)
	}
	return a.Device
}

func sh(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "/bin/sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// direct opens a device so that every write and read reaches it.
func direct(t *testing.T, device string) *os.File {
	t.Helper()
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// aligned is a buffer for direct I/O.
func aligned(t *testing.T, n int) []byte {
	t.Helper()
	p, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(p) })
	return p
}

// hammer writes to its own part of a device and reads back, until stop is closed. Every write that was acknowledged must be there.
func hammer(t *testing.T, device string, from, size int64, stop <-chan struct{}) {
	f := direct(t, device)
	p, q := aligned(t, 4096), aligned(t, 4096)
	rng := rand.New(rand.NewPCG(uint64(from), 1))
	last := map[int64]uint64{}
	check := func(off int64) bool {
		if _, err := f.ReadAt(q, off); err != nil {
			t.Errorf("read at %d: %v", off, err)
			return false
		}
		if want := fill(p, off, last[off]); !bytes.Equal(q, want) {
			t.Errorf("at %d: generation %d is not what is there", off, last[off])
			return false
		}
		return true
	}
	for n := uint64(1); ; n++ {
		select {
		case <-stop:
			for off := range last {
				if !check(off) {
					return
				}
			}
			return
		default:
		}
		off := from + rng.Int64N(size/4096)*4096
		if _, err := f.WriteAt(fill(p, off, n), off); err != nil {
			t.Errorf("write at %d: %v", off, err)
			return
		}
		last[off] = n
		if n%4 == 0 && !check(off) {
			return
		}
	}
}

func fill(p []byte, off int64, n uint64) []byte {
	for i := range p {
		p[i] = byte(uint64(off>>9) + n*31 + uint64(i)*n)
	}
	return p
}

// underLoad runs f while four writers work on a device.
func underLoad(t *testing.T, device string, f func()) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() { hammer(t, device, int64(i)<<20, 128<<10, stop) })
	}
	f()
	close(stop)
	wg.Wait()
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(60 * time.Second)
	for !ok() {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-deadline:
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// blktests nbd/001: the size is seen where it should be, and follows, here while the device works.
func TestGuestResize(t *testing.T) {
	guest(t)
	r := newRig(t, map[string]int64{url: 64 << 20})
	dev := r.attach(t, url, nil)
	underLoad(t, dev, func() {
		for _, n := range []int64{128 << 20, 512 << 20, 96 << 20} {
			r.disks[url].setSize(n)
			until(t, fmt.Sprintf("the device has %d", n), func() bool { s, _ := kernel.Sys{}.Size(0); return s == n })
		}
	})
	f := direct(t, dev)
	p := aligned(t, 4096)
	if _, err := f.WriteAt(fill(p, 1, 1), 96<<20-4096); err != nil {
		t.Errorf("write at the new end: %v", err)
	}
	if n, err := f.Seek(0, io.SeekEnd); n != 96<<20 || err != nil {
		t.Errorf("the device ends at %d, %v", n, err)
	}
}

// Connections are cut one by one, then both at once, under load. Each is replaced, and nothing is lost or comes late.
func TestGuestConnectionsCut(t *testing.T) {
	guest(t)
	r := newRig(t, map[string]int64{url: 64 << 20})
	dev := r.attach(t, url, nil)
	healed := func(n uint64) {
		until(t, fmt.Sprintf("%d connections were renewed", n), func() bool {
			d := r.Status()[0].Device
			return d.Alive >= 2 && d.Renewed >= n
		})
	}
	underLoad(t, dev, func() {
		r.driver.cut(1)
		healed(1)
		r.driver.cut(0)
		healed(3)
		r.driver.cut(0)
		healed(5)
	})
}

// A request that takes longer than the timeout is sent again by the kernel; what the first copy does late must not undo what came after.
func TestGuestRequestThatTakesTooLong(t *testing.T) {
	guest(t)
	r := newRig(t, map[string]int64{url: 64 << 20})
	dev := r.attach(t, url, nil)
	release, begun := make(chan struct{}), make(chan struct{})
	var calls atomic.Int32
	r.disks[url].SetHook(func(_ context.Context, op ramdisk.Op, off, _ int64) error {
		if op == ramdisk.Write && off == 8<<20 && calls.Add(1) == 1 {
			close(begun)
			<-release
		}
		return nil
	})
	f := direct(t, dev)
	p, q := aligned(t, 4096), aligned(t, 4096)
	wrote := make(chan error, 1)
	go func() {
		_, err := f.WriteAt(fill(p, 0, 1), 8<<20)
		if err == nil {
			_, err = f.WriteAt(fill(p, 0, 2), 8<<20)
		}
		wrote <- err
	}()
	<-begun
	until(t, "the kernel gave a connection up and got another", func() bool { return r.Status()[0].Device.Renewed >= 1 })
	if _, err := f.ReadAt(q, 0); err != nil {
		t.Errorf("other requests: %v", err)
	}
	if n := calls.Load(); n != 1 {
		t.Errorf("the repeated write has overtaken the first: %d reached the disk", n)
	}
	close(release)
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(q, 8<<20); err != nil || !bytes.Equal(q, fill(p, 0, 2)) {
		t.Errorf("the older write is what stayed (%v)", err)
	}
}

// sockets counts what of ours is open.
func sockets(t *testing.T) (fds, devices int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries), len(kernel.Sys{}.List())
}

// Fifty rounds (a dozen, unless all is asked for) of attaching, working and detaching leave no device, descriptor, goroutine or memory behind.
func TestGuestFiftyRounds(t *testing.T) {
	guest(t)
	r := newRig(t, map[string]int64{url: 64 << 20})
	round := func() {
		dev := r.attach(t, url, nil)
		f := direct(t, dev)
		p := aligned(t, 4096)
		if _, err := f.WriteAt(p, 4096); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if _, err := r.Detach(t.Context(), &daemon.Request{Target: dev}); err != nil {
			t.Fatal(err)
		}
		r.driver.forget()
		if dev != "/dev/nbd0" || (kernel.Sys{}).Connected(0) {
			t.Fatalf("device %s", dev)
		}
	}
	memory := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for range 5 {
		round()
	}
	fds, devices := sockets(t)
	goroutines, heap := runtime.NumGoroutine(), memory()
	rounds := 7
	if os.Getenv("VDBRIDGE_VM") == "all" {
		rounds = 45
	}
	for range rounds {
		round()
	}
	until(t, "descriptors and goroutines are as before", func() bool {
		f, d := sockets(t)
		return f <= fds && d == devices && runtime.NumGoroutine() <= goroutines
	})
	if h := memory(); h > heap+8<<20 {
		t.Errorf("the heap has grown from %d to %d bytes", heap, h)
	}
}

// Sixteen disks are attached at the same moment and work at the same time; each has its own data.
func TestGuestSixteenDisks(t *testing.T) {
	guest(t)
	sizes := map[string]int64{}
	for i := range 16 {
		sizes[fmt.Sprintf("smb://u@h/s/%d.vhdx", i)] = 32 << 20
	}
	r := newRig(t, sizes)
	var mu sync.Mutex
	devices := map[string]string{}
	var wg sync.WaitGroup
	for url := range sizes {
		wg.Go(func() {
			a, err := r.Attach(t.Context(), daemon.Spec{URL: url, Connections: 2, IOTimeout: 30 * time.Second}, nil)
			if err != nil {
				t.Errorf("%s: %v", url, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if devices[a.Device] != "" {
				t.Errorf("%s was given twice", a.Device)
			}
			devices[a.Device] = url
		})
	}
	wg.Wait()
	if len(devices) != 16 {
		t.Fatalf("%d devices", len(devices))
	}
	for dev, url := range devices {
		wg.Go(func() {
			f, err := os.OpenFile(dev, os.O_RDWR|unix.O_SYNC, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte(url), 1<<20); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	start := time.Now()
	list := r.Status()
	t.Logf("status of %d disks in %v", len(list), time.Since(start))
	for dev, url := range devices {
		p := make([]byte, 512)
		if err := r.disks[url].Read(t.Context(), p, 1<<20); err != nil || !bytes.HasPrefix(p, []byte(url)) {
			t.Errorf("%s has %q on its disk, not %q (%v)", dev, p[:32], url, err)
		}
	}
}

// blktests nbd/002: partitions are there when the device is, whichever way it was connected; and the ioctl way as a whole.
func TestGuestIoctl(t *testing.T) {
	guest(t)
	r := newRig(t, map[string]int64{url: 64 << 20})
	dev := r.attach(t, url, nil)
	sh(t, "printf 'label: dos\\n,16M\\n,\\n' | sfdisk -q "+dev)
	if _, err := r.Detach(t.Context(), &daemon.Request{Target: dev}); err != nil {
		t.Fatal(err)
	}
	dev = r.attach(t, url, nil)
	if p := (kernel.Sys{}).Partitions(0); len(p) != 2 {
		t.Errorf("by netlink: partitions %v", p)
	}
	// The device that netlink has is not to be had by ioctl.
	io, err := kernel.OpenIoctl(kernel.Sys{})
	if err != nil {
		t.Fatal(err)
	}
	defer io.Close()
	if _, err := io.Connect(kernel.Config{Index: 0, Size: 4096, BlockSize: 512, Sockets: []*os.File{os.Stdin}}); !errors.Is(err, kernel.ErrBusy) {
		t.Errorf("a device that netlink has: %v", err)
	}
	if _, err := r.Detach(t.Context(), &daemon.Request{Target: dev}); err != nil {
		t.Fatal(err)
	}
	m, err := daemon.NewManager(daemon.Config{StateDir: t.TempDir(), Driver: io,
		Open: func(context.Context, *daemon.Spec, map[string]string) (daemon.Disk, error) { return r.disks[url], nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	a, err := m.Attach(t.Context(), daemon.Spec{URL: url, Connections: 2, IOTimeout: 30 * time.Second}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Partitions) != 2 {
		t.Errorf("by ioctl: partitions %v", a.Partitions)
	}
	sh(t, "mkfs.ext4 -q -F "+a.Device+"p2; mkdir -p /tmp/x; mount "+a.Device+"p2 /tmp/x; dd if=/dev/urandom of=/tmp/x/f bs=1M count=8 2>/dev/null; umount /tmp/x; e2fsck -fn "+a.Device+"p2")
	r.disks[url].setSize(128 << 20)
	until(t, "it has grown", func() bool { n, _ := kernel.Sys{}.Size(0); return n == 128<<20 })
	if _, err := m.Detach(t.Context(), &daemon.Request{Target: a.Device}); err != nil {
		t.Fatal(err)
	}
	if (kernel.Sys{}).Connected(0) {
		t.Error("still connected")
	}
}

// blktests nbd/003: mounting and unmounting while the device is disconnected under it again and again ends in errors, never in a hang.
func TestGuestMountAgainstDisconnect(t *testing.T) {
	guest(t)
	r := newRig(t, map[string]int64{url: 64 << 20})
	dev := r.attach(t, url, nil)
	sh(t, "mkfs.ext4 -q -F "+dev+"; mkdir -p /tmp/y")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = exec.Command("mount", "-o", "errors=continue", dev, "/tmp/y").Run()
				_ = exec.Command("umount", "/tmp/y").Run()
			}
		}
	})
	for range 10 {
		_ = r.driver.Disconnect(0)
		until(t, "it is forgotten", func() bool { return r.Attachments() == 0 })
		until(t, "it is free", func() bool { return !(kernel.Sys{}).Connected(0) })
		dev = r.attach(t, url, func(s *daemon.Spec) { s.Device = "/dev/nbd0" })
	}
	close(stop)
	wg.Wait()
}

// blktests nbd/004: the module cannot go while a device is connected, and can once it is not.
func TestGuestModule(t *testing.T) {
	guest(t)
	r := newRig(t, map[string]int64{url: 64 << 20})
	dev := r.attach(t, url, nil)
	f := direct(t, dev)
	if err := exec.Command("modprobe", "-r", "nbd").Run(); err == nil {
		t.Error("the module went while a device was open")
	}
	p := aligned(t, 4096)
	if _, err := f.WriteAt(p, 0); err != nil {
		t.Error(err)
	}
	f.Close()
	if _, err := r.Detach(t.Context(), &daemon.Request{Target: dev}); err != nil {
		t.Fatal(err)
	}
}

// What the driver says of its devices.
func TestGuestStatus(t *testing.T) {
	guest(t)
	r := newRig(t, map[string]int64{url: 64 << 20})
	dev := r.attach(t, url, func(s *daemon.Spec) { s.Device = "/dev/nbd7" })
	if dev != "/dev/nbd7" {
		t.Errorf("device %s", dev)
	}
	list, err := r.driver.Devices()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range list {
		if d.Connected != (d.Index == 7) {
			t.Errorf("%+v", d)
		}
	}
	if len(list) < 8 {
		t.Errorf("%d devices", len(list))
	}
	if err := r.driver.Reconnect(7, kernel.Change{Backend: "another", Size: 4096}); !errors.Is(err, kernel.ErrForeign) {
		t.Errorf("another's device: %v", err)
	}
	if err := r.driver.Reconnect(3, kernel.Change{Size: 4096}); !errors.Is(err, kernel.ErrGone) {
		t.Errorf("a device that is not connected: %v", err)
	}
	if _, err := nbd.KernelFlags(&nbd.Export{Disk: r.disks[url]}); err != nil {
		t.Error(err)
	}
	if out := sh(t, "cat /sys/block/nbd7/backend"); !strings.HasPrefix(out, "vdbridge:") {
		t.Errorf("backend %q", out)
	}
}
