package scsi

import (
	"bytes"
	"fmt"
)

// Protocol identifiers of transport IDs. SPC-4 7.6.1
const (
	ProtocolFC    uint8 = 0x0
	ProtocolSRP   uint8 = 0x4
	ProtocolISCSI uint8 = 0x5
	ProtocolSAS   uint8 = 0x6
)

// TransportID names an initiator port. SPC-4 7.6.4. Port is 16 bytes for SRP, 8 for FC and SAS; Name is the iSCSI name.
//
// RSVD initiators are named by 16 bytes and no transport protocol of their own; this project says them as SRP transport IDs, whose
// port identifier has just that size.
type TransportID struct {
	Protocol uint8
	Port     [16]byte
	Name     string // iSCSI, possibly with ",i,0x" and the session identifier
}

// SRPTransportID makes the transport ID of a 16-byte initiator identifier.
func SRPTransportID(id [16]byte) TransportID { return TransportID{Protocol: ProtocolSRP, Port: id} }

// Append appends the transport ID.
func (t *TransportID) Append(b []byte) []byte {
	switch t.Protocol {
	case ProtocolISCSI:
		n := max(20, (len(t.Name)+1+3)&^3)
		format := flag(bytes.Contains([]byte(t.Name), []byte(",i,0x")), 0x40)
		b = append(b, format|ProtocolISCSI, 0, byte(n>>8), byte(n))
		b = append(b, t.Name...)
		return append(b, make([]byte, n-len(t.Name))...)
	case ProtocolSRP:
		b = append(b, ProtocolSRP, 0, 0, 0, 0, 0, 0, 0)
		return append(b, t.Port[:]...)
	case ProtocolSAS:
		b = append(b, ProtocolSAS, 0, 0, 0)
		b = append(b, t.Port[:8]...)
		return append(b, make([]byte, 12)...)
	}
	b = append(b, t.Protocol&0xF, 0, 0, 0, 0, 0, 0, 0)
	b = append(b, t.Port[:8]...)
	return append(b, make([]byte, 8)...)
}

// ParseTransportID decodes one transport ID at the beginning of b and says how many bytes it takes.
func ParseTransportID(b []byte) (t TransportID, n int, err error) {
	if len(b) < 24 {
		return t, 0, fmt.Errorf("%w: transport ID of %d bytes", ErrMalformed, len(b))
	}
	t.Protocol = b[0] & 0xF
	format := b[0] >> 6
	if t.Protocol != ProtocolISCSI && format != 0 {
		return t, 0, fmt.Errorf("%w: transport ID with format %d", ErrMalformed, format)
	}
	switch t.Protocol {
	case ProtocolSRP:
		copy(t.Port[:], b[8:24])
		return t, 24, nil
	case ProtocolFC:
		copy(t.Port[:], b[8:16])
		return t, 24, nil
	case ProtocolSAS:
		copy(t.Port[:], b[4:12])
		return t, 24, nil
	case ProtocolISCSI:
		n = int(be.Uint16(b[2:]))
		if format > 1 || n < 20 || n%4 != 0 || len(b) < 4+n {
			return t, 0, fmt.Errorf("%w: iSCSI transport ID of format %d and %d bytes", ErrMalformed, format, n)
		}
		name, _, terminated := bytes.Cut(b[4:4+n], []byte{0})
		if !terminated || len(name) == 0 {
			return t, 0, fmt.Errorf("%w: iSCSI name does not end", ErrMalformed)
		}
		t.Name = string(name)
		return t, 4 + n, nil
	}
	return t, 0, fmt.Errorf("%w: transport ID of protocol %#x", ErrMalformed, t.Protocol)
}
