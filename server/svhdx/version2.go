package svhdx

import (
	"encoding/binary"
	"fmt"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/tunnel"
)

// changeTrackingNotInitialized is the ChangeTrackingStatus of a disk whose changes are not tracked. [2.2.4.18]
const changeTrackingNotInitialized = 0xC03A0020

// minInput is the least size in bytes of a version 2 request without the tunnel header. [2.2.4.17 to 2.2.4.40]
var minInput = map[tunnel.OpCode]int{
	tunnel.OpMetaOperationStart:         24,
	tunnel.OpMetaOperationQueryProgress: 16,
	tunnel.OpVHDSetQueryInformation:     24,
	tunnel.OpDeleteSnapshot:             24,
	tunnel.OpChangeTrackingStart:        56,
	tunnel.OpQueryVirtualDiskChanges:    56,
}

// Operation types of META_OPERATION_START. [2.2.4.17]
const (
	metaCreateSnapshot = 1
	metaLast           = 5
)

// version2 answers the operations of version 2 for a disk that is a plain VHDX file, without snapshots or change tracking.
func (o *open) version2(h tunnel.RequestHeader, in, out []byte) (int, error) {
	if n := minInput[h.Op]; len(in) < n || h.Op == tunnel.OpVHDSetQueryInformation && len(in) != n {
		return 0, fmt.Errorf("%v: request of %d bytes, %d needed: %w", h.Op, len(in), n, ntstatus.BufferTooSmall)
	}
	le := binary.LittleEndian
	switch h.Op {
	case tunnel.OpQuerySafeSize: // what the disk has now loses nothing
		return len(le.AppendUint64(o.begin(h, out), uint64(o.d.Size()))), nil
	case tunnel.OpChangeTrackingGetParameters:
		b := le.AppendUint32(o.begin(h, out), changeTrackingNotInitialized)
		b = le.AppendUint32(b, 0)
		return len(le.AppendUint64(b, 0)), nil
	case tunnel.OpChangeTrackingStop: // the body is there whatever the status. [3.2.5.5.13]
		r := tunnel.ResponseHeader{Op: h.Op, Status: ntstatus.InvalidDeviceState, RequestID: h.RequestID}
		return len(le.AppendUint32(r.Append(out[:0]), changeTrackingNotInitialized)), nil
	case tunnel.OpVHDSetQueryInformation: // not a VHD set
		return o.header(h, ntstatus.InvalidDeviceRequest, out)
	case tunnel.OpQueryVirtualDiskChanges, tunnel.OpMetaOperationQueryProgress: // there is no such snapshot or transaction
		return o.header(h, ntstatus.InvalidParameter, out)
	case tunnel.OpMetaOperationStart:
		switch kind := le.Uint32(in[16:]); {
		case kind > metaLast:
			return o.header(h, ntstatus.InvalidParameter, out)
		case kind == metaCreateSnapshot: // not a VHD set
			return o.header(h, ntstatus.InvalidDeviceRequest, out)
		}
	}
	return o.header(h, ntstatus.NotSupported, out)
}
