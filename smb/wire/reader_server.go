package wire

import (
	"math"
	"unicode/utf16"
	"unicode/utf8"
)

// srvBody checks that msg has a header and at least fixed bytes of body behind it whose StructureSize is size, and returns the body.
func srvBody(msg []byte, name string, size uint16, fixed int) ([]byte, error) {
	if len(msg) < HeaderSize+fixed {
		return nil, malformed("%s needs %d bytes, have %d", name, HeaderSize+fixed, len(msg))
	}
	b := msg[HeaderSize:]
	if s := le.Uint16(b); s != size {
		return nil, malformed("%s StructureSize %d, want %d", name, s, size)
	}
	return b, nil
}

// srvSlice returns n bytes at offset off of msg, where off counts from the header and must not reach back into the fixed part.
// An empty range is nil whatever its offset.
func srvSlice(msg []byte, name string, off, n uint32, fixed int) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	if uint64(off) < uint64(HeaderSize+fixed) || uint64(off)+uint64(n) > uint64(len(msg)) {
		return nil, malformed("%s buffer at %d, %d bytes, in a message of %d", name, off, n, len(msg))
	}
	return msg[off : off+n : off+n], nil
}

// srvString decodes UTF-16LE. Unpaired surrogates and an odd number of bytes are refused: two different names on the wire
// must never become the same string.
func srvString(b []byte, name string) (string, error) {
	if len(b)&1 != 0 {
		return "", malformed("%s has an odd number of bytes (%d)", name, len(b))
	}
	// Nearly every name is ASCII.
	ascii := true
	for i := 0; i < len(b); i += 2 {
		if b[i] >= utf8.RuneSelf || b[i+1] != 0 {
			ascii = false
			break
		}
	}
	if ascii {
		out := make([]byte, len(b)/2)
		for i := range out {
			out[i] = b[2*i]
		}
		return string(out), nil
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i += 2 {
		r := rune(le.Uint16(b[i:]))
		if utf16.IsSurrogate(r) {
			if i+4 > len(b) {
				return "", malformed("%s ends inside a surrogate pair", name)
			}
			r = utf16.DecodeRune(r, rune(le.Uint16(b[i+2:])))
			if r == utf8.RuneError {
				return "", malformed("%s has an unpaired surrogate", name)
			}
			i += 2
		}
		out = utf8.AppendRune(out, r)
	}
	return string(out), nil
}

// AppendUTF16 appends s as UTF-16LE, without a terminator. Bytes that are not UTF-8 become U+FFFD.
func AppendUTF16(b []byte, s string) []byte {
	for _, r := range s {
		if r1, r2 := utf16.EncodeRune(r); r1 != utf8.RuneError {
			b = le.AppendUint16(b, uint16(r1))
			b = le.AppendUint16(b, uint16(r2))
		} else {
			b = le.AppendUint16(b, uint16(r))
		}
	}
	return b
}

// UTF16Len returns the number of bytes that AppendUTF16 would append.
func UTF16Len(s string) int {
	n := 0
	for _, r := range s {
		n += 2
		if r >= 0x10000 {
			n += 2
		}
	}
	return n
}

// DecodeUTF16 decodes UTF-16LE and refuses what is not well-formed.
func DecodeUTF16(b []byte) (string, error) { return srvString(b, "string") }

// srvPad appends zeros until the body that began at start has a length that is a multiple of 8.
func srvPad(b []byte, start int) []byte {
	for (len(b)-start)&7 != 0 {
		b = append(b, 0)
	}
	return b
}

func srvZero(b []byte, n int) []byte {
	for range n {
		b = append(b, 0)
	}
	return b
}

func srvLen16(n int) uint16 {
	if n > math.MaxUint16 {
		panic("wire: buffer longer than its 16-bit length field")
	}
	return uint16(n)
}
