package server

import (
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// handle runs one request and appends the body of its reply. An error ends the connection.
func (r *request) handle() (ntstatus.Status, error) {
	if !r.rel {
		r.sess, r.signer, r.tree, r.chainOpen = nil, nil, nil, false
	}
	if !r.rel {
		r.chainError = ntstatus.Success
	}
	if r.hdr.Flags&wire.FlagRelated == 0 {
		r.w.orphan = false
	}
	if r.w.orphan {
		// The first requests are related ones: there is nothing to which they could be related. The replies are signed if possible.
		if ch := r.c.channel(r.hdr.SessionID); ch != nil && ch.sn.established() {
			r.sess, r.signer = ch.sn, ch.signer
		}
		return ntstatus.InvalidParameter, nil
	}
	switch r.hdr.Command {
	case wire.CmdNegotiate:
		return r.negotiate()
	case wire.CmdSessionSetup:
		return r.sessionSetup()
	case wire.CmdEcho:
		return r.echo(), nil
	}
	if st := r.findSession(); st != ntstatus.Success {
		return st, nil
	}
	switch r.hdr.Command {
	case wire.CmdLogoff:
		return r.logoff(), nil
	case wire.CmdTreeConnect:
		return r.treeConnect()
	}
	if st := r.findTree(); st != ntstatus.Success {
		return st, nil
	}
	if r.rel && r.chainError != ntstatus.Success && r.hdr.Command != wire.CmdCreate && r.hdr.Command != wire.CmdTreeDisconnect {
		// The request before, whose file this one needs, has failed. [MS-SMB2] 3.3.5.2.7.2
		return r.chainError, nil
	}
	switch r.hdr.Command {
	case wire.CmdTreeDisconnect:
		return r.treeDisconnect(), nil
	case wire.CmdCreate:
		sn := r.sess
		if !sn.beginCreate() {
			return ntstatus.UserSessionDeleted, nil
		}
		defer sn.endCreate()
		return r.create(), nil
	case wire.CmdClose:
		return r.close(), nil
	case wire.CmdFlush:
		return r.flush(), nil
	case wire.CmdRead:
		return r.read(), nil
	case wire.CmdWrite:
		return r.write(), nil
	case wire.CmdLock:
		return r.lock(), nil
	case wire.CmdIoctl:
		return r.ioctl()
	case wire.CmdQueryDirectory:
		return r.queryDirectory(), nil
	case wire.CmdChangeNotify:
		return r.changeNotify(), nil
	case wire.CmdQueryInfo:
		return r.queryInfo(), nil
	case wire.CmdSetInfo:
		return r.setInfo(), nil
	case wire.CmdOplockBreak:
		return r.oplockBreak(), nil
	}
	return ntstatus.InvalidParameter, nil
}

// echo handles ECHO, which needs no session. [MS-SMB2] 3.3.5.17
func (r *request) echo() ntstatus.Status {
	if wire.ParseEmptyRequest(r.msg) != nil {
		return ntstatus.InvalidParameter
	}
	if r.hdr.SessionID != 0 && !r.rel {
		if ch := r.c.channel(r.hdr.SessionID); ch != nil && ch.sn.established() {
			r.sess, r.signer = ch.sn, ch.signer
			if r.hdr.Flags&wire.FlagSigned != 0 || r.w.transform != nil {
				if st := r.verify(); st != ntstatus.Success {
					return st
				}
			}
		}
	}
	r.setBody(wire.AppendEmptyResponse(r.body()))
	return ntstatus.Success
}

// findSession finds the session of a request, and checks its signature and that it is encrypted if it must be. [MS-SMB2] 3.3.5.2.4, 3.3.5.2.9
func (r *request) findSession() ntstatus.Status {
	if r.rel {
		if r.sess == nil {
			return ntstatus.InvalidParameter
		}
	} else {
		ch := r.c.channel(r.hdr.SessionID)
		if ch == nil || ch.sn.state.Load() == sessionInProgress {
			return ntstatus.UserSessionDeleted
		}
		r.sess, r.signer = ch.sn, ch.signer
	}
	if st := r.verify(); st != ntstatus.Success {
		if r.sess.state.Load() == sessionGone {
			return ntstatus.UserSessionDeleted
		}
		return st
	}
	switch r.sess.state.Load() {
	case sessionGone:
		return ntstatus.UserSessionDeleted
	case sessionExpired:
		switch r.hdr.Command {
		case wire.CmdLogoff, wire.CmdClose, wire.CmdLock:
		default:
			return ntstatus.NetworkSessionExpired
		}
	}
	if r.sess.encrypt && r.w.transform == nil {
		return ntstatus.AccessDenied
	}
	return ntstatus.Success
}

// findTree finds the tree of a request. [MS-SMB2] 3.3.5.2.11
func (r *request) findTree() ntstatus.Status {
	if r.rel {
		if r.tree == nil {
			return ntstatus.InvalidParameter
		}
	} else {
		r.sess.mu.RLock()
		r.tree = r.sess.trees[r.hdr.TreeID]
		r.sess.mu.RUnlock()
		if r.tree == nil {
			return ntstatus.NetworkNameDeleted
		}
	}
	if r.tree.share.cfg.Encrypt && r.w.transform == nil {
		return ntstatus.AccessDenied
	}
	return ntstatus.Success
}

// findOpen finds and acquires the open that a request names; it is released when the request ends.
func (r *request) findOpen(id wire.FileID) ntstatus.Status {
	if r.rel {
		if !r.chainOpen {
			return ntstatus.InvalidHandle
		}
		id = r.chainFile
	}
	r.chainFile, r.chainOpen = id, true
	if e := r.early; e != nil && e.sess == r.sess && e.id == id && e.tree == r.tree {
		r.file, r.early = e, nil
		return r.checkSequence(e)
	}
	r.sess.mu.RLock()
	o := r.sess.opens[id.Volatile]
	r.sess.mu.RUnlock()
	if o == nil || !o.acquire() {
		return ntstatus.FileClosed
	}
	if o.sess != r.sess || o.id != id || o.tree != r.tree {
		o.release()
		return ntstatus.FileClosed
	}
	r.file = o
	return r.checkSequence(o)
}

// checkCharge says whether the request paid for a payload or reply of n bytes. [MS-SMB2] 3.3.5.2.5
func (r *request) checkCharge(n uint32) bool {
	charge := max(1, uint32(r.hdr.CreditCharge))
	return n == 0 || (n-1)>>16 < charge
}
