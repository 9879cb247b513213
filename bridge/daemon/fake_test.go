package daemon

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vdbridge/bridge"
	"vdbridge/nbd/kernel"
	"vdbridge/test/leak"
	"vdbridge/test/ramdisk"
)

func TestMain(m *testing.M) { os.Exit(leak.Main(m)) }

// fakeKernel is the nbd driver as far as these tests need it: it keeps sockets, marks dead what hangs up, takes fresh sockets for dead ones only, and shows
// itself in a sysfs of its own.
type fakeKernel struct {
	t    testing.TB
	root string

	mu       sync.Mutex
	devs     map[int]*fakeDevice
	events   func(int)
	connects int
	survives bool
}

type fakeDevice struct {
	cfg   kernel.Config
	socks []net.Conn // nil: dead
}

func newFakeKernel(t testing.TB, devices int) *fakeKernel {
	k := &fakeKernel{t: t, root: t.TempDir(), devs: map[int]*fakeDevice{}, survives: true}
	for i := range devices {
		k.file(fmt.Sprintf("sys/block/nbd%d/size", i), "0\n")
		k.file(fmt.Sprintf("sys/block/nbd%d/dev", i), fmt.Sprintf("43:%d\n", i*32))
		k.file(fmt.Sprintf("sys/block/nbd%d/inflight", i), "0 0\n")
		k.file(fmt.Sprintf("sys/block/nbd%d/queue/rotational", i), "0\n")
		k.file(fmt.Sprintf("dev/nbd%d", i), "")
	}
	t.Cleanup(func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		for i := range k.devs {
			k.drop(i)
		}
	})
	return k
}

func (k *fakeKernel) sys() kernel.Sys { return kernel.Sys{Root: k.root} }

func (k *fakeKernel) file(name, content string) {
	path := filepath.Join(k.root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
		k.t.Error(err)
	}
}

func (k *fakeKernel) Survives() bool { return k.survives }
func (k *fakeKernel) Close() error   { return nil }

func (k *fakeKernel) Watch(ctx context.Context, dead func(int)) error {
	k.mu.Lock()
	k.events = dead
	k.mu.Unlock()
	<-ctx.Done()
	return ctx.Err()
}

func (k *fakeKernel) Devices() ([]kernel.Device, error) { return nil, nil }

func take(f *os.File) net.Conn {
	c, err := net.FileConn(f)
	if err != nil {
		panic(err)
	}
	return c
}

func (k *fakeKernel) Connect(c kernel.Config) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.connects++
	index := c.Index
	if index == kernel.Any {
		for index = 0; k.devs[index] != nil; index++ {
		}
		if _, err := os.Stat(k.sys().Node(index)); err != nil {
			return 0, kernel.ErrBusy
		}
	}
	if k.devs[index] != nil {
		return 0, kernel.ErrBusy
	}
	d := &fakeDevice{cfg: c}
	for _, f := range c.Sockets {
		d.socks = append(d.socks, take(f))
	}
	k.devs[index] = d
	k.file(fmt.Sprintf("sys/block/nbd%d/pid", index), "1\n")
	k.file(fmt.Sprintf("sys/block/nbd%d/backend", index), c.Backend+"\n")
	k.file(fmt.Sprintf("sys/block/nbd%d/size", index), fmt.Sprintln(c.Size>>9))
	return index, nil
}

func (k *fakeKernel) Reconnect(index int, c kernel.Change) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.devs[index]
	if d == nil {
		return kernel.ErrGone
	}
	if d.cfg.Backend != c.Backend {
		return kernel.ErrForeign
	}
	if c.Size > 0 {
		k.file(fmt.Sprintf("sys/block/nbd%d/size", index), fmt.Sprintln(c.Size>>9))
	}
	for _, f := range c.Sockets {
		for i, s := range d.socks {
			if s == nil || hungUp(s) {
				if s != nil {
					s.Close()
				}
				d.socks[i] = take(f)
				break
			}
		}
	}
	return nil
}

func (k *fakeKernel) Disconnect(index int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.devs[index] == nil {
		return kernel.ErrGone
	}
	for _, s := range k.devs[index].socks {
		if s != nil {
			_, _ = s.Write(fakeRequest(2, 0, 0, nil))
		}
	}
	k.drop(index)
	return nil
}

// drop takes a device away. k.mu is held.
func (k *fakeKernel) drop(index int) {
	for _, s := range k.devs[index].socks {
		if s != nil {
			s.Close()
		}
	}
	delete(k.devs, index)
	os.Remove(filepath.Join(k.root, fmt.Sprintf("sys/block/nbd%d/pid", index)))
	os.Remove(filepath.Join(k.root, fmt.Sprintf("sys/block/nbd%d/backend", index)))
}

