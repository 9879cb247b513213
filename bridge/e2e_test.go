package bridge

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
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

// export serves d by NBD on a unix socket until the test ends or stop is called.
func export(t *testing.T, d *Disk, o NBDOptions) (dial func() *nbdConn, stop func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen("unix:" + path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- ServeNBD(ctx, d, o, l) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("NBD: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return func() *nbdConn { return dialNBD(t, path) }, stop
}

// nbdConn is the smallest NBD client: EXPORT_NAME, simple replies, one request at a time.
type nbdConn struct {
	t    *testing.T
	c    net.Conn
	size uint64
}

func dialNBD(t *testing.T, path string) *nbdConn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	hello := make([]byte, 18)
	if _, err := io.ReadFull(c, hello); err != nil {
		t.Fatal(err)
	}
	b := []byte{0, 0, 0, 3} // fixed newstyle, no zeroes
	b = append(b, "IHAVEOPT\x00\x00\x00\x01\x00\x00\x00\x00"...)
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
	reply := make([]byte, 10)
	if _, err := io.ReadFull(c, reply); err != nil {
		t.Fatal(err)
	}
	return &nbdConn{t, c, binary.BigEndian.Uint64(reply)}
}

// do sends one request and returns its error number.
func (n *nbdConn) do(typ uint16, flags uint16, off int64, length int, data []byte) (uint32, []byte) {
	n.t.Helper()
	be := binary.BigEndian
	b := be.AppendUint32(nil, 0x25609513)
	b = be.AppendUint16(b, flags)
	b = be.AppendUint16(b, typ)
	b = be.AppendUint64(b, 77)
	b = be.AppendUint64(b, uint64(off))
	b = be.AppendUint32(b, uint32(length))
	if _, err := n.c.Write(append(b, data...)); err != nil {
		n.t.Fatal(err)
	}
	r := make([]byte, 16)
	if _, err := io.ReadFull(n.c, r); err != nil {
		n.t.Fatal(err)
	}
	if be.Uint32(r) != 0x67446698 || be.Uint64(r[8:]) != 77 {
		n.t.Fatalf("reply % x", r)
	}
	errno := be.Uint32(r[4:])
	var out []byte
	if typ == 0 && errno == 0 {
		out = make([]byte, length)
		if _, err := io.ReadFull(n.c, out); err != nil {
			n.t.Fatal(err)
		}
	}
	return errno, out
}

func (n *nbdConn) write(off int64, p []byte, fua bool) uint32 {
	f := uint16(0)
	if fua {
		f = 1
	}
	e, _ := n.do(1, f, off, len(p), p)
	return e
}

func (n *nbdConn) read(off int64, length int) (uint32, []byte) { return n.do(0, 0, off, length, nil) }

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
	e.stop()
	err := d.Read(context.Background(), make([]byte, 512), 0)
	if err == nil || Classify(err) != ClassConnection {
		t.Errorf("read: %v (%v)", err, Classify(err))
	}
	if err := d.Close(); err == nil {
		t.Error("close says that all is well, though the last flush was impossible")
	}
}

func TestInfoAndList(t *testing.T) {
	leak.Check(t)
	e := embed(t, ServeOptions{RSVDVersion: 1})
	o := Options{Credentials: CredentialSource{Getenv: func(string) string { return "secret" }}}
	loc, _ := ParseLocation("smb://me@" + e.addr + "/disks/a.vhdx")
	i, err := GetInfo(context.Background(), loc, o)
	if err != nil || i.Size != testDiskSize || i.RSVD == nil || i.RSVD.Type != "dynamic" || i.RSVD.Format != "VHDX" || i.RSVD.Reservation != "none" || i.Connection.Dialect != "3.1.1" {
		t.Errorf("%+v %+v, %v", i, i.RSVD, err)
	}
	loc.Path = ""
	list, err := List(context.Background(), loc, o)
	if err != nil || len(list) != 1 || list[0].Name != "a.vhdx" || list[0].Directory || list[0].Size == 0 || list[0].Modified.IsZero() {
		t.Errorf("%+v, %v", list, err)
	}
	loc.Path = "a.vhdx"
	r, err := Check(context.Background(), loc, o)
	if err != nil || r.Damaged() {
		t.Errorf("%+v, %v", r, err)
	}
	loc.Path = "new.vhdx"
	if err := Create(context.Background(), loc, o, CreateOptions{Size: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	if err := Create(context.Background(), loc, o, CreateOptions{Size: 1 << 30}); Classify(err) != ClassExists {
		t.Errorf("create over a file: %v", err)
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

// A differencing image is refused in words, by us and by the server.
func TestDifferencing(t *testing.T) {
	leak.Check(t)
	e := embed(t, ServeOptions{RSVDVersion: 1})
	path := filepath.Join(e.dir, "a.vhdx")
	ctx := context.Background()
	img, err := vhdx.OpenFile(ctx, path, vhdx.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	meta := img.Info().MetadataOffset
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// The item "file parameters" of the metadata table gets its flag HasParent. [MS-VHDX] 2.6.1, 2.6.2.1
	item, _ := ParseGUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
	at := bytes.Index(b[meta:meta+64<<10], item[:])
	if at < 0 {
		t.Fatal("no file parameters")
	}
	le := binary.LittleEndian
	b[meta+int64(le.Uint32(b[meta+int64(at)+16:]))+4] |= 2
	// And the table one more item, the parent locator: its type, one key and one value. [MS-VHDX] 2.6.2.6
	table := b[meta:]
	n := le.Uint16(table[10:])
	le.PutUint16(table[10:], n+1)
	entry := table[32+32*int(n):]
	item, _ = ParseGUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
	key, value := utf16LE("relative_path"), utf16LE(`.\parent.vhdx`)
	copy(entry, item[:])
	le.PutUint32(entry[16:], 0x18000)
	le.PutUint32(entry[20:], uint32(20+12+len(key)+len(value)))
	le.PutUint32(entry[24:], 4) // required
	locator := table[0x18000:]
	kind, _ := ParseGUID("b04aefb7-d19e-4a81-b789-25b8e9445913")
	copy(locator, kind[:])
	le.PutUint16(locator[18:], 1)
	le.PutUint32(locator[20:], 32)
	le.PutUint32(locator[24:], uint32(32+len(key)))
	le.PutUint16(locator[28:], uint16(len(key)))
	le.PutUint16(locator[30:], uint16(len(value)))
	copy(locator[32:], append(key, value...))
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	remote, err := ParseLocation("smb://me@" + e.addr + "/disks/a.vhdx")
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Credentials: CredentialSource{Getenv: func(string) string { return "secret" }}}
	_, err = Open(ctx, remote, o)
	t.Logf("shared: %v", err)
	if Classify(err) != ClassUnsupported || !strings.Contains(err.Error(), "differencing") {
		t.Errorf("shared: %v", err)
	}
	o.Mode = ModeFile
	for _, loc := range []Location{remote, {Local: true, Path: path}} {
		_, err = Open(ctx, loc, o)
		if Classify(err) != ClassUnsupported || !strings.Contains(err.Error(), "differencing") {
			t.Errorf("%s: %v", loc, err)
		}
	}
}

func utf16LE(s string) (b []byte) {
	for _, r := range s {
		b = append(b, byte(r), 0)
	}
	return b
}
