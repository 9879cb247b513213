package server

import (
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// close handles CLOSE. [MS-SMB2] 3.3.5.10
func (r *request) close() ntstatus.Status {
	req, err := wire.ParseCloseRequest(r.msg)
	if err != nil {
		return ntstatus.InvalidParameter
	}
	if st := r.findOpen(req.FileID); st != ntstatus.Success {
		return st
	}
	o := r.file
	if !o.beginClose() {
		return ntstatus.FileClosed
	}
	r.sess.mu.Lock()
	delete(r.sess.opens, o.id.Volatile)
	r.sess.mu.Unlock()
	var resp wire.CloseResponse
	if req.Flags&wire.CloseFlagPostQueryAttrib != 0 && o.fd >= 0 {
		var m meta
		if r.tree.share.statAt(o.fd, "", &m) == nil {
			resp = wire.CloseResponse{Flags: wire.CloseFlagPostQueryAttrib, CreationTime: m.creation, LastAccessTime: m.lastAccess,
				LastWriteTime: m.lastWrite, ChangeTime: m.change, AllocationSize: uint64(m.alloc), EndOfFile: uint64(m.size), FileAttributes: m.attrs()}
		}
	}
	r.releaseOpens()
	o.finishClose()
	if o.durable != nil {
		r.c.srv.settled() // once closed, it does not come back after a restart
	}
	r.setBody(resp.Append(r.body()))
	return ntstatus.Success
}

// flush handles FLUSH. [MS-SMB2] 3.3.5.11
func (r *request) flush() ntstatus.Status {
	req, err := wire.ParseFlushRequest(r.msg)
	if err != nil {
		return ntstatus.InvalidParameter
	}
	if st := r.findOpen(req.FileID); st != ntstatus.Success {
		return st
	}
	o := r.file
	switch {
	case o.isDisk:
		if err := o.disk.Flush(r.c.ctx); err != nil {
			return statusOf(err)
		}
	case o.pipe != nil:
	case o.granted&accessWrite == 0:
		return ntstatus.AccessDenied
	case o.path:
	default:
		if st := o.sync(false); st != ntstatus.Success {
			return st
		}
	}
	r.setBody(wire.AppendEmptyResponse(r.body()))
	return ntstatus.Success
}
