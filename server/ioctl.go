package server

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"vdbridge/smb/fscc"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/tunnel"
	"vdbridge/smb/wire"
)

// ioctl handles IOCTL. [MS-SMB2] 3.3.5.15
func (r *request) ioctl() (ntstatus.Status, error) {
	req, err := wire.ParseIoctlRequest(r.msg)
	if err != nil {
		return ntstatus.InvalidParameter, nil
	}
	limit := uint32(r.c.srv.lim.MaxIO)
	if req.Flags != wire.IoctlFlagIsFsctl {
		return ntstatus.NotSupported, nil
	}
	if req.InputCount > limit || req.MaxInputResponse > limit || req.MaxOutputResponse > limit ||
		!r.checkCharge(max(req.InputCount, req.MaxInputResponse+req.MaxOutputResponse)) {
		return ntstatus.InvalidParameter, nil
	}
	switch req.CtlCode {
	case wire.FsctlDFSGetReferrals, wire.FsctlDFSGetReferralsEx, wire.FsctlQueryNetworkInterfaceInfo, wire.FsctlValidateNegotiateInfo, wire.FsctlPipeWait:
		if req.FileID != wire.RelatedFileID {
			return ntstatus.InvalidParameter, nil
		}
	}
	switch req.CtlCode {
	case wire.FsctlValidateNegotiateInfo:
		return r.validateNegotiate(&req)
	case wire.FsctlQueryNetworkInterfaceInfo:
		return r.networkInterfaces(&req), nil
	case wire.FsctlDFSGetReferrals, wire.FsctlDFSGetReferralsEx:
		return ntstatus.NotFound, nil // no DFS here
	case wire.FsctlPipeWait:
		return ntstatus.ObjectNameNotFound, nil
	}
	if st := r.findOpen(req.FileID); st != ntstatus.Success {
		return st, nil
	}
	req.FileID = r.file.id
	return r.fileIoctl(r.file, &req), nil
}

func (r *request) fileIoctl(o *open, req *wire.IoctlRequest) ntstatus.Status {
	switch req.CtlCode {
	case tunnel.FsctlSyncTunnelRequest, tunnel.FsctlAsyncTunnelRequest:
		return r.tunnel(o, req)
	case tunnel.FsctlQuerySharedVirtualDiskSupport:
		return r.diskSupport(o, req)
	}
	if o.pipe != nil {
		if req.CtlCode == wire.FsctlPipeTransceive {
			return r.transceive(o, req)
		}
		return ntstatus.InvalidDeviceRequest
	}
	if o.isDisk {
		switch req.CtlCode {
		case wire.FsctlOffloadRead:
			return ntstatus.OffloadReadFileNotSupported
		case wire.FsctlOffloadWrite:
			return ntstatus.OffloadWriteFileNotSupported
		}
		return ntstatus.InvalidDeviceRequest
	}
	switch req.CtlCode {
	case wire.FsctlSetSparse:
		return r.setSparse(o, req)
	case wire.FsctlSetZeroData:
		return r.zeroData(o, req)
	case wire.FsctlQueryAllocatedRanges:
		return r.allocatedRanges(o, req)
	case wire.FsctlFileLevelTrim:
		return r.trim(o, req)
	case wire.FsctlSrvRequestResumeKey:
		return r.resumeKey(o, req)
	case wire.FsctlSrvCopychunk, wire.FsctlSrvCopychunkWrite:
		return r.copychunk(o, req)
	case wire.FsctlGetReparsePoint:
		return ntstatus.NotAReparsePoint
	case wire.FsctlPipeTransceive, wire.FsctlPipePeek:
		return ntstatus.NotSupported
	case wire.FsctlCreateOrGetObjectID:
		return r.objectID(o, req)
	case fsctlSetCompression:
		switch {
		case len(req.Input) < 2:
			return ntstatus.InvalidParameter
		case le.Uint16(req.Input) != 0:
			return ntstatus.NotSupported
		}
		return r.noOutput(req) // none is what there is
	case fsctlGetCompression:
		if req.MaxOutputResponse < 2 {
			return ntstatus.BufferTooSmall
		}
		copy(r.beginOutput(2), []byte{0, 0})
		return r.endOutput(req, 2)
	}
	return ntstatus.InvalidDeviceRequest
}

// Control codes of compression, which there is none of. [MS-FSCC] 2.3.21, 2.3.67
const (
	fsctlGetCompression uint32 = 0x0009003C
	fsctlSetCompression uint32 = 0x0009C040
)

