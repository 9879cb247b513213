package server

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// How long a persistent open waits for its client, unless the client asks for less. [MS-SMB2] 3.3.5.9.10
const (
	defaultDurableTimeout = 60 * time.Second
	maxDurableTimeout     = 300 * time.Second
)

// flagPersistent is SMB2_DHANDLE_FLAG_PERSISTENT. [MS-SMB2] 2.2.13.2.11
const flagPersistent uint32 = 2

// durableTimeout1 is how long a durable open of the first version waits for its client. [MS-SMB2] 3.3.5.9.6
const durableTimeout1 = 120 * time.Second

// durable is what an open has beyond others that can be found by its CreateGuid, and may survive its connection: always if it is persistent, otherwise as long as
// its client holds a batch oplock or a lease that caches handles. [MS-SMB2] 3.3.1.10
type durable struct {
	persistent bool
	granted    bool      // it is durable, or persistent
	version    int       // of the context that asked for it
	createGUID wire.GUID // zero in version 1
	owner      string
	share      *share
	name       string    // of the file, as the client wrote it, folded
	alias      string    // another name, if it is not known which of both the client knows; "" if it is
	access     uint32    // DesiredAccess
	shared     uint32    // ShareAccess
	options    uint32    // CreateOptions
	client     wire.GUID // of the first CREATE
	timeout    time.Duration
	action     uint32 // CreateAction of the reply
	svhdx      []byte // data of the reply's SVHDX context
	svhdxAsked []byte // and of the request's
	file       fileIdentity

	replayable atomic.Bool // IsReplayEligible: the CREATE may be sent again
	parked     atomic.Bool // waits for its client; changed under durables.mu

	// Under durables.mu.
	clientGUID wire.GUID
	creating   bool // its CREATE has not ended
	generation int  // counts how often it was parked
	timer      *time.Timer
	open       *open

	recording sync.Mutex // held while a picture of the open goes into the database
	forgotten bool       // it is not to be in the database any more; under recording
}

// appInstance names the application that made an open, so that it can take over from itself on another machine. [MS-SMB2] 3.3.5.9.13
type appInstance struct {
	id         wire.GUID
	hasVersion bool
	high, low  uint64
	clientGUID wire.GUID // under durables.mu
}

// durables are the opens that are found by other than their file identifiers.
type durables struct {
	mu     sync.Mutex
	byGUID map[createKey]*durable
	byID   map[uint64]*durable
	apps   map[wire.GUID][]*open
	closed bool
	wg     sync.WaitGroup // opens whose time is over and that are being closed
}

// createKey is by what a CREATE that is sent again finds its open. Persistent ones are known by the CreateGuid alone. [MS-SMB2] 3.3.5.9
type createKey struct{ create, client wire.GUID }

func (e *durable) key() createKey {
	if e.persistent {
		return createKey{create: e.createGUID}
	}
	return createKey{e.createGUID, e.client}
}

func (t *durables) init() {
	t.byGUID, t.byID, t.apps = map[createKey]*durable{}, map[uint64]*durable{}, map[wire.GUID][]*open{}
}

// durableArgs are the create contexts of durable opens.
type durableArgs struct {
	request    bool // DH2Q
	request1   bool // DHnQ
	connect1   bool // DHnC; reconnect is set too
	persistent bool // is asked for by DH2Q
	timeout    time.Duration
	reconnect  bool // DH2C
	fileID     uint64
	flags      uint32
	createGUID wire.GUID // of either
	app        *appInstance
}

