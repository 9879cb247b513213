package bridge

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"vdbridge/rsvd"
	"vdbridge/scsi"
	"vdbridge/smb/auth"
	"vdbridge/test/lab"
	"vdbridge/test/leak"
	"vdbridge/vhdx"
)

const testDiskSize = 64 << 20

// embedded is our server in this process, with a.vhdx.
type embedded struct {
	dir  string
	addr string
	stop func()
}

func embed(t *testing.T, o ServeOptions) *embedded {
	t.Helper()
	o.Dir, o.Share, o.Users = t.TempDir(), "disks", auth.NewUsers(map[string]string{"me": "secret"})
	if err := vhdx.CreateFile(context.Background(), filepath.Join(o.Dir, "a.vhdx"), vhdx.CreateOptions{Size: testDiskSize, BlockSize: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	srv, err := NewFileServer(o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx, l) }()
	var once sync.Once
	e := &embedded{dir: o.Dir, addr: l.Addr().String(), stop: func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("server: %v", err)
			}
		})
	}}
	t.Cleanup(e.stop)
	return e
}

func (e *embedded) open(t *testing.T, change func(*Options)) *Disk {
	t.Helper()
	o := Options{Credentials: CredentialSource{Getenv: func(string) string { return "secret" }}}
	if change != nil {
		change(&o)
	}
	loc, err := ParseLocation("smb://me@" + e.addr + "/disks/a.vhdx")
	if err != nil {
		t.Fatal(err)
	}
	d, err := Open(context.Background(), loc, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func closeDisk(t *testing.T, d *Disk) {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// judge lets qemu-img say whether the image is sound.
func (e *embedded) judge(t *testing.T) {
	t.Helper()
	e.stop()
	lab.Need(t, "qemu-img")
	out, err := exec.Command("qemu-img", "check", "-f", "vhdx", filepath.Join(e.dir, "a.vhdx")).CombinedOutput()
	if err != nil {
		t.Errorf("qemu-img check: %v\n%s", err, out)
	}
}

func pattern(seed uint64, n int) []byte {
	p := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := 0; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], r.Uint64())
	}
	return p
}

// What one initiator writes through NBD, another reads through NBD, at once.
func TestTwoInitiatorsThroughNBD(t *testing.T) {
	for _, path := range []rsvd.IO{rsvd.IOSMB, rsvd.IOSCSI} {
		t.Run(path.String(), func(t *testing.T) {
			leak.Check(t)
			e := embed(t, ServeOptions{RSVDVersion: 1})
			set := func(o *Options) { o.Mode, o.IO = ModeRSVD, path }
			a, b := e.open(t, set), e.open(t, set)
			dialA, stopA := export(t, a, NBDOptions{})
			dialB, stopB := export(t, b, NBDOptions{})
			ca, cb := dialA(), dialB()
			if ca.size != testDiskSize || cb.size != testDiskSize {
				t.Fatalf("sizes %d and %d", ca.size, cb.size)
			}
			for i, n := range []int{512, 4096, 1 << 20, 12 << 20} { // the last is more than one SMB request
				p := pattern(uint64(i), n)
				off := int64(i) << 20
				if e := ca.write(off, p, i%2 == 1); e != 0 {
					t.Fatalf("write of %d bytes: error %d", n, e)
				}
				if e, q := cb.read(off, n); e != 0 || !bytes.Equal(p, q) {
					t.Fatalf("read of %d bytes: error %d, same %v", n, e, bytes.Equal(p, q))
				}
				if e := cb.write(off, pattern(99, 512), false); e != 0 {
					t.Fatalf("write: error %d", e)
				}
				if e, q := ca.read(off, 512); e != 0 || !bytes.Equal(q, pattern(99, 512)) {
					t.Fatal("the first initiator does not see what the second wrote")
				}
			}
			if e, _ := ca.do(3, 0, 0, 0, nil); e != 0 {
				t.Errorf("flush: error %d", e)
			}
			if e, _ := ca.do(6, 0, 4<<20, 2<<20, nil); e != 0 {
				t.Errorf("write zeroes: error %d", e)
			}
			if e, q := cb.read(4<<20, 2<<20); e != 0 || !bytes.Equal(q, make([]byte, 2<<20)) {
				t.Error("zeroes are not zeroes")
			}
			if e, _ := ca.do(4, 0, 8<<20, 1<<20, nil); e != 0 {
				t.Errorf("trim: error %d", e)
			}
			// Beyond the end: an error, and the connection goes on.
			if e := ca.write(testDiskSize, make([]byte, 512), false); e == 0 {
				t.Error("a write beyond the end succeeded")
			}
			if e, _ := ca.read(testDiskSize-512, 1024); e == 0 {
				t.Error("a read beyond the end succeeded")
			}
			if e, _ := ca.read(0, 512); e != 0 {
				t.Errorf("after it: error %d", e)
			}
			stopA()
			stopB()
			closeDisk(t, a)
			closeDisk(t, b)
			e.judge(t)
		})
	}
}

