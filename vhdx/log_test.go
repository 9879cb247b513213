package vhdx

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"

	"vdbridge/vhdx/crashfile"
)

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
