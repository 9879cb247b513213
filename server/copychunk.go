package server

import (
	"golang.org/x/sys/unix"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// Limits of server-side copies, those of Windows. [MS-SMB2] 3.3.3
const (
	copyMaxChunks = 256
	copyMaxChunk  = 1 << 20
	copyMaxTotal  = 16 << 20
)

// resumeKey handles FSCTL_SRV_REQUEST_RESUME_KEY. [MS-SMB2] 3.3.5.15.5
func (r *request) resumeKey(o *open, req *wire.IoctlRequest) ntstatus.Status {
	if req.MaxOutputResponse < 32 {
		return ntstatus.InvalidParameter
	}
	out := r.beginOutput(32)
	clear(out)
	le.PutUint64(out, o.id.Persistent)
	le.PutUint64(out[8:], o.id.Volatile)
	copy(out[16:24], "vdbridge")
	return r.endOutput(req, 32)
}

// copychunk handles FSCTL_SRV_COPYCHUNK and FSCTL_SRV_COPYCHUNK_WRITE. [MS-SMB2] 3.3.5.15.6
func (r *request) copychunk(dst *open, req *wire.IoctlRequest) ntstatus.Status {
	in := req.Input
	if req.MaxOutputResponse < 12 {
		return ntstatus.InvalidParameter
	}
	answer := func(st ntstatus.Status, chunks, last, total uint32) ntstatus.Status {
		out := r.beginOutput(12)
		le.PutUint32(out, chunks)
		le.PutUint32(out[4:], last)
		le.PutUint32(out[8:], total)
		r.endOutput(req, 12)
		r.keepBody = true
		return st
	}
	tooMuch := func() ntstatus.Status {
		return answer(ntstatus.InvalidParameter, copyMaxChunks, copyMaxChunk, copyMaxTotal)
	}
	if len(in) < 32 {
		return ntstatus.InvalidParameter
	}
	r.sess.mu.RLock()
	src := r.sess.opens[le.Uint64(in[8:])]
	r.sess.mu.RUnlock()
	if src == nil || src.id.Persistent != le.Uint64(in) || string(in[16:24]) != "vdbridge" || !src.acquire() {
		return ntstatus.ObjectNameNotFound
	}
	defer src.release()
	n := le.Uint32(in[24:])
	if n > copyMaxChunks || uint64(len(in)-32) < uint64(n)*24 {
		return tooMuch()
	}
	sum := uint64(0)
	for i := range n {
		l := le.Uint32(in[32+24*i+16:])
		sum += uint64(l)
		if l == 0 || l > copyMaxChunk {
			return tooMuch()
		}
	}
	if sum > copyMaxTotal {
		return tooMuch()
	}
	switch {
	case src.isDisk || src.pipe != nil || dst.isDisk:
		return ntstatus.InvalidDeviceRequest
	case src.dir || dst.dir:
		return ntstatus.AccessDenied
	case src.granted&(wire.AccessReadData|wire.AccessExecute) == 0, dst.granted&accessWrite == 0,
		req.CtlCode == wire.FsctlSrvCopychunk && dst.granted&wire.AccessReadData == 0:
		return ntstatus.AccessDenied
	}
	total := uint32(0)
	for i := range n {
		c := in[32+24*i:]
		from, to, l := le.Uint64(c), le.Uint64(c[8:]), le.Uint32(c[16:])
		if from > maxOffset-uint64(l) || to > maxOffset-uint64(l) {
			return answer(ntstatus.InvalidParameter, i, 0, total)
		}
		if src.obj.locked.Load() && !src.obj.mayRead(src, from, uint64(l)) || dst.obj.locked.Load() && !dst.obj.mayWrite(dst, to, uint64(l)) {
			return answer(ntstatus.FileLockConflict, i, 0, total)
		}
		done, st := copyRange(src, dst, int64(from), int64(to), int(l))
		r.c.srv.wrote(dst)
		total += uint32(done)
		if st != ntstatus.Success {
			return answer(st, i, uint32(done), total)
		}
	}
	if dst.options&wire.OptWriteThrough != 0 {
		if st := dst.sync(true); st != ntstatus.Success {
			return answer(st, n, 0, total)
		}
	}
	r.c.srv.notify.written(dst)
	return answer(ntstatus.Success, n, 0, total)
}

// copyRange copies n bytes within the kernel where it can, otherwise through a buffer. A source that is too short is an error before anything is copied.
func copyRange(src, dst *open, from, to int64, n int) (int, ntstatus.Status) {
	var sst unix.Stat_t
	if err := unix.Fstat(src.fd, &sst); err != nil {
		return 0, statusOf(err)
	}
	if from+int64(n) > sst.Size {
		return 0, statusInvalidViewSize
	}
	done := 0
	for done < n && src.obj != dst.obj {
		rf, wf := from+int64(done), to+int64(done)
		m, err := unix.CopyFileRange(src.fd, &rf, dst.fd, &wf, n-done, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil || m == 0 {
			break
		}
		done += m
	}
	if done == n {
		return done, ntstatus.Success
	}
	// In one piece, so that a copy within a file whose ranges overlap gives what was there before.
	buf := getBuffer(n - done)
	defer buf.free()
	m, st := preadFull(src.fd, buf.b, from+int64(done))
	if st != ntstatus.Success {
		return done, st
	}
	if m < len(buf.b) {
		return done, ntstatus.EndOfFile
	}
	m, st = pwriteFull(dst.fd, buf.b, to+int64(done))
	return done + m, st
}

// statusInvalidViewSize is STATUS_INVALID_VIEW_SIZE, what Windows answers when a chunk goes beyond the source's end.
const statusInvalidViewSize ntstatus.Status = 0xC000001F