// buffer is a log that tests can look into.
type buffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestReservationConflictIsSeen(t *testing.T) {
	leak.Check(t)
	e := embed(t, ServeOptions{RSVDVersion: 1})
	a := e.open(t, nil)
	var log buffer
	b := e.open(t, func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	dial, stop := export(t, b, NBDOptions{})
	c := dial()
	ctx := context.Background()
	const keyA = 0xA1
	if err := errors.Join(a.RSVD().RegisterIgnore(ctx, keyA, false), a.RSVD().Reserve(ctx, keyA, scsi.WriteExclusiveRegistrantsOnly)); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if e := c.write(0, make([]byte, 4096), false); e != 5 {
			t.Fatalf("error %d, want EIO", e)
		}
	}
	if e, _ := c.read(0, 4096); e != 0 {
		t.Errorf("read: error %d", e)
	}
	err := b.Write(ctx, make([]byte, 512), 0, false)
	if !errors.Is(err, rsvd.ErrReservationConflict) || !errors.Is(err, syscall.EBADE) || Classify(err) != ClassConflict {
		t.Errorf("got %v", err)
	}
	if err := a.Write(ctx, make([]byte, 512), 0, false); err != nil {
		t.Errorf("the holder: %v", err)
	}
	// A second incident after the first is over.
	if err := a.RSVD().Release(ctx, keyA, scsi.WriteExclusiveRegistrantsOnly); err != nil {
		t.Fatal(err)
	}
	if e := c.write(0, make([]byte, 512), false); e != 0 {
		t.Errorf("after the release: error %d", e)
	}
	if err := a.RSVD().Reserve(ctx, keyA, scsi.ExclusiveAccess); err != nil {
		t.Fatal(err)
	}
	if e, _ := c.read(0, 512); e != 5 {
		t.Errorf("read of a stranger under Exclusive Access: error %d", e)
	}
	if n := b.Conflicts(); n != 7 {
		t.Errorf("%d conflicts counted, want 7", n)
	}
	// Everyone who was preempted hears of it once.
	if err := b.RSVD().RegisterIgnore(ctx, 0xB2, false); err != nil {
		t.Fatal(err)
	}
	if err := b.RSVD().Preempt(ctx, 0xB2, keyA, scsi.WriteExclusiveRegistrantsOnly); err != nil {
		t.Fatal(err)
	}
	if err := a.Write(ctx, make([]byte, 512), 0, false); !errors.Is(err, rsvd.ErrPreempted) {
		t.Errorf("first write of the victim: %v", err)
	}
	if err := a.Write(ctx, make([]byte, 512), 0, false); !errors.Is(err, rsvd.ErrReservationConflict) {
		t.Errorf("second write of the victim: %v", err)
	}
	if err := a.RSVD().RegisterIgnore(ctx, keyA, false); err != nil {
		t.Errorf("registering again: %v", err)
	}
	if err := a.Write(ctx, make([]byte, 512), 0, false); err != nil {
		t.Errorf("after registering again: %v", err)
	}
	stop()
	closeDisk(t, b) // waits for what is being logged
	closeDisk(t, a)
	text := log.String()
	if n := strings.Count(text, "level=ERROR"); n != 2 {
		t.Errorf("%d errors logged, want one for each incident:\n%s", n, text)
	}
	if !strings.Contains(text, "holder_key=0x00000000000000a1") || !strings.Contains(text, "Write Exclusive, Registrants Only") {
		t.Errorf("the log does not say who shut us out:\n%s", text)
	}
	e.judge(t)
}

