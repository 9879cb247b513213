package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vdbridge/test/ramdisk"
)

// busyHook makes the disk one that may block, so that it is not known to be non-blocking.
func busyHook(context.Context, ramdisk.Op, int64, int64) error { return nil }

func TestEveryCommand(t *testing.T) {
	variants(t, func(t *testing.T, d *ramdisk.Disk, style replyStyle) {
		ts := startServer(t, oneDisk(d))
		r := enter(t, ts, style)
		if r.size != 64<<20 {
			t.Errorf("size %d", r.size)
		}
		sizes := []int{512, 4096, 65536, 65536 + 512, 1 << 20, 32 << 20}
		for i, n := range sizes {
			p := pattern(n, byte(i))
			off := uint64(512 * (i + 1))
			r.write(off, p)
			if !bytes.Equal(r.read(off, uint64(n)), p) {
				t.Fatalf("%d bytes: read something else", n)
			}
		}
		before := d.FUAs()
		r.expect(0, wireRequest{cmd: cmdWrite, flags: cmdFlagFUA, length: 512}, make([]byte, 512))
		r.expect(0, wireRequest{cmd: cmdWriteZeroes, flags: cmdFlagFUA, offset: 4096, length: 4096}, nil)
		if got := d.FUAs() - before; got != 2 {
			t.Errorf("%d writes with FUA", got)
		}
		r.expect(0, wireRequest{cmd: cmdFlush}, nil)
		r.expect(0, wireRequest{cmd: cmdTrim, flags: cmdFlagFUA, length: 32 << 20}, nil)
		if got := d.Flushes(); got != 2 {
			t.Errorf("%d flushes", got)
		}
		r.expect(0, wireRequest{cmd: cmdCache, length: 1 << 20}, nil)
		r.expect(0, wireRequest{cmd: cmdRead, flags: cmdFlagFUA, length: 512}, nil)
		if p := r.read(0, 32<<20); !bytes.Equal(p, make([]byte, len(p))) {
			t.Error("trimmed range is not zero")
		}
		allocated := d.Allocated()
		r.expect(0, wireRequest{cmd: cmdWriteZeroes, flags: cmdFlagNoHole, offset: 0, length: 1 << 20}, nil)
		if got := d.Allocated() - allocated; got != 1<<20 {
			t.Errorf("NO_HOLE allocated %d bytes", got)
		}
		r.expect(0, wireRequest{cmd: cmdWriteZeroes, flags: cmdFlagFastZero, offset: 0, length: 64 << 20}, nil)
		if d.Allocated() != 0 {
			t.Errorf("%d bytes left", d.Allocated())
		}
		if style != styleSimple {
			r.write(65536, pattern(65536, 1))
			a := r.expect(0, wireRequest{cmd: cmdRead, flags: cmdFlagDF, length: 1 << 20}, nil)
			if a.typ != replyTypeOffsetData {
				t.Errorf("DF read: chunk type %d", a.typ)
			}
			a = r.expect(0, wireRequest{cmd: cmdRead, offset: 1 << 20, length: 1 << 20}, nil)
			if a.typ != replyTypeOffsetHole {
				t.Errorf("read of a hole: chunk type %d", a.typ)
			}
		}
		r.bye()
	})
}

