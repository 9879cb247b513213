package vhdx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"vdbridge/vhdx/crashfile"
)

// family is a parent with data, and a child with everything that a child can have.
func family(t *testing.T, parentSize, childSize int64, parentBlock, childBlock int64) (memFiles, []byte) {
	t.Helper()
	ctx := t.Context()
	files := memFiles{"base": crashfile.New()}
	must(t, Create(ctx, kept{files["base"]}, CreateOptions{Size: parentSize, BlockSize: parentBlock}))
	want := make([]byte, max(parentSize, childSize))
	write := func(d *Disk, off, n int64, seed uint64) {
		t.Helper()
		noise(want[off:off+n], seed)
		must(t, d.Write(ctx, want[off:off+n], off, false))
	}
	d := files.open(t, "base", Options{})
	for b := int64(0); b < 5; b++ {
		write(d, b*mib+b*4096, mib-b*8192, uint64(b))
	}
	must(t, d.Close())
	size := max(parentSize, childSize) // one that is smaller is cut afterwards
	files.child(t, "child", "base", ChildOptions{BlockSize: childBlock, Size: size})
	d = files.open(t, "child", Options{})
	write(d, 512, 3*512, 20)
	write(d, mib, mib, 21)
	for i := range int64(40) {
		write(d, 2*mib+i*8192, 512*(i%5+1), 30+uint64(i))
	}
	zero := func(off, n int64) {
		clear(want[off : off+n])
		must(t, d.WriteZeroes(ctx, off, n, true, false))
	}
	zero(3*mib+4096, 64*kib)
	zero(4*mib, 2*mib)
	if childSize > parentSize {
		write(d, parentSize-512, 2048, 90)
	}
	if childSize < size {
		must(t, d.Resize(ctx, childSize, ResizeOptions{Discard: true}))
	}
	must(t, d.Close())
	return files, want[:childSize]
}

func (m memFiles) content(name string) ([]byte, error) {
	ctx := context.Background()
	d, err := Open(ctx, kept{m[name].Clone()}, Options{Resolver: m, Name: name, ReadOnly: true})
	if err != nil {
		return nil, err
	}
	p := make([]byte, d.Size())
	return p, errors.Join(d.Read(ctx, p, 0), d.Close())
}

