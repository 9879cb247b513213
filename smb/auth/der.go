package auth

import "bytes"

// The little of ASN.1 DER that SPNEGO needs. Tags have one byte.
const (
	tagOctetString = 0x04
	tagOID         = 0x06
	tagEnum        = 0x0A
	tagBitString   = 0x03
	tagGeneral     = 0x1B // GeneralString
	tagSequence    = 0x30
	tagApplication = 0x60 // [APPLICATION 0], the GSS-API frame of RFC 2743 3.1
	tagContext0    = 0xA0 // [0] explicit; [1] is 0xA1, and so on
)

// der reads consecutive elements. After the first mistake it returns nothing any more, and err is set.
type der struct {
	b   []byte
	err error
}

// more says whether there is another element.
func (d *der) more() bool { return d.err == nil && len(d.b) > 0 }

// peek returns the tag of the next element, 0 if there is none.
func (d *der) peek() byte {
	if !d.more() {
		return 0
	}
	return d.b[0]
}

// next reads the next element, which must have the tag, and returns its contents, and the whole of it with tag and length.
func (d *der) next(tag byte) (contents, whole []byte) {
	if d.err != nil {
		return nil, nil
	}
	if len(d.b) < 2 || d.b[0] != tag {
		d.err = malformed("SPNEGO: expected ASN.1 tag %#02x", tag)
		return nil, nil
	}
	n, head := int(d.b[1]), 2
	if n >= 0x80 {
		size := n & 0x7F
		if size == 0 || size > 3 || len(d.b) < 2+size {
			d.err = malformed("SPNEGO: ASN.1 length")
			return nil, nil
		}
		n = 0
		for _, c := range d.b[2 : 2+size] {
			n = n<<8 | int(c)
		}
		head += size
	}
	if n > len(d.b)-head {
		d.err = malformed("SPNEGO: ASN.1 element of %d bytes where %d are left", n, len(d.b)-head)
		return nil, nil
	}
	contents, whole = d.b[head:head+n], d.b[:head+n]
	d.b = d.b[head+n:]
	return contents, whole
}

// enter reads the next element, which must have the tag, and returns a reader of its contents.
func (d *der) enter(tag byte) der {
	c, _ := d.next(tag)
	return der{c, d.err}
}

// only is enter for an element that must be the last one.
func (d *der) only(tag byte) der {
	in := d.enter(tag)
	if in.err == nil && len(d.b) > 0 {
		in.err = malformed("SPNEGO: %d bytes too many", len(d.b))
		d.err = in.err
	}
	return in
}

// element returns a DER element with the concatenation of the parts as its contents.
func element(tag byte, parts ...[]byte) []byte {
	c := bytes.Join(parts, nil)
	n := len(c)
	var b []byte
	switch {
	case n < 0x80:
		b = []byte{tag, byte(n)}
	case n < 1<<8:
		b = []byte{tag, 0x81, byte(n)}
	case n < 1<<16:
		b = []byte{tag, 0x82, byte(n >> 8), byte(n)}
	default:
		b = []byte{tag, 0x83, byte(n >> 16), byte(n >> 8), byte(n)}
	}
	return append(b, c...)
}

// explicit returns an element with a context tag around it, or nothing if there is none.
func explicit(n byte, whole []byte) []byte {
	if whole == nil {
		return nil
	}
	return element(tagContext0+n, whole)
}

// octets returns an OCTET STRING with a context tag around it, or nothing if b is nil.
func octets(n byte, b []byte) []byte {
	if b == nil {
		return nil
	}
	return explicit(n, element(tagOctetString, b))
}
