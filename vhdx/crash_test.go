package vhdx

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"vdbridge/vhdx/crashfile"
)

// workload is a random script over some blocks of a disk.
type workload struct {
	d      *Disk
	f      *crashfile.File
	h      *history
	rng    *rand.Rand
	blocks []int64 // that it works on
	value  func() uint64
	rare   int

	reshape bool
	wholes  bool  // some writes are whole blocks
	size    int64 // of the disk in the beginning
}

func (w *workload) run(ctx context.Context, steps int) error {
	bs := w.d.geo.blockSize
	for range steps {
		if w.reshape && w.rng.IntN(8) == 0 {
			var err error
			if w.rng.IntN(2) == 0 {
				err = w.d.Compact(ctx, CompactOptions{FindZeros: w.rng.IntN(2) == 0})
			} else {
				to := w.size + w.rng.Int64N(3)*(mib+4096) // nothing is ever written there
				if w.rng.IntN(4) == 0 && w.d.params.kind() != KindFixed {
					to = 130 << 30 // the BAT moves
				}
				err = w.d.Resize(ctx, to, ResizeOptions{})
			}
			if err != nil {
				return err
			}
		}
		block := w.blocks[w.rng.IntN(len(w.blocks))]
		base := block * bs
		size := min(bs, w.size-base)
		align := func(v int64) int64 { return v / w.h.sector * w.h.sector }
		off := align(w.rng.Int64N(size))
		n := min(max(w.h.sector, align(w.rng.Int64N(12*kib)<<(w.rng.IntN(8)/5))), size-off)
		if w.rare > 0 && n < size {
			n = w.h.sector
		}
		if w.wholes && w.rng.IntN(6) == 0 {
			off, n = 0, size
		}
		var err error
		switch k := w.rng.IntN(20); {
		case k < 9:
			p := make([]byte, n)
			v := w.value()
			stamp(p, base+off, w.h.sector, v)
			fua := w.rng.IntN(6) == 0 && w.rare == 0
			done := w.h.begin(base+off, n, v, false)
			err = w.d.Write(ctx, p, base+off, fua)
			done(w.durable(fua && err == nil))
		case k < 12:
			if w.rng.IntN(4) > 0 { // the whole block
				off, n = 0, size
			}
			done := w.h.begin(base+off, n, 0, true)
			err = w.d.Trim(ctx, base+off, n)
			done(0)
		case k < 15:
			if w.rng.IntN(2) > 0 {
				off, n = 0, size
			}
			done := w.h.begin(base+off, n, 0, false)
			fua := w.rng.IntN(4) == 0 && w.rare == 0
			err = w.d.WriteZeroes(ctx, base+off, n, w.rng.IntN(3) > 0, fua)
			done(w.durable(fua && err == nil))
		case w.rare > 0 && w.rng.IntN(w.rare) > 0:
		default:
			err = w.h.flush(func() error { return w.d.Flush(ctx) }, w.f.Ops)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// durable is the number of operations of the file if a change is durable now, else 0.
func (w *workload) durable(yes bool) int {
	if !yes {
		return 0
	}
	return w.f.Ops()
}

// crashCase is one image and one way to work on it.
type crashCase struct {
	name    string
	create  CreateOptions
	blocks  []int64
	steps   int
	workers int
	noPunch bool
	every   int  // look at one crash of so many; 0: at all
	rare    int  // flush so many times less often
	child   bool // a differencing disk whose parent has all of the blocks
	reshape bool // the disk is resized and compacted meanwhile
}

// crashSeeds is how many different workloads are tried; VDBRIDGE_CRASH_SEEDS asks for more.
func crashSeeds() uint64 {
	if n, err := strconv.ParseUint(os.Getenv("VDBRIDGE_CRASH_SEEDS"), 10, 32); err == nil {
		return n
	}
	return 1
}

func crashCases() []crashCase {
	near := []int64{0, 1, 2, 3, 5}
	// Blocks in different sectors and pages of the BAT, so that commits have many updates and the log goes round.
	var far []int64
	for i := range int64(24) {
		far = append(far, i*509+i/7)
	}
	// More sectors of the BAT than the log holds.
	var many []int64
	for i := range int64(600) {
		many = append(many, i*512)
	}
	return []crashCase{
		{name: "near", create: CreateOptions{Size: 16*mib - 512, BlockSize: mib}, blocks: append(near, 15), steps: 120},
		{name: "far", create: CreateOptions{Size: 16 << 30, BlockSize: mib}, blocks: far, steps: 160},
		{name: "no-punch", create: CreateOptions{Size: 16 * mib, BlockSize: mib}, blocks: near, steps: 60, noPunch: true},
		{name: "4k", create: CreateOptions{Size: 64 * mib, BlockSize: 2 * mib, LogicalSector: 4096}, blocks: near, steps: 80},
		{name: "fixed", create: CreateOptions{Size: 16 * mib, BlockSize: mib, Fixed: true}, blocks: near, steps: 80},
		{name: "reshape", create: CreateOptions{Size: 16*mib - 512, BlockSize: mib}, blocks: append(near, 15), steps: 60, reshape: true},
		{name: "reshape-fixed", create: CreateOptions{Size: 6*mib + 4096, BlockSize: mib, Fixed: true}, blocks: near, steps: 30, reshape: true},
		{name: "child", create: CreateOptions{Size: 16*mib - 512, BlockSize: mib}, blocks: append(near, 15), steps: 70, child: true},
		{name: "child-2M", create: CreateOptions{Size: 16 * mib, BlockSize: 2 * mib}, blocks: near[:3], steps: 50, child: true, noPunch: true},
		{name: "child-4k", create: CreateOptions{Size: 16 * mib, BlockSize: 2 * mib, LogicalSector: 4096}, blocks: near[:3], steps: 40, child: true},
		{name: "child-workers", create: CreateOptions{Size: 16 * mib, BlockSize: mib}, blocks: append(near, 15), steps: 30, child: true, workers: 3},
		{name: "child-reshape", create: CreateOptions{Size: 16*mib - 512, BlockSize: mib}, blocks: append(near, 15), steps: 40, child: true, reshape: true},
		{name: "workers", create: CreateOptions{Size: 16 << 30, BlockSize: mib}, blocks: far, steps: 40, workers: 4},
		{name: "log-wraps", create: CreateOptions{Size: 16 << 30, BlockSize: mib}, blocks: far, steps: 1500, every: 151},
		{name: "log-full", create: CreateOptions{Size: 1 << 40, BlockSize: mib}, blocks: many, steps: 1500, rare: 120, every: 97},
	}
}

// record runs a workload on a fresh image and returns what crashes are made from.
func (c *crashCase) record(t *testing.T, seed uint64) (start, f *crashfile.File, h *history) {
	t.Helper()
	ctx := t.Context()
	f = crashfile.New()
	f.NoPunch = c.noPunch
	lg := max(c.create.LogicalSector, 512)
	h = newHistory(lg)
	if c.child {
		c.base(t, f, h)
	} else if err := Create(ctx, f, c.create); err != nil {
		t.Fatal(err)
	}
	start = f.Record()
	d, err := Open(ctx, f, h.opts)
	if err != nil {
		t.Fatal(err)
	}
	h.ops = f.Ops
	var last uint64
	var mu sync.Mutex
	value := func() uint64 {
		mu.Lock()
		defer mu.Unlock()
		last++
		return last
	}
	workers := max(c.workers, 1)
	errs := make(chan error, workers)
	for i := range workers {
		var mine []int64
		for k := i; k < len(c.blocks); k += workers {
			mine = append(mine, c.blocks[k])
		}
		w := workload{d: d, f: f, h: h, rng: rand.New(rand.NewPCG(seed, uint64(i))), blocks: mine, value: value, rare: c.rare, reshape: c.reshape, wholes: c.child, size: c.create.Size}
		go func() { errs <- w.run(ctx, c.steps) }()
	}
	for range workers {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	if err := h.verify(ctx, d, -1, true); err != nil { // everything is there while it runs
		t.Fatal(err)
	}
	if laps := d.commit.log.laps; c.name == "log-wraps" && laps < 2 {
		t.Fatalf("the log went round %d times, too few for this test", laps)
	}
	if err := h.flush(d.Close, f.Ops); err != nil {
		t.Fatal(err)
	}
	return start, f, h
}

// base makes f a child of a disk that has data in all the blocks.
func (c *crashCase) base(t *testing.T, f *crashfile.File, h *history) {
	t.Helper()
	ctx := t.Context()
	files := memFiles{"base": crashfile.New()}
	o := c.create
	o.BlockSize = 2 * mib
	must(t, Create(ctx, kept{files["base"]}, o))
	d := files.open(t, "base", Options{})
	bs := c.create.BlockSize
	p := make([]byte, bs)
	for _, b := range c.blocks {
		q := p[:min(bs, o.Size-b*bs)]
		for at := int64(0); at < int64(len(q)); at += h.sector {
			stamp(q[at:at+h.sector], b*bs+at, h.sector, 1<<40)
		}
		must(t, d.Write(ctx, q, b*bs, false))
		h.given(b*bs, int64(len(q)), 1<<40)
	}
	must(t, d.Close())
	h.opts = files.options("child")
	p2 := files.open(t, "base", Options{ReadOnly: true})
	must(t, CreateChild(ctx, f, p2, ChildOptions{BlockSize: bs, Parent: ParentLocator{RelativePath: "base"}}))
	must(t, p2.Close())
}

// TestCrash stops a workload at every operation on the file, with every kind of loss, and looks at what is left.
func TestCrash(t *testing.T) {
	for _, c := range crashCases() {
		if raceEnabled && c.workers == 0 {
			continue // one goroutine has nothing to race with
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for seed := range crashSeeds() {
				start, f, h := c.record(t, seed)
				rng := rand.New(rand.NewPCG(seed, 99))
				ctx := t.Context()
				n, deep := 0, 0
				f.Crashes(start, func(m crashfile.Moment) bool {
					chances := []float64{[]float64{0.5, 0, 0.8, 0.5, 1}[m.Ops%5]}
					off, _ := m.Last()
					inLog := c.every > 1 && off >= mib && off < 2*mib                                  // these cases are about the log
					edge := inLog && m.Ops%8 == 0 || c.rare == 0 && (m.Ops < 12 || m.Ops > f.Ops()-12) // where a session begins and ends each step is there only once
					if edge {
						chances = []float64{0, 0.2, 0.5, 0.5, 0.8}
					}
					for _, chance := range chances {
						n++
						if !edge && c.every > 1 && n%c.every != 0 || raceEnabled && n%32 != 0 {
							continue // the race detector has seen the workload; what crashes leave takes no goroutines
						}
						sector := int64(512)
						if rng.IntN(2) == 0 || c.create.LogicalSector == 4096 { // a disk of 4 KiB sectors is not torn within one
							sector = 4096
						}
						left := m.After(rng, chance, sector)
						if err := inspect(ctx, left, h, m.Ops, rng.IntN(24) == 0); err != nil {
							t.Errorf("seed %d, crash after %d operations, chance %v, sector %d: %v", seed, m.Ops, chance, sector, err)
							return false
						}
						if chance == 0.5 && rng.IntN(40) == 0 && deep < 2 {
							deep++
							if err := crashAgain(ctx, left, h, m.Ops, rng); err != nil {
								t.Errorf("seed %d, crash after %d operations, then another while opening: %v", seed, m.Ops, err)
								return false
							}
						}
					}
					return true
				})
				t.Logf("seed %d: %d operations, %d flushes, %d crashes", seed, f.Ops(), f.Flushes(), n)
			}
		})
	}
}

// inspect looks at a file after a crash in every way that we have: check, read-only, for writing, and checked again.
func inspect(ctx context.Context, left *crashfile.File, h *history, ops int, full bool) error {
	r, err := Check(ctx, left.Clone())
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	if r.State == StateCorrupt {
		return fmt.Errorf("check after the crash: %v %+v", r.State, r.Findings)
	}
	if full {
		ro := left.Clone()
		ro.Fail = func(int, bool) error { return errors.New("a read-only open must not write") }
		o := h.opts
		o.ReadOnly = true
		d, err := Open(ctx, ro, o)
		if err != nil {
			return fmt.Errorf("open read-only: %w", err)
		}
		if err := h.verify(ctx, d, ops, false); err != nil {
			return fmt.Errorf("read-only: %w", err)
		}
		if err := d.Close(); err != nil {
			return err
		}
	}
	f := left.Clone()
	d, err := Open(ctx, f, h.opts)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	if err := h.verify(ctx, d, ops, full); err != nil {
		return err
	}
	if err := d.Close(); err != nil {
		return err
	}
	if full {
		if r, err = Check(ctx, f.Clone()); err != nil || r.State != StateClean {
			return fmt.Errorf("check after the repair by opening: %v %v %+v", err, r.State, r.Findings)
		}
	}
	return nil
}

// crashAgain opens what a crash has left, and crashes at every operation of that.
func crashAgain(ctx context.Context, left *crashfile.File, h *history, ops int, rng *rand.Rand) (err error) {
	f := left.Clone()
	start := f.Record()
	d, err := Open(ctx, f, h.opts)
	if err != nil {
		return err
	}
	// Something new on top, so that a new log follows the old one.
	if err := d.Trim(ctx, 0, 0); err != nil {
		return err
	}
	if err := d.Close(); err != nil {
		return err
	}
	f.Crashes(start, func(m crashfile.Moment) bool {
		for _, chance := range []float64{0, 0.6} {
			if err = inspect(ctx, m.After(rng, chance, h.sector), h, ops, false); err != nil {
				err = fmt.Errorf("after %d more operations: %w", m.Ops, err)
				return false
			}
		}
		return true
	})
	return err
}

// TestCrashQEMU lets qemu-img judge a sample of what crashes leave: it replays the log, finds nothing wrong, and reads what we read.
func TestCrashQEMU(t *testing.T) {
	qemu := tool(t, "qemu-img")
	for _, c := range crashCases()[:2] {
		start, f, h := c.record(t, 7)
		rng := rand.New(rand.NewPCG(7, 7))
		dir := t.TempDir()
		every := max(1, f.Ops()/12)
		f.Crashes(start, func(m crashfile.Moment) bool {
			if m.Ops%every != every-1 {
				return true
			}
			left := m.After(rng, 0.7, 512)
			path := filepath.Join(dir, fmt.Sprintf("%s-%d.vhdx", c.name, m.Ops))
			dump(t, left, path)
			if out, err := exec.Command(qemu, "check", "-r", "all", path).CombinedOutput(); err != nil {
				t.Errorf("%s: crash after %d operations: qemu-img check: %v\n%s", c.name, m.Ops, err, out)
				return false
			}
			d, err := OpenFile(t.Context(), path, Options{})
			if err != nil {
				t.Error(err)
				return false
			}
			if err := h.verify(t.Context(), d, m.Ops, true); err != nil {
				t.Errorf("%s: crash after %d operations, repaired by qemu: %v", c.name, m.Ops, err)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			_ = os.Remove(path)
			return !t.Failed()
		})
	}
}

// dump copies a file in memory to a real one.
func dump(t *testing.T, f *crashfile.File, path string) {
	t.Helper()
	w, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}()
	size, err := f.Size(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := f.Pages(func(off int64, b []byte) error {
		_, err := w.WriteAt(b[:min(int64(len(b)), size-off)], off)
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// tool finds a program of others that judges our work. Without it the test is skipped, loudly, unless VDBRIDGE_REQUIRE_TOOLS=1.
func tool(t testing.TB, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err == nil {
		return p
	}
	if os.Getenv("VDBRIDGE_REQUIRE_TOOLS") == "1" {
		t.Fatalf("%s is needed (VDBRIDGE_REQUIRE_TOOLS=1): %v", name, err)
	}
	t.Skipf("SKIPPED: %s is not installed, so nothing was proved here", name)
	return ""
}