// A disk that somebody else has reserved can be opened: to ask, to register, to wait.
func TestOpenReservedDisk(t *testing.T) {
	leak.Check(t)
	for _, version := range []uint32{1, 2} {
		e := embed(t, ServeOptions{RSVDVersion: version})
		a := e.open(t, nil)
		ctx := context.Background()
		if err := errors.Join(a.RSVD().RegisterIgnore(ctx, 1, false), a.RSVD().Reserve(ctx, 1, scsi.ExclusiveAccessRegistrantsOnly)); err != nil {
			t.Fatal(err)
		}
		for _, path := range []rsvd.IO{rsvd.IOAuto, rsvd.IOSMB, rsvd.IOSCSI} {
			b := e.open(t, func(o *Options) { o.IO = path })
			if err := b.Read(ctx, make([]byte, 512), 0); !errors.Is(err, syscall.EBADE) {
				t.Errorf("%v: read: %v", path, err)
			}
			if err := b.RSVD().RegisterIgnore(ctx, 2, false); err != nil {
				t.Errorf("%v: register: %v", path, err)
			}
			if err := errors.Join(b.Read(ctx, make([]byte, 512), 0), b.Write(ctx, make([]byte, 512), 0, true), b.Flush(ctx)); err != nil {
				t.Errorf("%v: as a registrant: %v", path, err)
			}
			st, err := b.RSVD().ReadFullStatus(ctx)
			if err != nil || len(st.Registrations) != 2 {
				t.Errorf("%v: %+v, %v", path, st, err)
			}
			closeDisk(t, b)
		}
		k, err := a.RSVD().ReadKeys(ctx)
		if err != nil || len(k.Keys) != 1 {
			t.Errorf("after the others have closed: %+v, %v", k, err)
		}
		closeDisk(t, a)
		e.stop()
	}
}

// Many goroutines, two initiators, both data paths: every block holds what its last writer wrote.
func TestManyWriters(t *testing.T) {
	leak.Check(t)
	e := embed(t, ServeOptions{RSVDVersion: 1})
	disks := []*Disk{
		e.open(t, func(o *Options) { o.IO = rsvd.IOSMB }), e.open(t, func(o *Options) { o.IO = rsvd.IOSCSI }),
		e.open(t, func(o *Options) { o.Encrypt = true }),
	}
	ctx := context.Background()
	const workers, rounds, block = 24, 30, 4096
	want := make([][]byte, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 7))
			p, q := make([]byte, 8*block), make([]byte, 8*block)
			base := int64(w) * int64(len(p))
			for range rounds {
				copy(p, pattern(r.Uint64(), len(p)))
				if err := disks[r.IntN(len(disks))].Write(ctx, p, base, r.IntN(4) == 0); err != nil {
					t.Errorf("write: %v", err)
					return
				}
				if err := disks[r.IntN(len(disks))].Read(ctx, q, base); err != nil || !bytes.Equal(p, q) {
					t.Errorf("worker %d: read %v, same %v", w, err, bytes.Equal(p, q))
					return
				}
			}
			want[w] = bytes.Clone(p)
		})
	}
	wg.Wait()
	for _, d := range disks {
		closeDisk(t, d)
	}
	e.stop()
	img, err := vhdx.OpenFile(ctx, filepath.Join(e.dir, "a.vhdx"), vhdx.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	for w := range workers {
		q := make([]byte, len(want[w]))
		if err := img.Read(ctx, q, int64(w)*int64(len(q))); err != nil || !bytes.Equal(q, want[w]) {
			t.Errorf("worker %d: the image holds something else (%v)", w, err)
		}
	}
	if err := img.Close(); err != nil {
		t.Error(err)
	}
	e.judge(t)
}

