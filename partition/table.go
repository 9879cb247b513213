package partition

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// ErrDamaged says that there is a partition table, but none that can be used. The text says what is wrong with it.
var ErrDamaged = errors.New("the partition table is damaged")

// Scheme is the kind of a partition table.
type Scheme int

// The schemes.
const (
	None Scheme = iota // the disk is not partitioned
	MBR
	GPT
)

// String is a stable name for machines.
func (s Scheme) String() string { return [...]string{"none", "mbr", "gpt"}[s] }

// MarshalText writes the name, for JSON.
func (s Scheme) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Table is a partition table.
type Table struct {
	Scheme     Scheme      `json:"scheme"`
	ID         string      `json:"id,omitempty"` // GUID of a GPT, 32-bit disk signature of an MBR
	SectorSize int         `json:"sector_size"`  // in which the table counts
	Partitions []Partition `json:"partitions"`   // by number
	Notes      []string    `json:"notes,omitempty"`
}

// Partition is a part of the disk. Offsets and lengths are in bytes, within the disk, and Size is above zero.
type Partition struct {
	Number   int    `json:"number"` // as Linux counts: logical partitions from 5, GPT entries by their place
	Start    int64  `json:"start"`
	Size     int64  `json:"size"`
	Type     string `json:"type"` // a GUID, or two hexadecimal digits
	TypeName string `json:"type_name,omitempty"`
	ID       string `json:"id,omitempty"`   // GPT
	Name     string `json:"name,omitempty"` // GPT
	Flags    uint64 `json:"flags,omitempty"`
	Bootable bool   `json:"bootable,omitempty"`
	Extended bool   `json:"extended,omitempty"` // an MBR partition that only holds logical ones
}

// End is the first byte behind the partition.
func (p Partition) End() int64 { return p.Start + p.Size }

// ReadTable reads the partition table. A disk without one is a Table with Scheme None. The sector in which the table counts is the disk's, or, if a GPT is
// found that way only, 512 or 4096 bytes, as an image of one kind of disk may be read as another.
func ReadTable(ctx context.Context, src Source) (*Table, error) {
	logical, _, _, _ := src.BlockSizes()
	if logical < 512 {
		logical = 512
	}
	first := make([]byte, 512)
	if err := readAt(ctx, src, 0, src.Size(), first, 0); err != nil {
		return nil, fmt.Errorf("read the partition table: %w", err)
	}
	none := &Table{SectorSize: logical, Partitions: []Partition{}}
	entries, ok := parseMBR(first)
	if !ok {
		return none, nil
	}
	if !slices.ContainsFunc(entries, func(e mbrEntry) bool { return e.kind == mbrProtective }) {
		t := &Table{Scheme: MBR, SectorSize: logical, ID: fmt.Sprintf("%08x", binary.LittleEndian.Uint32(first[440:]))}
		if err := t.readMBR(ctx, src, entries); err != nil {
			return nil, fmt.Errorf("read the partition table: %w", err)
		}
		if len(t.Partitions) == 0 {
			return none, nil
		}
		return t, nil
	}
	var firstErr error
	for _, sector := range []int{logical, 512, 4096} {
		t, err := readGPT(ctx, src, int64(sector))
		if err == nil {
			if sector != logical {
				t.Notes = append(t.Notes, fmt.Sprintf("the table counts in sectors of %d bytes, the disk has %d", sector, logical))
			}
			return t, nil
		}
		if !errors.Is(err, ErrDamaged) {
			return nil, fmt.Errorf("read the partition table: %w", err)
		}
		if firstErr == nil {
			firstErr = err
		}
	}
	return nil, firstErr
}

// Kinds of MBR partitions that matter here.
const (
	mbrProtective = 0xEE
	maxLogical    = 256 // partitions in an extended one; Linux takes fewer
)

func isExtended(kind byte) bool { return kind == 0x05 || kind == 0x0F || kind == 0x85 }

type mbrEntry struct {
	boot, kind   byte
	start, count uint32 // sectors
}

