package tunnel

import (
	"encoding/binary"
	"fmt"
	"unicode/utf16"

	"vdbridge/smb/wire"
)

var serverOrder = binary.LittleEndian

func shortRequest(what string, have, want int) error {
	return fmt.Errorf("%w: %s of %d bytes, %d needed", ErrMalformed, what, have, want)
}

// ParseRequestHeader decodes the tunnel header at the beginning of an IOCTL's input. [MS-RSVD] 2.2.4.11
func ParseRequestHeader(b []byte) (h RequestHeader, err error) {
	if len(b) < HeaderSize {
		return h, shortRequest("tunnel header", len(b), HeaderSize)
	}
	return RequestHeader{Op: OpCode(serverOrder.Uint32(b)), RequestID: serverOrder.Uint64(b[8:])}, nil
}

// Append appends the header, HeaderSize bytes.
func (h *ResponseHeader) Append(b []byte) []byte {
	b = serverOrder.AppendUint32(b, uint32(h.Op))
	b = serverOrder.AppendUint32(b, uint32(h.Status))
	return serverOrder.AppendUint64(b, h.RequestID)
}

// Offsets in the open contexts. [MS-RSVD] 2.2.4.12, 2.2.4.32
const (
	ctxHasInitiator   = 4
	ctxInitiatorID    = 8
	ctxFlags          = 24
	ctxOriginator     = 28
	ctxOpenRequestID  = 32
	ctxHostNameLength = 40
	ctxHostName       = 42
	ctxProperties     = 168
)

// ParseOpenContextRequest decodes the data of an open context of version 1 or 2; with another version only the fields that both have. The length
// must fit the version. Values that the specification forbids are the caller's to judge, but for a host name that is longer than its room.
func ParseOpenContextRequest(b []byte) (c OpenContextRequest, err error) {
	if len(b) < OpenContextV1Size {
		return c, shortRequest("open context", len(b), OpenContextV1Size)
	}
	c.Version = serverOrder.Uint32(b)
	if c.Version == Version2 && len(b) < OpenContextV2Size {
		return c, shortRequest("open context of version 2", len(b), OpenContextV2Size)
	}
	c.HasInitiatorID = b[ctxHasInitiator]
	c.InitiatorID = wire.GUID(b[ctxInitiatorID:])
	c.Flags = serverOrder.Uint32(b[ctxFlags:])
	c.OriginatorFlags = serverOrder.Uint32(b[ctxOriginator:])
	c.OpenRequestID = serverOrder.Uint64(b[ctxOpenRequestID:])
	n := int(serverOrder.Uint16(b[ctxHostNameLength:]))
	if n > MaxHostNameBytes || n%2 != 0 {
		return c, fmt.Errorf("%w: host name of %d bytes", ErrMalformed, n)
	}
	units := make([]uint16, n/2)
	for i := range units {
		units[i] = serverOrder.Uint16(b[ctxHostName+2*i:])
	}
	c.InitiatorHostName = string(utf16.Decode(units))
	return c, nil
}

// Append appends the open context, of the size that its version has. A host name that is too long is cut.
func (c *OpenContextResponse) Append(b []byte) []byte {
	start := len(b)
	b = append(b, make([]byte, OpenContextV1Size)...)
	f := b[start:]
	serverOrder.PutUint32(f, c.Version)
	f[ctxHasInitiator] = c.HasInitiatorID
	copy(f[ctxInitiatorID:], c.InitiatorID[:])
	serverOrder.PutUint32(f[ctxFlags:], c.Flags)
	serverOrder.PutUint32(f[ctxOriginator:], c.OriginatorFlags)
	serverOrder.PutUint64(f[ctxOpenRequestID:], c.OpenRequestID)
	units := utf16.Encode([]rune(c.InitiatorHostName))
	units = units[:min(len(units), MaxHostNameBytes/2)]
	serverOrder.PutUint16(f[ctxHostNameLength:], uint16(2*len(units)))
	for i, u := range units {
		serverOrder.PutUint16(f[ctxHostName+2*i:], u)
	}
	if c.Version < Version2 {
		return b
	}
	return c.DiskProperties.append(b)
}

func (p *DiskProperties) append(b []byte) []byte {
	for _, v := range [...]uint32{p.Initialized, p.ServerServiceVersion, p.SectorSize, p.PhysicalSectorSize} {
		b = serverOrder.AppendUint32(b, v)
	}
	return serverOrder.AppendUint64(b, p.VirtualSize)
}

// AppendOpenContextEcho appends the answer to an open context that ParseOpenContextRequest has accepted: its own bytes, which the client may
// compare, and, with version 2, the properties of the disk. [MS-RSVD] 3.2.5.1
func AppendOpenContextEcho(b, request []byte, p DiskProperties) []byte {
	b = append(b, request[:OpenContextV1Size]...)
	if serverOrder.Uint32(request) < Version2 {
		return b
	}
	return p.append(b)
}

// Append appends the reply of FsctlQuerySharedVirtualDiskSupport, 8 bytes.
func (r *SupportResponse) Append(b []byte) []byte {
	b = serverOrder.AppendUint32(b, r.Support)
	return serverOrder.AppendUint32(b, r.HandleState)
}