// durableContexts reads the create contexts of durable opens. [MS-SMB2] 2.2.13.2.11 to 2.2.13.2.15
func (a *createArgs) durableContexts(d wire.Dialect) ntstatus.Status {
	v := &a.durable
	hasVersion := false
	var high, low uint64
	for _, c := range a.Contexts {
		switch c.Name {
		case wire.CreateDurableRequest:
			if len(c.Data) != 16 {
				return ntstatus.InvalidParameter
			}
			v.request1 = true
			continue
		case wire.CreateDurableConnect:
			if len(c.Data) != 16 {
				return ntstatus.InvalidParameter
			}
			v.connect1 = true
			if !v.reconnect {
				v.fileID = le.Uint64(c.Data)
			}
			continue
		}
		if d < wire.Dialect300 {
			continue
		}
		switch c.Name {
		case wire.CreateDurableRequest2:
			if len(c.Data) != 32 {
				return ntstatus.InvalidParameter
			}
			v.request = true
			v.timeout = time.Duration(le.Uint32(c.Data)) * time.Millisecond
			v.persistent = le.Uint32(c.Data[4:])&flagPersistent != 0
			v.createGUID = wire.GUID(c.Data[16:32])
		case wire.CreateDurableConnect2:
			if len(c.Data) != 36 {
				return ntstatus.InvalidParameter
			}
			v.reconnect = true
			v.fileID = le.Uint64(c.Data)
			v.createGUID = wire.GUID(c.Data[16:32])
			v.flags = le.Uint32(c.Data[32:])
		case wire.CreateAppInstanceID:
			if len(c.Data) != 20 || le.Uint16(c.Data) != 20 {
				return ntstatus.InvalidParameter
			}
			v.app = &appInstance{id: wire.GUID(c.Data[4:20])}
		case wire.CreateAppInstanceVer:
			if len(c.Data) != 24 || le.Uint16(c.Data) != 24 {
				return ntstatus.InvalidParameter
			}
			hasVersion, high, low = d >= wire.Dialect311, le.Uint64(c.Data[8:]), le.Uint64(c.Data[16:])
		}
	}
	if v.app != nil && hasVersion {
		v.app.hasVersion, v.app.high, v.app.low = true, high, low
	}
	if v.request && v.reconnect || (v.request || v.reconnect) && (v.request1 || v.connect1) {
		return ntstatus.InvalidParameter
	}
	v.reconnect = v.reconnect || v.connect1
	return ntstatus.Success
}

// persists says whether any share has persistent opens.
func (s *Server) persists() bool {
	for _, sh := range s.shares {
		if sh.cfg.CA {
			return true
		}
	}
	return false
}

// persistence says whether opens of the request's share can be persistent.
func (r *request) persistence() bool {
	return r.tree.share.cfg.CA && r.c.serverCaps&wire.CapPersistentHandles != 0
}

// beginDurable reserves the CreateGuid of a CREATE that asks for a durable or persistent open. If the CREATE was done before, e is that open: attached to this
// session, and again is true. [MS-SMB2] 3.3.5.9, "Create Context Validation"; 3.3.5.9.10
func (r *request) beginDurable(a *createArgs) (e *durable, again bool, st ntstatus.Status) {
	v := &a.durable
	replay := r.hdr.Flags&wire.FlagReplayOperation != 0
	t := &r.c.srv.durables
	persistent := v.persistent && r.persistence()
	t.mu.Lock()
	e = t.byGUID[createKey{v.createGUID, r.c.clientGUID}]
	if p := t.byGUID[createKey{create: v.createGUID}]; e == nil && p != nil && (persistent || p.clientGUID == r.c.clientGUID) {
		e = p
	}
	switch {
	case e == nil, !e.persistent && !e.creating && !e.replayable.Load():
		timeout := v.timeout
		if timeout == 0 {
			timeout = defaultDurableTimeout
		}
		e = r.newDurable(a, 2, min(timeout, maxDurableTimeout))
		e.persistent, e.createGUID, e.creating = persistent, v.createGUID, true
		t.byGUID[e.key()] = e
		t.mu.Unlock()
		return e, false, ntstatus.Success
	case !replay:
		st = ntstatus.DuplicateObjectID
	case e.creating:
		st = ntstatus.FileNotAvailable // the first one is still being worked on
	case !strings.EqualFold(e.owner, r.sess.user), !a.sameLease(e.open):
		st = ntstatus.AccessDenied
	case e.persistent && !v.persistent:
		st = ntstatus.InvalidParameter
	case e.persistent && (e.share != r.tree.share || e.options != a.Options || e.access != a.DesiredAccess || e.shared != a.ShareAccess || e.name != foldName(a.Name)):
		st = ntstatus.ContextMismatch
	case e.parked.Load() && !e.persistent:
		st = ntstatus.DuplicateObjectID
	case e.parked.Load():
		e.take()
		t.mu.Unlock()
		return e, true, r.attach(e)
	case !e.replayable.Load() || e.clientGUID != r.c.clientGUID:
		st = ntstatus.FileNotAvailable
	case !e.open.acquire():
		st = ntstatus.FileNotAvailable // it is being closed or parked
	default:
		if sn := e.open.sess; sn != r.sess && sn.state.Load() == sessionGone {
			st = ntstatus.FileNotAvailable // about to be parked
		} else if sn != r.sess {
			st = ntstatus.DuplicateObjectID
		}
		e.open.release()
	}
	t.mu.Unlock()
	return e, true, st
}

