package server

import (
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// byteRange is a range of bytes, up to and including the very last one there can be.
type byteRange struct {
	start, last uint64
	empty       bool // of length zero: it stands before the byte start
}

func rangeOf(off, n uint64) byteRange { return byteRange{start: off, last: off + n - 1, empty: n == 0} }

// overlaps says whether two ranges touch. One of length zero touches those that have bytes on both sides of it. [MS-FSA] 2.1.4.10
func (a byteRange) overlaps(b byteRange) bool {
	switch {
	case a.empty && b.empty:
		return false
	case a.empty:
		return b.start < a.start && a.start <= b.last
	case b.empty:
		return a.start < b.start && b.start <= a.last
	}
	return a.start <= b.last && b.start <= a.last
}

// byteLock is a byte-range lock that is held.
type byteLock struct {
	byteRange
	owner     *open
	exclusive bool
}

// lockTable is the byte-range locks of a file and who waits for one, in order. object.mu guards it.
type lockTable struct {
	held    []byteLock
	waiting []*lockWait
}

// lockWait is a LOCK request that waits.
type lockWait struct {
	lock byteLock
	seq  uint32 // LockSequence of the request
	op   *pendingOp
	obj  *object
}

func (t *lockTable) empty() bool { return len(t.held) == 0 }

// conflicts says whether l cannot be granted now.
func (t *lockTable) conflicts(l *byteLock) bool {
	for i := range t.held {
		h := &t.held[i]
		if !h.overlaps(l.byteRange) {
			continue
		}
		// An open may put a shared lock on top of its own exclusive one, but no exclusive one on top of anything.
		if l.exclusive || h.exclusive && h.owner != l.owner {
			return true
		}
	}
	return false
}

// unlock drops one lock of owner that has exactly this range.
func (t *lockTable) unlock(owner *open, r byteRange) bool {
	for i := range t.held {
		h := &t.held[i]
		if h.owner == owner && h.byteRange == r {
			t.held = append(t.held[:i], t.held[i+1:]...)
			return true
		}
	}
	return false
}

// retry grants what waits and can be granted now.
func (t *lockTable) retry() (granted []*lockWait) {
	rest := t.waiting[:0]
	for _, w := range t.waiting {
		if t.conflicts(&w.lock) {
			rest = append(rest, w)
			continue
		}
		t.held = append(t.held, w.lock)
		granted = append(granted, w)
	}
	clear(t.waiting[len(rest):])
	t.waiting = rest
	return granted
}

// dropOwner drops everything of an open, and returns who got a lock by that.
func (t *lockTable) dropOwner(o *open) []*lockWait {
	rest := t.held[:0]
	for _, h := range t.held {
		if h.owner != o {
			rest = append(rest, h)
		}
	}
	t.held = rest
	waits := t.waiting[:0]
	for _, w := range t.waiting {
		if w.lock.owner != o {
			waits = append(waits, w)
		}
	}
	clear(t.waiting[len(waits):])
	t.waiting = waits
	return t.retry()
}

// granted tells the client that it has its lock; if it has gone or cancelled in the meantime, the lock is given back.
func (w *lockWait) granted() {
	o := w.lock.owner
	w.obj.mu.Lock()
	o.noteLock(w.seq)
	w.obj.mu.Unlock()
	if o.keepLocks() == ntstatus.Success && w.op.complete(ntstatus.Success, wire.AppendEmptyResponse(nil)) {
		return
	}
	w.op.complete(ntstatus.InsufficientResources, nil)
	w.obj.giveBack(&w.lock)
	w.obj.mu.Lock()
	o.forgetLock(w.seq)
	w.obj.mu.Unlock()
	o.keepLocks()
}

// keepLocks makes the locks of a persistent open durable, as they are now.
func (o *open) keepLocks() ntstatus.Status {
	if o.durable == nil {
		return ntstatus.Success
	}
	s := o.tree.share.srv
	if err := s.keep(o); err != nil {
		s.log.Error("the locks of a persistent open cannot be kept", "path", o.currentRel(), "err", err)
		return statusOf(err)
	}
	return ntstatus.Success
}

func (obj *object) giveBack(l *byteLock) {
	obj.mu.Lock()
	var woken []*lockWait
	if obj.locks.unlock(l.owner, l.byteRange) {
		woken = obj.locks.retry()
	}
	obj.locked.Store(!obj.locks.empty())
	obj.mu.Unlock()
	for _, w := range woken {
		w.granted()
	}
}

// mayRead and mayWrite say whether locks of other opens allow I/O. [MS-FSA] 2.1.4.10
func (obj *object) mayRead(o *open, off, n uint64) bool {
	obj.mu.Lock()
	defer obj.mu.Unlock()
	for i := range obj.locks.held {
		if h := &obj.locks.held[i]; h.exclusive && h.owner != o && n > 0 && h.overlaps(rangeOf(off, n)) {
			return false
		}
	}
	return true
}

func (obj *object) mayWrite(o *open, off, n uint64) bool {
	obj.mu.Lock()
	defer obj.mu.Unlock()
	for i := range obj.locks.held {
		h := &obj.locks.held[i]
		// A shared lock forbids writing to its own holder too.
		if (h.owner != o || !h.exclusive) && n > 0 && h.overlaps(rangeOf(off, n)) {
			return false
		}
	}
	return true
}

// lock handles LOCK. [MS-SMB2] 3.3.5.14
func (r *request) lock() ntstatus.Status {
	req, err := wire.ParseLockRequest(r.msg)
	if err != nil {
		return ntstatus.InvalidParameter
	}
	if st := r.findOpen(req.FileID); st != ntstatus.Success {
		return st
	}
	o := r.file
	if o.isDisk {
		return ntstatus.LockNotGranted // [MS-RSVD] 3.2.4
	}
	if o.obj == nil || o.dir {
		return ntstatus.InvalidParameter
	}
	const maxLocks = 4096
	if len(req.Locks) > maxLocks {
		return ntstatus.InvalidParameter
	}
	if o.lockDone(req.LockSequence, r.c.dialect) {
		// Sent again by a client that did not see the reply.
		r.setBody(wire.AppendEmptyResponse(r.body()))
		return ntstatus.Success
	}
	var st ntstatus.Status
	unlocks := req.Locks[0].Flags&wire.LockUnlock != 0
	if unlocks {
		st = r.unlockAll(o, req.Locks)
	} else {
		st = r.lockAll(o, req.Locks, req.LockSequence)
	}
	if unlocks && st != ntstatus.Success {
		o.keepLocks() // the first ones may be gone
	}
	if st == ntstatus.Success && r.op == nil {
		o.obj.mu.Lock()
		o.noteLock(req.LockSequence)
		o.obj.mu.Unlock()
		if st := o.keepLocks(); st != ntstatus.Success {
			if !unlocks {
				o.undoLocks(req)
			}
			return st
		}
		r.setBody(wire.AppendEmptyResponse(r.body()))
	}
	return st
}

// undoLocks gives back what a request took that fails after all. If it is sent again, it is tried again.
func (o *open) undoLocks(req *wire.LockRequest) {
	for i := range req.Locks {
		e := &req.Locks[i]
		o.obj.giveBack(&byteLock{owner: o, byteRange: rangeOf(e.Offset, e.Length)})
	}
	o.obj.mu.Lock()
	o.forgetLock(req.LockSequence)
	o.obj.mu.Unlock()
	o.keepLocks()
}

// maxLockSequence is the largest index of a lock sequence. [MS-SMB2] 2.2.26
const maxLockSequence = 64

// lockDone says whether the request with this lock sequence was done before. If not, its place is free for it. [MS-SMB2] 3.3.5.14
func (o *open) lockDone(seq uint32, d wire.Dialect) bool {
	index := seq >> 4
	if d < wire.Dialect300 || index == 0 || index > maxLockSequence {
		return false
	}
	o.obj.mu.Lock()
	defer o.obj.mu.Unlock()
	if o.lockSeq == nil || o.lockSeq[index] == 0 {
		return false
	}
	if o.lockSeq[index] == uint8(seq&15)+1 {
		return true
	}
	o.lockSeq[index] = 0
	return false
}

// noteLock notes that the request with this lock sequence is done. obj.mu is held.
func (o *open) noteLock(seq uint32) {
	index := seq >> 4
	if index == 0 || index > maxLockSequence {
		return
	}
	if o.lockSeq == nil {
		o.lockSeq = make([]uint8, maxLockSequence+1)
	}
	o.lockSeq[index] = uint8(seq&15) + 1
}

// forgetLock is the opposite of noteLock.
func (o *open) forgetLock(seq uint32) {
	if index := seq >> 4; index > 0 && int(index) < len(o.lockSeq) && o.lockSeq[index] == uint8(seq&15)+1 {
		o.lockSeq[index] = 0
	}
}

// maxHeldLocks bounds the locks of a file, with those that are waited for.
const maxHeldLocks = 16384

// lockRange checks and converts the range of an element.
func lockRange(e *wire.LockElement) (byteRange, ntstatus.Status) {
	if e.Length > 0 && e.Offset+e.Length-1 < e.Offset {
		return byteRange{}, ntstatus.InvalidLockRange
	}
	return rangeOf(e.Offset, e.Length), ntstatus.Success
}

func (r *request) unlockAll(o *open, elems []wire.LockElement) ntstatus.Status {
	var woken []*lockWait
	st := ntstatus.Success
	obj := o.obj
	obj.mu.Lock()
	for i := range elems {
		e := &elems[i]
		if e.Flags != wire.LockUnlock {
			st = ntstatus.InvalidParameter
			break
		}
		rng, rst := lockRange(e)
		if rst != ntstatus.Success {
			st = rst
			break
		}
		if !obj.locks.unlock(o, rng) {
			st = ntstatus.RangeNotLocked
			break
		}
	}
	woken = obj.locks.retry()
	obj.locked.Store(!obj.locks.empty())
	obj.mu.Unlock()
	for _, w := range woken {
		w.granted()
	}
	return st
}

func (r *request) lockAll(o *open, elems []wire.LockElement, seq uint32) ntstatus.Status {
	for i := range elems {
		switch elems[i].Flags {
		case wire.LockShared, wire.LockExclusive:
			if len(elems) > 1 {
				return ntstatus.InvalidParameter // several may not wait
			}
		case wire.LockShared | wire.LockFailImmediately, wire.LockExclusive | wire.LockFailImmediately:
		default:
			return ntstatus.InvalidParameter
		}
	}
	if o.granted&(accessRead|accessWrite) == 0 {
		return ntstatus.AccessDenied
	}
	obj := o.obj
	var c contention
	obj.mu.Lock()
	obj.contend(o, opWrite, &c)
	st := ntstatus.Success
	done := 0
	for i := range elems {
		e := &elems[i]
		rng, rst := lockRange(e)
		if rst != ntstatus.Success {
			st = rst
			break
		}
		l := byteLock{owner: o, byteRange: rng, exclusive: e.Flags&wire.LockExclusive != 0}
		if len(obj.locks.held)+len(obj.locks.waiting) >= maxHeldLocks {
			st = ntstatus.InsufficientResources
			break
		}
		if obj.locks.conflicts(&l) {
			if e.Flags&wire.LockFailImmediately != 0 {
				st = ntstatus.LockNotGranted
			} else {
				st = r.waitForLock(o, l, seq)
			}
			break
		}
		obj.locks.held = append(obj.locks.held, l)
		done++
	}
	var woken []*lockWait
	if st != ntstatus.Success && done > 0 {
		// What this request took is given back.
		obj.locks.held = obj.locks.held[:len(obj.locks.held)-done]
		woken = obj.locks.retry()
	}
	obj.locked.Store(!obj.locks.empty())
	obj.mu.Unlock()
	r.c.srv.settle(&c)
	for _, w := range woken {
		w.granted()
	}
	return st
}

// waitForLock makes the request wait. obj.mu is held.
func (r *request) waitForLock(o *open, l byteLock, seq uint32) ntstatus.Status {
	w := &lockWait{lock: l, seq: seq, obj: o.obj}
	op, st := r.goAsync(o, func() {
		o.obj.mu.Lock()
		defer o.obj.mu.Unlock()
		for i, x := range o.obj.locks.waiting {
			if x == w {
				o.obj.locks.waiting = append(o.obj.locks.waiting[:i], o.obj.locks.waiting[i+1:]...)
				break
			}
		}
	})
	if st != ntstatus.Success {
		if st == ntstatus.InternalError {
			st = ntstatus.LockNotGranted // inside a compound nothing can wait
		}
		return st
	}
	op.closeStatus = ntstatus.RangeNotLocked
	w.op = op
	o.obj.locks.waiting = append(o.obj.locks.waiting, w)
	return ntstatus.Success
}
