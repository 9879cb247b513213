package vhdx

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
)

func sampleHeader() header {
	return header{sequence: 7, fileWriteGUID: NewGUID(), dataWriteGUID: NewGUID(), logGUID: NewGUID(), version: 1, logLength: mib, logOffset: mib}
}

func TestGUID(t *testing.T) {
	const s = "2dc27766-f623-4200-9d64-115e9bfd4a08"
	g, err := ParseGUID("{2DC27766-F623-4200-9D64-115E9BFD4A08}")
	if err != nil || g.String() != s {
		t.Fatal(g, err)
	}
	if want := []byte{0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08}; !bytes.Equal(g[:], want) {
		t.Errorf("in a file: % x", g[:])
	}
	for n := range s {
		if _, err := ParseGUID(s[:n]); err == nil {
			t.Errorf("%q was accepted", s[:n])
		}
	}
}

func TestHeaderCodec(t *testing.T) {
	h := sampleHeader()
	b := make([]byte, headerSize)
	h.encode(b)
	got, err := decodeHeader(b)
	if err != nil || got != h {
		t.Fatalf("%+v %v", got, err)
	}
	for n := range len(b) {
		if _, err := decodeHeader(b[:n]); err == nil {
			t.Fatalf("a header of %d bytes was accepted", n)
		}
	}
	for i := 0; i < len(b); i += 13 {
		b[i] ^= 1
		if _, err := decodeHeader(b); err == nil {
			t.Errorf("a changed bit at %d was not noticed", i)
		}
		b[i] ^= 1
	}
}

func TestHeaderPair(t *testing.T) {
	enc := func(seq uint64, change bool) []byte {
		h := header{sequence: seq, version: 1, logLength: mib, logOffset: mib}
		if change {
			h.dataWriteGUID[0] = 1
		}
		b := make([]byte, headerSize)
		h.encode(b)
		return b
	}
	bad := make([]byte, headerSize)
	for _, c := range []struct {
		name    string
		a, b    []byte
		current int
		ok      bool
	}{
		{"first newer", enc(2, false), enc(1, false), 0, true},
		{"second newer", enc(2, false), enc(3, false), 1, true},
		{"first only", enc(2, false), bad, 0, true},
		{"second only", bad, enc(0, false), 1, true},
		{"none", bad, bad, 0, false},
		{"equal, as Disk2VHD writes them", enc(5, false), enc(5, false), 0, true},
		{"same number, different", enc(5, false), enc(5, true), 0, false},
	} {
		p, err := parseHeaders(c.a, c.b)
		if (err == nil) != c.ok || c.ok && p.current != c.current {
			t.Errorf("%s: current %d, %v", c.name, p.current, err)
		}
	}
}