// newDurable describes an open that a request asks for.
func (r *request) newDurable(a *createArgs, version int, timeout time.Duration) *durable {
	return &durable{version: version, clientGUID: r.c.clientGUID, client: r.c.clientGUID, owner: r.sess.user, share: r.tree.share, name: foldName(a.Name),
		access: a.DesiredAccess, shared: a.ShareAccess, options: a.Options, timeout: timeout}
}

// sameLease says whether a CREATE that is sent again names the lease that the open holds.
func (a *createArgs) sameLease(o *open) bool {
	l, _ := a.leaseContext()
	if l == nil {
		return !o.leased
	}
	return o.leased && l.Key == o.lease.key
}

// take makes a parked open the caller's. durables.mu is held.
func (e *durable) take() {
	e.parked.Store(false)
	e.timer.Stop()
}

// add makes a new open known that is persistent or has an application instance.
func (t *durables) add(o *open) {
	if o.durable == nil && o.app == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := o.durable; e != nil {
		e.creating, e.open = false, o
		// [MS-SMB2] 3.3.5.9.10
		e.replayable.Store(e.version == 2 && (e.persistent || o.granted&(accessRead|accessWrite|accessDelete) != 0))
		if e.granted {
			t.byID[o.id.Persistent] = e
		}
	}
	if o.app != nil {
		t.apps[o.app.id] = append(t.apps[o.app.id], o)
	}
}

// drop forgets an open that is being closed.
func (t *durables) drop(o *open) {
	if o.durable == nil && o.app == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := o.durable; e != nil {
		t.forget(e)
	}
	if o.app != nil {
		list := slices.DeleteFunc(t.apps[o.app.id], func(x *open) bool { return x == o })
		if t.apps[o.app.id] = list; len(list) == 0 {
			delete(t.apps, o.app.id)
		}
	}
}

// renamed tells opens the new name of their file, by which their clients ask for them from now on.
func (t *durables) renamed(list []*durable, rel string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range list {
		e.name, e.alias = foldName(wireName(rel)), ""
	}
}

// forget takes a persistent open out of the tables. mu is held.
func (t *durables) forget(e *durable) {
	if k := e.key(); t.byGUID[k] == e {
		delete(t.byGUID, k)
	}
	if e.open != nil && t.byID[e.open.id.Persistent] == e {
		delete(t.byID, e.open.id.Persistent)
	}
}

// abandon forgets a CREATE that has failed.
func (t *durables) abandon(e *durable) {
	if e == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forget(e)
}

// park keeps a durable open whose session has ended, and whose close the caller has begun. It returns false if the open must be closed.
// What the open was used for has ended when park returns. [MS-SMB2] 3.3.5.6, 3.3.7.1
func (s *Server) park(o *open) bool {
	e := o.durable
	if e == nil || !e.granted {
		return false
	}
	o.waitIdle()
	o.sess.cancelPending(o, ntstatus.NotifyCleanup)
	s.notify.drop(o)
	o.ending.Store(false)
	// Under the object's lock, so that whoever breaks what its client holds sees either a client or an open that is parked.
	o.obj.mu.Lock()
	defer o.obj.mu.Unlock()
	if k := o.oplock; !e.persistent && (k == nil || k.breaking || !k.keepsHandles()) {
		return false
	}
	t := &s.durables
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	s.parkLocked(e)
	return true
}

// keepsHandles says whether the client may go on using a handle although it has closed it, or has been away. object.mu is held.
func (k *oplock) keepsHandles() bool { return k.rec.State&cacheHandle != 0 }

func (s *Server) parkLocked(e *durable) {
	e.generation++
	generation := e.generation
	e.parked.Store(true)
	e.timer = time.AfterFunc(e.timeout, func() { s.expire(e, generation) })
}

// expire closes a parked open whose client has not come back. [MS-SMB2] 3.3.2.2
func (s *Server) expire(e *durable, generation int) {
	t := &s.durables
	t.mu.Lock()
	if !e.parked.Load() || e.generation != generation || t.closed {
		t.mu.Unlock()
		return
	}
	e.parked.Store(false)
	t.wg.Add(1)
	t.mu.Unlock()
	defer t.wg.Done()
	s.log.Info("durable open closed: its client has not come back", "path", e.open.currentRel(), "after", e.timeout)
	e.open.finishClose()
}

