package wire

import (
	"encoding/binary"
	"unicode/utf8"
)

// body returns the body of a reply after checking that it has at least fixed bytes and begins with the structure size.
func body(msg []byte, what string, structureSize uint16, fixed int) ([]byte, error) {
	if len(msg) < HeaderSize+fixed {
		return nil, malformed("%s reply needs %d bytes, has %d", what, HeaderSize+fixed, len(msg))
	}
	b := msg[HeaderSize:]
	if s := le.Uint16(b); s != structureSize {
		return nil, malformed("%s reply has StructureSize %d, want %d", what, s, structureSize)
	}
	return b, nil
}

// span returns msg[off:off+n] where off counts from the header and must lie behind the fixed part. An empty span
// has no place: its offset is ignored, as servers differ in what they write there.
func span(msg []byte, what string, fixed int, off, n uint64) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	if off < uint64(HeaderSize+fixed) || off > uint64(len(msg)) || n > uint64(len(msg))-off {
		return nil, malformed("%s reply has a buffer of %d bytes at %d in a message of %d", what, n, off, len(msg))
	}
	return msg[off : off+n : off+n], nil
}

// AppendName appends s in UTF-16LE, as every name on the wire is written. The three-byte form of a lone surrogate
// (which UTF-8 proper does not have, and which DecodeName makes) becomes that surrogate again, so that every name a server
// can list can also be opened. Other invalid bytes become U+FFFD.
func AppendName(b []byte, s string) []byte {
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n <= 1:
			if i+2 < len(s) && s[i] == 0xED && s[i+1] >= 0xA0 && s[i+1] <= 0xBF && s[i+2]&0xC0 == 0x80 {
				u := 0xD000 | uint16(s[i+1]&0x3F)<<6 | uint16(s[i+2]&0x3F)
				b = binary.LittleEndian.AppendUint16(b, u)
				n = 3
			} else {
				b = binary.LittleEndian.AppendUint16(b, 0xFFFD)
			}
		case r >= 0x10000:
			r -= 0x10000
			b = binary.LittleEndian.AppendUint16(b, 0xD800|uint16(r>>10))
			b = binary.LittleEndian.AppendUint16(b, 0xDC00|uint16(r&0x3FF))
		default:
			b = binary.LittleEndian.AppendUint16(b, uint16(r))
		}
		i += n
	}
	return b
}

// DecodeName turns UTF-16LE into UTF-8. A lone surrogate becomes its three-byte form; an odd last byte is ignored.
func DecodeName(b []byte) string {
	out := make([]byte, 0, len(b))
	for i := 0; i+1 < len(b); i += 2 {
		u := rune(le.Uint16(b[i:]))
		if u&0xF800 != 0xD800 {
			out = utf8.AppendRune(out, u)
			continue
		}
		if u < 0xDC00 && i+3 < len(b) {
			if v := rune(le.Uint16(b[i+2:])); v&0xFC00 == 0xDC00 {
				out = utf8.AppendRune(out, 0x10000+(u&0x3FF)<<10+(v&0x3FF))
				i += 2
				continue
			}
		}
		out = append(out, 0xE0|byte(u>>12), 0x80|byte(u>>6)&0xBF, 0x80|byte(u)&0xBF)
	}
	return string(out)
}

func pad8(b []byte, headerStart int) []byte {
	for (len(b)-headerStart)&7 != 0 {
		b = append(b, 0)
	}
	return b
}

func appendFileID(b []byte, id FileID) []byte {
	b = le.AppendUint64(b, id.Persistent)
	return le.AppendUint64(b, id.Volatile)
}

func fileID(b []byte) FileID { return FileID{le.Uint64(b), le.Uint64(b[8:])} }

// AppendEmptyRequest appends the body that LOGOFF, TREE_DISCONNECT, ECHO and CANCEL requests share. [MS-SMB2] 2.2.7,
// 2.2.11, 2.2.28, 2.2.30
func AppendEmptyRequest(b []byte) []byte { return append(b, 4, 0, 0, 0) }

// ParseEmptyResponse checks the reply of LOGOFF, TREE_DISCONNECT, ECHO, FLUSH and LOCK. [MS-SMB2] 2.2.8, 2.2.12, 2.2.18,
// 2.2.27, 2.2.29
func ParseEmptyResponse(msg []byte) error {
	_, err := body(msg, "empty", 4, 4)
	return err
}

// ParseSetInfoResponse checks a SET_INFO reply. [MS-SMB2] 2.2.40
func ParseSetInfoResponse(msg []byte) error {
	_, err := body(msg, "SET_INFO", 2, 2)
	return err
}

// ParseErrorResponse decodes an ERROR reply. Data is empty, or formatted as [MS-SMB2] 2.2.2.1 with ContextCount
// entries when that is not zero, otherwise as 2.2.2.2.
func ParseErrorResponse(msg []byte) (ErrorResponse, error) {
	var r ErrorResponse
	b, err := body(msg, "ERROR", 9, 8)
	if err != nil {
		return r, err
	}
	r.ContextCount = b[2]
	n := uint64(le.Uint32(b[4:]))
	r.Data, err = span(msg, "ERROR", 8, HeaderSize+8, n)
	return r, err
}

// DefaultData returns the error data proper: Data itself, or that of the first context with the default identifier.
func (r *ErrorResponse) DefaultData() []byte {
	if r.ContextCount == 0 {
		return r.Data
	}
	d := r.Data
	for range r.ContextCount {
		if len(d) < 8 {
			return nil
		}
		n, id := uint64(le.Uint32(d)), le.Uint32(d[4:])
		if n > uint64(len(d)-8) {
			return nil
		}
		if id == 0 {
			return d[8 : 8+n]
		}
		next := min((8+n+7)&^7, uint64(len(d)))
		d = d[next:]
	}
	return nil
}