// TestClientErrors restates libnbd's errors-client-* tests: what a client does wrong is answered on its own request, the connection lives on.
func TestClientErrors(t *testing.T) {
	variants(t, func(t *testing.T, d *ramdisk.Disk, style replyStyle) {
		ts := startServer(t, oneDisk(d))
		ext := func(v uint64) uint64 { // a length that fits
			if style == styleExtended {
				return v
			}
			return v & 0xffffffff
		}
		r := enter(t, ts, style)
		const size = 64 << 20
		one := make([]byte, 512)
		overlong := uint32(nbdEINVAL)
		if style != styleSimple {
			overlong = nbdEOVERFLOW
		}
		for _, c := range []struct {
			name    string
			errno   uint32
			q       wireRequest
			payload []byte
		}{
			{"oversize read", overlong, wireRequest{cmd: cmdRead, length: 1<<25 + 512}, nil},
			{"oversize write", nbdEINVAL, wireRequest{cmd: cmdWrite, length: 1<<25 + 512}, make([]byte, 1<<25+512)},
			{"unaligned read", nbdEINVAL, wireRequest{cmd: cmdRead, offset: 1, length: 512}, nil},
			{"unaligned read length", nbdEINVAL, wireRequest{cmd: cmdRead, length: 511}, nil},
			{"unaligned write", nbdEINVAL, wireRequest{cmd: cmdWrite, offset: 511, length: 512}, one},
			{"unaligned trim", nbdEINVAL, wireRequest{cmd: cmdTrim, offset: 511, length: 512}, nil},
			{"unaligned zero", nbdEINVAL, wireRequest{cmd: cmdWriteZeroes, offset: 512, length: 1}, nil},
			{"unaligned cache", nbdEINVAL, wireRequest{cmd: cmdCache, offset: 512, length: 1}, nil},
			{"bounds read", nbdEINVAL, wireRequest{cmd: cmdRead, offset: size, length: 512}, nil},
			{"bounds read across", nbdEINVAL, wireRequest{cmd: cmdRead, offset: size - 512, length: 1024}, nil},
			{"bounds read wraps", nbdEINVAL, wireRequest{cmd: cmdRead, offset: 1<<64 - 512, length: 1024}, nil},
			{"bounds write", nbdENOSPC, wireRequest{cmd: cmdWrite, offset: size, length: 512}, one},
			{"bounds write far", nbdENOSPC, wireRequest{cmd: cmdWrite, offset: 1 << 63, length: 512}, one},
			{"bounds zero", nbdENOSPC, wireRequest{cmd: cmdWriteZeroes, offset: size, length: 512}, nil},
			{"bounds trim", nbdEINVAL, wireRequest{cmd: cmdTrim, offset: 512, length: size}, nil},
			{"bounds cache", nbdEINVAL, wireRequest{cmd: cmdCache, offset: 512, length: size}, nil},
			{"zerosize read", nbdEINVAL, wireRequest{cmd: cmdRead}, nil},
			{"zerosize trim", nbdEINVAL, wireRequest{cmd: cmdTrim}, nil},
			{"zerosize zero", nbdEINVAL, wireRequest{cmd: cmdWriteZeroes}, nil},
			{"zerosize cache", nbdEINVAL, wireRequest{cmd: cmdCache}, nil},
			{"flush with range", nbdEINVAL, wireRequest{cmd: cmdFlush, offset: 512, length: 512}, nil},
			{"unknown command", nbdEINVAL, wireRequest{cmd: 8, length: 512}, nil},
			{"unknown command far", nbdEINVAL, wireRequest{cmd: 0xffff, length: ext(1 << 62)}, nil},
			{"unknown flag", nbdEINVAL, wireRequest{cmd: cmdRead, flags: 1 << 15, length: 512}, nil},
			{"flag of another command read", nbdEINVAL, wireRequest{cmd: cmdRead, flags: cmdFlagNoHole, length: 512}, nil},
			{"flag of another command write", nbdEINVAL, wireRequest{cmd: cmdWrite, flags: cmdFlagReqOne, length: 512}, one},
			{"flag of another command trim", nbdEINVAL, wireRequest{cmd: cmdTrim, flags: cmdFlagFastZero, length: 512}, nil},
			{"flag of another command zero", nbdEINVAL, wireRequest{cmd: cmdWriteZeroes, flags: cmdFlagDF, length: 512}, nil},
			{"flag of another command cache", nbdEINVAL, wireRequest{cmd: cmdCache, flags: cmdFlagDF, length: 512}, nil},
			{"flag of another command flush", nbdEINVAL, wireRequest{cmd: cmdFlush, flags: cmdFlagDF}, nil},
		} {
			t.Run(c.name, func(t *testing.T) {
				r.t = t
				r.expect(c.errno, c.q, c.payload)
				r.alive()
			})
		}
		r.t = t
		if style == styleSimple {
			r.expect(nbdEINVAL, wireRequest{cmd: cmdRead, flags: cmdFlagDF, length: 512}, nil) // not negotiated
		} else {
			r.expect(nbdEINVAL, wireRequest{cmd: cmdBlockStatus, offset: 64 << 20, length: 512}, nil)
			r.expect(nbdEINVAL, wireRequest{cmd: cmdBlockStatus, flags: cmdFlagDF, length: 512}, nil)
			r.expect(nbdEINVAL, wireRequest{cmd: cmdBlockStatus}, nil)
		}
		if style == styleExtended {
			r.expect(nbdEINVAL, wireRequest{cmd: cmdWrite, length: 512}, nil) // without a payload
			r.expect(nbdEINVAL, wireRequest{cmd: cmdRead, length: 512}, one)  // with one
			r.expect(nbdEINVAL, wireRequest{cmd: cmdFlush, length: 512}, one)
		}
		r.expect(nbdEINVAL, wireRequest{cmd: cmdWrite}, []byte{})
		r.alive()
		if style == styleExtended {
			r.request(wireRequest{cmd: cmdWrite, flags: cmdFlagPayloadLen, length: 1 << 40}, nil)
		} else {
			r.request(wireRequest{cmd: cmdWrite, length: 0xfffffe00}, nil)
		}
		r.gone() // four gigabytes of payload are not listened to
	})
}

