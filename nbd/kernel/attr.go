package kernel

import (
	"encoding/binary"
	"errors"
)

// Netlink attributes: a 16-bit length that includes these four bytes of header, a 16-bit type, the payload, and padding to four bytes.
const (
	attrHeader = 4
	attrNested = 1 << 15 // flags in the type
	attrOrder  = 1 << 14
)

func align4(n int) int { return (n + 3) &^ 3 }

// appendAttr appends one attribute. data must be shorter than 64 KiB.
func appendAttr(b []byte, typ uint16, data ...byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrHeader+len(data)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, data...)
	return append(b, make([]byte, align4(len(data))-len(data))...)
}

func appendU32(b []byte, typ uint16, v uint32) []byte {
	return appendAttr(b, typ, binary.NativeEndian.AppendUint32(nil, v)...)
}

func appendU64(b []byte, typ uint16, v uint64) []byte {
	return appendAttr(b, typ, binary.NativeEndian.AppendUint64(nil, v)...)
}

// appendString appends a string with the zero byte that the kernel wants.
func appendString(b []byte, typ uint16, s string) []byte {
	return appendAttr(b, typ, append([]byte(s), 0)...)
}

var errShortAttr = errors.New("netlink: an attribute is longer than the message")

// eachAttr calls f with every attribute in b until f returns an error.
func eachAttr(b []byte, f func(typ uint16, data []byte) error) error {
	for len(b) >= attrHeader {
		n := int(binary.NativeEndian.Uint16(b))
		if n < attrHeader || n > len(b) {
			return errShortAttr
		}
		if err := f(binary.NativeEndian.Uint16(b[2:])&^(attrNested|attrOrder), b[attrHeader:n]); err != nil {
			return err
		}
		b = b[min(align4(n), len(b)):]
	}
	return nil
}

func attrU32(data []byte) (uint32, error) {
	if len(data) < 4 {
		return 0, errShortAttr
	}
	return binary.NativeEndian.Uint32(data), nil
}