// beginOutput makes room for up to n bytes of output behind the fixed part of the reply.
func (r *request) beginOutput(n int) []byte {
	r.w.ensure(wire.IoctlResponseFixed + n)
	r.commit(wire.IoctlResponseFixed)
	return r.room(n)
}

// endOutput finishes the reply with n bytes of output, which beginOutput gave room for.
func (r *request) endOutput(req *wire.IoctlRequest, n int) ntstatus.Status {
	resp := wire.IoctlResponse{CtlCode: req.CtlCode, FileID: req.FileID, OutputCount: uint32(n)}
	resp.Append(r.body()[:r.replyAt+wire.HeaderSize])
	r.commit(n)
	if n == 0 {
		r.setBody(append(r.body(), 0))
	}
	return ntstatus.Success
}

// noOutput finishes a reply without output.
func (r *request) noOutput(req *wire.IoctlRequest) ntstatus.Status {
	r.beginOutput(1)
	return r.endOutput(req, 0)
}

type replayKey struct{}

// IsReplay says whether the operation of a context was sent with SMB2_FLAGS_REPLAY_OPERATION: it may have been executed before.
func IsReplay(ctx context.Context) bool { return ctx.Value(replayKey{}) != nil }

// WithReplay makes a context for which IsReplay is true.
func WithReplay(ctx context.Context) context.Context {
	return context.WithValue(ctx, replayKey{}, true)
}

// tunnel carries RSVD requests. The reply is made where it is sent from. [MS-SMB2] 3.3.5.15.15
func (r *request) tunnel(o *open, req *wire.IoctlRequest) ntstatus.Status {
	if !o.isDisk {
		return ntstatus.InvalidDeviceRequest
	}
	out := r.beginOutput(int(req.MaxOutputResponse))
	ctx := r.c.ctx
	if r.hdr.Flags&wire.FlagReplayOperation != 0 {
		ctx = WithReplay(ctx)
	}
	n, err := o.disk.Tunnel(ctx, req.CtlCode, req.Input, out)
	if n < 0 || n > len(out) {
		return ntstatus.InternalError
	}
	if err != nil {
		st := statusOf(err)
		if st == ntstatus.BufferOverflow {
			r.keepBody = true
			r.endOutput(req, n)
		}
		return st
	}
	return r.endOutput(req, n)
}

// diskSupport handles FSCTL_QUERY_SHARED_VIRTUAL_DISK_SUPPORT. [MS-SMB2] 3.3.5.15.16, [MS-RSVD] 3.2.5.6
func (r *request) diskSupport(o *open, req *wire.IoctlRequest) ntstatus.Status {
	s := r.c.srv
	if s.cfg.Disks == nil || r.c.dialect < wire.Dialect302 {
		return ntstatus.InvalidDeviceRequest
	}
	if req.MaxOutputResponse < 8 {
		return ntstatus.BufferTooSmall
	}
	path := ""
	if sh := r.tree.share; !sh.ipc {
		path = sh.dir
		if rel := o.currentRel(); rel != "" {
			path += "/" + rel
		}
	}
	support, state := s.cfg.Disks.QuerySupport(path, o.disk)
	out := r.beginOutput(8)
	le.PutUint32(out, support)
	le.PutUint32(out[4:], state)
	return r.endOutput(req, 8)
}

// validateNegotiate handles FSCTL_VALIDATE_NEGOTIATE_INFO: whoever finds that the negotiation was tampered with ends the connection. [MS-SMB2] 3.3.5.15.12
func (r *request) validateNegotiate(req *wire.IoctlRequest) (ntstatus.Status, error) {
	c := r.c
	bad := func(what string) (ntstatus.Status, error) {
		return 0, fmt.Errorf("validation of the negotiation: %s: %w", what, errProtocol)
	}
	if c.dialect == wire.Dialect311 {
		return bad("not with dialect 3.1.1")
	}
	in := req.Input
	if len(in) < 24 || req.MaxOutputResponse < 24 {
		return bad("too short")
	}
	n := int(le.Uint16(in[22:]))
	if len(in) < 24+2*n {
		return bad("too short")
	}
	dialects := make([]wire.Dialect, n)
	for i := range dialects {
		dialects[i] = wire.Dialect(le.Uint16(in[24+2*i:]))
	}
	switch {
	case le.Uint32(in) != c.clientCaps:
		return bad("capabilities differ")
	case wire.GUID(in[4:20]) != c.clientGUID:
		return bad("client GUID differs")
	case le.Uint16(in[20:]) != c.clientSec:
		return bad("security mode differs")
	case !slices.Equal(dialects, c.clientDials):
		return bad("dialects differ")
	}
	req.FileID = wire.RelatedFileID
	out := r.beginOutput(24)
	le.PutUint32(out, c.serverCaps)
	copy(out[4:20], c.srv.guid[:])
	le.PutUint16(out[20:], wire.NegotiateSigningEnabled|wire.NegotiateSigningRequired)
	le.PutUint16(out[22:], uint16(c.dialect))
	return r.endOutput(req, 24), nil
}

