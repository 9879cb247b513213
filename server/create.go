package server

import (
	"bytes"
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"vdbridge/smb/fscc"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

const (
	validOptions     uint32 = 0x00FFFFFF
	unsupportedOpts  uint32 = wire.OptOpenByFileID | 0x00000080 | 0x00100000 // FILE_OPEN_BY_FILE_ID, FILE_CREATE_TREE_CONNECTION, FILE_RESERVE_OPFILTER
	reservedAccess   uint32 = 0x0CE0FE00
	validCreateAttrs        = fscc.AttrReadonly | fscc.AttrHidden | fscc.AttrSystem | fscc.AttrDirectory | fscc.AttrArchive | fscc.AttrNormal |
		fscc.AttrTemporary | fscc.AttrSparse | fscc.AttrReparsePoint | fscc.AttrCompressed | fscc.AttrOffline | fscc.AttrNotIndexed | fscc.AttrEncrypted
)

// mapGeneric replaces the generic access rights by those of files. [MS-SMB2] 2.2.13.1.1
func mapGeneric(a uint32) uint32 {
	if a&wire.AccessGenericAll != 0 {
		a |= accessAll
	}
	if a&wire.AccessGenericRead != 0 {
		a |= 0x00120089
	}
	if a&wire.AccessGenericWrite != 0 {
		a |= 0x00120116
	}
	if a&wire.AccessGenericExecute != 0 {
		a |= 0x001200A0
	}
	return a &^ (wire.AccessGenericAll | wire.AccessGenericRead | wire.AccessGenericWrite | wire.AccessGenericExecute)
}

// createArgs is a CREATE request as it is being worked on.
type createArgs struct {
	*wire.CreateRequest
	rel     string
	kind    streamKind
	access  uint32 // wanted, generic rights mapped, without MAXIMUM_ALLOWED
	maximal bool   // MAXIMUM_ALLOWED was asked for
	dirOnly bool

	svhdx     []byte // data of the SVHDX context
	hasSVHDX  bool
	allocSize int64
	maxAccess bool // MxAc
	onDiskID  bool // QFid
	durable   durableArgs
	kept      *durable    // of an open that is to be persistent
	lease     *wire.Lease // nil if none is asked for
}

// create handles CREATE. [MS-SMB2] 3.3.5.9
func (r *request) create() ntstatus.Status {
	r.chainOpen = false
	req, err := wire.ParseCreateRequest(r.msg)
	if err != nil {
		return ntstatus.InvalidParameter
	}
	if r.tree.share.ipc {
		return r.createPipe(req)
	}
	a := &createArgs{CreateRequest: req}
	if st := a.durableContexts(r.c.dialect); st != ntstatus.Success {
		return st
	}
	if a.durable.reconnect {
		return r.reconnect(a)
	}
	var kept *durable
	if v := &a.durable; v.request1 {
		kept = r.newDurable(a, 1, durableTimeout1)
	} else if v.request {
		var again bool
		var st ntstatus.Status
		if kept, again, st = r.beginDurable(a); st != ntstatus.Success {
			return st
		} else if again {
			return r.answerAgain(a, kept, kept.action)
		}
	}
	st := r.createNew(a, kept)
	if st != ntstatus.Success {
		r.c.srv.durables.abandon(kept)
	}
	return st
}

// createNew opens what the request asks for. kept is not nil if the open is to be persistent.
func (r *request) createNew(a *createArgs, kept *durable) ntstatus.Status {
	if st := r.checkCreate(a); st != ntstatus.Success {
		return st
	}
	s := r.c.srv
	a.kept = kept
	if s.opens.Add(1) > int64(s.lim.MaxOpens) {
		s.opens.Add(-1)
		return ntstatus.InsufficientResources
	}
	o := &open{sess: r.sess, tree: r.tree, fd: -1, share: a.ShareAccess, options: a.Options, rel: a.rel, share0: r.tree.share, drained: make(chan struct{}, 1)}
	n := s.newID()
	o.id = wire.FileID{Persistent: s.epoch<<32 | n, Volatile: n<<8 | 0x5A} // before others can find it: the notification of a break names it
	o.sequence.set(uint16(r.hdr.Status))
	o.sequenced = true
	if r.persistence() {
		o.options |= wire.OptWriteThrough // [MS-SMB2] 3.3.5.9, "Open Execution"
	}
	if a.durable.app != nil {
		a.durable.app.clientGUID = r.c.clientGUID
	}
	resp := &wire.CreateResponse{}
	st := r.takeOver(a)
	if st == ntstatus.Success {
		st = r.openObject(a, o, resp)
	}
	if st == ntstatus.Success {
		o.app = a.durable.app
		if kept != nil && !o.dir {
			if kept.persistent {
				r.persist(a, o, kept, resp)
			} else {
				r.makeDurable(o, kept, resp)
			}
		}
		st = r.register(o)
	}
	if st != ntstatus.Success {
		if o.obj != nil {
			o.beginClose()
			o.finishClose()
		} else {
			if o.fd >= 0 {
				unix.Close(o.fd)
			}
			if o.disk != nil {
				o.disk.Close()
			}
			s.opens.Add(-1)
		}
		return st
	}
	if kept != nil && o.durable == nil {
		s.durables.abandon(kept) // a directory, or one that could not be kept
	}
	r.finishCreate(o, resp)
	return ntstatus.Success
}

// makeDurable makes an open durable if its client may cache handles. In version 2, its CreateGuid is remembered even if not. [MS-SMB2] 3.3.5.9.6, 3.3.5.9.10
func (r *request) makeDurable(o *open, kept *durable, resp *wire.CreateResponse) {
	o.obj.mu.Lock()
	kept.granted = o.oplock != nil && o.oplock.keepsHandles()
	if kept.granted || kept.version == 2 {
		o.durable, kept.action = kept, resp.Action
	}
	o.obj.mu.Unlock()
	if kept.granted {
		resp.Contexts = slices.Insert(resp.Contexts, 0, kept.reply())
	}
}

// persist makes an open persistent, durably if the server has a database. If that cannot be, it is an open like others, which the client learns from the
// context that is missing in the reply.
func (r *request) persist(a *createArgs, o *open, kept *durable, resp *wire.CreateResponse) {
	o.obj.mu.Lock()
	o.durable, kept.action, kept.granted = kept, resp.Action, true
	o.obj.mu.Unlock()
	if n := len(resp.Contexts); a.kind == streamDisk && n > 0 && resp.Contexts[n-1].Name == wire.CreateSVHDX {
		kept.svhdx, kept.svhdxAsked = resp.Contexts[n-1].Data, bytes.Clone(a.svhdx)
	}
	var err error
	if pd, ok := o.disk.(PersistentDisk); ok && r.c.srv.db != nil {
		err = pd.Persist(o.id.Persistent)
	}
	if err == nil {
		err = r.c.srv.keep(o)
	}
	if err != nil {
		r.c.log.Error("an open cannot be made persistent", "path", o.currentRel(), "err", err)
		r.c.srv.unrecord(o)
		o.obj.mu.Lock()
		o.durable = nil
		o.obj.mu.Unlock()
		return
	}
	resp.Contexts = slices.Insert(resp.Contexts, 0, kept.reply())
}

// finishCreate makes the reply.
func (r *request) finishCreate(o *open, resp *wire.CreateResponse) {
	resp.FileID = o.id
	r.chainFile, r.chainOpen = o.id, true
	n := 128
	for _, c := range resp.Contexts {
		n += 48 + len(c.Name) + len(c.Data)
	}
	r.w.ensure(n)
	r.setBody(resp.Append(r.body()))
}

// register makes an open known to the session.
func (r *request) register(o *open) ntstatus.Status {
	sn, s := r.sess, r.c.srv
	s.durables.add(o)
	sn.mu.Lock()
	defer sn.mu.Unlock()
	if sn.state.Load() == sessionGone {
		return ntstatus.UserSessionDeleted
	}
	if sn.trees[r.tree.id] != r.tree {
		return ntstatus.NetworkNameDeleted
	}
	if len(sn.opens) >= max(s.lim.MaxOpens/2, 1) {
		return ntstatus.InsufficientResources
	}
	sn.opens[o.id.Volatile] = o
	return ntstatus.Success
}

// checkCreate checks everything that can be checked without looking at the file.
func (r *request) checkCreate(a *createArgs) ntstatus.Status {
	var st ntstatus.Status
	if a.DesiredAccess == 0 || a.DesiredAccess&reservedAccess != 0 {
		return ntstatus.AccessDenied
	}
	switch {
	case a.Impersonation > 3:
		return ntstatus.BadImpersonationLevel
	case a.Disposition > wire.FileOverwriteIf, a.ShareAccess&^7 != 0, a.Options&^validOptions != 0:
		return ntstatus.InvalidParameter
	case a.Options&unsupportedOpts != 0:
		return ntstatus.NotSupported
	case a.Options&wire.OptDirectoryFile != 0 && a.Options&wire.OptNonDirectoryFile != 0:
		return ntstatus.InvalidParameter
	case a.FileAttributes&^validCreateAttrs != 0:
		return ntstatus.InvalidParameter
	}
	if a.rel, a.kind, a.dirOnly, st = parseName(a.Name); st != ntstatus.Success {
		return st
	}
	if a.dirOnly && a.Options&wire.OptNonDirectoryFile != 0 {
		return ntstatus.ObjectNameInvalid
	}
	if a.kind == streamDirect {
		if a.Options&wire.OptNonDirectoryFile != 0 {
			return ntstatus.NotADirectory
		}
		a.Options |= wire.OptDirectoryFile
	}
	if a.Options&wire.OptDirectoryFile != 0 {
		switch a.Disposition {
		case wire.FileOpen, wire.FileCreate, wire.FileOpenIf:
		default:
			return ntstatus.InvalidParameter
		}
		if a.FileAttributes&fscc.AttrTemporary != 0 {
			return ntstatus.InvalidParameter
		}
	}
	a.access = mapGeneric(a.DesiredAccess)
	a.maximal = a.access&wire.AccessMaximumAllowed != 0
	a.access &^= wire.AccessMaximumAllowed
	if a.access&wire.AccessSystemSecurity != 0 {
		return ntstatus.PrivilegeNotHeld
	}
	if a.Options&wire.OptNoIntermediateBuffering != 0 {
		a.access &^= wire.AccessAppendData
		if a.DesiredAccess&(wire.AccessGenericWrite|wire.AccessGenericAll) != 0 {
			a.access |= wire.AccessAppendData
		}
	}
	if a.access&^r.tree.access != 0 {
		return ntstatus.AccessDenied
	}
	if r.tree.share.cfg.ReadOnly {
		switch {
		case a.Options&wire.OptDeleteOnClose != 0, a.Disposition != wire.FileOpen && a.Disposition != wire.FileOpenIf:
			return ntstatus.AccessDenied
		}
	}
	if a.Options&wire.OptDeleteOnClose != 0 && a.access&wire.AccessDelete == 0 && !a.maximal {
		return ntstatus.InvalidParameter
	}
	return a.contexts(r.c.dialect)
}

// contexts reads the create contexts that the server knows; others are ignored, as the specification wants it.
func (a *createArgs) contexts(d wire.Dialect) ntstatus.Status {
	for _, c := range a.Contexts {
		switch c.Name {
		case wire.CreateAllocationSize:
			if len(c.Data) != 8 {
				return ntstatus.InvalidParameter
			}
			a.allocSize = int64(le.Uint64(c.Data))
		case wire.CreateMaximalAccess:
			if len(c.Data) != 0 && len(c.Data) != 8 {
				return ntstatus.InvalidParameter
			}
			a.maxAccess = true
		case wire.CreateQueryOnDiskID:
			a.onDiskID = true
		case wire.CreateTimewarp:
			// There are no snapshots; a file of another time does not exist. [MS-SMB2] 3.3.5.9.4
			return ntstatus.ObjectNameNotFound
		case wire.CreateEA:
			if len(c.Data) > 0 && a.kind != streamDisk {
				return ntstatus.EAsNotSupported
			}
		case wire.CreateDurableConnect2:
			if d < wire.Dialect300 {
				return ntstatus.ObjectNameNotFound
			}
		case wire.CreateLease:
			if a.OplockLevel != wire.OplockLease {
				continue
			}
			l, err := wire.ParseLeaseRequest(c.Data)
			if err != nil || l.Version == 2 && d < wire.Dialect300 {
				return ntstatus.InvalidParameter
			}
			a.lease = &l
		case wire.CreateSVHDX:
			if d >= wire.Dialect302 {
				a.svhdx, a.hasSVHDX = c.Data, true
			}
		}
	}
	return ntstatus.Success
}

// openObject opens or makes the file, directory or disk. It waits for what others must give up for that.
func (r *request) openObject(a *createArgs, o *open, resp *wire.CreateResponse) ntstatus.Status {
	if a.lease != nil {
		o.leased, o.lease = true, leaseID{r.c.clientGUID, a.lease.Key}
	}
	for {
		var c contention
		st := r.openOnce(a, o, resp, &c)
		if !c.waits() || o.obj != nil {
			r.c.srv.settle(&c)
			return st
		}
		// As it was before.
		if o.fd >= 0 {
			unix.Close(o.fd)
		}
		o.fd, o.path, o.dir, o.rel, o.granted, o.empties = -1, false, false, a.rel, 0, false
		failed := st
		if st := r.await(&c); st != ntstatus.Success {
			if failed != ntstatus.Success && st != ntstatus.Cancelled {
				return failed
			}
			return st
		}
	}
}

// openOnce is openObject without waiting. If c.waits, and the open has no object, nothing has been done, and it must be called again.
func (r *request) openOnce(a *createArgs, o *open, resp *wire.CreateResponse, c *contention) ntstatus.Status {
	sh := r.tree.share
	s := sh.srv
	if a.kind == streamDisk && (s.cfg.Disks == nil || r.c.dialect < wire.Dialect302 || !a.hasSVHDX) {
		// Without RSVD it is a stream like any other, and there are none.
		return ntstatus.ObjectNameInvalid
	}
	unlock := sh.lockName(a.rel)
	defer unlock()
	if a.kind == streamDisk {
		return r.openDisk(a, o, resp, c)
	}
	if a.hasSVHDX && s.cfg.Disks != nil {
		if st := r.vhdmpCheck(a); st != ntstatus.Success {
			return st
		}
	}
	var m meta
	fd, st := r.openExisting(a, o, &m)
	action := wire.ActionOpened
	if lst := r.leaseFits(o, fd, &m); lst != ntstatus.Success {
		if fd >= 0 {
			unix.Close(fd)
		}
		return lst
	}
	switch {
	case st == ntstatus.Success:
	case st == ntstatus.ObjectNameNotFound && (a.Disposition == wire.FileCreate || a.Disposition == wire.FileOpenIf ||
		a.Disposition == wire.FileOverwriteIf || a.Disposition == wire.FileSupersede):
		if sh.cfg.ReadOnly {
			return ntstatus.AccessDenied
		}
		if a.Options&wire.OptDeleteOnClose != 0 && a.FileAttributes&fscc.AttrReadonly != 0 {
			return ntstatus.CannotDelete
		}
		if fd, st = r.makeNew(a, o); st != ntstatus.Success {
			return st
		}
		o.created = true
		action = wire.ActionCreated
	default:
		return st
	}
	o.fd = fd
	if err := sh.statAt(fd, "", &m); err != nil {
		return statusOf(err)
	}
	o.dir = m.isDir()
	if st := r.access(a, o, &m); st != ntstatus.Success {
		return st
	}
	if a.Options&wire.OptDeleteOnClose != 0 {
		if m.attr&fscc.AttrReadonly != 0 || o.rel == "" {
			return ntstatus.CannotDelete
		}
	}
	o.empties = action == wire.ActionOpened && a.overwrites()
	if st := s.objects.join(m.key, o, c); st != ntstatus.Success || c.waits() {
		return st
	}
	if st := o.hostLock(); st != ntstatus.Success {
		return st
	}
	if st := a.identify(fd); st != ntstatus.Success {
		return st
	}
	if action == wire.ActionOpened && a.overwrites() {
		if st := r.overwrite(a, o, &m); st != ntstatus.Success {
			return st
		}
		action = wire.ActionOverwritten
		if a.Disposition == wire.FileSupersede {
			action = wire.ActionSuperseded
		}
		o.obj.mu.Lock()
		o.empties = false
		o.obj.mu.Unlock()
		s.wrote(o)
	}
	if a.Options&wire.OptDeleteOnClose != 0 {
		o.obj.mu.Lock()
		o.deleteOnClose = true
		o.obj.mu.Unlock()
	}
	if a.allocSize > 0 && action != wire.ActionOpened && !o.dir {
		_ = unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 0, a.allocSize) // a hint
	}
	if action != wire.ActionOpened {
		_ = sh.statAt(fd, "", &m)
		if o.created {
			s.notify.added(sh, o.rel, o.dir)
		} else {
			s.notify.modified(sh, o.rel, fscc.NotifySize|fscc.NotifyLastWrite|fscc.NotifyAttributes)
		}
	}
	resp.Action = action
	m.fillCreate(resp)
	r.replyContexts(a, o, &m, resp)
	r.grantOplock(a, o, resp)
	return ntstatus.Success
}