func TestReadOnlyExportDrainsPayload(t *testing.T) {
	variants(t, func(t *testing.T, d *ramdisk.Disk, style replyStyle) {
		cfg := oneDisk(d)
		cfg.Resolver.(Exports)[0].ReadOnly = true
		ts := startServer(t, cfg)
		r := enter(t, ts, style)
		for _, n := range []int{512, 1 << 20, 32 << 20} {
			r.expect(nbdEPERM, wireRequest{cmd: cmdWrite, length: uint64(n)}, make([]byte, n))
			r.alive()
		}
		r.expect(nbdEPERM, wireRequest{cmd: cmdTrim, length: 512}, nil)
		r.expect(nbdEPERM, wireRequest{cmd: cmdWriteZeroes, length: 512}, nil)
		r.expect(0, wireRequest{cmd: cmdFlush}, nil)
		r.alive()
	})
}

func TestGarbageMagicEndsThatConnectionOnly(t *testing.T) {
	variants(t, func(t *testing.T, d *ramdisk.Disk, style replyStyle) {
		ts := startServer(t, oneDisk(d))
		other := enter(t, ts, style)
		r := enter(t, ts, style)
		r.alive()
		r.send(bytes.Repeat([]byte{0xee}, 32))
		r.gone()
		other.alive()
	})
}

func TestDiskErrors(t *testing.T) {
	for _, c := range []struct {
		err  error
		want uint32
	}{
		{errors.New("anything"), nbdEIO},
		{fmt.Errorf("write: %w", syscall.EBADE), nbdEIO}, // a reservation conflict
		{fmt.Errorf("a: %w", fmt.Errorf("b: %w", syscall.ENOSPC)), nbdENOSPC},
		{syscall.EDQUOT, nbdENOSPC}, {syscall.EFBIG, nbdENOSPC},
		{syscall.EPERM, nbdEPERM}, {syscall.EROFS, nbdEPERM}, {syscall.EACCES, nbdEPERM},
		{syscall.ENOMEM, nbdENOMEM}, {syscall.EINVAL, nbdEINVAL}, {syscall.EOVERFLOW, nbdEOVERFLOW}, {syscall.EOPNOTSUPP, nbdEINVAL},
		{syscall.ESHUTDOWN, nbdESHUTDOWN}, {syscall.ETIMEDOUT, nbdEIO}, {context.Canceled, nbdEIO},
	} {
		if got := Errno(c.err); got != c.want {
			t.Errorf("%v: %d, want %d", c.err, got, c.want)
		}
	}
	if Errno(nil) != 0 {
		t.Error("nil is an error")
	}
	variants(t, func(t *testing.T, d *ramdisk.Disk, style replyStyle) {
		var failing atomic.Bool // a disk with a hook may block, but soon goes inline as it is fast
		d.SetHook(func(_ context.Context, op ramdisk.Op, off, n int64) error {
			if failing.Load() {
				return fmt.Errorf("%s: the platter broke: %w", op, syscall.ENOSPC)
			}
			return nil
		})
		ts := startServer(t, oneDisk(d))
		r := enter(t, ts, style)
		for range 100 { // it may go inline now
			r.alive()
		}
		failing.Store(true)
		qs := []wireRequest{{cmd: cmdRead, length: 4096}, {cmd: cmdRead, length: 1 << 20}, {cmd: cmdFlush}, {cmd: cmdTrim, length: 512},
			{cmd: cmdWriteZeroes, length: 512}, {cmd: cmdWrite, length: 512}, {cmd: cmdWrite, length: 1 << 20}}
		if style != styleSimple {
			qs = append(qs, wireRequest{cmd: cmdBlockStatus, length: 512})
		}
		for _, q := range qs {
			var p []byte
			if q.cmd == cmdWrite {
				p = make([]byte, q.length)
			}
			a := r.expect(nbdENOSPC, q, p)
			if style != styleSimple && !strings.Contains(string(a.data), "platter") {
				t.Errorf("%v: text %q", q.cmd, a.data)
			}
		}
		failing.Store(false)
		r.alive()
	})
}