// setSparse handles FSCTL_SET_SPARSE. Every file can have holes; the attribute is what the client sees of it. [MS-FSCC] 2.3.69
func (r *request) setSparse(o *open, req *wire.IoctlRequest) ntstatus.Status {
	if o.dir {
		return ntstatus.InvalidParameter
	}
	if o.granted&(accessWrite|wire.AccessWriteAttributes) == 0 {
		return ntstatus.AccessDenied
	}
	sparse := len(req.Input) == 0 || req.Input[0] != 0
	sh := r.tree.share
	var m meta
	if err := sh.statAt(o.fd, "", &m); err != nil {
		return statusOf(err)
	}
	attr := m.attr &^ fscc.AttrSparse
	if sparse {
		attr |= fscc.AttrSparse
	} else if m.attr&fscc.AttrSparse != 0 && m.size > 0 {
		// A file that is not sparse has all its space.
		if err := unix.Fallocate(o.fd, 0, 0, m.size); err != nil && err != unix.EOPNOTSUPP {
			return statusOf(err)
		}
	}
	if attr != m.attr {
		if err := sh.writeXattr(o.fd, stored{attr, m.kept.creation, m.kept.change, m.kept.when}); err != nil {
			return statusOf(err)
		}
		r.c.srv.notify.modified(sh, o.currentRel(), fscc.NotifyAttributes)
	}
	return r.noOutput(req)
}

// zeroData handles FSCTL_SET_ZERO_DATA by punching a hole. [MS-FSA] 2.1.5.10.40
func (r *request) zeroData(o *open, req *wire.IoctlRequest) ntstatus.Status {
	z, err := fscc.ParseZeroData(req.Input)
	switch {
	case err != nil:
		return ntstatus.InvalidParameter
	case o.dir, z.FileOffset < 0, z.BeyondFinalZero < 0, z.FileOffset > z.BeyondFinalZero:
		return ntstatus.InvalidParameter
	case o.granted&wire.AccessWriteData == 0:
		return ntstatus.AccessDenied
	}
	n := z.BeyondFinalZero - z.FileOffset
	if o.obj.locked.Load() && !o.obj.mayWrite(o, uint64(z.FileOffset), uint64(n)) {
		return ntstatus.FileLockConflict
	}
	var m meta
	if err := r.tree.share.statAt(o.fd, "", &m); err != nil {
		return statusOf(err)
	}
	if n = min(n, m.size-z.FileOffset); n > 0 {
		how := punch
		if m.attr&fscc.AttrSparse == 0 {
			how = zero // a file that is not sparse keeps its space
		}
		st := how(o.fd, z.FileOffset, n)
		r.c.srv.wrote(o)
		if st != ntstatus.Success {
			return st
		}
		if st := o.settle(); st != ntstatus.Success {
			return st
		}
		r.c.srv.notify.written(o)
	}
	return r.noOutput(req)
}

// punch makes a range read as zeros without changing the size, and gives its space back.
func punch(fd int, off, n int64) ntstatus.Status {
	return zeroRange(fd, unix.FALLOC_FL_PUNCH_HOLE, off, n)
}

// zero is punch that keeps the space.
func zero(fd int, off, n int64) ntstatus.Status {
	return zeroRange(fd, unix.FALLOC_FL_ZERO_RANGE, off, n)
}

func zeroRange(fd int, how uint32, off, n int64) ntstatus.Status {
	for {
		err := unix.Fallocate(fd, how|unix.FALLOC_FL_KEEP_SIZE, off, n)
		switch err {
		case unix.EINTR:
			continue
		case unix.EOPNOTSUPP:
			return writeZeros(fd, off, n)
		}
		return statusOf(err)
	}
}

// writeZeros is punch where the file system has no holes.
func writeZeros(fd int, off, n int64) ntstatus.Status {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return statusOf(err)
	}
	n = min(n, st.Size-off)
	buf := getBuffer(256 << 10)
	defer buf.free()
	clear(buf.b)
	for n > 0 {
		p := buf.b[:min(int64(len(buf.b)), n)]
		if _, st := pwriteFull(fd, p, off); st != ntstatus.Success {
			return st
		}
		off += int64(len(p))
		n -= int64(len(p))
	}
	return ntstatus.Success
}