// identify notes which file it is, if the open is to be persistent.
func (a *createArgs) identify(fd int) ntstatus.Status {
	if a.kept == nil {
		return ntstatus.Success
	}
	var err error
	a.kept.file, err = identify(fd)
	return statusOf(err)
}

// leaseFits says whether the lease key that a CREATE names is free for the file, which is fd, or does not exist if fd is -1.
// [MS-SMB2] 3.3.5.9.8, 3.3.5.9.11
func (r *request) leaseFits(o *open, fd int, m *meta) ntstatus.Status {
	if !o.leased {
		return ntstatus.Success
	}
	k := r.c.srv.leases.lookup(o.lease)
	if k == nil || fd >= 0 && k.obj.key == m.key && k.obj.share == r.tree.share {
		return ntstatus.Success
	}
	k.obj.mu.Lock()
	defer k.obj.mu.Unlock()
	if k.gone || k.removes {
		return ntstatus.Success
	}
	return ntstatus.InvalidParameter
}

// grantOplock gives a new open what it may cache of what its client asks for. [MS-SMB2] 3.3.5.9, "Oplock Acquisition"
func (r *request) grantOplock(a *createArgs, o *open, resp *wire.CreateResponse) {
	want := stateOf(a.OplockLevel)
	if a.lease != nil {
		want = a.lease.State
	}
	if o.dir || o.path || want == 0 && a.lease == nil {
		return
	}
	obj := o.obj
	obj.host.mu.Lock()
	possible := obj.host.cacheable(o.fd, validState(want))
	obj.mu.Lock()
	defer obj.hostUnlock() // what is not granted after all
	defer obj.host.mu.Unlock()
	k, breaking := obj.grant(o, want, possible, a.lease)
	if k == nil {
		obj.mu.Unlock()
		return
	}
	if k.via == nil || k.via.ctx.Err() != nil {
		k.via, k.sealed = r.c, r.w.transform != nil
	}
	k.unsent++
	k.removes = k.removes || a.Options&wire.OptDeleteOnClose != 0
	k.reply(breaking, resp)
	obj.mu.Unlock()
	r.granted = append(r.granted, k)
}

