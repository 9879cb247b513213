package server

import (
	"strings"
	"sync"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// pipe is an open of a named pipe of IPC$: a DCE/RPC server that answers what is written to it.
type pipe struct {
	mu  sync.Mutex
	rpc rpcServer
	out []byte // written by the server, not read by the client yet
}

// createPipe opens a named pipe. There is one: srvsvc, which lists the shares.
func (r *request) createPipe(req *wire.CreateRequest) ntstatus.Status {
	name := strings.TrimPrefix(strings.ToLower(req.Name), `\`)
	switch {
	case req.Impersonation > 3:
		return ntstatus.BadImpersonationLevel
	case name != "srvsvc":
		return ntstatus.ObjectNameNotFound
	}
	s := r.c.srv
	if s.opens.Add(1) > int64(s.lim.MaxOpens) {
		s.opens.Add(-1)
		return ntstatus.InsufficientResources
	}
	o := &open{sess: r.sess, tree: r.tree, fd: -1, granted: mapGeneric(req.DesiredAccess), rel: "srvsvc",
		pipe: &pipe{rpc: rpcServer{srv: s}}, drained: make(chan struct{}, 1)}
	if st := r.register(o); st != ntstatus.Success {
		s.opens.Add(-1)
		return st
	}
	r.chainFile, r.chainOpen = o.id, true
	resp := wire.CreateResponse{Action: wire.ActionOpened, FileAttributes: 0x80, FileID: o.id, AllocationSize: 4096}
	r.w.ensure(128)
	r.setBody(resp.Append(r.body()))
	return ntstatus.Success
}

func (r *request) writePipe(o *open, data []byte) ntstatus.Status {
	p := o.pipe
	p.mu.Lock()
	out, ok := p.rpc.answer(data)
	if ok {
		p.out = append(p.out, out...)
	}
	p.mu.Unlock()
	if !ok {
		return ntstatus.PipeDisconnected
	}
	resp := wire.WriteResponse{Count: uint32(len(data))}
	r.setBody(resp.Append(r.body()))
	return ntstatus.Success
}

// take moves up to n bytes from the pipe to p; more says that the message is longer.
func (p *pipe) take(b []byte) (n int, more bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n = copy(b, p.out)
	p.out = p.out[n:]
	if len(p.out) == 0 {
		p.out = nil
	}
	return n, len(p.out) > 0
}

func (r *request) readPipe(o *open, length int) ntstatus.Status {
	r.w.ensure(wire.ReadResponseFixed + length + 1)
	at := len(r.body())
	r.commit(wire.ReadResponseFixed)
	n, more := o.pipe.take(r.room(length))
	if n == 0 && length > 0 {
		return statusPipeEmpty
	}
	resp := wire.ReadResponse{DataOffset: wire.HeaderSize + wire.ReadResponseFixed, DataLength: uint32(n)}
	resp.Append(r.body()[:at])
	r.commit(n)
	if more {
		r.keepBody = true
		return ntstatus.BufferOverflow
	}
	return ntstatus.Success
}

// transceive handles FSCTL_PIPE_TRANSCEIVE. [MS-SMB2] 3.3.5.15.3
func (r *request) transceive(o *open, req *wire.IoctlRequest) ntstatus.Status {
	p := o.pipe
	p.mu.Lock()
	out, ok := p.rpc.answer(req.Input)
	if ok {
		p.out = append(p.out, out...)
	}
	p.mu.Unlock()
	if !ok {
		return ntstatus.PipeDisconnected
	}
	n, more := p.take(r.beginOutput(int(req.MaxOutputResponse)))
	r.endOutput(req, n)
	if more {
		r.keepBody = true
		return ntstatus.BufferOverflow
	}
	return ntstatus.Success
}

// statusPipeEmpty is STATUS_PIPE_EMPTY: there is nothing to read, and nothing will come unless something is written.
const statusPipeEmpty ntstatus.Status = 0xC00000D9