func TestRegionTableCodec(t *testing.T) {
	in := []regionEntry{{regionBAT, 3 * mib, mib, true}, {regionMetadata, 2 * mib, mib, true}, {NewGUID(), 9 * mib, mib, false}}
	b := make([]byte, regionTableSize)
	encodeRegionTable(b, in)
	out, err := decodeRegionTable(b, 0)
	if err != nil || !slices.Equal(in, out) {
		t.Fatalf("%+v %v", out, err)
	}
	for _, n := range []int{0, 3, 4, 15, 16, 47, 48, regionTableSize - 1} {
		if _, err := decodeRegionTable(b[:n], 0); err == nil {
			t.Errorf("a table of %d bytes was accepted", n)
		}
	}
	log := extent{mib, mib}
	if r, err := interpretRegions(out, log, 10*mib, 0); err != nil || len(r.others) != 1 {
		t.Errorf("%+v %v", r, err)
	}
	for name, e := range map[string][]regionEntry{
		"no BAT":         in[1:],
		"no metadata":    in[:1],
		"outside":        {in[0], {regionMetadata, 10 * mib, mib, true}},
		"overlap":        {in[0], {regionMetadata, 3 * mib, mib, true}},
		"on the log":     {in[0], {regionMetadata, mib, mib, true}},
		"others overlap": {in[0], in[1], {NewGUID(), 3 * mib, mib, false}},
	} {
		var ce *CorruptError
		if _, err := interpretRegions(e, log, 10*mib, 0); !errors.As(err, &ce) {
			t.Errorf("%s: %v", name, err)
		}
	}
	unknown := append(slices.Clone(in), regionEntry{NewGUID(), 8 * mib, mib, true})
	if _, err := interpretRegions(unknown, log, 10*mib, 0); !errors.Is(err, ErrUnsupported) {
		t.Errorf("a required region that is not known: %v", err)
	}
	for name, change := range map[string]func(e []regionEntry) []regionEntry{
		"twice":      func(e []regionEntry) []regionEntry { e[2].id = e[0].id; return e },
		"unaligned":  func(e []regionEntry) []regionEntry { e[0].offset += 4096; return e },
		"in headers": func(e []regionEntry) []regionEntry { e[0].offset = 0; return e },
		"empty":      func(e []regionEntry) []regionEntry { e[0].length = 0; return e },
		"beyond":     func(e []regionEntry) []regionEntry { e[0].offset = 1 << 63; return e },
	} {
		encodeRegionTable(b, change(slices.Clone(in)))
		if _, err := decodeRegionTable(b, 0); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMetadataCodec(t *testing.T) {
	in := params{blockSize: 2 * mib, leaveAllocated: true, size: 5*mib + 512, logical: 512, physical: 4096, id: NewGUID()}
	b := make([]byte, 2*metaTableSize)
	in.encode(b)
	parse := func() (params, error) {
		entries, err := decodeMetadataTable(b, mib, 0)
		if err != nil {
			return params{}, err
		}
		return interpretMetadata(entries, 0, func(e metaEntry) ([]byte, error) { return b[e.offset : e.offset+e.length], nil })
	}
	out, err := parse()
	if err != nil || fmt.Sprint(out) != fmt.Sprint(in) {
		t.Fatalf("%+v %v", out, err)
	}
	for _, n := range []int{0, 7, 31, metaTableSize - 1} {
		if _, err := decodeMetadataTable(b[:n], mib, 0); err == nil {
			t.Errorf("a table of %d bytes was accepted", n)
		}
	}
	row := func(i int) []byte { return b[32+32*i:] }
	for name, change := range map[string]func(){
		"too many":           func() { le.PutUint16(b[10:], 2048) },
		"item in table":      func() { le.PutUint32(row(0)[16:], 100) },
		"item outside":       func() { le.PutUint32(row(0)[16:], mib-4) },
		"item too long":      func() { le.PutUint32(row(0)[20:], mib+1) },
		"overflow":           func() { le.PutUint32(row(0)[16:], 0xffffffff) },
		"twice":              func() { copy(row(1)[:16], row(0)[:16]) },
		"overlap":            func() { le.PutUint32(row(1)[16:], le.Uint32(row(0)[16:])) },
		"short item":         func() { le.PutUint32(row(1)[20:], 4) },
		"missing item":       func() { le.PutUint16(b[10:], 4) },
		"block size 0":       func() { le.PutUint32(b[metaTableSize:], 0) },
		"block size 3 MiB":   func() { le.PutUint32(b[metaTableSize:], 3*mib) },
		"block size 512 MiB": func() { le.PutUint32(b[metaTableSize:], 512*mib) },
		"size 0":             func() { le.PutUint64(b[metaTableSize+8:], 0) },
		"size odd":           func() { le.PutUint64(b[metaTableSize+8:], 100) },
		"size huge":          func() { le.PutUint64(b[metaTableSize+8:], 1<<63) },
		"sector 1024":        func() { le.PutUint32(b[metaTableSize+32:], 1024) },
		"sector 0":           func() { le.PutUint32(b[metaTableSize+32:], 0) },
		"physical 0":         func() { le.PutUint32(b[metaTableSize+36:], 0) },
		"parent, no locator": func() { b[metaTableSize+4] |= 2 },
	} {
		in.encode(b)
		change()
		if _, err := parse(); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	in.encode(b)
	extra := []byte{1, 2, 3}
	copy(b[metaTableSize+1000:], extra)
	for _, c := range []struct {
		flags uint32
		ok    bool
	}{{0, true}, {metaIsUser, true}, {metaIsRequired, false}, {metaIsRequired | metaIsUser, false}} {
		id := NewGUID()
		copy(row(5), id[:])
		le.PutUint32(row(5)[16:], metaTableSize+1000)
		le.PutUint32(row(5)[20:], 3)
		le.PutUint32(row(5)[24:], c.flags)
		le.PutUint16(b[10:], 6)
		if _, err := parse(); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrUnsupported) {
			t.Errorf("an unknown item with flags %d: %v", c.flags, err)
		}
	}
}

// TestGeometry compares the arithmetic of the BAT with the formulas of [MS-VHDX] 2.5, block by block.
func TestGeometry(t *testing.T) {
	for _, p := range []params{
		{blockSize: mib, size: 1 << 40, logical: 512}, {blockSize: 256 * mib, size: 64 << 40, logical: 512},
		{blockSize: 32 * mib, size: 512, logical: 512}, {blockSize: 256 * mib, size: 40 << 40, logical: 4096},
		{blockSize: 256 * mib, size: 256 * mib * 16, logical: 512}, {blockSize: 256 * mib, size: 256*mib*16 + 512, logical: 512},
		{blockSize: 256 * mib, size: 256*mib*16 + 512, logical: 512, hasParent: true},
	} {
		g := newGeometry(&p)
		if want := int64(1<<23) * p.logical / p.blockSize; g.ratio != want {
			t.Errorf("%+v: chunk ratio %d, want %d", p, g.ratio, want)
		}
		for _, b := range []int64{0, 1, g.ratio - 1, g.ratio, g.ratio + 1, 2*g.ratio - 1, 2 * g.ratio, g.blocks - 1} {
			if b < 0 || b >= g.blocks {
				continue
			}
			i := g.entryOf(b)
			if want := b/g.ratio*(g.ratio+1) + b%g.ratio; i != want {
				t.Errorf("block %d is entry %d, want %d", b, i, want)
			}
			if back, ok := g.blockOf(i); !ok || back != b {
				t.Errorf("entry %d is block %d %v, want %d", i, back, ok, b)
			}
		}
		if last := g.entryOf(g.blocks - 1); !p.hasParent && g.entries != last+1 || p.hasParent && g.entries%(g.ratio+1) != 0 {
			t.Errorf("%+v: %d entries", p, g.entries)
		}
	}
}