// reply puts an oplock into the reply to a CREATE. object.mu is held. [MS-SMB2] 3.3.5.9, "Response Construction"; 2.2.14.2.10, 2.2.14.2.11
func (k *oplock) reply(breaking bool, resp *wire.CreateResponse) {
	if !k.isLease {
		resp.OplockLevel = oplockLevel(k.rec.State)
		return
	}
	l := wire.Lease{Version: int(k.rec.Version), Key: k.rec.ID.key, State: k.rec.State, Epoch: k.rec.Epoch}
	if breaking {
		l.Flags |= wire.LeaseBreakInProgress
	}
	if k.rec.HasParent {
		l.Parent, l.Flags = k.rec.Parent, l.Flags|wire.LeaseParentKeySet
	}
	resp.OplockLevel = wire.OplockLease
	resp.Contexts = append(resp.Contexts, wire.CreateContext{Name: wire.CreateLease, Data: l.Append(nil)})
}

func (a *createArgs) overwrites() bool {
	return a.Disposition == wire.FileOverwrite || a.Disposition == wire.FileOverwriteIf || a.Disposition == wire.FileSupersede
}

// openExisting opens the file if it exists, and says what disposition and type have against it. o.rel becomes its real path.
func (r *request) openExisting(a *createArgs, o *open, m *meta) (int, ntstatus.Status) {
	sh := r.tree.share
	fd, pathOnly, err := sh.openFor(a.rel, a)
	if errors.Is(err, unix.ENOENT) && a.rel != "" {
		real, exists, rerr := sh.resolve(a.rel)
		switch {
		case rerr == unix.ENOENT, rerr == unix.ENOTDIR:
			return -1, ntstatus.ObjectPathNotFound
		case rerr != nil:
			return -1, statusOf(rerr)
		}
		a.rel, o.rel = real, real
		if !exists {
			return -1, ntstatus.ObjectNameNotFound
		}
		fd, pathOnly, err = sh.openFor(real, a)
	}
	if err != nil {
		if (err == unix.EACCES || err == unix.EPERM || err == unix.EROFS) && a.Disposition == wire.FileCreate {
			return -1, ntstatus.ObjectNameCollision
		}
		return -1, statusOf(err)
	}
	o.path = pathOnly
	if err := sh.statAt(fd, "", m); err != nil {
		unix.Close(fd)
		return -1, statusOf(err)
	}
	st := ntstatus.Success
	switch {
	case !m.isDir() && !m.isReg():
		st = ntstatus.AccessDenied // sockets, devices and pipes are not for clients
	case a.Disposition == wire.FileCreate:
		st = ntstatus.ObjectNameCollision
	case m.isDir() && a.Options&wire.OptNonDirectoryFile != 0:
		st = ntstatus.FileIsADirectory
	case m.isDir() && a.overwrites():
		st = ntstatus.FileIsADirectory
		if a.Disposition == wire.FileSupersede || a.Disposition == wire.FileOverwriteIf || a.Disposition == wire.FileOverwrite {
			st = ntstatus.ObjectNameCollision
		}
	case !m.isDir() && (a.Options&wire.OptDirectoryFile != 0 || a.dirOnly):
		st = ntstatus.NotADirectory
	}
	if st != ntstatus.Success {
		unix.Close(fd)
		return -1, st
	}
	return fd, ntstatus.Success
}

