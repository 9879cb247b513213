package rsvd

import (
	"context"
	"fmt"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/tunnel"
)

// operate sends one operation through the tunnel and returns what follows the header of the reply, of which resp bytes are expected
// at most. It is for the small operations, which only ask; SCSI has its own path, without allocation.
func (d *Disk) operate(ctx context.Context, op tunnel.OpCode, body []byte, resp int) ([]byte, error) {
	id := d.requestID.Add(1)
	req := (&tunnel.RequestHeader{Op: op, RequestID: id}).Append(make([]byte, 0, tunnel.HeaderSize))
	out := make([]byte, max(tunnel.HeaderSize+resp, smallReply))
	n, err := d.control(ctx, KindRead, req, body, out, nil)
	if err != nil {
		return nil, wrap(op.String(), err)
	}
	if err := checkHeader(out[:min(n, len(out))], op, id); err != nil {
		return nil, err
	}
	return out[tunnel.HeaderSize:n], nil
}

// smallReply is the room for a reply of a small operation. Microsoft's tests always allow this much. [MS-RSVD] names only minima.
const smallReply = 4096

// checkHeader checks the tunnel header that a reply starts with.
func checkHeader(reply []byte, op tunnel.OpCode, id uint64) error {
	h, err := tunnel.ParseResponseHeader(reply)
	if err != nil {
		return fmt.Errorf("%v: %w: %w", op, ErrProtocol, err)
	}
	if h.Op != op || h.RequestID != id {
		return fmt.Errorf("%v: %w: the reply is to operation %v, request %d instead of %d", op, ErrProtocol, h.Op, h.RequestID, id)
	}
	if h.Status != ntstatus.Success {
		return &Error{Op: op.String(), Status: h.Status, Tunnel: true}
	}
	return nil
}

// Support asks the server which kinds of shared disks it has, and whether this file is open as one.
// [MS-RSVD] 2.2.4.16
func Support(ctx context.Context, f File) (tunnel.SupportResponse, error) {
	var out [8]byte
	n, err := f.Ioctl(ctx, tunnel.FsctlQuerySharedVirtualDiskSupport, nil, nil, out[:], nil)
	if err != nil {
		return tunnel.SupportResponse{}, wrap("QUERY_SHARED_VIRTUAL_DISK_SUPPORT", err)
	}
	r, err := tunnel.ParseSupportResponse(out[:min(n, len(out))])
	if err != nil {
		return r, fmt.Errorf("QUERY_SHARED_VIRTUAL_DISK_SUPPORT: %w: %w", ErrProtocol, err)
	}
	return r, nil
}

// Support asks on this disk's open. See the function of the same name.
func (d *Disk) Support(ctx context.Context) (tunnel.SupportResponse, error) {
	return Support(ctx, d.file)
}

// InitialInfo asks for the server's version and the disk's geometry. [MS-RSVD] 2.2.4.14
func (d *Disk) InitialInfo(ctx context.Context) (tunnel.InitialInfoResponse, error) {
	b, err := d.operate(ctx, tunnel.OpGetInitialInfo, nil, 24)
	if err != nil {
		return tunnel.InitialInfoResponse{}, err
	}
	r, err := tunnel.ParseInitialInfoResponse(b)
	return r, malformed(tunnel.OpGetInitialInfo, err)
}

// CheckConnection asks whether the open is still good. It is cheap. [MS-RSVD] 2.2.4.1
func (d *Disk) CheckConnection(ctx context.Context) error {
	_, err := d.operate(ctx, tunnel.OpCheckConnectionStatus, nil, 0)
	return err
}

// DiskInfo asks for the image's properties. [MS-RSVD] 2.2.4.6
func (d *Disk) DiskInfo(ctx context.Context) (tunnel.DiskInfoResponse, error) {
	b, err := d.operate(ctx, tunnel.OpGetDiskInfo, tunnel.AppendDiskInfoRequest(nil), 56)
	if err != nil {
		return tunnel.DiskInfoResponse{}, err
	}
	r, err := tunnel.ParseDiskInfoResponse(b)
	return r, malformed(tunnel.OpGetDiskInfo, err)
}

// Validate asks the server to say whether the disk is valid. [MS-RSVD] 2.2.4.10
func (d *Disk) Validate(ctx context.Context) (bool, error) {
	b, err := d.operate(ctx, tunnel.OpValidateDisk, tunnel.AppendValidateDiskRequest(nil), 1)
	if err != nil {
		return false, err
	}
	r, err := tunnel.ParseValidateDiskResponse(b)
	return r.IsValid, malformed(tunnel.OpValidateDisk, err)
}

// SRBStatus fetches the SCSI status and sense that the server stored under key, the low byte of the status with which a READ or WRITE
// failed. Sense is the caller's. [MS-RSVD] 2.2.4.4
func (d *Disk) SRBStatus(ctx context.Context, key byte) (tunnel.SRBStatusResponse, error) {
	b, err := d.operate(ctx, tunnel.OpSRBStatus, (&tunnel.SRBStatusRequest{StatusKey: key}).Append(nil), 24)
	if err != nil {
		return tunnel.SRBStatusResponse{}, err
	}
	r, err := tunnel.ParseSRBStatusResponse(b)
	if err == nil && r.StatusKey != key {
		return r, fmt.Errorf("%v: %w: the reply is about key %d instead of %d", tunnel.OpSRBStatus, ErrProtocol, r.StatusKey, key)
	}
	return r, malformed(tunnel.OpSRBStatus, err)
}

func malformed(op any, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%v: %w: %w", op, ErrProtocol, err)
}