// parseMBR reads the four entries of a boot record. It is not ok when there is no table: file systems have boot sectors that end in the same signature, with
// code or text where the entries would be.
func parseMBR(b []byte) (entries []mbrEntry, ok bool) {
	if b[510] != 0x55 || b[511] != 0xAA {
		return nil, false
	}
	for i := range 4 {
		e := b[446+16*i:]
		if e[0]&0x7F != 0 {
			return nil, false
		}
		entries = append(entries, mbrEntry{e[0], e[4], binary.LittleEndian.Uint32(e[8:]), binary.LittleEndian.Uint32(e[12:])})
	}
	if bootSectorOf(b) != "" && !slices.ContainsFunc(entries, func(e mbrEntry) bool { return e.kind == mbrProtective }) {
		return nil, false
	}
	return entries, true
}

// add takes a partition in sectors into the table, as far as it is on the disk.
func (t *Table) add(size int64, p Partition, start, count uint64) bool {
	sectors := uint64(size / int64(t.SectorSize))
	switch {
	case count == 0:
		return false
	case start >= sectors:
		t.note("partition %d begins behind the end of the disk", p.Number)
		return false
	case count > sectors-start:
		t.note("partition %d goes beyond the end of the disk and is shown up to there", p.Number)
		count = sectors - start
	}
	p.Start, p.Size = int64(start)*int64(t.SectorSize), int64(count)*int64(t.SectorSize)
	t.Partitions = append(t.Partitions, p)
	return true
}

const maxNotes = 20

func (t *Table) note(format string, args ...any) {
	if len(t.Notes) < maxNotes {
		t.Notes = append(t.Notes, fmt.Sprintf(format, args...))
	}
}

func (t *Table) readMBR(ctx context.Context, src Source, entries []mbrEntry) error {
	var extended []mbrEntry
	for i, e := range entries {
		if e.kind == 0 {
			continue
		}
		p := Partition{Number: i + 1, Type: fmt.Sprintf("%02x", e.kind), TypeName: mbrTypes[e.kind], Bootable: e.boot == 0x80, Extended: isExtended(e.kind)}
		if t.add(src.Size(), p, uint64(e.start), uint64(e.count)) && p.Extended {
			extended = append(extended, e)
		}
	}
	next := 5
	for _, e := range extended {
		if err := t.readLogical(ctx, src, uint64(e.start), uint64(e.count), &next); err != nil {
			return err
		}
	}
	slices.SortFunc(t.Partitions, func(a, b Partition) int { return cmp.Compare(a.Number, b.Number) })
	t.noteOverlaps()
	return nil
}

// readLogical follows the chain of records in an extended partition. The first entry of each is a partition, counted from the record; the second is
// the next record, counted from the beginning of the extended partition.
func (t *Table) readLogical(ctx context.Context, src Source, base, count uint64, next *int) error {
	seen := map[uint64]bool{}
	b := make([]byte, 512)
	for at := base; ; {
		if seen[at] || len(seen) >= maxLogical {
			t.note("the chain of logical partitions does not end")
			return nil
		}
		seen[at] = true
		if err := readAt(ctx, src, 0, src.Size(), b, int64(at)*int64(t.SectorSize)); err != nil {
			return err
		}
		if b[510] != 0x55 || b[511] != 0xAA {
			t.note("the record of logical partition %d at sector %d is damaged", *next, at)
			return nil
		}
		link := uint64(0)
		for i := range 4 {
			e := b[446+16*i:]
			kind, start, n := e[4], uint64(binary.LittleEndian.Uint32(e[8:])), uint64(binary.LittleEndian.Uint32(e[12:]))
			switch {
			case kind == 0 || n == 0:
			case isExtended(kind):
				if link == 0 {
					link = start
				}
			case i < 2:
				p := Partition{Number: *next, Type: fmt.Sprintf("%02x", kind), TypeName: mbrTypes[kind], Bootable: e[0] == 0x80}
				if t.add(src.Size(), p, at+start, n) {
					*next++
				}
			}
		}
		switch {
		case link == 0:
			return nil
		case link >= count:
			t.note("the chain of logical partitions leaves the extended partition")
			return nil
		}
		at = base + link
	}
}

// noteOverlaps tells of partitions that share space, other than an extended one with its logical ones.
func (t *Table) noteOverlaps() {
	var list []Partition
	for _, p := range t.Partitions {
		if !p.Extended {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b Partition) int { return cmp.Compare(a.Start, b.Start) })
	for i := 1; i < len(list); i++ {
		if list[i].Start < list[i-1].End() {
			t.note("partitions %d and %d overlap", list[i-1].Number, list[i].Number)
		}
	}
}
