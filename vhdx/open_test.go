package vhdx

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vdbridge/vhdx/crashfile"
)

// edit changes bytes of a file and puts right the checksum of what was changed.
func edit(t testing.TB, f *crashfile.File, off int64, b ...byte) {
	t.Helper()
	ctx := context.Background()
	if _, err := f.WriteAt(ctx, b, off); err != nil {
		t.Fatal(err)
	}
	for _, x := range []extent{{header1Offset, headerSize}, {header2Offset, headerSize}, {region1Offset, regionTableSize}, {region2Offset, regionTableSize}} {
		if off < x.off || off >= x.end() {
			continue
		}
		c := make([]byte, x.n)
		if err := readFull(ctx, f, c, x.off); err != nil {
			t.Fatal(err)
		}
		le.PutUint32(c[4:], checksum(c, 4))
		if _, err := f.WriteAt(ctx, c[4:8], x.off+4); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDamage breaks one thing at a time and looks at what Check, Open and the first read say.
func TestDamage(t *testing.T) {
	ctx := context.Background()
	const bat, meta = 3 * mib, 2 * mib
	current := func(f *crashfile.File) int64 { // place of the current header
		b := make([]byte, 2*64*kib)
		_ = readFull(ctx, f, b, header1Offset)
		if le.Uint64(b[8:]) > le.Uint64(b[64*kib+8:]) {
			return header1Offset
		}
		return header2Offset
	}
	for _, c := range []struct {
		name   string
		dirty  bool
		damage func(t *testing.T, f *crashfile.File)
		state  State
		says   string // in the findings, or in the error when it is no image at all
		open   error  // of an open for writing
		opens  bool   // read-only
	}{
		{name: "nothing", damage: func(*testing.T, *crashfile.File) {}, state: StateClean, opens: true},
		{name: "log to replay", dirty: true, damage: func(*testing.T, *crashfile.File) {}, state: StateDirty, says: "not closed", opens: true},
		{name: "empty file", damage: func(t *testing.T, f *crashfile.File) { _ = f.Truncate(ctx, 0) }, says: "not a VHDX", open: ErrNotVHDX},
		{name: "signature", damage: func(t *testing.T, f *crashfile.File) { edit(t, f, 0, 'V') }, says: "not a VHDX", open: ErrNotVHDX},
		{name: "header section only", damage: func(t *testing.T, f *crashfile.File) { _ = f.Truncate(ctx, mib) }, state: StateCorrupt, says: "outside the file", open: ErrCorrupt},
		{name: "first 100 KiB only", damage: func(t *testing.T, f *crashfile.File) { _ = f.Truncate(ctx, 100*kib) }, state: StateCorrupt, says: "less than the header section", open: ErrCorrupt},
		{name: "one header", damage: func(t *testing.T, f *crashfile.File) {
			_, _ = f.WriteAt(ctx, []byte{1}, header1Offset+100)
		}, state: StateClean, says: "header 1 is not valid", opens: true},
		{name: "both headers", damage: func(t *testing.T, f *crashfile.File) {
			_, _ = f.WriteAt(ctx, []byte{1}, header1Offset+100)
			_, _ = f.WriteAt(ctx, []byte{1}, header2Offset+100)
		}, state: StateCorrupt, says: "neither header is valid", open: ErrCorrupt},
		{name: "version 2", damage: func(t *testing.T, f *crashfile.File) { edit(t, f, current(f)+66, 2) }, says: "version 2", open: ErrUnsupported},
		{name: "log version", dirty: true, damage: func(t *testing.T, f *crashfile.File) { edit(t, f, current(f)+64, 1) }, state: StateCorrupt, says: "log version 1", open: ErrCorrupt},
		{name: "log outside", damage: func(t *testing.T, f *crashfile.File) { edit(t, f, current(f)+77, 0xff) }, state: StateCorrupt, says: "outside the file", open: ErrCorrupt},
		{name: "log on the BAT", damage: func(t *testing.T, f *crashfile.File) { edit(t, f, current(f)+74, 0x30) }, state: StateCorrupt, says: "overlap", open: ErrCorrupt},
		{name: "log damaged", dirty: true, damage: func(t *testing.T, f *crashfile.File) {
			for i := range int64(8) {
				_, _ = f.WriteAt(ctx, []byte{0x55}, mib+i*logSector+200)
			}
		}, state: StateCorrupt, says: "none of its", open: ErrCorrupt},
		{name: "log in use but never written", damage: func(t *testing.T, f *crashfile.File) { edit(t, f, current(f)+48, 1) }, state: StateDirty, says: "has no entry", opens: true},
		{name: "one region table", damage: func(t *testing.T, f *crashfile.File) { _, _ = f.WriteAt(ctx, []byte{1}, region1Offset+20) }, state: StateClean, says: "copy 1 is damaged", opens: true},
		{name: "both region tables", damage: func(t *testing.T, f *crashfile.File) {
			_, _ = f.WriteAt(ctx, []byte{1}, region1Offset+20)
			_, _ = f.WriteAt(ctx, []byte{1}, region2Offset+20)
		}, state: StateCorrupt, says: "checksum", open: ErrCorrupt},
		{name: "metadata signature", damage: func(t *testing.T, f *crashfile.File) { edit(t, f, meta, 'M') }, state: StateCorrupt, says: "signature", open: ErrCorrupt},
		{name: "differencing", damage: func(t *testing.T, f *crashfile.File) {
			edit(t, f, meta+metaTableSize+4, 2)
			l, err := (&ParentLocator{Linkage: NewGUID(), RelativePath: `.\parent.vhdx`}).encode()
			if err != nil {
				t.Fatal(err)
			}
			row := append(itemParentLocator[:], 0, 0, 2, 0, byte(len(l)), byte(len(l)>>8), 0, 0, metaIsRequired, 0, 0, 0)
			edit(t, f, meta+32+5*32, row...)
			edit(t, f, meta+2*metaTableSize, l...)
			edit(t, f, meta+10, 6)
		}, state: StateClean, says: "differencing", open: ErrDifferencing},
		{name: "unknown state", damage: func(t *testing.T, f *crashfile.File) { edit(t, f, bat, 5) }, state: StateCorrupt, says: "state 5", open: ErrCorrupt, opens: true},
		{name: "block outside", damage: func(t *testing.T, f *crashfile.File) { edit(t, f, bat+5, 1) }, state: StateCorrupt, says: "outside the file", open: ErrCorrupt, opens: true},
		{name: "block in the headers", damage: func(t *testing.T, f *crashfile.File) { edit(t, f, bat, 6, 0, 0) }, state: StateCorrupt, says: "inside the header section", open: ErrCorrupt, opens: true},
		{name: "block on the log", damage: func(t *testing.T, f *crashfile.File) { edit(t, f, bat, 6, 0, 0x10) }, state: StateCorrupt, says: "something else uses", open: ErrCorrupt, opens: true},
		{name: "two blocks in one place", damage: func(t *testing.T, f *crashfile.File) {
			b := make([]byte, 8)
			_ = readFull(ctx, f, b, bat)
			edit(t, f, bat+8, b...)
		}, state: StateCorrupt, says: "something else uses", open: ErrCorrupt, opens: true},
		{name: "reserved bits", damage: func(t *testing.T, f *crashfile.File) { edit(t, f, bat+1, 0xff) }, state: StateClean, says: "reserved bits", opens: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := fuzzBase(t, c.dirty)
			c.damage(t, f)
			r, err := Check(ctx, f.Clone())
			said := ""
			if err != nil {
				said = err.Error()
			} else if r.State != c.state {
				t.Errorf("state %v, want %v: %+v", r.State, c.state, r.Findings)
			}
			for _, g := range r.Findings {
				said += g.Message + "\n"
			}
			if !strings.Contains(said, c.says) {
				t.Errorf("it should say %q, it says:\n%s", c.says, said)
			}
			d, err := Open(ctx, f.Clone(), Options{})
			if !errors.Is(err, c.open) {
				t.Errorf("open: %v, want %v", err, c.open)
			}
			if err == nil {
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			}
			d, err = Open(ctx, f.Clone(), Options{ReadOnly: true})
			if (err == nil) != c.opens {
				t.Fatalf("open read-only: %v", err)
			}
			if err != nil {
				return
			}
			err = d.Read(ctx, make([]byte, 512), 0)
			if bad := c.name == "unknown state" || c.name == "block outside" || c.name == "block in the headers"; bad != errors.Is(err, ErrCorrupt) {
				t.Errorf("read of the first block: %v", err)
			}
			if err := d.Read(ctx, make([]byte, 512), 6*mib); err != nil {
				t.Errorf("read of another block: %v", err)
			}
			if err := d.Write(ctx, make([]byte, 512), 0, false); !errors.Is(err, ErrReadOnly) {
				t.Errorf("write to a read-only disk: %v", err)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestCreateLimits(t *testing.T) {
	ctx := t.Context()
	for name, o := range map[string]CreateOptions{
		"no size":              {},
		"negative":             {Size: -512},
		"odd":                  {Size: 1000},
		"too large":            {Size: 64<<40 + 512},
		"not a 4 KiB multiple": {Size: 512, LogicalSector: 4096},
		"block size":           {Size: mib, BlockSize: 3 * mib},
		"small blocks":         {Size: mib, BlockSize: mib / 2},
		"large blocks":         {Size: mib, BlockSize: 512 * mib},
		"logical sector":       {Size: mib, LogicalSector: 1024},
		"physical sector":      {Size: mib, PhysicalSector: 8192},
		"physical < logical":   {Size: mib, LogicalSector: 4096, PhysicalSector: 512},
		"log size":             {Size: mib, LogSize: 1000},
		"creator":              {Size: mib, Creator: strings.Repeat("x", 256)},
	} {
		f := crashfile.New()
		if err := Create(ctx, f, o); err == nil {
			t.Errorf("%s was accepted", name)
		}
		if n, _ := f.Size(ctx); n != 0 {
			t.Errorf("%s: the file has %d bytes", name, n)
		}
	}
	path := filepath.Join(t.TempDir(), "a")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := CreateFile(ctx, path, CreateOptions{Size: mib}); err == nil {
		t.Error("a file that exists was replaced")
	}
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Error("it was changed")
	}
	o := CreateOptions{Size: mib, Overwrite: true, VirtualDiskID: NewGUID(), DataWriteGUID: NewGUID(), Creator: "töst 🖴", LogicalSector: 4096, LogSize: 3 * mib}
	if err := CreateFile(ctx, path, o); err != nil {
		t.Fatal(err)
	}
	d, err := OpenFile(ctx, path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	if i := d.Info(); i.Creator != o.Creator || i.VirtualDiskID != o.VirtualDiskID || i.DataWriteGUID != o.DataWriteGUID || i.LogLength != o.LogSize || i.LogicalSectorSize != 4096 || i.Kind != KindDynamic {
		t.Errorf("%+v", i)
	}
	for _, r := range [][2]int64{{-4096, 4096}, {0, 512}, {512, 4096}, {mib, 4096}, {mib - 4096, 8192}, {1 << 62, 1 << 62}} {
		if err := d.Trim(ctx, r[0], r[1]); !errors.Is(err, ErrRange) {
			t.Errorf("trim of %d bytes at %d: %v", r[1], r[0], err)
		}
	}
	if err := d.Read(ctx, nil, mib); err != nil {
		t.Errorf("nothing at the end: %v", err)
	}
}

// TestSessionGUIDs follows the header GUIDs through sessions: reading changes nothing, writing changes both, each time.
func TestSessionGUIDs(t *testing.T) {
	ctx := t.Context()
	f := crashfile.New()
	if err := Create(ctx, f, CreateOptions{Size: 8 * mib, BlockSize: mib}); err != nil {
		t.Fatal(err)
	}
	f.Record()
	d, err := Open(ctx, f, Options{})
	if err != nil {
		t.Fatal(err)
	}
	before := d.Info()
	if err := errors.Join(d.Read(ctx, make([]byte, 512), 0), d.Close()); err != nil {
		t.Fatal(err)
	}
	if f.Ops() != 0 {
		t.Errorf("a session that only read did %d operations on the file", f.Ops())
	}
	for range 2 {
		f = f.Clone()
		if d, err = Open(ctx, f, Options{}); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(d.Write(ctx, make([]byte, 512), 0, false), d.Close()); err != nil {
			t.Fatal(err)
		}
		after := d.Info()
		if after.FileWriteGUID == before.FileWriteGUID || after.DataWriteGUID == before.DataWriteGUID || after.VirtualDiskID != before.VirtualDiskID {
			t.Errorf("before %+v, after %+v", before, after)
		}
		before = after
	}
}

// TestFailedFlush: after a flush has failed nothing more is acknowledged, and the image is still sound.
func TestFailedFlush(t *testing.T) {
	ctx := t.Context()
	f := crashfile.New()
	if err := Create(ctx, f, CreateOptions{Size: 8 * mib, BlockSize: mib}); err != nil {
		t.Fatal(err)
	}
	d, err := Open(ctx, f, Options{})
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4096)
	noise(p, 1)
	if err := errors.Join(d.Write(ctx, p, 0, true), d.Write(ctx, p, 2*mib, false)); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("the disk is on fire")
	f.Fail = func(_ int, flush bool) error {
		if !flush {
			return broken
		}
		return nil
	}
	if err := d.Flush(ctx); !errors.Is(err, broken) { // the log cannot be written: nothing is lost, and the next flush does it
		t.Fatal(err)
	}
	f.Fail = nil
	if err := errors.Join(d.Flush(ctx), d.Write(ctx, p, 4*mib, false)); err != nil {
		t.Fatal(err)
	}
	f.Fail = func(_ int, flush bool) error {
		if flush {
			return broken
		}
		return nil
	}
	if err := d.Flush(ctx); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	f.Fail = nil
	for name, err := range map[string]error{"write": d.Write(ctx, p, 0, false), "flush": d.Flush(ctx), "close": d.Close()} {
		if err == nil && name != "close" {
			t.Errorf("%s succeeded after a failed flush", name)
		}
	}
	f = f.Clone()
	if d, err = Open(ctx, f, Options{}); err != nil {
		t.Fatal(err)
	}
	q := make([]byte, 4096)
	for _, off := range []int64{0, 2 * mib} {
		if err := d.Read(ctx, q, off); err != nil || string(q) != string(p) {
			t.Errorf("what was durable at %d is gone: %v", off, err)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestFewLogWrites: a sequential fill of 256 blocks with a flush at the end takes one log entry and a handful of flushes.
func TestFewLogWrites(t *testing.T) {
	ctx := t.Context()
	f := crashfile.New()
	if err := Create(ctx, f, CreateOptions{Size: 256 * mib, BlockSize: mib}); err != nil {
		t.Fatal(err)
	}
	d, err := Open(ctx, f, Options{})
	if err != nil {
		t.Fatal(err)
	}
	f.Record()
	p := make([]byte, 64*kib)
	for off := int64(0); off < d.Size(); off += 256 * kib {
		if err := d.Write(ctx, p, off, false); err != nil {
			t.Fatal(err)
		}
	}
	if n := f.Flushes(); n != 2 { // the two header updates
		t.Errorf("%d flushes before the user asked for one", n)
	}
	if err := d.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if n, e := f.Flushes(), d.commit.entries.Load(); n > 8 || e != 1 {
		t.Errorf("%d flushes, %d log entries", n, e)
	}
	n := f.Flushes()
	if err := errors.Join(d.Write(ctx, p, 0, false), d.Flush(ctx)); err != nil {
		t.Fatal(err)
	}
	if k := f.Flushes() - n; k != 1 {
		t.Errorf("a flush with nothing for the log took %d flushes", k)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestBoundedCache goes over an image whose BAT is many times the cache.
func TestBoundedCache(t *testing.T) {
	ctx := t.Context()
	f := crashfile.New()
	if err := Create(ctx, f, CreateOptions{Size: 1 << 40, BlockSize: mib}); err != nil {
		t.Fatal(err)
	}
	d, err := Open(ctx, f, Options{BATCacheBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	p, q := make([]byte, 512), make([]byte, 512)
	for round := range 2 {
		for off := int64(0); off < d.Size(); off += 2100 * mib {
			stamp(p, off, 512, 1)
			if round == 0 {
				if err := d.Write(ctx, p, off, false); err != nil {
					t.Fatal(err)
				}
			} else if err := d.Read(ctx, q, off); err != nil || string(p) != string(q) {
				t.Fatalf("at %d: %v", off, err)
			}
			d.bat.mu.Lock()
			n := len(d.bat.resident)
			d.bat.mu.Unlock()
			if n > 4*minCachePages {
				t.Fatalf("%d pages in a cache of %d", n, d.bat.max)
			}
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if r, err := Check(ctx, f); err != nil || r.State != StateClean || r.Usage.AllocatedBlocks != 500 {
		t.Fatalf("%v %+v", err, r)
	}
}

// warmDisk is a dynamic image in a real file, with every block allocated.
func warmDisk(t testing.TB, size int64) *Disk {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "warm.vhdx")
	if err := CreateFile(ctx, path, CreateOptions{Size: size}); err != nil {
		t.Fatal(err)
	}
	d, err := OpenFile(ctx, path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	p := make([]byte, mib)
	noise(p, 1)
	for off := int64(0); off < size; off += mib {
		if err := d.Write(ctx, p, off, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestNoAllocations(t *testing.T) {
	d := warmDisk(t, 64*mib)
	p := make([]byte, 4096)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	off := int64(0)
	for name, fn := range map[string]func() error{
		"read":  func() error { return d.Read(ctx, p, off) },
		"write": func() error { return d.Write(ctx, p, off, false) },
	} {
		if n := testing.AllocsPerRun(200, func() {
			off = (off + 1237*4096) % d.Size()
			if err := fn(); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

// TestMissingBitmap has a block that is partially present in a chunk without bitmap: nobody can tell what is whose, so it is neither read nor written.
func TestMissingBitmap(t *testing.T) {
	ctx := t.Context()
	files := memFiles{"base": fuzzBase(t, false)}
	files.child(t, "child", "base", ChildOptions{BlockSize: mib})
	d := files.open(t, "child", Options{})
	must(t, errors.Join(d.Write(ctx, make([]byte, 512), 0, false), d.Close()))
	edit(t, files["child"], d.layout.bat.off+d.geo.bitmapEntry(0)*batEntrySize, make([]byte, 8)...)
	r, err := Check(ctx, files["child"].Clone())
	if err != nil || r.State != StateCorrupt || r.Findings[len(r.Findings)-1].Code == "" {
		t.Errorf("check: %v %+v", err, r)
	}
	found := false
	for _, g := range r.Findings {
		found = found || g.Code == CodeBitmapMissing
	}
	if !found {
		t.Errorf("%+v", r.Findings)
	}
	d = files.open(t, "child", Options{})
	p := make([]byte, 512)
	if err := d.Read(ctx, p, 512); !errors.Is(err, ErrCorrupt) {
		t.Errorf("read: %v", err)
	}
	if err := d.Write(ctx, p, 1024, false); !errors.Is(err, ErrCorrupt) {
		t.Errorf("write: %v", err)
	}
	must(t, d.Read(ctx, p, 2*mib))
	must(t, d.Close())
}

// TestForeignMetadata keeps items that others have put into the metadata: through a change of them, in a child, and in a merge.
func TestForeignMetadata(t *testing.T) {
	ctx := t.Context()
	mine, disk := NewGUID(), NewGUID()
	o, err := CreateOptions{Size: 8 * mib, BlockSize: mib}.complete()
	must(t, err)
	o.extra = []metaItem{{metaEntry{id: mine, user: true}, []byte("of the file")}, {metaEntry{id: disk, user: true, disk: true}, bytes.Repeat([]byte("of the disk"), 500)}}
	files := memFiles{"base": crashfile.New()}
	must(t, create(ctx, kept{files["base"]}, &o))
	has := func(name string, want ...metaItem) {
		t.Helper()
		d := files.open(t, name, Options{ReadOnly: true})
		n := 0
		for _, e := range d.meta {
			for _, w := range want {
				if e.id == w.id {
					n++
					v := make([]byte, e.length)
					if err := readFull(ctx, d.file, v, d.layout.meta.off+int64(e.offset)); err != nil || !bytes.Equal(v, w.data) || e.user != w.user || e.disk != w.disk {
						t.Errorf("%s: item %s: %q %v", name, e.id, v, err)
					}
				}
			}
		}
		if users := d.Info().UserMetadataItems; n != len(want) || users != n {
			t.Errorf("%s has %d of %d items, and %d", name, n, len(want), users)
		}
		must(t, d.Close())
	}
	has("base", o.extra...)
	d := files.open(t, "base", Options{})
	must(t, errors.Join(d.Resize(ctx, 9*mib, ResizeOptions{}), d.Close()))
	has("base", o.extra...)
	files.child(t, "child", "base", ChildOptions{})
	has("child", o.extra[1])
	if _, err := Merge(ctx, kept{files["child"]}, MergeOptions{Resolver: files, Name: "child"}); err != nil {
		t.Fatal(err)
	}
	has("base", o.extra...)
}
