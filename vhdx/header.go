package vhdx

import (
	"bytes"
	"unicode/utf16"
)

// header is one of the two headers. [MS-VHDX] 2.2.2
type header struct {
	sequence      uint64
	fileWriteGUID GUID
	dataWriteGUID GUID
	logGUID       GUID
	logVersion    uint16
	version       uint16
	logLength     uint32
	logOffset     uint64
}

const headerSignature = "head"

// decodeHeader checks signature and checksum only: that is what makes a header valid. Its fields are judged once it is known to be the current one.
func decodeHeader(b []byte) (header, error) {
	var h header
	if len(b) < headerSize {
		return h, corrupt("header", -1, "%d bytes where %d are needed", len(b), headerSize)
	}
	b = b[:headerSize]
	if string(b[:4]) != headerSignature {
		return h, corrupt("header", -1, "the signature is missing")
	}
	if got, want := checksum(b, 4), le.Uint32(b[4:]); got != want {
		return h, corrupt("header", -1, "the checksum is %08x where %08x is stored", got, want)
	}
	h.sequence = le.Uint64(b[8:])
	copy(h.fileWriteGUID[:], b[16:])
	copy(h.dataWriteGUID[:], b[32:])
	copy(h.logGUID[:], b[48:])
	h.logVersion = le.Uint16(b[64:])
	h.version = le.Uint16(b[66:])
	h.logLength = le.Uint32(b[68:])
	h.logOffset = le.Uint64(b[72:])
	return h, nil
}

// encode fills b, at least headerSize long.
func (h *header) encode(b []byte) {
	b = b[:headerSize]
	clear(b)
	copy(b, headerSignature)
	le.PutUint64(b[8:], h.sequence)
	copy(b[16:], h.fileWriteGUID[:])
	copy(b[32:], h.dataWriteGUID[:])
	copy(b[48:], h.logGUID[:])
	le.PutUint16(b[64:], h.logVersion)
	le.PutUint16(b[66:], h.version)
	le.PutUint32(b[68:], h.logLength)
	le.PutUint64(b[72:], h.logOffset)
	le.PutUint32(b[4:], checksum(b, 4))
}

// headerOffset is the place of header 0 or 1.
func headerOffset(slot int) int64 {
	if slot == 0 {
		return header1Offset
	}
	return header2Offset
}

// validate judges the fields of the current header.
func (h *header) validate(off, fileSize int64) error {
	if h.version != 1 {
		return &versionError{off, h.version}
	}
	if h.logVersion != 0 && !h.logGUID.IsZero() {
		return corrupt("header", off, "log version %d with a log to replay; only version 0 is known", h.logVersion)
	}
	lo, ll := h.logOffset, uint64(h.logLength)
	switch {
	case ll == 0 || ll%mib != 0:
		return corrupt("header", off, "the log length %d is not a positive multiple of 1 MiB", ll)
	case lo%mib != 0 || lo < headerSectionLen:
		return corrupt("header", off, "the log offset %d is not a multiple of 1 MiB behind the header section", lo)
	case lo > maxFileSize || int64(lo+ll) > fileSize:
		return corrupt("header", off, "the log at %d (%d bytes) is outside the file of %d bytes", lo, ll, fileSize)
	}
	return nil
}

// headerPair is what the two header slots hold.
type headerPair struct {
	h       [2]header
	err     [2]error // why a slot is not valid
	current int
}

// parseHeaders decodes both slots and finds the current one. Two valid headers with one sequence number are
// accepted when they are equal: Disk2VHD writes such images.
func parseHeaders(slot0, slot1 []byte) (headerPair, error) {
	var p headerPair
	p.h[0], p.err[0] = decodeHeader(slot0)
	p.h[1], p.err[1] = decodeHeader(slot1)
	for i := range p.err {
		if c, ok := p.err[i].(*CorruptError); ok {
			c.Offset = headerOffset(i)
		}
	}
	switch {
	case p.err[0] != nil && p.err[1] != nil:
		return p, corrupt("header", -1, "neither header is valid (first: %s; second: %s)", reason(p.err[0]), reason(p.err[1]))
	case p.err[0] != nil:
		p.current = 1
	case p.err[1] != nil:
		p.current = 0
	case p.h[0].sequence > p.h[1].sequence:
		p.current = 0
	case p.h[0].sequence < p.h[1].sequence:
		p.current = 1
	case !bytes.Equal(slot0[:headerSize], slot1[:headerSize]):
		return p, corrupt("header", -1, "both headers have sequence number %d but differ: neither is the current one", p.h[0].sequence)
	}
	return p, nil
}

// reason is the message of an error without the words that every CorruptError begins with.
func reason(err error) string {
	if c, ok := err.(*CorruptError); ok {
		return c.Reason
	}
	return err.Error()
}

// decodeCreator reads the creator string of the file type identifier. [MS-VHDX] 2.2.1
func decodeCreator(b []byte) string {
	if len(b) > creatorBytes {
		b = b[:creatorBytes]
	}
	var u []uint16
	for ; len(b) >= 2; b = b[2:] {
		c := le.Uint16(b)
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}
