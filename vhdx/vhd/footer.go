package vhd

import (
	"encoding/binary"
	"fmt"
	"unicode/utf16"

	"vdbridge/vhdx"
)

// Sizes and limits.
const (
	sectorSize   = 512
	footerSize   = 512
	headerSize   = 1024
	maxSize      = 64 << 40 // far more than the format's 2040 GiB
	maxBlocks    = 1 << 22  // bounds the table in memory: 16 MiB
	maxBlockSize = 256 << 20
	unusedBlock  = 0xffffffff
	locatorSlots = 8
	maxPathBytes = 64 << 10
)

var be = binary.BigEndian

// Types of disks, as the footer has them.
const (
	typeFixed        = 2
	typeDynamic      = 3
	typeDifferencing = 4
)

// footer is the last sector of a file, and its first, too, unless it is fixed.
type footer struct {
	dataOffset  uint64 // of the header; all ones for a fixed disk
	timestamp   uint32
	creator     string
	size        int64
	diskType    uint32
	id          vhdx.GUID // in the byte order of the file
	savedState  bool
	featureBits uint32
}

// sum is the checksum of the format: the complement of the sum of all bytes, with those of the checksum itself taken as zero.
func sum(b []byte, field int) uint32 {
	var s uint32
	for i, c := range b {
		if i < field || i >= field+4 {
			s += uint32(c)
		}
	}
	return ^s
}

func corrupt(structure string, off int64, format string, args ...any) error {
	return &vhdx.CorruptError{Format: "VHD", Structure: structure, Offset: off, Reason: fmt.Sprintf(format, args...)}
}

// decodeFooter decodes a footer of 512 bytes, or of 511 as old programs wrote it. ok is false if there is none.
func decodeFooter(b []byte, at int64) (f footer, ok bool, err error) {
	if len(b) < footerSize-1 || string(b[:8]) != "conectix" {
		return f, false, nil
	}
	b = b[:min(len(b), footerSize)]
	if got, want := sum(b, 64), be.Uint32(b[64:]); got != want {
		return f, true, corrupt("footer", at, "the checksum is %08x where %08x is stored", got, want)
	}
	if v := be.Uint32(b[12:]); v>>16 != 1 {
		return f, true, fmt.Errorf("VHD format version %d.%d is %w, only version 1", v>>16, v&0xffff, vhdx.ErrUnsupported)
	}
	f.featureBits = be.Uint32(b[8:])
	f.dataOffset = be.Uint64(b[16:])
	f.timestamp = be.Uint32(b[24:])
	f.creator = printable(b[28:32])
	size := be.Uint64(b[48:])
	f.diskType = be.Uint32(b[60:])
	copy(f.id[:], b[68:84])
	f.savedState = b[84] != 0
	switch {
	case size == 0 || size > maxSize || size%sectorSize != 0:
		return f, true, corrupt("footer", at, "the disk has %d bytes, which is not a positive multiple of %d of at most 64 TiB", size, sectorSize)
	case f.diskType != typeFixed && f.diskType != typeDynamic && f.diskType != typeDifferencing:
		return f, true, corrupt("footer", at, "the disk is of the unknown type %d", f.diskType)
	}
	f.size = int64(size)
	return f, true, nil
}

func printable(b []byte) string {
	out := make([]byte, 0, len(b))
	for _, c := range b {
		if c >= 0x20 && c < 0x7f {
			out = append(out, c)
		}
	}
	return string(out)
}

// header is the sparse header of dynamic and differencing disks.
type header struct {
	table      int64 // offset of the block table
	entries    uint32
	blockSize  int64
	parentID   vhdx.GUID
	parentName string
	locators   []locator
}

// locator says where a path to the parent lies.
type locator struct {
	platform string
	off      uint64
	length   uint32
}

func decodeHeader(b []byte, at int64) (h header, err error) {
	if len(b) < headerSize || string(b[:8]) != "cxsparse" {
		return h, corrupt("header", at, "the signature is missing")
	}
	b = b[:headerSize]
	if got, want := sum(b, 36), be.Uint32(b[36:]); got != want {
		return h, corrupt("header", at, "the checksum is %08x where %08x is stored", got, want)
	}
	if v := be.Uint32(b[24:]); v>>16 != 1 {
		return h, fmt.Errorf("VHD header version %d.%d is %w, only version 1", v>>16, v&0xffff, vhdx.ErrUnsupported)
	}
	table := be.Uint64(b[16:])
	h.entries = be.Uint32(b[28:])
	h.blockSize = int64(be.Uint32(b[32:]))
	copy(h.parentID[:], b[40:56])
	var u []uint16
	for n := b[64:576]; len(n) >= 2 && be.Uint16(n) != 0; n = n[2:] {
		u = append(u, be.Uint16(n))
	}
	h.parentName = string(utf16.Decode(u))
	for i := range locatorSlots {
		e := b[576+24*i:]
		if l := (locator{string(e[:4]), be.Uint64(e[16:]), be.Uint32(e[8:])}); l.length != 0 {
			h.locators = append(h.locators, l)
		}
	}
	switch {
	case h.blockSize < sectorSize || h.blockSize > maxBlockSize || h.blockSize&(h.blockSize-1) != 0:
		return h, corrupt("header", at, "the block size %d is not a power of two from 512 to 256 MiB", h.blockSize)
	case table > 1<<62:
		return h, corrupt("header", at, "the block table lies at %d", table)
	}
	h.table = int64(table)
	return h, nil
}

// decodePath reads the value of a locator. Only the two kinds of Windows are known: UTF-16, relative and absolute.
func decodePath(platform string, b []byte) (relative, absolute string) {
	var u []uint16
	for ; len(b) >= 2; b = b[2:] {
		c := binary.LittleEndian.Uint16(b)
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	s := string(utf16.Decode(u))
	switch platform {
	case "W2ru":
		return s, ""
	case "W2ku":
		return "", s
	}
	return "", ""
}