// openFor opens rel with the mode that the wanted access needs. pathOnly says that the descriptor is good for metadata only, because the server's user may not
// read the file.
func (sh *share) openFor(rel string, a *createArgs) (fd int, pathOnly bool, err error) {
	write := a.access&(accessWrite) != 0 || a.overwrites() || a.maximal && !sh.cfg.ReadOnly
	if write {
		fd, err = sh.openBeneath(rel, unix.O_RDWR, 0)
		switch err {
		case nil:
			return fd, false, nil
		case unix.EISDIR:
		case unix.EACCES, unix.EROFS, unix.ETXTBSY:
			if a.access&accessWrite != 0 || a.overwrites() {
				// It may be a file whose READONLY attribute forbids it, which the caller tells best.
				break
			}
		default:
			return -1, false, err
		}
	}
	fd, rerr := sh.openBeneath(rel, unix.O_RDONLY, 0)
	if rerr == nil || rerr != unix.EACCES {
		if rerr == nil && write && err != unix.EISDIR && a.access&accessWrite != 0 {
			var st unix.Stat_t
			if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT == unix.S_IFREG {
				unix.Close(fd)
				return -1, false, err
			}
		}
		return fd, false, rerr
	}
	if a.access&(accessRead|accessWrite) != 0 {
		return -1, false, rerr
	}
	fd, err = sh.openBeneath(rel, unix.O_PATH, 0)
	return fd, true, err
}