// slowZero is a disk on which zeroing is not fast.
type slowZero struct{ *ramdisk.Disk }

func (slowZero) FastZero() bool { return false }

func TestFastZeroRefused(t *testing.T) {
	d := ramdisk.New(1<<20, 512)
	ts := startServer(t, oneDisk(slowZero{d}))
	r := enter(t, ts, styleStructured)
	r.write(0, pattern(4096, 1))
	r.expect(nbdENOTSUP, wireRequest{cmd: cmdWriteZeroes, flags: cmdFlagFastZero, length: 4096}, nil)
	if !bytes.Equal(r.read(0, 4096), pattern(4096, 1)) {
		t.Error("a refused request changed data")
	}
	r.expect(0, wireRequest{cmd: cmdWriteZeroes, length: 4096}, nil)
}

// limited is a disk with a largest transfer.
type limited struct{ *ramdisk.Disk }

func (limited) BlockSizes() (l, p, o, m int) { return 512, 4096, 0, 65536 + 100 }

func TestLargestTransfer(t *testing.T) {
	d := ramdisk.New(8<<20, 512)
	d.SetHook(func(_ context.Context, op ramdisk.Op, off, n int64) error {
		if (op == ramdisk.Read || op == ramdisk.Write) && n > 65536 {
			return fmt.Errorf("%d bytes at once", n)
		}
		return nil
	})
	ts := startServer(t, oneDisk(limited{d}))
	r := enter(t, ts, styleStructured)
	p := pattern(3<<20+512, 4)
	r.write(512, p)
	if !bytes.Equal(r.read(512, uint64(len(p))), p) {
		t.Error("read something else")
	}
}

// gate is a hook that lets calls through one by one.
type gate struct {
	entered chan int64
	release chan error
}

