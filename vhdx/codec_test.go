package vhdx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"vdbridge/vhdx/crashfile"
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

// logFile is a file with a log of the given number of sectors at 1 MiB, for tests that write entries by hand.
type logFile struct {
	*crashfile.File
	r    ring
	guid GUID
}

func newLogFile(t testing.TB, sectors int64) *logFile {
	f := crashfile.New()
	if err := f.Truncate(context.Background(), 8*mib); err != nil {
		t.Fatal(err)
	}
	l := &logFile{File: f, guid: NewGUID()}
	l.r = ring{f, extent{mib, sectors * logSector}}
	return l
}

// put writes an entry with data sectors filled with fill+i for offsets from off on, and zero descriptors; it may cross the end of the log. It is written without the
// encoder under test.
func (l *logFile) put(t testing.TB, at, tail int64, seq uint64, off int64, data int, fill byte, zeros ...extent) (end int64) {
	n := data + len(zeros)
	b := make([]byte, (descriptorSectors(int64(n))+int64(data))*logSector)
	copy(b, "loge")
	le.PutUint32(b[8:], uint32(len(b)))
	le.PutUint32(b[12:], uint32(tail*logSector))
	le.PutUint64(b[16:], seq)
	le.PutUint32(b[24:], uint32(n))
	copy(b[32:], l.guid[:])
	le.PutUint64(b[48:], 4*mib)
	le.PutUint64(b[56:], 16*mib)
	d := b[64:]
	for _, z := range zeros { // before the data, so that order counts
		copy(d, "zero")
		le.PutUint64(d[8:], uint64(z.n))
		le.PutUint64(d[16:], uint64(z.off))
		le.PutUint64(d[24:], seq)
		d = d[32:]
	}
	for i := range data {
		copy(d, "desc")
		copy(d[4:16], bytes.Repeat([]byte{fill + byte(i)}, 12))
		le.PutUint64(d[16:], uint64(off+int64(i)*logSector))
		le.PutUint64(d[24:], seq)
		d = d[32:]
		s := b[len(b)-(data-i)*logSector:][:logSector]
		copy(s, bytes.Repeat([]byte{fill + byte(i)}, logSector))
		copy(s, "data")
		le.PutUint32(s[4:], uint32(seq>>32))
		le.PutUint32(s[logSector-4:], uint32(seq))
	}
	le.PutUint32(b[4:], checksum(b, 4))
	for i := 0; i < len(b); i += logSector {
		o := (at*logSector + int64(i)) % l.r.log.n
		if _, err := l.WriteAt(context.Background(), b[i:i+logSector], l.r.log.off+o); err != nil {
			t.Fatal(err)
		}
	}
	return (at + int64(len(b)/logSector)) % (l.r.log.n / logSector)
}