func (m memFiles) is(name string, want []byte) error {
	p, err := m.content(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if len(p) != len(want) {
		return fmt.Errorf("%s has %d bytes, not %d", name, len(p), len(want))
	}
	if !bytes.Equal(p, want) {
		i := 0
		for p[i] == want[i] {
			i++
		}
		return fmt.Errorf("%s differs at %d", name, i)
	}
	r, err := Check(context.Background(), m[name].Clone())
	if err != nil || r.State == StateCorrupt {
		return fmt.Errorf("check of %s: %w %+v", name, err, r.Findings)
	}
	return nil
}

func TestMerge(t *testing.T) {
	for _, c := range [][4]int64{{8 * mib, 8 * mib, mib, mib}, {8 * mib, 8 * mib, 4 * mib, mib}, {8 * mib, 9*mib + 4096, mib, 2 * mib}, {8 * mib, 7*mib + 512, 2 * mib, mib}} {
		files, want := family(t, c[0], c[1], c[2], c[3])
		if err := files.is("child", want); err != nil {
			t.Fatal(err)
		}
		var last, total int64
		place, err := Merge(t.Context(), kept{files["child"]}, MergeOptions{Resolver: files, Name: "child", Progress: func(d, n int64) { last, total = d, n }})
		if err != nil || place != "base" {
			t.Fatalf("%v: %s %v", c, place, err)
		}
		if last != total || total == 0 {
			t.Errorf("progress ended at %d of %d", last, total)
		}
		if err := errors.Join(files.is("base", want), files.is("child", want)); err != nil {
			t.Errorf("%v: %v", c, err)
		}
	}
}

// TestMergeMiddle takes the middle out of a chain of three: merged into the base, and its child moved over.
func TestMergeMiddle(t *testing.T) {
	ctx := t.Context()
	files, want := family(t, 8*mib, 8*mib, mib, mib)
	files.child(t, "grandchild", "child", ChildOptions{BlockSize: mib})
	d := files.open(t, "grandchild", Options{})
	noise(want[100*512:200*512], 7)
	must(t, errors.Join(d.Write(ctx, want[100*512:200*512], 100*512, false), d.Close()))
	if _, err := Merge(ctx, kept{files["child"]}, MergeOptions{Resolver: files, Name: "child"}); err != nil {
		t.Fatal(err)
	}
	if err := files.is("grandchild", want); err != nil {
		t.Fatalf("with the merged one still between: %v", err)
	}
	base := files.open(t, "base", Options{ReadOnly: true})
	d = files.open(t, "grandchild", Options{})
	must(t, d.SetParent(ctx, ParentLocator{Linkage: base.Info().DataWriteGUID, RelativePath: "base"}))
	guid := d.Info().DataWriteGUID
	must(t, errors.Join(d.Close(), base.Close()))
	delete(files, "child")
	if err := files.is("grandchild", want); err != nil {
		t.Fatal(err)
	}
	d = files.open(t, "grandchild", Options{ReadOnly: true})
	if d.Info().DataWriteGUID != guid || len(d.Chain()) != 2 {
		t.Errorf("another parent is another disk now: %+v", d.Chain())
	}
	must(t, d.Close())
}

// TestMergeParent takes images out of a chain whose topmost is being written to, until the base alone is left below.
func TestMergeParent(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	path := func(i int) string { return filepath.Join(dir, fmt.Sprintf("%d.vhdx", i)) }
	const size, levels = 24 * mib, 4
	var want [size]byte
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range levels {
		if i == 0 {
			must(t, CreateFile(ctx, path(0), CreateOptions{Size: size, BlockSize: mib}))
		} else { // the second one is larger than its parent
			o := ChildOptions{BlockSize: mib << (i % 2), Size: size}
			must(t, CreateChildFile(ctx, path(i), path(i-1), o))
		}
		d, err := OpenFile(ctx, path(i), Options{})
		must(t, err)
		for range 30 {
			off := rng.Int64N(size/512-300) * 512
			n := 512 * (1 + rng.Int64N(200))
			noise(want[off:off+n], rng.Uint64())
			must(t, d.Write(ctx, want[off:off+n], off, false))
		}
		clear(want[int64(i)*2*mib : int64(i)*2*mib+2*mib])
		must(t, errors.Join(d.WriteZeroes(ctx, int64(i)*2*mib, 2*mib, true, false), d.Close()))
	}
	d, err := OpenFile(ctx, path(levels-1), Options{})
	must(t, err)
	var mu sync.Mutex
	var stop atomic.Bool
	var wg sync.WaitGroup
	for w := range uint64(3) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(w, 9))
			p := make([]byte, 8192)
			for i := uint64(0); !stop.Load(); i++ {
				n := 512 * (1 + rng.Int64N(16))
				off := rng.Int64N(size/512-16) * 512
				var err error
				mu.Lock() // one at a time beside the model; the merge runs beside
				if i%3 == 0 {
					noise(want[off:off+n], rng.Uint64())
					err = d.Write(ctx, want[off:off+n], off, false)
				} else if err = d.Read(ctx, p[:n], off); err == nil && !bytes.Equal(p[:n], want[off:off+n]) {
					err = fmt.Errorf("%d bytes at %d differ", n, off)
				}
				mu.Unlock()
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	guid := d.Info().DataWriteGUID
	for i := levels - 2; i > 0; i-- {
		if err := d.MergeParent(ctx, MergeParentOptions{}); err != nil {
			t.Fatal(err)
		}
		if c := d.Chain(); len(c) != i+1 {
			t.Errorf("%d images are left: %+v", len(c), c)
		}
		must(t, os.Remove(path(i)))
	}
	stop.Store(true)
	wg.Wait()
	if err := d.MergeParent(ctx, MergeParentOptions{}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("with the base alone: %v", err)
	}
	if g := d.Info().DataWriteGUID; g == guid && guid == (GUID{}) {
		t.Error("no GUID")
	}
	got := make([]byte, size)
	must(t, d.Read(ctx, got, 0))
	if !bytes.Equal(got, want[:]) {
		t.Error("other data after merging")
	}
	must(t, d.Close())
	d, err = OpenFile(ctx, path(levels-1), Options{})
	must(t, err)
	must(t, d.Read(ctx, got, 0))
	if !bytes.Equal(got, want[:]) || len(d.Chain()) != 2 {
		t.Error("other data after opening again")
	}
	must(t, d.Close())
	strictCheck(t, path(0))
}

// TestMergeParentRefused changes nothing when an image of the chain is in use, or when the new parent would not be found; a cancel leaves the chain as it was.
func TestMergeParentRefused(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	path := func(i int) string { return filepath.Join(dir, fmt.Sprintf("%d.vhdx", i)) }
	must(t, CreateFile(ctx, path(0), CreateOptions{Size: 8 * mib, BlockSize: mib}))
	must(t, CreateChildFile(ctx, path(1), path(0), ChildOptions{BlockSize: mib}))
	m, err := OpenFile(ctx, path(1), Options{})
	must(t, err)
	p := bytes.Repeat([]byte{8}, 6*mib)
	must(t, errors.Join(m.Write(ctx, p, 0, false), m.Close()))
	must(t, CreateChildFile(ctx, path(2), path(1), ChildOptions{BlockSize: mib}))
	must(t, CreateChildFile(ctx, path(3), path(1), ChildOptions{BlockSize: mib}))
	d, err := OpenFile(ctx, path(2), Options{})
	must(t, err)
	reads := func(what string) {
		t.Helper()
		q := make([]byte, len(p))
		if err := d.Read(ctx, q, 0); err != nil || !bytes.Equal(p, q) || len(d.Chain()) != 3 {
			t.Errorf("%s: %v, a chain of %d", what, err, len(d.Chain()))
		}
	}
	sibling, err := OpenFile(ctx, path(3), Options{ReadOnly: true})
	must(t, err)
	if err := d.MergeParent(ctx, MergeParentOptions{}); !errors.Is(err, ErrInUse) {
		t.Errorf("beside another child: %v", err)
	}
	reads("in use")
	must(t, sibling.Close())
	if err := d.MergeParent(ctx, MergeParentOptions{Parent: ParentLocator{RelativePath: `.\3.vhdx`}}); err == nil {
		t.Error("a path to another image is taken")
	}
	reads("another path")
	stopped, cancel := context.WithCancel(ctx)
	if err := d.MergeParent(stopped, MergeParentOptions{Progress: func(int64, int64) { cancel() }}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	reads("cancelled")
	must(t, d.Close())
	d, err = OpenFile(ctx, path(2), Options{})
	must(t, err)
	reads("cancelled and opened again")
	must(t, d.MergeParent(ctx, MergeParentOptions{}))
	must(t, d.Close())
}

// TestMergeCrash stops a merge at every operation on either file. Child and parent together show what they did; and merging again finishes it.
func TestMergeCrash(t *testing.T) {
	ctx := t.Context()
	files, want := family(t, 8*mib, 8*mib+8192, mib, mib)
	base, child := files["base"].Clone(), files["child"].Clone()
	crashfile.Join(base, child)
	both := []*crashfile.File{base, child}
	starts := []*crashfile.File{base.Record(), child.Record()}
	run := memFiles{"base": base, "child": child}
	if _, err := Merge(ctx, kept{child}, MergeOptions{Resolver: run, Name: "child"}); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	n := 0
	crashfile.CrashesTogether(both, starts, func(when int64, m []crashfile.Moment) bool {
		for range 2 {
			n++
			left := memFiles{}
			chance := func() float64 { return []float64{0, 0.5, 0.8, 1}[rng.IntN(4)] }
			left["base"], left["child"] = m[0].After(rng, chance(), 512), m[1].After(rng, chance(), 4096)
			if err := left.is("child", want); err != nil {
				t.Errorf("crash after %d operations: %v", when, err)
				return false
			}
			if rng.IntN(10) > 0 || raceEnabled {
				continue
			}
			if _, err := Merge(ctx, kept{left["child"]}, MergeOptions{Resolver: left, Name: "child"}); err != nil {
				t.Errorf("crash after %d operations: merging again: %v", when, err)
				return false
			}
			if err := errors.Join(left.is("base", want), left.is("child", want)); err != nil {
				t.Errorf("crash after %d operations, merged again: %v", when, err)
				return false
			}
		}
		return true
	})
	t.Logf("%d crashes", n)
}

// TestCompactBusy compacts a disk again and again that many write to, and finds every write.
func TestCompactBusy(t *testing.T) {
	for _, kind := range []string{"dynamic", "child"} {
		t.Run(kind, func(t *testing.T) {
			ctx := t.Context()
			files := memFiles{"top": crashfile.New()}
			must(t, Create(ctx, kept{files["top"]}, CreateOptions{Size: 64 * mib, BlockSize: mib}))
			if kind == "child" {
				files["base"] = files["top"]
				files.child(t, "top", "base", ChildOptions{BlockSize: mib})
			}
			d := files.open(t, "top", Options{BATCacheBytes: 1})
			var stop atomic.Bool
			var wg sync.WaitGroup
			for w := range int64(4) {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(uint64(w), 5))
					model := map[int64]uint64{}
					p := make([]byte, 512)
					for i := uint64(1); !stop.Load() || i < 300; i++ {
						block := rng.Int64N(10)*4 + w
						off := block*mib + rng.Int64N(16)*512*3
						var err error
						switch rng.IntN(12) {
						case 0:
							err = d.Trim(ctx, block*mib, mib)
							for o := range model {
								if o/mib == block {
									model[o] = 0
								}
							}
						case 1:
							err = d.Flush(ctx)
						default:
							stamp(p, off, 512, i)
							model[off] = i
							err = d.Write(ctx, p, off, false)
						}
						if err != nil {
							t.Error(err)
							return
						}
						if i%16 == 0 {
							for o, v := range model {
								if err := d.Read(ctx, p, o); err != nil {
									t.Error(err)
									return
								}
								if got, err := readStamp(p, o/512); err != nil || got != v {
									t.Errorf("sector %d is %d, not %d: %v", o/512, got, v, err)
									return
								}
							}
						}
					}
				})
			}
			for i := range 25 {
				if err := d.Compact(ctx, CompactOptions{FindZeros: i%3 == 0}); err != nil {
					t.Error(err)
				}
				if err := d.Resize(ctx, 64*mib+int64(i%3)*mib/2, ResizeOptions{}); err != nil {
					t.Error(err)
				}
			}
			stop.Store(true)
			wg.Wait()
			must(t, d.Close())
			if r, err := Check(ctx, files["top"].Clone()); err != nil || r.State != StateClean {
				t.Fatalf("check: %v %+v", err, r)
			}
		})
	}
}