func newGate(d *ramdisk.Disk, only ramdisk.Op) *gate {
	g := &gate{entered: make(chan int64, 10000), release: make(chan error)}
	d.SetHook(func(ctx context.Context, op ramdisk.Op, off, n int64) error {
		if op != only {
			return nil
		}
		g.entered <- off
		select {
		case err := <-g.release:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return g
}

func TestRepliesComeInTheOrderInWhichTheyAreReady(t *testing.T) {
	for _, style := range []replyStyle{styleSimple, styleStructured, styleExtended} {
		d := ramdisk.New(64<<20, 512)
		g := newGate(d, ramdisk.Write)
		ts := startServer(t, oneDisk(d))
		r := enter(t, ts, style)
		r.request(wireRequest{cmd: cmdWrite, cookie: 1, length: 512}, make([]byte, 512))
		<-g.entered
		for i := range 20 {
			r.expect(0, wireRequest{cmd: cmdRead, cookie: uint64(100 + i), length: 512}, nil)
			r.expect(nbdEINVAL, wireRequest{cmd: cmdRead, cookie: uint64(200 + i), length: 1}, nil)
		}
		g.release <- nil
		if a := r.answer(nil); a.cookie != 1 || a.errno != 0 {
			t.Errorf("%+v", a)
		}
		r.bye()
	}
}

// TestFullConcurrency has many requests wait in the disk at the same time, on a disk that gave no hint.
func TestFullConcurrency(t *testing.T) {
	const depth = 2000
	d := ramdisk.New(64<<20, 512)
	g := newGate(d, ramdisk.Read)
	ts := startServer(t, oneDisk(d))
	r := enter(t, ts, styleSimple)
	var b []byte
	for i := range depth {
		b = append(b, r.requestBytes(wireRequest{cmd: cmdRead, cookie: uint64(i), offset: uint64(i) * 4096, length: 4096}, nil)...)
	}
	r.send(b)
	for range depth {
		<-g.entered // all are in the disk before any may leave
	}
	go func() {
		for range depth {
			g.release <- nil
		}
	}()
	seen := map[uint64]bool{}
	for range depth {
		a := r.answer(func(uint64) int { return 4096 })
		if a.errno != 0 || seen[a.cookie] || a.cookie >= depth {
			t.Fatalf("%+v", a)
		}
		seen[a.cookie] = true
	}
	r.bye()
}

func TestBudgetBoundsWhatIsInFlight(t *testing.T) {
	d := ramdisk.New(64<<20, 512)
	g := newGate(d, ramdisk.Read)
	cfg := oneDisk(d)
	cfg.ConnBytes, cfg.ServerBytes = 1<<20, 1<<20+1<<19
	ts := startServer(t, cfg)
	const each = 128<<10 + requestCost
	var readers sync.WaitGroup
	rs := []*rawClient{enter(t, ts, styleSimple), enter(t, ts, styleSimple), enter(t, ts, styleSimple)}
	for _, r := range rs {
		var b []byte
		for i := range 20 {
			b = append(b, r.requestBytes(wireRequest{cmd: cmdRead, cookie: uint64(i), length: 128 << 10}, nil)...)
		}
		r.send(b)
		readers.Go(func() {
			for range 20 {
				if a, err := readAnswer(r.c, r.style, func(uint64) int { return 128 << 10 }); err != nil || a.errno != 0 {
					t.Errorf("%+v (%v)", a, err)
				}
			}
		})
	}
	// Connections may have 7 each (8 × each > 1 MiB), the server 11, and each connection at least one.
	most := 0
	for done := 0; done < 60; done++ {
		<-g.entered
		var held int64
		ts.mu.Lock()
		for c := range ts.conns {
			held += c.bytes.Load()
			if c.bytes.Load() > cfg.ConnBytes {
				t.Errorf("a connection holds %d bytes", c.bytes.Load())
			}
		}
		ts.mu.Unlock()
		most = max(most, int(held/each))
		g.release <- nil
	}
	if limit := int(cfg.ServerBytes/each) + 3; most > limit {
		t.Errorf("%d requests in flight, at most %d fit", most, limit)
	}
	readers.Wait()
	for _, r := range rs {
		r.bye()
	}
	if err := ts.shut(); err != nil {
		t.Fatal(err)
	}
	if u := ts.budget.used.Load(); u != 0 {
		t.Errorf("%d bytes still counted", u)
	}
}

func TestRequestLimit(t *testing.T) {
	d := ramdisk.New(1<<20, 512)
	g := newGate(d, ramdisk.Read)
	cfg := oneDisk(d)
	cfg.MaxRequests = 3
	ts := startServer(t, cfg)
	r := enter(t, ts, styleSimple)
	for i := range 9 {
		r.request(wireRequest{cmd: cmdRead, cookie: uint64(i), length: 512}, nil)
	}
	for range 9 {
		<-g.entered
		if n := len(g.entered); n > 2 {
			t.Fatalf("%d more in the disk", n)
		}
		g.release <- nil
		r.answer(func(uint64) int { return 512 })
	}
}

// TestWarmPathDoesNotAllocate counts the allocations of the whole process for 4 KiB requests.
func TestWarmPathDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	for _, hook := range []ramdisk.Hook{nil, busyHook, slowHook} {
		d := ramdisk.New(1<<20, 512)
		d.SetHook(hook)
		if err := d.Write(t.Context(), make([]byte, 1<<20), 0, false); err != nil {
			t.Fatal(err)
		}
		ts := startServer(t, oneDisk(d))
		r := enter(t, ts, styleStructured)
		in := make([]byte, 8*(28+4096)+8*16)
		var out []byte
		for i := range 8 {
			out = append(out, r.requestBytes(wireRequest{cmd: cmdRead, cookie: uint64(i), length: 4096}, nil)...)
			out = append(out, r.requestBytes(wireRequest{cmd: cmdWrite, cookie: uint64(i), offset: 8192, length: 4096}, make([]byte, 4096))...)
		}
		round := func() {
			r.c.Write(out)
			io.ReadFull(r.c, in)
		}
		for range 50 {
			round()
		}
		if n := testing.AllocsPerRun(200, round); n > 0.5 {
			t.Errorf("%v allocations for 16 requests", n)
		}
	}
}

// slowHook makes every call long enough for the pace to notice.
func slowHook(context.Context, ramdisk.Op, int64, int64) error {
	for start := time.Now(); time.Since(start) < 2*paceLong; {
		runtime.Gosched()
	}
	return nil
}
