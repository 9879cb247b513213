package vhdx

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"vdbridge/vhdx/crashfile"
)

func FuzzHeader(f *testing.F) {
	h := sampleHeader()
	b := make([]byte, headerSize)
	h.encode(b)
	f.Add(b, b)
	f.Add(b[:100], []byte{})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if h, err := decodeHeader(a); err == nil {
			c := make([]byte, headerSize)
			h.encode(c)
			if got, err := decodeHeader(c); err != nil || got != h {
				t.Fatalf("%+v is encoded as %+v, %v", h, got, err)
			}
			_ = h.validate(header1Offset, 1<<40)
		}
		if len(a) >= headerSize && len(b) >= headerSize {
			_, _ = parseHeaders(a, b)
		}
		_ = decodeCreator(a)
	})
}

func FuzzRegionTable(f *testing.F) {
	b := make([]byte, regionTableSize)
	encodeRegionTable(b, []regionEntry{{regionBAT, 3 * mib, mib, true}, {regionMetadata, 2 * mib, mib, true}})
	f.Add(b[:100], int64(8*mib))
	f.Fuzz(func(t *testing.T, head []byte, size int64) {
		b := make([]byte, regionTableSize)
		copy(b, head)
		le.PutUint32(b[4:], checksum(b, 4)) // else nothing gets past it
		if e, err := decodeRegionTable(b, region1Offset); err == nil {
			_, _ = interpretRegions(e, extent{mib, mib}, size, region1Offset)
		}
	})
}

func FuzzMetadata(f *testing.F) {
	p := params{blockSize: 2 * mib, size: 1 << 30, logical: 512, physical: 512}
	b := make([]byte, 2*metaTableSize)
	p.encode(b)
	f.Add(b[:256], b[metaTableSize:metaTableSize+64])
	f.Fuzz(func(t *testing.T, table, items []byte) {
		b := make([]byte, 2*metaTableSize)
		copy(b, table)
		copy(b[metaTableSize:], items)
		e, err := decodeMetadataTable(b, mib, 0)
		if err != nil {
			return
		}
		p, err := interpretMetadata(e, 0, func(m metaEntry) ([]byte, error) {
			v := make([]byte, m.length)
			if int64(m.offset) < int64(len(b)) {
				copy(v, b[m.offset:])
			}
			return v, nil
		})
		if err == nil {
			g := newGeometry(&p)
			if g.entryOf(g.blocks-1) >= g.entries {
				t.Fatalf("%+v: the last block is outside the BAT", p)
			}
		}
	})
}