func (l *logFile) scan(t testing.TB) logScan {
	s, err := scanLog(context.Background(), &l.r, l.guid)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func sequences(s logScan) (out []uint64) {
	for _, r := range s.active {
		out = append(out, r.sequence)
	}
	return out
}

// TestLogSearch builds logs by hand and looks which entries are found to be active.
func TestLogSearch(t *testing.T) {
	tear := func(l *logFile, sector int64) {
		_, _ = l.WriteAt(context.Background(), []byte{0xff, 0xff}, l.r.log.off+sector*logSector+2000)
	}
	for _, c := range []struct {
		name  string
		build func(t *testing.T, l *logFile)
		want  []uint64
	}{
		{"empty", func(*testing.T, *logFile) {}, nil},
		{"one", func(t *testing.T, l *logFile) { l.put(t, 0, 0, 5, 0x300000, 1, 1) }, []uint64{5}},
		{"three, tail at the first", func(t *testing.T, l *logFile) {
			a := l.put(t, 3, 3, 5, 0x300000, 1, 1)
			b := l.put(t, a, 3, 6, 0x300000, 2, 1)
			l.put(t, b, 3, 7, 0x300000, 0, 1)
		}, []uint64{5, 6, 7}},
		{"three, tail at the second", func(t *testing.T, l *logFile) {
			a := l.put(t, 3, 3, 5, 0x300000, 1, 1)
			b := l.put(t, a, 3, 6, 0x300000, 2, 1)
			l.put(t, b, a, 7, 0x300000, 3, 1)
		}, []uint64{6, 7}},
		{"the newest is torn", func(t *testing.T, l *logFile) {
			a := l.put(t, 0, 0, 5, 0x300000, 1, 1)
			b := l.put(t, a, 0, 6, 0x300000, 2, 1)
			l.put(t, b, 0, 7, 0x300000, 3, 1)
			tear(l, b+2)
		}, []uint64{5, 6}},
		{"the middle is torn, the newest needs it", func(t *testing.T, l *logFile) {
			a := l.put(t, 0, 0, 5, 0x300000, 1, 1)
			b := l.put(t, a, 0, 6, 0x300000, 2, 1)
			l.put(t, b, 0, 7, 0x300000, 3, 1)
			tear(l, a+1)
		}, []uint64{5}},
		{"the oldest is torn but not needed", func(t *testing.T, l *logFile) {
			a := l.put(t, 0, 0, 5, 0x300000, 1, 1)
			b := l.put(t, a, 0, 6, 0x300000, 2, 1)
			l.put(t, b, a, 7, 0x300000, 3, 1)
			tear(l, 1)
		}, []uint64{6, 7}},
		{"around the end", func(t *testing.T, l *logFile) {
			a := l.put(t, 20, 20, 5, 0x300000, 3, 1) // 20..23
			b := l.put(t, a, 20, 6, 0x300000, 5, 1)  // 24..29
			c := l.put(t, b, 20, 7, 0x300000, 6, 1)  // 30, 31, 0..4: crosses
			l.put(t, c, a, 8, 0x300000, 1, 1)
		}, []uint64{6, 7, 8}},
		{"an older lap behind the head", func(t *testing.T, l *logFile) {
			a := l.put(t, 0, 0, 9, 0x300000, 1, 1)
			l.put(t, a, a, 3, 0x300000, 1, 1)
		}, []uint64{9}},
		{"two laps, the newer not complete", func(t *testing.T, l *logFile) {
			l.put(t, 0, 20, 9, 0x300000, 1, 1) // its tail is gone
			l.put(t, 8, 8, 3, 0x300000, 1, 1)
		}, []uint64{3}},
		{"descriptors over more than one sector", func(t *testing.T, l *logFile) {
			var z []extent
			for i := range int64(300) {
				z = append(z, extent{0x300000 + i*logSector, logSector})
			}
			l.put(t, 30, 30, 1, 0x300000, 2, 1, z...)
		}, []uint64{1}},
		{"large sequence numbers", func(t *testing.T, l *logFile) {
			a := l.put(t, 0, 0, 1<<40-1, 0x300000, 1, 1)
			l.put(t, a, 0, 1<<40, 0x300000, 1, 1)
		}, []uint64{1<<40 - 1, 1 << 40}},
		{"another session", func(t *testing.T, l *logFile) {
			g := l.guid
			l.guid = NewGUID()
			l.put(t, 0, 0, 5, 0x300000, 1, 1)
			l.guid = g
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLogFile(t, 32)
			c.build(t, l)
			if got := sequences(l.scan(t)); !slices.Equal(got, c.want) {
				t.Errorf("active %v, want %v", got, c.want)
			}
		})
	}
}

// TestReplay replays data and zero descriptors into a file and in memory; both must read the same.
func TestReplay(t *testing.T) {
	ctx := t.Context()
	l := newLogFile(t, 64)
	if _, err := l.WriteAt(ctx, bytes.Repeat([]byte{0xee}, 64*kib), 5*mib); err != nil {
		t.Fatal(err)
	}
	a := l.put(t, 60, 60, 1, 5*mib+2*logSector, 2, 0x10, extent{5 * mib, 8 * kib})
	b := l.put(t, a, 60, 2, 5*mib+3*logSector, 3, 0x20)
	l.put(t, b, 60, 3, 9*mib, 1, 0x30, extent{5*mib + 4*logSector, logSector}, extent{20 * mib, 4 * mib})
	s := l.scan(t)
	o := newOverlay(l, 8*mib)
	if err := replayLog(ctx, &l.r, &s, o); err != nil {
		t.Fatal(err)
	}
	mem := make([]byte, 20*mib)
	if err := readFull(ctx, o, mem, 4*mib); err != nil {
		t.Fatal(err)
	}
	ft := &fileTarget{b: l, size: 8 * mib}
	if err := replayLog(ctx, &l.r, &s, ft); err != nil {
		t.Fatal(err)
	}
	file := make([]byte, 20*mib)
	if err := readFull(ctx, l, file, 4*mib); err != nil {
		t.Fatal(err)
	}
	if size, _ := o.Size(ctx); size != 24*mib || ft.size != 24*mib {
		t.Errorf("sizes %d %d", size, ft.size)
	}
	if !bytes.Equal(mem, file) {
		t.Error("the replay in memory and the one in the file differ")
	}
	for sector, want := range map[int]byte{0: 0, 1: 0, 2: 0x10, 3: 0x20, 4: 0, 5: 0x22, 6: 0xee, 1024: 0x30} {
		at := mib + sector*logSector
		if !bytes.Equal(file[at:at+logSector], bytes.Repeat([]byte{want}, logSector)) {
			t.Errorf("sector %d begins with % x, want %02x", sector, file[at:at+16], want)
		}
	}
	// Reads of any place and length through the overlay.
	for off := int64(0); off < 60*kib; off += 1777 {
		p := make([]byte, 9001)
		if err := readFull(ctx, o, p, 5*mib+off); err != nil || !bytes.Equal(p, file[mib+off:][:len(p)]) {
			t.Fatalf("at %d: %v", off, err)
		}
	}
}

// TestHostileLog has entries that would change what they must not, or more than there can be.
func TestHostileLog(t *testing.T) {
	ctx := t.Context()
	for name, x := range map[string]extent{
		"headers":   {64 * kib, logSector},
		"the log":   {mib + logSector, logSector},
		"terabytes": {8 * mib, 1 << 50},
		"overflow":  {1<<62 + 1<<61, 1 << 62},
	} {
		l := newLogFile(t, 32)
		l.put(t, 0, 0, 1, 9*mib, 0, 0, x)
		s := l.scan(t)
		if err := replayLog(ctx, &l.r, &s, newOverlay(l, 8*mib)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Every sector claims to be an entry as long as the log.
	l := newLogFile(t, 2048)
	b := make([]byte, logSector)
	copy(b, "loge")
	le.PutUint32(b[8:], uint32(l.r.log.n))
	le.PutUint64(b[16:], 1)
	copy(b[32:], l.guid[:])
	for i := range int64(2048) {
		if _, err := l.WriteAt(ctx, b, l.r.log.off+i*logSector); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := scanLog(ctx, &l.r, l.guid); !errors.Is(err, ErrCorrupt) {
		t.Errorf("overlapping claims: %v", err)
	}
	// A log that begins with sound entries and goes on with the file cut short.
	l = newLogFile(t, 32)
	l.put(t, 0, 0, 1, 0x300000, 1, 1)
	h := header{logGUID: l.guid, logLength: uint32(l.r.log.n), logOffset: mib}
	if _, _, err := findLog(ctx, l, &h, 3*mib); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a file shorter than the log says: %v", err)
	}
}

// TestLogEntryCodec has the scanner read what our own encoder writes, of every size.
func TestLogEntryCodec(t *testing.T) {
	ctx := t.Context()
	for _, n := range []int{0, 1, 2, 125, 126, 127, 253, 254, 255} {
		l := newLogFile(t, 400)
		var ups []logUpdate
		for i := range n {
			u := logUpdate{off: 3*mib + int64(i)*logSector, data: new([logSector]byte)}
			noise(u.data[:], uint64(i))
			ups = append(ups, u)
		}
		b := make([]byte, entryLen(n))
		encodeLogEntry(b, logHeader{sequence: 1<<33 + 5, guid: l.guid}, ups)
		if _, err := l.WriteAt(ctx, b, mib); err != nil {
			t.Fatal(err)
		}
		s := l.scan(t)
		if len(s.active) != 1 || s.active[0].sequence != 1<<33+5 {
			t.Fatalf("%d updates: %+v", n, s.active)
		}
		o := newOverlay(l, 8*mib)
		if err := replayLog(ctx, &l.r, &s, o); err != nil {
			t.Fatal(err)
		}
		for _, u := range ups {
			if !bytes.Equal(o.sectors[u.off][:], u.data[:]) {
				t.Fatalf("%d updates: the one at %d is not the same", n, u.off)
			}
		}
		for sectors := int64(1); sectors < 300; sectors++ {
			if k := maxUpdates(sectors); entryLen(int(k)) > sectors*logSector || k > 0 && entryLen(int(k+1)) <= sectors*logSector {
				t.Fatalf("maxUpdates(%d) = %d", sectors, k)
			}
		}
	}
}