// closeParked closes what waits for its client. What is in a database is left there, for the next process.
func (s *Server) closeParked() {
	t := &s.durables
	t.mu.Lock()
	t.closed = true
	var list []*open
	for _, e := range t.byID {
		if e.parked.Load() {
			e.take()
			list = append(list, e.open)
		}
	}
	t.mu.Unlock()
	for _, o := range list {
		if s.db != nil && o.durable.persistent {
			o.suspend()
		} else {
			o.finishClose()
		}
	}
	t.wg.Wait()
	s.settled()
}

// attach gives an open that was parked, and that the caller has taken, to the request's session. If that is impossible, it is parked again.
func (r *request) attach(e *durable) ntstatus.Status {
	s, sn, o := r.c.srv, r.sess, e.open
	volatile := s.newID()<<8 | 0x5A
	o.obj.mu.Lock() // breaks ask whose open it is
	sn.mu.Lock()
	st := ntstatus.Success
	if sn.state.Load() == sessionGone {
		st = ntstatus.UserSessionDeleted
	} else if sn.trees[r.tree.id] != r.tree {
		st = ntstatus.NetworkNameDeleted
	} else {
		o.sess, o.tree, o.id.Volatile = sn, r.tree, volatile
		if !o.sequenced {
			o.sequenced = true
			o.sequence.set(uint16(r.hdr.Status)) // that of before the restart is not known any more, nor needed: no older request is left
		}
		sn.opens[volatile] = o
		o.refs.Add(-closing) // the open can be used again
	}
	sn.mu.Unlock()
	o.obj.mu.Unlock()
	t := &s.durables
	t.mu.Lock()
	moved := e.clientGUID != r.c.clientGUID
	if st == ntstatus.Success {
		e.clientGUID = r.c.clientGUID
		if o.app != nil {
			o.app.clientGUID = r.c.clientGUID
		}
	} else if !t.closed {
		s.parkLocked(e)
		t.mu.Unlock()
		return st
	}
	t.mu.Unlock()
	if st != ntstatus.Success {
		o.finishClose()
	} else if moved {
		if err := s.keep(o); err != nil {
			s.log.Error("the database of persistent opens cannot be written", "err", err)
		}
	}
	return st
}

// reconnect handles CREATE with DHnC or DH2C. [MS-SMB2] 3.3.5.9.7, 3.3.5.9.12
func (r *request) reconnect(a *createArgs) ntstatus.Status {
	v := &a.durable
	t := &r.c.srv.durables
	t.mu.Lock()
	e := t.byID[v.fileID]
	if e == nil && v.flags&flagPersistent != 0 && r.persistence() {
		e = t.byGUID[createKey{create: v.createGUID}]
	}
	lost := e == nil || e.creating
	t.mu.Unlock()
	if lost {
		return ntstatus.ObjectNameNotFound
	}
	// The object's lock, so that nobody breaks what the client holds in between.
	obj := e.open.obj
	obj.mu.Lock()
	t.mu.Lock()
	st := r.mayReconnect(a, e)
	if st == ntstatus.Success {
		e.take()
	}
	t.mu.Unlock()
	obj.mu.Unlock()
	if st == ntstatus.Success {
		st = r.attach(e)
	}
	if st != ntstatus.Success {
		return st
	}
	r.c.log.Info("durable open is back", "path", e.open.currentRel(), "user", e.owner)
	return r.answerAgain(a, e, wire.ActionOpened)
}

// mayReconnect says what speaks against giving a durable open to the request. object.mu and durables.mu are held.
func (r *request) mayReconnect(a *createArgs, e *durable) ntstatus.Status {
	v := &a.durable
	o := e.open
	lease, st := a.leaseContext()
	if st != ntstatus.Success {
		return st
	}
	switch k := o.oplock; {
	case e.share != r.tree.share, !e.parked.Load(), !v.connect1 && e.createGUID != v.createGUID,
		e.persistent && v.flags&flagPersistent == 0,
		(e.persistent || o.leased) && e.clientGUID != r.c.clientGUID,
		o.leased != (lease != nil),
		lease != nil && (lease.Key != o.lease.key || k != nil && lease.Version != int(k.rec.Version)),
		!e.persistent && (k == nil || !k.keepsHandles()):
		return ntstatus.ObjectNameNotFound
	case (e.persistent || o.leased && (k == nil || !k.removes)) && !e.isCalled(foldName(a.Name)), !e.persistent && v.flags&flagPersistent != 0:
		return ntstatus.InvalidParameter
	case !strings.EqualFold(e.owner, r.sess.user):
		return ntstatus.AccessDenied
	}
	return ntstatus.Success
}