func FuzzParentLocator(f *testing.F) {
	l := ParentLocator{Linkage: NewGUID(), Linkage2: NewGUID(), RelativePath: `..\a.vhdx`, VolumePath: `\\?\Volume{x}\a.vhdx`, AbsolutePath: `\\?\d:\a.vhdx`, others: []locatorPair{{"x", "y"}}}
	b, err := l.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:60])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= 16 {
			b = append(locatorVHDX[:len(locatorVHDX):len(locatorVHDX)], b[16:]...)
		}
		l, err := decodeLocator(b, 0)
		if err != nil {
			return
		}
		_ = FileResolver{Dir: "/a/b", Root: "/a", Map: map[string]string{`d:\`: "/d"}}.Places(l)
		c, err := l.encode()
		if err != nil {
			return // several keys may share one string, so that it becomes longer
		}
		m, err := decodeLocator(c, 0)
		if err != nil {
			t.Fatalf("%+v is encoded so that it cannot be decoded: %v", l, err)
		}
		if m.Linkage != l.Linkage || m.Linkage2 != l.Linkage2 || len(m.others) != len(l.others) {
			t.Fatalf("%+v is encoded as %+v", l, m)
		}
	})
}

// FuzzBitmap compares the runs of a sector bitmap with its bits one by one, before and after a change.
func FuzzBitmap(f *testing.F) {
	f.Add([]byte{0xff, 0, 0x0f, 1}, uint16(3), uint16(20), true)
	f.Add([]byte{}, uint16(0), uint16(500), false)
	f.Fuzz(func(t *testing.T, b []byte, from, n uint16, set bool) {
		ctx := context.Background()
		file := crashfile.New()
		_, _ = file.WriteAt(ctx, b[:min(len(b), 2*logSector)], 4*mib)
		_ = file.Truncate(ctx, 6*mib)
		var entry [8]byte
		le.PutUint64(entry[:], 4*mib|blockPresent)
		p := params{blockSize: mib, size: 1 << 32, logical: 512, hasParent: true}
		g := newGeometry(&p)
		_, _ = file.WriteAt(ctx, entry[:], 2*mib+g.bitmapEntry(0)*batEntrySize)
		tab := newBitmapTable(newBATTable(file, extent{2 * mib, mib}, &g, true, 0, func() int64 { return 6 * mib }), 4)
		model := make([]bool, 3*bitPageBits)
		for i := range model {
			if i/8 < min(len(b), 2*logSector) {
				model[i] = b[i/8]>>(i%8)&1 != 0
			}
		}
		check := func() {
			for at := int64(0); at < int64(len(model)); {
				want := int64(1)
				for at+want < int64(len(model)) && model[at+want] == model[at] {
					want++
				}
				present, k, err := tab.run(ctx, at, int64(len(model))-at)
				if err != nil || present != model[at] || k != want {
					t.Fatalf("run at %d: %v %d %v, want %v %d", at, present, k, err, model[at], want)
				}
				at += k
			}
		}
		check()
		var err error
		if set {
			_, err = tab.set(ctx, int64(from), int64(n))
		} else {
			_, err = tab.clear(ctx, int64(from), int64(n))
		}
		if err != nil {
			t.Fatal(err)
		}
		for i := range int(n) {
			model[int(from)+i] = set
		}
		check()
	})
}

func FuzzLog(f *testing.F) {
	l := newLogFile(f, 8)
	l.put(f, 0, 0, 1, 5*mib, 2, 1, extent{6 * mib, logSector})
	b := make([]byte, 8*logSector)
	_ = readFull(context.Background(), l, b, mib)
	f.Add(b, true)
	f.Add(b[:200], false)
	f.Fuzz(func(t *testing.T, b []byte, sum bool) {
		ctx := context.Background()
		l := newLogFile(t, 8)
		if len(b) > 8*logSector {
			b = b[:8*logSector]
		}
		if len(b) >= logHeaderSize {
			l.guid = GUID(b[32:48])
			if n := int(le.Uint32(b[8:])); sum && n >= logHeaderSize && n <= len(b) {
				b = append([]byte(nil), b...)
				le.PutUint32(b[4:], checksum(b[:n], 4))
			}
		}
		if _, err := l.WriteAt(ctx, b, mib); err != nil {
			t.Fatal(err)
		}
		s, err := scanLog(ctx, &l.r, l.guid)
		if err != nil || len(s.active) == 0 {
			return
		}
		o := newOverlay(l, 8*mib)
		errO := replayLog(ctx, &l.r, &s, o)
		if errO == nil && o.size < 64*mib {
			ft := &fileTarget{b: l, size: 8 * mib}
			if err := replayLog(ctx, &l.r, &s, ft); err != nil {
				t.Fatalf("it replays in memory but not in the file: %v", err)
			}
		}
	})
}

// fuzzBase is a small image with every structure in use: allocated, zero and trimmed blocks, and, if asked for, a log to replay.
func fuzzBase(t testing.TB, dirty bool) *crashfile.File {
	ctx := context.Background()
	f := crashfile.New()
	if err := Create(ctx, f, CreateOptions{Size: 16 * mib, BlockSize: mib}); err != nil {
		t.Fatal(err)
	}
	d, err := Open(ctx, f, Options{})
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4096)
	noise(p, 1)
	for i := range int64(6) {
		if err := d.Write(ctx, p, i*2*mib, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(d.Trim(ctx, 2*mib, mib), d.WriteZeroes(ctx, 4*mib, mib, true, false), d.Flush(ctx)); err != nil {
		t.Fatal(err)
	}
	if dirty {
		return f.Clone()
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	return f.Clone()
}

// FuzzOpen changes bytes in the structures of an image, puts checksums right where asked, and uses what opens. Whatever is in it: no panic, no endless
// work, and an image that Check finds sound can be written and stays sound.
func FuzzOpen(f *testing.F) {
	files := memFiles{"base": fuzzBase(f, false)}
	files.child(f, "child", "base", ChildOptions{BlockSize: mib})
	kid := files.open(f, "child", Options{})
	part := bytes.Repeat([]byte{5}, 3*512)
	if err := errors.Join(kid.Write(context.Background(), part, 512, false), kid.Write(context.Background(), bytes.Repeat(part, 700)[:mib], 3*mib, false),
		kid.Trim(context.Background(), 6*mib, mib), kid.Close()); err != nil {
		f.Fatal(err)
	}
	bases := []*crashfile.File{fuzzBase(f, false), fuzzBase(f, true), files["child"]}
	f.Add(uint8(0), []byte{0, 0, 0, 0}, true)
	f.Add(uint8(1), []byte{5, 0, 8, 0xff, 5, 0, 16, 1}, true)
	f.Add(uint8(2), []byte{5, 0, 0, 7, 9, 0, 0, 0, 10, 0, 4, 0xff}, true)
	f.Add(uint8(0), []byte{5, 0, 1, 0x06, 5, 0, 2, 0x60, 5, 0, 3, 0x06}, true)
	f.Fuzz(func(t *testing.T, which uint8, patch []byte, sums bool) {
		file := bases[int(which)%len(bases)].Clone()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		starts := []int64{0, header1Offset, header2Offset, region1Offset, region2Offset, 3 * mib, 2 * mib, 2*mib + metaTableSize, mib, 3*mib + 8192*8, 4 * mib}
		for ; len(patch) >= 4; patch = patch[4:] {
			at := starts[int(patch[0])%len(starts)] + int64(patch[1])<<8 + int64(patch[2])
			_, _ = file.WriteAt(ctx, patch[3:4], at)
		}
		if sums {
			b := make([]byte, regionTableSize)
			for _, x := range []extent{{header1Offset, headerSize}, {header2Offset, headerSize}, {region1Offset, regionTableSize}, {region2Offset, regionTableSize}} {
				_ = readFull(ctx, file, b[:x.n], x.off)
				le.PutUint32(b[4:], checksum(b[:x.n], 4))
				_, _ = file.WriteAt(ctx, b[4:8], x.off+4)
			}
		}
		r, err := CheckWith(ctx, file.Clone(), CheckOptions{Resolver: files, Name: "child"})
		if err != nil && ctx.Err() != nil {
			t.Fatal("check takes for ever")
		}
		sound := err == nil && r.State != StateCorrupt
		p := make([]byte, 4096)
		if d, err := Open(ctx, file.Clone(), Options{ReadOnly: true, Resolver: files, Name: "child"}); err == nil {
			for off := int64(0); off < min(d.Size(), 16*mib) && d.Size()-off >= 4096; off += mib {
				if err := d.Read(ctx, p, off); err != nil && sound {
					t.Fatalf("read of an image that is said to be sound: %v", err)
				}
			}
			_, _ = d.Usage(ctx)
			_ = d.Close()
		} else if sound {
			t.Fatalf("check finds nothing (%+v), but it does not open: %v", r.Findings, err)
		}
		rw := file.Clone()
		d, err := Open(ctx, rw, files.options("child"))
		if err != nil {
			if sound {
				t.Fatalf("check finds nothing, but it does not open for writing: %v", err)
			}
			return
		}
		if d.Size() < 4096 || d.geo.entries > 1<<20 {
			_ = d.Close()
			return
		}
		noise(p, 9)
		last := min(d.Size(), 16*mib) - 4096
		last -= last % d.params.logical
		errW := errors.Join(d.Write(ctx, p, 0, false), d.Write(ctx, p, last, true), d.Trim(ctx, 0, 4096))
		if err := errors.Join(errW, d.Close()); err != nil {
			if sound {
				t.Fatalf("an image that is said to be sound cannot be written: %v", err)
			}
			return
		}
		if sound {
			if r, err := Check(ctx, rw.Clone()); err != nil || r.State != StateClean {
				t.Fatalf("after writing: %v %+v", err, r)
			}
		}
	})
}
