package server

import (
	"golang.org/x/sys/unix"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

const maxOffset = 1<<63 - 1

// read handles READ. The data go from the file straight into the reply. [MS-SMB2] 3.3.5.12
func (r *request) read() ntstatus.Status {
	req, err := wire.ParseReadRequest(r.msg)
	if err != nil {
		return ntstatus.InvalidParameter
	}
	if st := r.findOpen(req.FileID); st != ntstatus.Success {
		return st
	}
	o := r.file
	if req.Length > uint32(r.c.srv.lim.MaxIO) || !r.checkCharge(req.Length) || req.Channel != wire.ChannelNone {
		return ntstatus.InvalidParameter
	}
	if o.pipe != nil {
		return r.readPipe(o, int(req.Length))
	}
	if o.dir {
		return ntstatus.InvalidDeviceRequest
	}
	if o.granted&(wire.AccessReadData|wire.AccessExecute) == 0 {
		return ntstatus.AccessDenied
	}
	if req.Offset > maxOffset || req.Offset+uint64(req.Length) > maxOffset {
		return ntstatus.InvalidParameter
	}
	// The fixed part comes first, its length when the data are there.
	r.w.ensure(wire.ReadResponseFixed + int(req.Length))
	at := len(r.body())
	r.commit(wire.ReadResponseFixed)
	p := r.room(int(req.Length))
	n := 0
	if o.isDisk {
		if st := r.readDisk(o, p, int64(req.Offset)); st != ntstatus.Success {
			return st
		}
		n = len(p)
	} else {
		if o.obj.locked.Load() && !o.obj.mayRead(o, req.Offset, uint64(req.Length)) {
			return ntstatus.FileLockConflict
		}
		var st ntstatus.Status
		if n, st = preadFull(o.fd, p, int64(req.Offset)); st != ntstatus.Success {
			return st
		}
		if n < int(req.MinimumCount) || n == 0 && req.Length > 0 {
			return ntstatus.EndOfFile
		}
		o.position.Store(req.Offset + uint64(n))
	}
	resp := wire.ReadResponse{DataOffset: wire.HeaderSize + wire.ReadResponseFixed, DataLength: uint32(n)}
	resp.Append(r.body()[:at])
	r.commit(n)
	if n == 0 {
		r.setBody(append(r.body(), 0)) // the buffer has at least one byte
	}
	return ntstatus.Success
}

// readDisk reads from a shared virtual disk. Errors of the SCSI kind pass as they are. [MS-RSVD] 3.2.5.3
func (r *request) readDisk(o *open, p []byte, off int64) ntstatus.Status {
	if err := o.disk.Read(r.c.ctx, p, off); err != nil {
		return statusOf(err)
	}
	return ntstatus.Success
}

// preadFull reads until p is full or the file ends.
func preadFull(fd int, p []byte, off int64) (int, ntstatus.Status) {
	n := 0
	for n < len(p) {
		m, err := unix.Pread(fd, p[n:], off+int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return n, statusOf(err)
		}
		if m == 0 {
			break
		}
		n += m
	}
	return n, ntstatus.Success
}

// pwriteFull writes all of p.
func pwriteFull(fd int, p []byte, off int64) (int, ntstatus.Status) {
	n := 0
	for n < len(p) {
		m, err := unix.Pwrite(fd, p[n:], off+int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return n, statusOf(err)
		}
		n += m
	}
	return n, ntstatus.Success
}

// write handles WRITE. The data go from where they were received straight to the file. [MS-SMB2] 3.3.5.13
func (r *request) write() ntstatus.Status {
	req, err := wire.ParseWriteRequest(r.msg)
	if err != nil {
		return ntstatus.InvalidParameter
	}
	if st := r.findOpen(req.FileID); st != ntstatus.Success {
		return st
	}
	o := r.file
	if req.Length > uint32(r.c.srv.lim.MaxIO) || !r.checkCharge(req.Length) || req.Channel != wire.ChannelNone {
		return ntstatus.InvalidParameter
	}
	data := r.msg[req.DataOffset : uint32(req.DataOffset)+req.Length]
	if o.pipe != nil {
		return r.writePipe(o, data)
	}
	if o.dir {
		return ntstatus.InvalidDeviceRequest
	}
	// An offset of all ones appends. [MS-FSA] 2.1.5.4
	appends := req.Offset == ^uint64(0) || o.granted&accessWrite == wire.AccessAppendData && !o.isDisk
	if o.granted&accessWrite == 0 {
		return ntstatus.AccessDenied
	}
	if req.Offset == ^uint64(0) && o.granted&wire.AccessAppendData == 0 || !appends && (req.Offset > maxOffset || req.Offset+uint64(req.Length) > maxOffset) {
		return ntstatus.InvalidParameter
	}
	durable := req.Flags&wire.WriteFlagWriteThrough != 0 || (o.options|o.modeBits.Load())&wire.OptWriteThrough != 0
	if o.isDisk {
		if appends {
			return ntstatus.InvalidParameter
		}
		if err := o.disk.Write(r.c.ctx, data, int64(req.Offset), durable); err != nil {
			return statusOf(err)
		}
	} else {
		st := r.writeFile(o, data, req.Offset, appends, durable)
		r.c.srv.wrote(o) // a part may have been written even if it failed
		if st != ntstatus.Success {
			return st
		}
	}
	resp := wire.WriteResponse{Count: req.Length}
	r.setBody(resp.Append(r.body()))
	return ntstatus.Success
}

func (r *request) writeFile(o *open, data []byte, off uint64, appends, durable bool) ntstatus.Status {
	if o.obj.locked.Load() {
		if !o.obj.mayWrite(o, off, uint64(len(data))) {
			return ntstatus.FileLockConflict
		}
	}
	if appends {
		// RWF_APPEND finds the end and writes there in one step.
		for len(data) > 0 {
			n, err := unix.Pwritev2(o.fd, [][]byte{data}, -1, unix.RWF_APPEND)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return statusOf(err)
			}
			data = data[n:]
		}
	} else {
		if _, st := pwriteFull(o.fd, data, int64(off)); st != ntstatus.Success {
			return st
		}
		o.position.Store(off + uint64(len(data)))
	}
	if durable {
		if st := o.sync(true); st != ntstatus.Success {
			return st
		}
	}
	if r.c.srv.notify.active.Load() {
		r.c.srv.notify.written(o)
	}
	return ntstatus.Success
}
