package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

var le = binary.LittleEndian

const (
	magic         = "vdbJRNL\n"
	formatVersion = 1
	headSize      = 48
	recordSize    = 32
	recordMagic   = 0x64636552 // "Recd"

	// MaxValue bounds the bytes of one entry, maxFile those of a file, maxLive those of all entries: a file grows to four times as much before it is
	// compacted, and what is written meanwhile.
	MaxValue = 1 << 20
	maxFile  = 1 << 30
	maxLive  = maxFile / 8
)

const (
	opPut    = 1
	opDelete = 2
)

// Errors of files that cannot be used as they are.
var (
	// ErrDamaged says that something that was durable is broken.
	ErrDamaged = errors.New("damaged")
	// ErrVersion says that a newer program wrote the file.
	ErrVersion = errors.New("from another version")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// head is the beginning of a file.
type head struct {
	contents uint32 // version of what the values mean
	epoch    uint64 // how often the table was opened
	salt     uint64 // of the checksums
	whole    int64  // bytes that were durable before the file got its name
}

// append makes the head: magic 8, format 4, contents 4, epoch 8, salt 8, whole 8, zero 4, checksum 4.
func (h *head) append(b []byte) []byte {
	at := len(b)
	b = append(b, magic...)
	b = le.AppendUint32(b, formatVersion)
	b = le.AppendUint32(b, h.contents)
	b = le.AppendUint64(b, h.epoch)
	b = le.AppendUint64(b, h.salt)
	b = le.AppendUint64(b, uint64(h.whole))
	b = le.AppendUint32(b, 0)
	return le.AppendUint32(b, crc32.Checksum(b[at:], castagnoli))
}

func parseHead(b []byte, contents uint32) (h head, err error) {
	switch {
	case len(b) < headSize || string(b[:8]) != magic:
		return h, fmt.Errorf("it does not begin as such a file: %w", ErrDamaged)
	case crc32.Checksum(b[:headSize-4], castagnoli) != le.Uint32(b[headSize-4:]):
		return h, fmt.Errorf("the checksum of its head is wrong: %w", ErrDamaged)
	}
	if v := le.Uint32(b[8:]); v != formatVersion {
		return h, fmt.Errorf("its format is %d, this program knows %d: %w", v, formatVersion, ErrVersion)
	}
	h = head{le.Uint32(b[12:]), le.Uint64(b[16:]), le.Uint64(b[24:]), int64(le.Uint64(b[32:]))}
	if h.contents != contents {
		return h, fmt.Errorf("its contents are of version %d, this program knows %d: %w", h.contents, contents, ErrVersion)
	}
	return h, nil
}

// appendRecord appends a change that stands at offset at of its file: magic 4, checksum 4, length 4, operation 4, key 8, durable 8, value, padding to
// 8 bytes. The checksum goes over all behind it, the offset and the salt.
func (h *head) appendRecord(b []byte, at int64, op uint32, key uint64, durable int64, value []byte) []byte {
	from := len(b)
	b = le.AppendUint32(b, recordMagic)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint32(b, uint32(len(value)))
	b = le.AppendUint32(b, op)
	b = le.AppendUint64(b, key)
	b = le.AppendUint64(b, uint64(durable))
	b = append(b, value...)
	for (len(b)-from)&7 != 0 {
		b = append(b, 0)
	}
	le.PutUint32(b[from+4:], h.sum(b[from:], at))
	return b
}

func (h *head) sum(rec []byte, at int64) uint32 {
	var seed [16]byte
	le.PutUint64(seed[:], h.salt)
	le.PutUint64(seed[8:], uint64(at))
	return crc32.Update(crc32.Checksum(seed[:], castagnoli), castagnoli, rec[8:])
}

// record is a valid one.
type record struct {
	op      uint32
	key     uint64
	durable int64
	value   []byte
	size    int64
}

// parseRecord returns the record at offset at, if there is a valid one.
func (h *head) parseRecord(b []byte, at int64) (r record, ok bool) {
	rest := b[at:]
	if len(rest) < recordSize || le.Uint32(rest) != recordMagic {
		return r, false
	}
	n := le.Uint32(rest[8:])
	r = record{op: le.Uint32(rest[12:]), key: le.Uint64(rest[16:]), durable: int64(le.Uint64(rest[24:])), size: (recordSize + int64(n) + 7) &^ 7}
	if n > MaxValue || r.size > int64(len(rest)) || r.op != opPut && r.op != opDelete {
		return r, false
	}
	if h.sum(rest[:r.size], at) != le.Uint32(rest[4:]) {
		return r, false
	}
	r.value = rest[recordSize : recordSize+n]
	return r, true
}

// decode reads a file. The values point into b. cut is how many bytes at its end were left out.
func decode(b []byte, contents uint32) (h head, table map[uint64][]byte, cut int64, err error) {
	if h, err = parseHead(b, contents); err != nil {
		return h, nil, 0, err
	}
	table = map[uint64][]byte{}
	at := int64(headSize)
	for at < int64(len(b)) {
		r, ok := h.parseRecord(b, at)
		if !ok {
			break
		}
		if r.op == opPut {
			table[r.key] = r.value
		} else {
			delete(table, r.key)
		}
		at += r.size
	}
	if at < h.whole {
		return h, nil, 0, fmt.Errorf("the record at byte %d is broken: %w", at, ErrDamaged)
	}
	// What follows was written and not durable, unless a record says otherwise.
	for next := at + 8; next+recordSize <= int64(len(b)); next += 8 {
		if le.Uint32(b[next:]) != recordMagic {
			continue
		}
		if r, ok := h.parseRecord(b, next); ok && r.durable > at {
			return h, nil, 0, fmt.Errorf("the record at byte %d is broken, and was durable when the one at %d was written: %w", at, next, ErrDamaged)
		}
	}
	return h, table, int64(len(b)) - at, nil
}
