package tunnel

import (
	"encoding/binary"
	"fmt"
	"unicode/utf16"
)

// Offsets in the open contexts. The host name starts at an odd multiple of two: nothing is padded. [MS-RSVD] 2.2.4.12
const (
	offVersion         = 0
	offHasInitiatorID  = 4
	offInitiatorID     = 8
	offFlags           = 24
	offOriginatorFlags = 28
	offOpenRequestID   = 32
	offHostNameLength  = 40
	offHostName        = 42
	offProperties      = 168
)

// Append encodes the data of the create context: OpenContextV1Size bytes, or OpenContextV2Size when Version is Version2. A host
// name that is too long is cut at a character that fits.
func (r *OpenContextRequest) Append(b []byte) []byte {
	size := OpenContextV1Size
	if r.Version == Version2 {
		size = OpenContextV2Size
	}
	start := len(b)
	b = append(b, make([]byte, size)...)
	c := b[start:]
	le := binary.LittleEndian
	le.PutUint32(c[offVersion:], r.Version)
	c[offHasInitiatorID] = r.HasInitiatorID
	copy(c[offInitiatorID:], r.InitiatorID[:])
	le.PutUint32(c[offFlags:], r.Flags)
	le.PutUint32(c[offOriginatorFlags:], r.OriginatorFlags)
	le.PutUint64(c[offOpenRequestID:], r.OpenRequestID)
	n := 0
	for _, ch := range r.InitiatorHostName {
		u := utf16.AppendRune(nil, ch)
		if n+2*len(u) > MaxHostNameBytes {
			break
		}
		for _, w := range u {
			le.PutUint16(c[offHostName+n:], w)
			n += 2
		}
	}
	le.PutUint16(c[offHostNameLength:], uint16(n))
	return b
}

// ParseOpenContextResponse decodes the data of the reply's create context. The length and the version must agree.
func ParseOpenContextResponse(b []byte) (OpenContextResponse, error) {
	var r OpenContextResponse
	if len(b) < OpenContextV1Size {
		return r, tooShort("open context", OpenContextV1Size, len(b))
	}
	le := binary.LittleEndian
	r.Version = le.Uint32(b[offVersion:])
	want := OpenContextV1Size
	if r.Version == Version2 {
		want = OpenContextV2Size
	}
	if r.Version != Version1 && r.Version != Version2 || len(b) != want {
		return r, fmt.Errorf("%w: open context of version %d with %d bytes", ErrMalformed, r.Version, len(b))
	}
	r.HasInitiatorID = b[offHasInitiatorID]
	copy(r.InitiatorID[:], b[offInitiatorID:])
	r.Flags = le.Uint32(b[offFlags:])
	r.OriginatorFlags = le.Uint32(b[offOriginatorFlags:])
	r.OpenRequestID = le.Uint64(b[offOpenRequestID:])
	n := int(le.Uint16(b[offHostNameLength:]))
	if n > MaxHostNameBytes || n%2 != 0 {
		return r, fmt.Errorf("%w: host name of %d bytes", ErrMalformed, n)
	}
	units := make([]uint16, n/2)
	for i := range units {
		units[i] = le.Uint16(b[offHostName+2*i:])
	}
	r.InitiatorHostName = string(utf16.Decode(units))
	if r.Version == Version2 {
		p := b[offProperties:]
		r.Initialized = le.Uint32(p)
		r.ServerServiceVersion = le.Uint32(p[4:])
		r.SectorSize = le.Uint32(p[8:])
		r.PhysicalSectorSize = le.Uint32(p[12:])
		r.VirtualSize = le.Uint64(p[16:])
	}
	return r, nil
}
