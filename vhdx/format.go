package vhdx

import (
	"encoding/binary"
	"hash/crc32"
)

// Layout and limits of the format.
const (
	kib = 1 << 10
	mib = 1 << 20

	fileIDSignature  = "vhdxfile"
	creatorBytes     = 512
	fileIDSize       = 64 * kib
	headerSectionLen = mib      // [MS-VHDX] 2.2
	headerSize       = 4 * kib  // [MS-VHDX] 2.2.2
	header1Offset    = 64 * kib // [MS-VHDX] 2.2.2
	header2Offset    = 128 * kib
	region1Offset    = 192 * kib // [MS-VHDX] 2.2.3
	region2Offset    = 256 * kib
	regionTableSize  = 64 * kib
	regionMaxEntries = 2047
	metaTableSize    = 64 * kib // [MS-VHDX] 2.6
	metaMaxEntries   = 2047
	metaMaxUser      = 1024
	metaMaxItem      = mib
	logSector        = 4 * kib // [MS-VHDX] 2.3.1
	minBlockSize     = mib
	maxBlockSize     = 256 * mib
	maxVirtualSize   = 64 << 40 // [MS-VHDX] 2.6.2.2
	sectorsPerChunk  = 1 << 23  // [MS-VHDX] 2.4
	batEntrySize     = 8
)

// maxFileSize is a limit of our own, far beyond what a sound image needs. It bounds what a hostile one can cost.
const maxFileSize = 256 << 40

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is the CRC-32C of b with the four bytes at field taken as zero.
func checksum(b []byte, field int) uint32 {
	var zero [4]byte
	c := crc32.Update(0, castagnoli, b[:field])
	c = crc32.Update(c, castagnoli, zero[:])
	return crc32.Update(c, castagnoli, b[field+4:])
}

var le = binary.LittleEndian

func roundUp(v, to int64) int64 { return (v + to - 1) / to * to }

func ceilDiv(v, by int64) int64 { return (v + by - 1) / by }

// isZero reports whether b has only zero bytes.
func isZero(b []byte) bool {
	for len(b) >= 8 {
		if le.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