// TestShrinkGrow cuts data off and grows again: what was there does not come back.
func TestShrinkGrow(t *testing.T) {
	ctx := t.Context()
	for _, o := range []CreateOptions{{Size: 8 * mib, BlockSize: mib}, {Size: 8 * mib, BlockSize: 4 * mib, LogicalSector: 4096}, {Size: 8 * mib, BlockSize: mib, Fixed: true}} {
		f := crashfile.New()
		must(t, Create(ctx, f, o))
		d, err := Open(ctx, kept{f}, Options{})
		must(t, err)
		p := bytes.Repeat([]byte{1}, 8*mib)
		must(t, d.Write(ctx, p, 0, false))
		if err := d.Resize(ctx, 2*mib+4096, ResizeOptions{}); !errors.Is(err, ErrDataLoss) || d.Size() != 8*mib {
			t.Errorf("a cut through data: %v", err)
		}
		before, _ := f.Size(ctx)
		must(t, d.Resize(ctx, 2*mib+4096, ResizeOptions{Discard: true}))
		if after, _ := f.Size(ctx); after >= before {
			t.Errorf("the file has %d bytes, %d before", after, before)
		}
		if err := d.Read(ctx, p[:4096], 2*mib+4096); !errors.Is(err, ErrRange) {
			t.Errorf("a read behind the new end: %v", err)
		}
		must(t, d.Resize(ctx, 8*mib, ResizeOptions{}))
		must(t, d.Read(ctx, p, 0))
		if !bytes.Equal(p[:2*mib+4096], bytes.Repeat([]byte{1}, 2*mib+4096)) || !isZero(p[2*mib+4096:]) {
			t.Error("other data after cutting and growing")
		}
		for _, bad := range []int64{0, -1, 4097, 65 << 40} {
			if err := d.Resize(ctx, bad, ResizeOptions{}); !errors.Is(err, ErrRange) {
				t.Errorf("size %d: %v", bad, err)
			}
		}
		must(t, d.Close())
	}
	// A block allocation table that has to move.
	f := crashfile.New()
	must(t, Create(ctx, f, CreateOptions{Size: 8 * mib, BlockSize: mib}))
	d, err := Open(ctx, kept{f}, Options{})
	must(t, err)
	p := bytes.Repeat([]byte{5}, 4096)
	must(t, d.Write(ctx, p, mib, false))
	at := d.Info().BATOffset
	must(t, d.Resize(ctx, 1<<40, ResizeOptions{}))
	must(t, d.Write(ctx, p, 1<<40-4096, false))
	if d.Info().BATOffset == at {
		t.Error("the BAT has not moved")
	}
	must(t, d.Close())
	d, err = Open(ctx, kept{f}, Options{})
	must(t, err)
	for _, off := range []int64{mib, 1<<40 - 4096} {
		q := make([]byte, 4096)
		if err := d.Read(ctx, q, off); err != nil || !bytes.Equal(p, q) {
			t.Errorf("at %d: %v", off, err)
		}
	}
	must(t, d.Close())
}

