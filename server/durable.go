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

// durable is what a persistent open has beyond others. The server grants neither oplocks nor leases, so no other opens survive their connection.
// [MS-SMB2] 3.3.1.10
type durable struct {
	createGUID wire.GUID
	owner      string
	share      *share
	name       string // of the file, as the client wrote it, folded
	alias      string // another name, if it is not known which of both the client knows; "" if it is
	access     uint32 // DesiredAccess
	shared     uint32 // ShareAccess
	options    uint32 // CreateOptions
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
	byGUID map[wire.GUID]*durable
	byID   map[uint64]*durable
	apps   map[wire.GUID][]*open
	closed bool
	wg     sync.WaitGroup // opens whose time is over and that are being closed
}

func (t *durables) init() {
	t.byGUID, t.byID, t.apps = map[wire.GUID]*durable{}, map[uint64]*durable{}, map[wire.GUID][]*open{}
}

// durableArgs are the create contexts of durable opens.
type durableArgs struct {
	request    bool // DH2Q
	persistent bool // is asked for by it
	timeout    time.Duration
	reconnect  bool // DH2C
	fileID     uint64
	flags      uint32
	createGUID wire.GUID // of either
	app        *appInstance
}

// durableContexts reads the create contexts of durable opens. [MS-SMB2] 2.2.13.2.11 to 2.2.13.2.15
func (a *createArgs) durableContexts(d wire.Dialect) ntstatus.Status {
	if d < wire.Dialect300 {
		return ntstatus.Success
	}
	v := &a.durable
	old, hasVersion := false, false
	var high, low uint64
	for _, c := range a.Contexts {
		switch c.Name {
		case wire.CreateDurableRequest, wire.CreateDurableConnect:
			old = true
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
	if v.request && v.reconnect || (v.request || v.reconnect) && old {
		return ntstatus.InvalidParameter
	}
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

// beginDurable reserves the CreateGuid of a CREATE that asks for a persistent open. If the CREATE was done before, e is that open: attached to this session,
// and again is true. [MS-SMB2] 3.3.5.9, "Create Context Validation"; 3.3.5.9.10
func (r *request) beginDurable(a *createArgs) (e *durable, again bool, st ntstatus.Status) {
	v := &a.durable
	replay := r.hdr.Flags&wire.FlagReplayOperation != 0
	t := &r.c.srv.durables
	t.mu.Lock()
	e = t.byGUID[v.createGUID]
	switch {
	case e == nil:
		timeout := v.timeout
		if timeout == 0 {
			timeout = defaultDurableTimeout
		}
		e = &durable{createGUID: v.createGUID, clientGUID: r.c.clientGUID, owner: r.sess.user, share: r.tree.share, name: foldName(a.Name), access: a.DesiredAccess,
			shared: a.ShareAccess, options: a.Options, timeout: min(timeout, maxDurableTimeout), creating: true}
		t.byGUID[v.createGUID] = e
		t.mu.Unlock()
		return e, false, ntstatus.Success
	case !replay:
		st = ntstatus.DuplicateObjectID
	case e.creating:
		st = ntstatus.FileNotAvailable // the first one is still being worked on
	case !strings.EqualFold(e.owner, r.sess.user):
		st = ntstatus.AccessDenied
	case e.share != r.tree.share, e.options != a.Options, e.access != a.DesiredAccess, e.shared != a.ShareAccess, e.name != foldName(a.Name):
		st = ntstatus.ContextMismatch
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
		e.replayable.Store(true)
		t.byID[o.id.Persistent] = e
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
	if t.byGUID[e.createGUID] == e {
		delete(t.byGUID, e.createGUID)
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

// park keeps a persistent open whose session has ended, and whose close the caller has begun. It returns false if the open must be closed.
// What the open was used for has ended when park returns. [MS-SMB2] 3.3.5.6, 3.3.7.1
func (s *Server) park(o *open) bool {
	e := o.durable
	if e == nil {
		return false
	}
	o.waitIdle()
	o.sess.cancelPending(o, ntstatus.NotifyCleanup)
	s.notify.drop(o)
	o.ending.Store(false)
	t := &s.durables
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	s.parkLocked(e)
	return true
}

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
	s.log.Info("persistent open closed: its client has not come back", "path", e.open.currentRel(), "after", e.timeout)
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
		if s.db != nil {
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

// reconnect handles CREATE with DH2C. [MS-SMB2] 3.3.5.9.12
func (r *request) reconnect(a *createArgs) ntstatus.Status {
	v := &a.durable
	t := &r.c.srv.durables
	t.mu.Lock()
	e := t.byID[v.fileID]
	if e == nil && v.flags&flagPersistent != 0 && r.persistence() {
		e = t.byGUID[v.createGUID]
	}
	st := ntstatus.Success
	switch {
	case e == nil, e.createGUID != v.createGUID, e.share != r.tree.share, e.clientGUID != r.c.clientGUID, v.flags&flagPersistent == 0, !e.parked.Load(), a.leased():
		st = ntstatus.ObjectNameNotFound
	case e.name != foldName(a.Name) && (e.alias == "" || e.alias != foldName(a.Name)):
		st = ntstatus.InvalidParameter
	case !strings.EqualFold(e.owner, r.sess.user):
		st = ntstatus.AccessDenied
	default:
		e.take()
	}
	t.mu.Unlock()
	if st == ntstatus.Success {
		st = r.attach(e)
	}
	if st != ntstatus.Success {
		return st
	}
	r.c.log.Info("persistent open is back", "path", e.open.currentRel(), "user", e.owner)
	return r.answerAgain(a, e, wire.ActionOpened)
}

// leased says whether the request wants a lease.
func (a *createArgs) leased() bool {
	return slices.ContainsFunc(a.Contexts, func(c wire.CreateContext) bool { return c.Name == wire.CreateLease })
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
	if a.durable.request {
		resp.Contexts = append(resp.Contexts, e.reply())
	}
	r.replyContexts(a, o, &m, resp)
	if a.hasSVHDX && e.svhdx != nil {
		resp.Contexts = append(resp.Contexts, wire.CreateContext{Name: wire.CreateSVHDX, Data: e.svhdx})
	}
	r.finishCreate(o, resp)
	return ntstatus.Success
}

// reply is the SMB2_CREATE_DURABLE_HANDLE_RESPONSE_V2. [MS-SMB2] 2.2.14.2.12
func (e *durable) reply() wire.CreateContext {
	var b [8]byte
	le.PutUint32(b[:], uint32(e.timeout/time.Millisecond))
	le.PutUint32(b[4:], flagPersistent)
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