// access decides which access is granted. [MS-FSA] 2.1.5.1.2
func (r *request) access(a *createArgs, o *open, m *meta) ntstatus.Status {
	readonly := m.attr&fscc.AttrReadonly != 0 && !m.isDir() && !o.created
	if readonly && a.access&accessWrite != 0 {
		return ntstatus.AccessDenied
	}
	if readonly && a.overwrites() {
		return ntstatus.AccessDenied
	}
	o.granted = a.access
	if a.maximal {
		o.granted |= r.maximalAccess(m, o)
	}
	if o.path && o.granted&(accessRead|accessWrite) != 0 {
		o.granted &^= accessRead | accessWrite
	}
	return ntstatus.Success
}

// maximalAccess is what this user could have been granted.
func (r *request) maximalAccess(m *meta, o *open) uint32 {
	max := r.tree.access
	if m.attr&fscc.AttrReadonly != 0 && !m.isDir() {
		max &^= accessWrite
	}
	return max
}

// overwrite empties a file.
func (r *request) overwrite(a *createArgs, o *open, m *meta) ntstatus.Status {
	hidden := m.attr & (fscc.AttrHidden | fscc.AttrSystem)
	if hidden&^a.FileAttributes != 0 && a.Disposition != wire.FileSupersede {
		return ntstatus.AccessDenied
	}
	if err := unix.Ftruncate(o.fd, 0); err != nil {
		return statusOf(err)
	}
	sh := r.tree.share
	if a.FileAttributes&fscc.AttrReadonly != 0 {
		if err := sh.setReadonly(o.fd, true); err != nil {
			return statusOf(err)
		}
	}
	if m.attr&storedAttrs != (a.FileAttributes|fscc.AttrArchive)&storedAttrs {
		_ = sh.writeXattr(o.fd, stored{attr: a.FileAttributes | fscc.AttrArchive, creation: m.kept.creation})
	}
	return ntstatus.Success
}

// fillCreate puts the attributes of a file into a reply.
func (m *meta) fillCreate(resp *wire.CreateResponse) {
	resp.CreationTime, resp.LastAccessTime, resp.LastWriteTime, resp.ChangeTime = m.creation, m.lastAccess, m.lastWrite, m.change
	resp.AllocationSize, resp.EndOfFile, resp.FileAttributes = uint64(m.alloc), uint64(m.size), m.attrs()
}

// replyContexts answers the create contexts that have an answer.
func (r *request) replyContexts(a *createArgs, o *open, m *meta, resp *wire.CreateResponse) {
	if a.maxAccess {
		var b [8]byte // QueryStatus 0
		le.PutUint32(b[4:], r.maximalAccess(m, o))
		resp.Contexts = append(resp.Contexts, wire.CreateContext{Name: wire.CreateMaximalAccess, Data: b[:]})
	}
	if a.onDiskID {
		var b [32]byte
		le.PutUint64(b[:], m.key.ino)
		le.PutUint64(b[8:], m.key.dev)
		resp.Contexts = append(resp.Contexts, wire.CreateContext{Name: wire.CreateQueryOnDiskID, Data: b[:]})
	}
}
