package vhdx

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"vdbridge/vhdx/crashfile"
)

// memFiles is a Resolver over files in memory: the relative path is the name.
type memFiles map[string]*crashfile.File

// kept is a file that stays usable when a disk closes it.
type kept struct{ *crashfile.File }

func (kept) Close() error { return nil }

func (m memFiles) Places(l *ParentLocator) []string { return []string{l.RelativePath} }

func (m memFiles) Open(_ context.Context, place string, _ bool) (Backing, Resolver, error) {
	f := m[place]
	if f == nil {
		return nil, nil, &fs.PathError{Op: "open", Path: place, Err: fs.ErrNotExist}
	}
	return kept{f}, m, nil
}

func (m memFiles) options(name string) Options { return Options{Resolver: m, Name: name} }

func (m memFiles) open(t testing.TB, name string, o Options) *Disk {
	t.Helper()
	o.Resolver, o.Name = m, name
	d, err := Open(context.Background(), kept{m[name]}, o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// child makes a file with a differencing disk.
func (m memFiles) child(t testing.TB, name, parent string, o ChildOptions) {
	t.Helper()
	p := m.open(t, parent, Options{ReadOnly: true})
	m[name] = crashfile.New()
	o.Parent.RelativePath = parent
	if err := errors.Join(CreateChild(context.Background(), kept{m[name]}, p, o), p.Close()); err != nil {
		t.Fatal(err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// modelDisk is a disk of some kind beside what it should hold.
type modelDisk struct {
	kind  string
	files memFiles
	top   string
	d     *Disk
	model []byte
}

type fataler interface {
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

func (m *modelDisk) check(ctx context.Context, t fataler, off, n int64) {
	p := make([]byte, n)
	if err := m.d.Read(ctx, p, off); err != nil {
		t.Fatalf("%s: %v", m.kind, err)
	}
	if !bytes.Equal(p, m.model[off:off+n]) {
		i := 0
		for p[i] == m.model[off+int64(i)] {
			i++
		}
		t.Fatalf("%s: %d bytes at %d differ, first at %d", m.kind, n, off, off+int64(i))
	}
	total := int64(0)
	err := m.d.Extents(ctx, off, n, func(k int64, hole, zero bool) bool {
		if zero && !isZero(m.model[off+total:off+total+k]) {
			t.Fatalf("%s: %d bytes at %d are said to be zero", m.kind, k, off+total)
		}
		total += k
		return true
	})
	if err != nil || total != n {
		t.Fatalf("%s: extents of %d bytes cover %d: %v", m.kind, n, total, err)
	}
	at := off
	err = m.d.Map(ctx, off, n, func(e Extent) bool {
		if e.Offset != at || e.Length <= 0 || (e.State == ExtentData) != (e.File >= 0) {
			t.Fatalf("%s: extent %+v at %d", m.kind, e, at)
		}
		if e.State == ExtentData {
			lv := m.d
			for range e.Level {
				lv = lv.parent
			}
			q := make([]byte, min(e.Length, 4096))
			if err := readFull(ctx, lv.file, q, e.File); err != nil || !bytes.Equal(q, m.model[at:at+int64(len(q))]) {
				t.Fatalf("%s: extent %+v: the data are not there: %v", m.kind, e, err)
			}
		} else if !isZero(m.model[at : at+e.Length]) {
			t.Fatalf("%s: extent %+v is not zero", m.kind, e)
		}
		at += e.Length
		return true
	})
	if err != nil || at != off+n {
		t.Fatalf("%s: the map ends at %d: %v", m.kind, at, err)
	}
}

// checkAll is Check for every file of the chain.
func (m *modelDisk) checkAll(ctx context.Context, t fataler) {
	for name, f := range m.files {
		r, err := Check(ctx, f.Clone())
		if err != nil || r.State != StateClean {
			t.Fatalf("%s: check of %s: %v %+v", m.kind, name, err, r)
		}
	}
}

// modelDisks makes one disk of each kind, all with the same content.
func modelDisks(t *rapid.T, sector int, size int64) []*modelDisk {
	ctx := context.Background()
	block := mib << rapid.IntRange(0, 2).Draw(t, "block")
	noPunch := rapid.Bool().Draw(t, "no-punch")
	initial := make([]byte, size)
	for i := range 3 {
		off := int64(rapid.IntRange(0, int(size)/sector-1).Draw(t, "initial")) * int64(sector)
		noise(initial[off:min(off+300*kib, size)], uint64(1000+i))
	}
	newFile := func() *crashfile.File {
		f := crashfile.New()
		f.NoPunch = noPunch
		return f
	}
	var out []*modelDisk
	for _, kind := range []string{"fixed", "dynamic", "child", "grandchild", "child of empty"} {
		m := &modelDisk{kind: kind, files: memFiles{"base": newFile()}, top: "base", model: bytes.Clone(initial)}
		o := CreateOptions{Size: size, BlockSize: int64(block), LogicalSector: sector, Fixed: kind == "fixed"}
		if err := Create(ctx, m.files["base"], o); err != nil {
			t.Fatal(err)
		}
		write := func(part []byte, off int64) {
			d, err := Open(ctx, kept{m.files[m.top]}, m.files.options(m.top))
			if err == nil {
				err = errors.Join(d.Write(ctx, part, off, false), d.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		fork := func(name string, block int64) {
			p, err := Open(ctx, kept{m.files[m.top]}, Options{Resolver: m.files, Name: m.top, ReadOnly: true})
			if err != nil {
				t.Fatal(err)
			}
			m.files[name] = newFile()
			err = errors.Join(CreateChild(ctx, m.files[name], p, ChildOptions{BlockSize: block, Parent: ParentLocator{RelativePath: m.top}}), p.Close())
			if err != nil {
				t.Fatal(err)
			}
			m.files[name] = m.files[name].Clone()
			m.top = name
		}
		m.files["base"] = m.files["base"].Clone()
		half := size / 2 / int64(sector) * int64(sector)
		switch kind {
		case "child":
			write(initial, 0)
			fork("child", int64(block))
		case "grandchild":
			write(initial[:half], 0)
			fork("child", 2*mib)
			write(initial[half:], half)
			fork("grandchild", mib)
		case "child of empty":
			fork("child", mib)
			write(initial, 0)
		default:
			write(initial, 0)
		}
		d, err := Open(ctx, kept{m.files[m.top]}, m.files.options(m.top))
		if err != nil {
			t.Fatal(err)
		}
		m.d = d
		out = append(out, m)
	}
	return out
}

// TestModelKinds runs one random sequence of operations on a disk of every kind, each beside a flat array.
func TestModelKinds(t *testing.T) {
	if f := flag.Lookup("rapid.checks"); f != nil && f.Value.String() == f.DefValue { // five disks a time
		must(t, f.Value.Set("30"))
		defer func() { _ = f.Value.Set(f.DefValue) }()
	}
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		sector := rapid.SampledFrom([]int{512, 4096}).Draw(t, "sector")
		size := int64(rapid.IntRange(1, 5*mib/sector).Draw(t, "sectors")) * int64(sector)
		disks, initial := modelDisks(t, sector, size), size
		span := func() (off, n int64) {
			off = int64(rapid.IntRange(0, int(size)/sector-1).Draw(t, "off")) * int64(sector)
			n = int64(rapid.IntRange(1, int(size-off)/sector).Draw(t, "n")) * int64(sector)
			switch rapid.IntRange(0, 3).Draw(t, "shape") {
			case 0, 1:
				n = min(n, 4*int64(sector))
			case 2: // whole blocks
				off = off / mib * mib
				n = min(roundUp(n, mib), size-off)
			}
			return off, n
		}
		each := func(fn func(m *modelDisk) error) {
			for _, m := range disks {
				if err := fn(m); err != nil {
					t.Fatalf("%s: %v", m.kind, err)
				}
			}
		}
		var seed uint64
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				off, n := span()
				seed++
				p := make([]byte, n)
				noise(p, seed)
				fua := rapid.Bool().Draw(t, "fua")
				each(func(m *modelDisk) error { copy(m.model[off:], p); return m.d.Write(ctx, p, off, fua) })
			},
			"zero": func(t *rapid.T) {
				off, n := span()
				unmap := rapid.Bool().Draw(t, "unmap")
				each(func(m *modelDisk) error {
					clear(m.model[off : off+n])
					return m.d.WriteZeroes(ctx, off, n, unmap, false)
				})
			},
			"trim": func(t *rapid.T) {
				off, n := span()
				each(func(m *modelDisk) error {
					old := bytes.Clone(m.model[off : off+n])
					if err := errors.Join(m.d.Trim(ctx, off, n), m.d.Read(ctx, m.model[off:off+n], off)); err != nil {
						return err
					}
					for i, v := range m.model[off : off+n] {
						if v != 0 && v != old[i] {
							return fmt.Errorf("after a trim byte %d is neither zero nor what it was", off+int64(i))
						}
					}
					if bs := m.d.geo.blockSize; m.kind != "fixed" && off%bs == 0 && n >= bs && !isZero(m.model[off:off+bs]) {
						return fmt.Errorf("the block at %d still shows after a trim", off)
					}
					return nil
				})
			},
			"resize": func(t *rapid.T) { // never below the parents of the children, which could not grow again
				to := initial + int64(rapid.IntRange(0, 3*mib/sector).Draw(t, "more"))*int64(sector)
				each(func(m *modelDisk) error {
					err := m.d.Resize(ctx, to, ResizeOptions{})
					if errors.Is(err, ErrDataLoss) {
						if isZero(m.model[to:]) {
							return fmt.Errorf("nothing would be lost: %w", err)
						}
						err = m.d.Resize(ctx, to, ResizeOptions{Discard: true})
					} else if to < size && !isZero(m.model[to:]) {
						return errors.New("data were cut off")
					}
					if to < size {
						m.model = m.model[:to]
					} else {
						m.model = append(m.model, make([]byte, to-size)...)
					}
					return err
				})
				size = to
			},
			"compact": func(t *rapid.T) {
				zeros := rapid.Bool().Draw(t, "zeros")
				each(func(m *modelDisk) error {
					if err := m.d.Compact(ctx, CompactOptions{FindZeros: zeros}); err != nil {
						return err
					}
					n, _ := m.files[m.top].Size(ctx)
					if want := compactSize(m.d); n > want {
						return fmt.Errorf("%d bytes after compacting, %d would do", n, want)
					}
					return nil
				})
			},
			"flush": func(*rapid.T) { each(func(m *modelDisk) error { return m.d.Flush(ctx) }) },
			"reopen": func(*rapid.T) {
				each(func(m *modelDisk) (err error) {
					if err := m.d.Close(); err != nil {
						return err
					}
					m.checkAll(ctx, t)
					m.d, err = Open(ctx, kept{m.files[m.top]}, m.files.options(m.top))
					return err
				})
			},
			"": func(t *rapid.T) {
				off, n := span()
				each(func(m *modelDisk) error { m.check(ctx, t, off, n); return nil })
			},
		})
		each(func(m *modelDisk) error { m.check(ctx, t, 0, size); return m.d.Close() })
	})
}

// compactSize is how large the file may be after Compact: what is in use, and what does not fit into gaps that are too small for a block.
func compactSize(d *Disk) int64 {
	total, last := int64(0), int64(0)
	for _, x := range d.layout.structures() {
		total += x.n
		last = max(last, x.end())
	}
	for i := range d.geo.entries {
		v, err := d.bat.entry(context.Background(), i)
		if err == nil && reservesSpace(v) {
			if _, payload := d.geo.blockOf(i); payload {
				total += d.geo.blockSize
			} else {
				total += bitmapBlock
			}
		}
	}
	return max(last, total) + d.geo.blockSize
}

// TestChildConcurrent has writers meet in blocks that only the parent has, small and whole-block writes at once.
func TestChildConcurrent(t *testing.T) {
	ctx := t.Context()
	files := memFiles{"base": crashfile.New()}
	const size = 32 * mib
	must(t, Create(ctx, files["base"], CreateOptions{Size: size, BlockSize: mib}))
	base := files.open(t, "base", Options{})
	p := make([]byte, size)
	for s := range int64(size / 512) {
		stamp(p[s*512:(s+1)*512], s*512, 512, 1)
	}
	must(t, errors.Join(base.Write(ctx, p, 0, false), base.Close()))
	files.child(t, "child", "base", ChildOptions{BlockSize: mib})
	d := files.open(t, "child", Options{BATCacheBytes: 1})
	for block := range int64(size / mib) {
		var wg sync.WaitGroup
		for w := range int64(8) {
			wg.Go(func() {
				n := int64(128 * kib)
				off := block*mib + w*n
				q := make([]byte, n)
				for at := int64(0); at < n; at += 8 * kib { // every other piece of 4 KiB, and one of them whole
					k := int64(4 * kib)
					if w == 3 && block%2 == 0 {
						k = 8 * kib
					}
					stamp(q[:k], off+at, 512, uint64(w)+2)
					if err := d.Write(ctx, q[:k], off+at, at == 0); err != nil {
						t.Error(err)
						return
					}
					if err := d.Read(ctx, q[:k], off+at); err != nil {
						t.Error(err)
						return
					}
					if v, err := readStamp(q[:512], (off+at)/512); err != nil || v != uint64(w)+2 {
						t.Errorf("sector %d: %d %v", (off+at)/512, v, err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	verify := func(d *Disk) {
		t.Helper()
		must(t, d.Read(ctx, p, 0))
		for s := range int64(size / 512) {
			block, w, at := s*512/mib, s*512%mib/(128*kib), s*512%(128*kib)
			want := uint64(1)
			if at%(8*kib) < 4*kib || w == 3 && block%2 == 0 {
				want = uint64(w) + 2
			}
			if v, err := readStamp(p[s*512:(s+1)*512], s); err != nil || v != want {
				t.Fatalf("sector %d is %d, not %d: %v", s, v, want, err)
			}
		}
	}
	verify(d)
	must(t, d.Close())
	d = files.open(t, "child", Options{ReadOnly: true})
	verify(d)
	if i := d.Info(); i.Kind != KindDifferencing || i.Parent == nil || i.Parent.Place != "base" || len(d.Chain()) != 2 {
		t.Errorf("%+v", i)
	}
	must(t, d.Close())
}

// TestStaleBits has bits set in the bitmap of a block that is not present, as a crash can leave them. They must not count when the block gets its place.
func TestStaleBits(t *testing.T) {
	ctx := t.Context()
	files := memFiles{"base": crashfile.New()}
	must(t, Create(ctx, files["base"], CreateOptions{Size: 8 * mib, BlockSize: mib}))
	base := files.open(t, "base", Options{})
	old := bytes.Repeat([]byte{7}, 8*mib)
	must(t, errors.Join(base.Write(ctx, old, 0, false), base.Close()))
	files.child(t, "child", "base", ChildOptions{BlockSize: mib})
	d := files.open(t, "child", Options{})
	p := bytes.Repeat([]byte{9}, 512)
	must(t, d.Write(ctx, p, 0, false)) // makes the bitmap
	if _, err := d.bits.set(ctx, 2*mib/512+5, 100); err != nil {
		t.Fatal(err)
	}
	must(t, d.Close())
	d = files.open(t, "child", Options{})
	must(t, d.Write(ctx, p, 2*mib, false))
	copy(old, p)
	copy(old[2*mib:], p)
	got := make([]byte, 8*mib)
	must(t, d.Read(ctx, got, 0))
	if !bytes.Equal(got, old) {
		t.Error("stale bits hide the parent")
	}
	must(t, d.Close())
	d = files.open(t, "child", Options{ReadOnly: true})
	must(t, d.Read(ctx, got, 0))
	if !bytes.Equal(got, old) {
		t.Error("stale bits hide the parent after reopening")
	}
	must(t, d.Close())
}

// TestBitmapFirst writes a part of a block and does not flush: the sector bitmap must be durable before any entry can need it.
func TestBitmapFirst(t *testing.T) {
	ctx := t.Context()
	files := memFiles{"base": crashfile.New()}
	must(t, Create(ctx, files["base"], CreateOptions{Size: 8 * mib, BlockSize: mib}))
	files.child(t, "child", "base", ChildOptions{BlockSize: mib})
	d := files.open(t, "child", Options{})
	must(t, d.Trim(ctx, 0, 0))
	must(t, d.Write(ctx, make([]byte, 512), 0, false))
	var b [8]byte
	must(t, readFull(ctx, files["child"], b[:], d.layout.bat.off+d.geo.bitmapEntry(0)*batEntrySize))
	if v := le.Uint64(b[:]); v&stateMask != blockPresent {
		t.Errorf("the entry of the bitmap is %x in the file", v)
	}
	must(t, d.Close())
}

// TestChainRefused checks parents that are missing, changed, looped, too deep, or of other sectors.
func TestChainRefused(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	path := func(n string) string { return filepath.Join(dir, n) }
	must(t, CreateFile(ctx, path("base.vhdx"), CreateOptions{Size: 8 * mib, BlockSize: mib}))
	must(t, CreateChildFile(ctx, path("child.vhdx"), path("base.vhdx"), ChildOptions{Parent: ParentLocator{
		RelativePath: `.\base.vhdx`, AbsolutePath: `\\?\d:\old place\other.vhdx`, VolumePath: `\\?\Volume{26A21BDA-A627-11D7-9931-806E6F6E6963}\x\base.vhdx`,
	}}))
	opens := func(name string) error {
		d, err := OpenFile(ctx, path(name), Options{})
		if err == nil {
			err = d.Close()
		}
		return err
	}
	must(t, opens("child.vhdx"))

	// The parent stays locked while the child is open.
	d, err := OpenFile(ctx, path("child.vhdx"), Options{})
	must(t, err)
	if err := opens("base.vhdx"); !errors.Is(err, ErrInUse) {
		t.Errorf("the parent opens for writing under its child: %v", err)
	}
	must(t, d.Close())

	// Without a resolver it is refused in words.
	f, err := OpenOSFile(path("child.vhdx"), true)
	must(t, err)
	if _, err := Open(ctx, f, Options{ReadOnly: true}); !errors.Is(err, ErrDifferencing) {
		t.Errorf("without a resolver: %v", err)
	}
	must(t, f.Close())

	must(t, os.Rename(path("base.vhdx"), path("gone.vhdx")))
	err = opens("child.vhdx")
	if !errors.Is(err, ErrParentMissing) || !strings.Contains(err.Error(), path("base.vhdx")) || !strings.Contains(err.Error(), path("other.vhdx")) {
		t.Errorf("missing parent: %v", err)
	}
	// By its last name beside the child, when the relative path leads nowhere.
	must(t, os.Rename(path("gone.vhdx"), path("other.vhdx")))
	must(t, opens("child.vhdx"))
	must(t, os.Rename(path("other.vhdx"), path("base.vhdx")))

	d, err = OpenFile(ctx, path("base.vhdx"), Options{})
	must(t, err)
	must(t, errors.Join(d.Write(ctx, make([]byte, 512), 0, false), d.Close()))
	if err = opens("child.vhdx"); !errors.Is(err, ErrParentChanged) || !strings.Contains(err.Error(), "written to since") {
		t.Errorf("changed parent: %v", err)
	}

	// Loops: a is the parent of b, b of a. Their linkages are forged.
	files := memFiles{"a": crashfile.New(), "b": crashfile.New()}
	ga, gb := NewGUID(), NewGUID()
	for name, o := range map[string]CreateOptions{
		"a": {Size: mib, BlockSize: mib, DataWriteGUID: ga, parent: &ParentLocator{Linkage: gb, RelativePath: "b"}},
		"b": {Size: mib, BlockSize: mib, DataWriteGUID: gb, parent: &ParentLocator{Linkage: ga, RelativePath: "a"}},
	} {
		must(t, Create(ctx, files[name], o))
	}
	if _, err := Open(ctx, kept{files["a"]}, files.options("a")); !errors.Is(err, ErrChain) || !strings.Contains(err.Error(), "loops") {
		t.Errorf("loop: %v", err)
	}
	if _, err := Open(ctx, kept{files["a"]}, files.options("another name")); !errors.Is(err, ErrChain) || !strings.Contains(err.Error(), "loops") {
		t.Errorf("loop under another name: %v", err)
	}

	// Depth.
	must(t, Create(ctx, crashed(files, "0"), CreateOptions{Size: mib, BlockSize: mib}))
	for i := 1; i < MaxChain; i++ {
		files.child(t, fmt.Sprint(i), fmt.Sprint(i-1), ChildOptions{BlockSize: mib})
	}
	last := files.open(t, fmt.Sprint(MaxChain-1), Options{ReadOnly: true})
	if len(last.Chain()) != MaxChain {
		t.Errorf("a chain of %d", len(last.Chain()))
	}
	files["deep"] = crashfile.New()
	must(t, CreateChild(ctx, files["deep"], last, ChildOptions{BlockSize: mib, Parent: ParentLocator{RelativePath: fmt.Sprint(MaxChain - 1)}}))
	must(t, last.Close())
	if _, err := Open(ctx, kept{files["deep"].Clone()}, files.options("deep")); !errors.Is(err, ErrChain) || !strings.Contains(err.Error(), "more than") {
		t.Errorf("depth: %v", err)
	}

	// Sectors of another size.
	g := NewGUID()
	must(t, Create(ctx, crashed(files, "4k"), CreateOptions{Size: mib, BlockSize: mib, LogicalSector: 4096, DataWriteGUID: g}))
	must(t, Create(ctx, crashed(files, "512"), CreateOptions{Size: mib, BlockSize: mib, parent: &ParentLocator{Linkage: g, RelativePath: "4k"}}))
	if _, err := Open(ctx, kept{files["512"]}, files.options("512")); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "sectors") {
		t.Errorf("sectors: %v", err)
	}
}

func crashed(m memFiles, name string) Backing {
	m[name] = crashfile.New()
	return kept{m[name]}
}

// TestSeal makes a child of a disk that is open for writing: it has what was written before, and a later write to the parent makes it refuse.
func TestSeal(t *testing.T) {
	ctx := t.Context()
	files := memFiles{"base": crashfile.New()}
	must(t, Create(ctx, files["base"], CreateOptions{Size: 8 * mib, BlockSize: mib}))
	base := files.open(t, "base", Options{})
	p := bytes.Repeat([]byte{3}, 4096)
	must(t, base.Write(ctx, p, 4096, false))
	must(t, CreateChild(ctx, crashed(files, "child"), base, ChildOptions{Parent: ParentLocator{RelativePath: "base"}}))
	copyOf := memFiles{"base": files["base"].Clone(), "child": files["child"].Clone()} // as after a crash
	d := copyOf.open(t, "child", Options{})
	q := make([]byte, 4096)
	if err := d.Read(ctx, q, 4096); err != nil || !bytes.Equal(p, q) {
		t.Errorf("the child does not have what was there before: %v", err)
	}
	must(t, d.Close())
	must(t, base.Write(ctx, p, 0, false))
	must(t, base.Close())
	if _, err := Open(ctx, kept{files["child"]}, files.options("child")); !errors.Is(err, ErrParentChanged) {
		t.Errorf("after a write to the parent: %v", err)
	}
}

// TestFileResolver checks how paths of Windows are translated.
func TestFileResolver(t *testing.T) {
	dir := CanonicalFile(t.TempDir())
	r := FileResolver{Dir: dir + "/kids", Map: map[string]string{`d:\disks`: dir + "/d", `\\Server\Share`: dir + "/s", `\\?\Volume{1}`: dir + "/v", `d:\disks\fast\`: dir + "/f"}}
	for _, c := range []struct {
		l    ParentLocator
		want []string
	}{
		{ParentLocator{RelativePath: `..\base\p.vhdx`}, []string{"/base/p.vhdx"}},
		{ParentLocator{AbsolutePath: `\\?\D:\Disks\a\p.vhdx`}, []string{"/d/a/p.vhdx", "/kids/p.vhdx"}},
		{ParentLocator{AbsolutePath: `\\?\d:\disks\fast\p.vhdx`}, []string{"/f/p.vhdx", "/kids/p.vhdx"}},
		{ParentLocator{AbsolutePath: `\\?\UNC\server\share\x\p.vhdx`}, []string{"/s/x/p.vhdx", "/kids/p.vhdx"}},
		{ParentLocator{VolumePath: `\\?\Volume{1}\x\q.vhdx`, AbsolutePath: `\\?\e:\p.vhdx`}, []string{"/v/x/q.vhdx", "/kids/q.vhdx", "/kids/p.vhdx"}},
	} {
		var got []string
		for _, p := range r.Places(&c.l) {
			got = append(got, strings.TrimPrefix(p, dir))
		}
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%+v: %q, want %q", c.l, got, c.want)
		}
	}
	r.Root = dir + "/kids"
	l := ParentLocator{RelativePath: `..\base\p.vhdx`, AbsolutePath: `\\?\D:\Disks\a\q.vhdx`}
	if got := r.Places(&l); len(got) != 1 || got[0] != dir+"/kids/q.vhdx" {
		t.Errorf("confined to a folder: %q", got)
	}
}

// TestChildAllocs counts the allocations of small requests on a warm chain: none.
func TestChildAllocs(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	ctx := context.Background()
	dir := t.TempDir()
	base, child := filepath.Join(dir, "a.vhdx"), filepath.Join(dir, "b.vhdx")
	must(t, CreateFile(ctx, base, CreateOptions{Size: 64 * mib, BlockSize: mib}))
	d, err := OpenFile(ctx, base, Options{})
	must(t, err)
	must(t, errors.Join(d.Write(ctx, make([]byte, 64*mib), 0, false), d.Close()))
	must(t, CreateChildFile(ctx, child, base, ChildOptions{}))
	d, err = OpenFile(ctx, child, Options{})
	must(t, err)
	p := make([]byte, 4096)
	at := func(i int) int64 { return int64(i%500) * 12288 }
	for i := range 500 {
		must(t, d.Write(ctx, p, at(i), false))
	}
	must(t, d.Flush(ctx))
	i := 0
	for name, fn := range map[string]func() error{
		"read of the child":  func() error { return d.Read(ctx, p, at(i)) },
		"read of the parent": func() error { return d.Read(ctx, p, at(i)+4096) },
		"write":              func() error { return d.Write(ctx, p, at(i), false) },
	} {
		if n := testing.AllocsPerRun(400, func() {
			i++
			if err := fn(); err != nil {
				t.Error(err)
			}
		}); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	must(t, d.Close())
}
