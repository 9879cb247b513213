package tunnel

import (
	"encoding/binary"
	"fmt"

	"vdbridge/smb/ntstatus"
)

func tooShort(what string, need, have int) error {
	return fmt.Errorf("%w: %s needs %d bytes, have %d", ErrMalformed, what, need, have)
}

// Append encodes the header, HeaderSize bytes. [MS-RSVD] 2.2.4.11
func (h *RequestHeader) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(h.Op))
	b = binary.LittleEndian.AppendUint32(b, 0)
	return binary.LittleEndian.AppendUint64(b, h.RequestID)
}

// ParseResponseHeader decodes the first HeaderSize bytes of a reply.
func ParseResponseHeader(b []byte) (ResponseHeader, error) {
	if len(b) < HeaderSize {
		return ResponseHeader{}, tooShort("tunnel header", HeaderSize, len(b))
	}
	return ResponseHeader{
		Op:        OpCode(binary.LittleEndian.Uint32(b)),
		Status:    ntstatus.Status(binary.LittleEndian.Uint32(b[4:])),
		RequestID: binary.LittleEndian.Uint64(b[8:]),
	}, nil
}