// TestLowerBAT compacts an image whose BAT has moved up when it grew, into gaps that hold old data.
func TestLowerBAT(t *testing.T) {
	ctx := t.Context()
	f := crashfile.New()
	f.NoPunch = true
	must(t, Create(ctx, f, CreateOptions{Size: 8 * mib, BlockSize: mib}))
	d, err := Open(ctx, kept{f}, Options{})
	must(t, err)
	p := bytes.Repeat([]byte{0xff}, 8*mib)
	must(t, d.Write(ctx, p, 0, false))
	must(t, d.Resize(ctx, 300<<30, ResizeOptions{}))
	must(t, errors.Join(d.Trim(ctx, 0, 5*mib), d.Flush(ctx)))
	at := d.Info().BATOffset
	must(t, d.Compact(ctx, CompactOptions{}))
	if now := d.Info(); now.BATOffset >= at || now.FileSize > 12*mib {
		t.Errorf("the BAT went from %d to %d, the file has %d bytes", at, now.BATOffset, now.FileSize)
	}
	must(t, d.Close())
	if r, err := Check(ctx, f.Clone()); err != nil || r.State != StateClean || r.Usage.AllocatedBlocks != 3 {
		t.Fatalf("check: %v %+v", err, r)
	}
	d, err = Open(ctx, kept{f}, Options{})
	must(t, err)
	got := make([]byte, 8*mib)
	must(t, d.Read(ctx, got, 0))
	if !isZero(got[:5*mib]) || !bytes.Equal(got[5*mib:], p[5*mib:]) {
		t.Error("other data")
	}
	must(t, d.Close())
}