// allocatedRanges handles FSCTL_QUERY_ALLOCATED_RANGES. [MS-FSCC] 2.3.51, [MS-FSA] 2.1.5.10.22
func (r *request) allocatedRanges(o *open, req *wire.IoctlRequest) ntstatus.Status {
	q, err := fscc.ParseFileRange(req.Input)
	switch {
	case err != nil:
		return ntstatus.InvalidParameter
	case o.dir, q.Offset < 0, q.Length < 0, q.Offset+q.Length < 0:
		return ntstatus.InvalidParameter
	case o.granted&wire.AccessReadData == 0:
		return ntstatus.AccessDenied
	}
	var st unix.Stat_t
	if err := unix.Fstat(o.fd, &st); err != nil {
		return statusOf(err)
	}
	end := min(q.Offset+q.Length, st.Size)
	room := int(req.MaxOutputResponse) / 16 * 16
	out := r.beginOutput(min(room, 64<<10))
	n := 0
	var m meta
	if err := r.tree.share.statAt(o.fd, "", &m); err != nil {
		return statusOf(err)
	}
	if m.attr&fscc.AttrSparse == 0 && m.alloc >= m.size && q.Offset < end {
		// Neither sparse by name nor in fact.
		if len(out) < 16 {
			return ntstatus.BufferTooSmall
		}
		fscc.AppendFileRange(out[:0], fscc.Range{Offset: q.Offset, Length: end - q.Offset})
		return r.endOutput(req, 16)
	}
	for pos := q.Offset; pos < end; {
		data, err := unix.Seek(o.fd, pos, unix.SEEK_DATA)
		if err == unix.ENXIO || err == nil && data >= end {
			break
		}
		if err != nil {
			return statusOf(err)
		}
		hole, err := unix.Seek(o.fd, data, unix.SEEK_HOLE)
		if err != nil {
			return statusOf(err)
		}
		hole = min(hole, end)
		if n+16 > len(out) {
			if n == 0 {
				return ntstatus.BufferTooSmall
			}
			r.keepBody = true
			r.endOutput(req, n)
			return ntstatus.BufferOverflow
		}
		fscc.AppendFileRange(out[:n], fscc.Range{Offset: data, Length: hole - data})
		n += 16
		pos = hole
	}
	return r.endOutput(req, n)
}

// trim handles FSCTL_FILE_LEVEL_TRIM. [MS-FSCC] 2.3.13, [MS-SMB2] 3.3.5.15.14
func (r *request) trim(o *open, req *wire.IoctlRequest) ntstatus.Status {
	ranges, err := fscc.ParseTrim(req.Input)
	switch {
	case err != nil, o.dir, le.Uint32(req.Input) != 0:
		return ntstatus.InvalidParameter
	case o.granted&wire.AccessWriteData == 0:
		return ntstatus.AccessDenied
	}
	done := uint32(0)
	for _, t := range ranges {
		if t.Offset < 0 || t.Length < 0 || t.Offset+t.Length < 0 {
			return ntstatus.InvalidParameter
		}
		if o.obj.locked.Load() && !o.obj.mayWrite(o, uint64(t.Offset), uint64(t.Length)) {
			return ntstatus.FileLockConflict
		}
		if t.Length > 0 {
			st := punch(o.fd, t.Offset, t.Length)
			r.c.srv.wrote(o)
			if st != ntstatus.Success {
				return st
			}
		}
		done++
	}
	if st := o.settle(); st != ntstatus.Success {
		return st
	}
	if req.MaxOutputResponse < 4 {
		return r.noOutput(req)
	}
	le.PutUint32(r.beginOutput(4), done)
	return r.endOutput(req, 4)
}

// objectID handles FSCTL_CREATE_OR_GET_OBJECT_ID: an identifier of the file made of its place, which is constant while it lives. [MS-FSCC] 2.3.1
func (r *request) objectID(o *open, req *wire.IoctlRequest) ntstatus.Status {
	if req.MaxOutputResponse < 64 {
		return ntstatus.InvalidParameter
	}
	out := r.beginOutput(64)
	clear(out)
	le.PutUint64(out, o.obj.key.ino)
	le.PutUint64(out[8:], o.obj.key.dev)
	copy(out[16:32], r.c.srv.guid[:])
	copy(out[32:48], out[:16])
	return r.endOutput(req, 64)
}