// cut shuts one connection down as the kernel does after a timeout.
func (k *fakeKernel) cut(index, link int) {
	k.mu.Lock()
	d := k.devs[index]
	d.socks[link].Close()
	d.socks[link] = nil
	events := k.events
	k.mu.Unlock()
	if events != nil {
		events(index)
	}
}

func fakeRequest(cmd uint16, off uint64, n int, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, 0x25609513)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint16(b, cmd)
	b = binary.BigEndian.AppendUint64(b, 42)
	b = binary.BigEndian.AppendUint64(b, off)
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	return append(b, payload...)
}

// do sends a request on a connection and returns the NBD error and the data of the reply.
func (k *fakeKernel) do(index, link int, cmd uint16, off uint64, n int, payload []byte) (uint32, []byte, error) {
	k.mu.Lock()
	var s net.Conn
	if d := k.devs[index]; d != nil {
		s = d.socks[link]
	}
	k.mu.Unlock()
	if s == nil {
		return 0, nil, io.ErrClosedPipe
	}
	s.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := s.Write(fakeRequest(cmd, off, n, payload)); err != nil {
		return 0, nil, err
	}
	var h [16]byte
	if _, err := io.ReadFull(s, h[:]); err != nil {
		return 0, nil, err
	}
	errno := binary.BigEndian.Uint32(h[4:])
	if cmd != 0 || errno != 0 {
		return errno, nil, nil
	}
	p := make([]byte, n)
	_, err := io.ReadFull(s, p)
	return 0, p, err
}

// testDisk is a RAM disk as the daemon wants one.
type testDisk struct {
	*ramdisk.Disk
	size   atomic.Int64
	state  atomic.Pointer[string]
	resize atomic.Pointer[func(int64)]
	closed atomic.Int32
}

func newTestDisk(size int64) *testDisk {
	d := &testDisk{Disk: ramdisk.New(16<<20, 512)}
	d.size.Store(size)
	return d
}

func (d *testDisk) Size() int64            { return d.size.Load() }
func (d *testDisk) Close() error           { d.closed.Add(1); return nil }
func (d *testDisk) OnResize(f func(int64)) { d.resize.Store(&f) }
func (d *testDisk) grow(n int64) {
	d.size.Store(n)
	if f := d.resize.Load(); f != nil && *f != nil {
		(*f)(n)
	}
}

func (d *testDisk) Status() bridge.DiskStatus {
	s := bridge.DiskStatus{State: bridge.StateConnected, Size: d.Size()}
	if st := d.state.Load(); st != nil {
		s.State = *st
	}
	return s
}

func (d *testDisk) Reservation(context.Context) (*bridge.ReservationStatus, error) { return nil, nil }

// bench is a manager over a fake kernel and disks by URL.
type bench struct {
	t   testing.TB
	k   *fakeKernel
	cfg Config

	mu    sync.Mutex
	disks map[string]*testDisk
	opens int
	fail  error // of the next opens
	env   map[string]string
}

func newBench(t testing.TB) *bench { return newBenchOf(t, 4) }

func newBenchOf(t testing.TB, devices int) *bench {
	b := &bench{t: t, k: newFakeKernel(t, devices), disks: map[string]*testDisk{}}
	b.cfg = Config{StateDir: t.TempDir(), Driver: b.k, Sys: b.k.sys(), Open: b.open}
	return b
}

func (b *bench) open(_ context.Context, s *Spec, env map[string]string) (Disk, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opens++
	b.env = env
	if b.fail != nil {
		return nil, b.fail
	}
	d := b.disks[s.URL]
	if d == nil {
		d = newTestDisk(1 << 20)
		b.disks[s.URL] = d
	}
	return d, nil
}

func (b *bench) setFail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail = err
}

func (b *bench) manager() *Manager {
	b.t.Helper()
	m, err := NewManager(b.cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { m.Close() })
	return m
}

func spec(url string) Spec { return Spec{URL: url, Connections: 2, IOTimeout: 15 * time.Second} }

// until waits for something that has no event.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-time.After(time.Millisecond):
		case <-deadline:
			t.Fatalf("not within 30s: %s", what)
		}
	}
}

func (b *bench) records() []string {
	files, _ := filepath.Glob(filepath.Join(b.cfg.StateDir, "attachments", "*"))
	slices.Sort(files)
	return files
}