// The same against a server without shared disks: the file, for us alone.
func TestPlain(t *testing.T) {
	leak.Check(t)
	e := embed(t, ServeOptions{RSVDVersion: 0})
	d := e.open(t, nil)
	if d.Mode() != ModeFile || d.Shared() {
		t.Fatalf("mode %v", d.Mode())
	}
	loc := d.Location()
	for name, o := range map[string]Options{"a second writer": {}, "a reader": {ReadOnly: true}} {
		o.Credentials = CredentialSource{Getenv: func(string) string { return "secret" }}
		if _, err := Open(context.Background(), loc, o); Classify(err) != ClassBusy {
			t.Errorf("%s: %v", name, err)
		}
	}
	dial, stop := export(t, d, NBDOptions{})
	c := dial()
	sum := sha256.New()
	for i := range 16 {
		p := pattern(uint64(i), 1<<20)
		sum.Write(p)
		if e := c.write(int64(i)<<20, p, false); e != 0 {
			t.Fatalf("write: error %d", e)
		}
	}
	stop()
	closeDisk(t, d)
	e.stop()
	img, err := vhdx.OpenFile(context.Background(), filepath.Join(e.dir, "a.vhdx"), vhdx.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	q := make([]byte, 16<<20)
	if err := img.Read(context.Background(), q, 0); err != nil || sha256.Sum256(q) != [32]byte(sum.Sum(nil)) {
		t.Errorf("the image holds something else (%v)", err)
	}
	if err := img.Close(); err != nil {
		t.Error(err)
	}
	e.judge(t)
}

func TestReadOnlyDisk(t *testing.T) {
	leak.Check(t)
	for _, version := range []uint32{0, 1} {
		e := embed(t, ServeOptions{RSVDVersion: version})
		d := e.open(t, func(o *Options) { o.ReadOnly = true })
		if !d.ReadOnly() {
			t.Error("not read-only")
		}
		if err := d.Write(context.Background(), make([]byte, 512), 0, false); !errors.Is(err, syscall.EROFS) {
			t.Errorf("RSVD version %d: %v", version, err)
		}
		if err := d.Read(context.Background(), make([]byte, 512), 0); err != nil {
			t.Errorf("RSVD version %d: %v", version, err)
		}
		closeDisk(t, d)
	}
}

// The server goes away: every request ends with an error, and so does Close, soon.
func TestServerGoesAway(t *testing.T) {
	leak.Check(t)
	e := embed(t, ServeOptions{RSVDVersion: 1})
	d := e.open(t, nil)
	clean := e.open(t, nil)
	if err := errors.Join(d.Write(context.Background(), make([]byte, 512), 0, false), clean.Write(context.Background(), make([]byte, 512), 0, false), clean.Flush(context.Background())); err != nil {
		t.Fatal(err)
	}
	e.stop()
	err := d.Read(context.Background(), make([]byte, 512), 0)
	if err == nil || Classify(err) != ClassConnection {
		t.Errorf("read: %v (%v)", err, Classify(err))
	}
	if err := d.Close(); Classify(err) != ClassConnection || !strings.Contains(err.Error(), "may be lost") {
		t.Errorf("close, with a write that was never flushed: %v", err)
	}
	if err := clean.Close(); Classify(err) != ClassConnection || strings.Contains(err.Error(), "may be lost") {
		t.Errorf("close, with all flushed: %v", err)
	}
}

func TestWarmReadAllocates(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	e := embed(t, ServeOptions{RSVDVersion: 1})
	for _, path := range []rsvd.IO{rsvd.IOSMB, rsvd.IOSCSI} {
		d := e.open(t, func(o *Options) { o.IO = path })
		p := make([]byte, 4096)
		ctx := context.Background()
		n := testing.AllocsPerRun(500, func() {
			if err := d.Read(ctx, p, 8192); err != nil {
				t.Fatal(err)
			}
		})
		t.Logf("%v: %.1f allocations for a 4 KiB read, in client and server together", path, n)
		if n >= 4 {
			t.Errorf("%v: %.1f allocations for a 4 KiB read, in client and server together", path, n)
		}
		closeDisk(t, d)
	}
}

func ExampleParseLocation() {
	l, _ := ParseLocation(`\\server\disks\dir\a.vhdx`)
	fmt.Println(l)
	// Output: smb://server/disks/dir/a.vhdx
}