// isCalled says whether a client that knows the file by this name can mean the open. durables.mu is held.
func (e *durable) isCalled(name string) bool {
	return e.name == name || e.alias != "" && e.alias == name
}

// leaseContext is the request's lease context, nil if it has none.
func (a *createArgs) leaseContext() (*wire.Lease, ntstatus.Status) {
	for _, c := range a.Contexts {
		if c.Name == wire.CreateLease {
			l, err := wire.ParseLeaseRequest(c.Data)
			if err != nil {
				return nil, ntstatus.InvalidParameter
			}
			return &l, ntstatus.Success
		}
	}
	return nil, ntstatus.Success
}

// answerAgain makes the reply of a CREATE from an open that there is already.
func (r *request) answerAgain(a *createArgs, e *durable, action uint32) ntstatus.Status {
	if st := a.contexts(r.c.dialect); st != ntstatus.Success {
		// The open stays, without the client knowing its identifier: it is as if the reply had been lost.
		return st
	}
	resp := &wire.CreateResponse{Action: action}
	o := e.open
	if !o.acquire() {
		return ntstatus.FileClosed
	}
	defer o.release()
	var m meta
	if fd := o.fd; fd >= 0 {
		if err := r.tree.share.statAt(fd, "", &m); err != nil {
			return statusOf(err)
		}
	} else if err := r.tree.share.statPath(o.currentRel(), &m); err != nil {
		return statusOf(err)
	}
	m.fillCreate(resp)
	if o.isDisk {
		resp.EndOfFile = uint64(o.disk.Size())
	}
	if a.durable.request && e.granted {
		resp.Contexts = append(resp.Contexts, e.reply())
	}
	r.replyContexts(a, o, &m, resp)
	o.obj.mu.Lock()
	if k := o.oplock; k != nil {
		k.via, k.sealed = r.c, r.w.transform != nil
		k.unsent++
		k.reply(k.breaking, resp)
		r.granted = append(r.granted, k)
	}
	o.obj.mu.Unlock()
	if a.hasSVHDX && e.svhdx != nil {
		resp.Contexts = append(resp.Contexts, wire.CreateContext{Name: wire.CreateSVHDX, Data: e.svhdx})
	}
	r.finishCreate(o, resp)
	return ntstatus.Success
}

// reply is the SMB2_CREATE_DURABLE_HANDLE_RESPONSE of the version that was asked for. [MS-SMB2] 2.2.14.2.3, 2.2.14.2.12
func (e *durable) reply() wire.CreateContext {
	var b [8]byte
	if e.version == 1 {
		return wire.CreateContext{Name: wire.CreateDurableRequest, Data: b[:]}
	}
	le.PutUint32(b[:], uint32(e.timeout/time.Millisecond))
	if e.persistent {
		le.PutUint32(b[4:], flagPersistent)
	}
	return wire.CreateContext{Name: wire.CreateDurableRequest2, Data: b[:]}
}

// takeOver closes the opens of the same application instance on another machine. [MS-SMB2] 3.3.5.9.13
func (r *request) takeOver(a *createArgs) ntstatus.Status {
	app := a.durable.app
	if app == nil {
		return ntstatus.Success
	}
	s := r.c.srv
	t := &s.durables
	name := foldName(a.rel)
	t.mu.Lock()
	var list []*open
	for _, o := range t.apps[app.id] {
		if o.app.clientGUID != app.clientGUID && o.share0 == r.tree.share && o.isDisk == (a.kind == streamDisk) {
			list = append(list, o)
		}
	}
	t.mu.Unlock()
	for _, o := range list {
		if foldName(o.currentRel()) != name {
			continue
		}
		if o.app.hasVersion {
			older := app.hasVersion && (o.app.high < app.high || o.app.high == app.high && o.app.low < app.low)
			if !older {
				return ntstatus.FileForcedClosed
			}
		}
		t.mu.Lock()
		taken := o.durable != nil && o.durable.parked.Load()
		if taken {
			o.durable.take()
		}
		t.mu.Unlock()
		if !taken {
			if !o.beginClose() {
				return ntstatus.FileNotAvailable // it is being closed or parked
			}
			o.sess.mu.Lock()
			delete(o.sess.opens, o.id.Volatile)
			o.sess.mu.Unlock()
		}
		s.log.Info("open closed: its application goes on elsewhere", "path", a.rel)
		o.finishClose()
	}
	if len(list) > 0 {
		s.settled() // or the open could come back after a restart and be in the way of the new one
	}
	return ntstatus.Success
}
