package partition

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"
	"unicode/utf16"
)

// Limits of what is read. The specification asks for room for at least 128 entries of 128 bytes.
const (
	gptMagic      = "EFI PART"
	gptHeaderSize = 92
	maxGPTEntries = 4096
	maxGPTBytes   = 1 << 20
)

type gptHeader struct {
	my, alternate, firstUsable, lastUsable, entriesAt uint64 // sectors
	guid                                              string
	count, size, entriesCRC                           uint32
}

// gptError is why a copy of the table cannot be used.
type gptError string

func (e gptError) Error() string { return string(e) }

func parseGPTHeader(b []byte, at, sectors uint64) (h gptHeader, err error) {
	le := binary.LittleEndian
	if string(b[:8]) != gptMagic {
		return h, gptError("there is no header")
	}
	n := le.Uint32(b[12:])
	if n < gptHeaderSize || int64(n) > int64(len(b)) {
		return h, gptError(fmt.Sprintf("the header says that it has %d bytes", n))
	}
	sum := append([]byte(nil), b[:n]...)
	clear(sum[16:20])
	if crc32.ChecksumIEEE(sum) != le.Uint32(b[16:]) {
		return h, gptError("the checksum of the header is wrong")
	}
	h = gptHeader{
		my: le.Uint64(b[24:]), alternate: le.Uint64(b[32:]), firstUsable: le.Uint64(b[40:]), lastUsable: le.Uint64(b[48:]), guid: FormatGUID([16]byte(b[56:72])),
		entriesAt: le.Uint64(b[72:]), count: le.Uint32(b[80:]), size: le.Uint32(b[84:]), entriesCRC: le.Uint32(b[88:]),
	}
	switch {
	case h.my != at:
		return h, gptError(fmt.Sprintf("the header at sector %d says that it is at %d", at, h.my))
	case h.size < 128 || h.size%8 != 0 || h.size > 4096 || h.count > maxGPTEntries || uint64(h.count)*uint64(h.size) > maxGPTBytes:
		return h, gptError(fmt.Sprintf("%d entries of %d bytes are not possible", h.count, h.size))
	case h.entriesAt == 0 || h.entriesAt >= sectors:
		return h, gptError("the entries are not on the disk")
	}
	return h, nil
}

// gptCopy reads one of the two copies: header and entries.
func gptCopy(ctx context.Context, src Source, sector int64, at uint64) (h gptHeader, entries []byte, err error) {
	sectors := uint64(src.Size() / sector)
	if at >= sectors {
		return h, nil, gptError("its place is behind the end of the disk")
	}
	b := make([]byte, sector)
	if err := readAt(ctx, src, 0, src.Size(), b, int64(at)*sector); err != nil {
		return h, nil, err
	}
	if h, err = parseGPTHeader(b, at, sectors); err != nil {
		return h, nil, err
	}
	entries = make([]byte, int64(h.count)*int64(h.size))
	if err := readAt(ctx, src, 0, src.Size(), entries, int64(h.entriesAt)*sector); err != nil {
		return h, nil, err
	}
	if crc32.ChecksumIEEE(entries) != h.entriesCRC {
		return h, nil, gptError("the checksum of the entries is wrong")
	}
	return h, entries, nil
}

// readGPT reads the table, from its backup if need be.
func readGPT(ctx context.Context, src Source, sector int64) (*Table, error) {
	t := &Table{Scheme: GPT, SectorSize: int(sector), Partitions: []Partition{}}
	last := uint64(src.Size()/sector) - 1
	if src.Size() < 3*sector {
		return nil, fmt.Errorf("%w: the disk is too small for a GPT", ErrDamaged)
	}
	h, entries, err := gptCopy(ctx, src, sector, 1)
	if !usable(err) {
		return nil, err
	}
	backupAt := last
	if err == nil {
		backupAt = h.alternate
	}
	bh, bentries, berr := gptCopy(ctx, src, sector, backupAt)
	if !usable(berr) {
		return nil, berr
	}
	switch {
	case err != nil && berr != nil:
		return nil, fmt.Errorf("%w: GPT: %v; its backup: %v", ErrDamaged, err, berr)
	case err != nil:
		t.note("the GPT is damaged (%v): its backup is used; 'sgdisk --load-backup' or 'gdisk' repair it", err)
		h, entries = bh, bentries
	case berr != nil:
		t.note("the backup of the GPT is damaged or missing (%v)", berr)
	case bh.guid != h.guid || bh.entriesCRC != h.entriesCRC:
		t.note("the GPT and its backup differ: the first is used")
	}
	if err == nil && h.alternate != last {
		t.note("the backup of the GPT is not at the end of the disk, which may have been resized")
	}
	t.ID = h.guid
	for i := range int(h.count) {
		e := entries[i*int(h.size):]
		if [16]byte(e[:16]) == ([16]byte{}) {
			continue
		}
		le := binary.LittleEndian
		first, end := le.Uint64(e[32:]), le.Uint64(e[40:])
		p := Partition{Number: i + 1, Type: FormatGUID([16]byte(e[:16])), ID: FormatGUID([16]byte(e[16:32])), Flags: le.Uint64(e[48:]), Name: gptName(e[56:128])}
		p.TypeName = gptTypes[p.Type]
		p.Bootable = p.Flags&4 != 0 // legacy BIOS bootable
		if end < first || first == 0 || end-first == ^uint64(0) {
			t.note("partition %d ends before it begins", p.Number)
			continue
		}
		t.add(src.Size(), p, first, end-first+1)
	}
	t.noteOverlaps()
	return t, nil
}

// usable says whether one can go on with the other copy.
func usable(err error) bool {
	if err == nil {
		return true
	}
	_, ok := err.(gptError)
	return ok
}

func gptName(b []byte) string {
	var u []uint16
	for ; len(b) >= 2; b = b[2:] {
		c := binary.LittleEndian.Uint16(b)
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7F {
			return '?'
		}
		return r
	}, string(utf16.Decode(u)))
}

// FormatGUID prints a GUID as it lies on a disk (mixed-endian), in lower case.
func FormatGUID(g [16]byte) string {
	return fmt.Sprintf("%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%x", g[3], g[2], g[1], g[0], g[5], g[4], g[7], g[6], g[8], g[9], g[10:])
}
