package server

import (
	"slices"
	"time"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// What may be cached: the bits of a lease. Oplocks are kept as the bits that they amount to: level II may read, exclusive read and write, and batch all three.
// [MS-SMB2] 2.2.13.2.8, [MS-FSA] 2.1.1.10
const (
	cacheRead   = wire.LeaseRead
	cacheHandle = wire.LeaseHandle
	cacheWrite  = wire.LeaseWrite
	cacheAll    = cacheRead | cacheHandle | cacheWrite
)

// leaseID names a lease. [MS-SMB2] 3.3.1.11, 3.3.1.12
type leaseID struct{ client, key wire.GUID }

// leaseRecord is what there is to know of a lease; it says all that is needed to make it again after a restart.
type leaseRecord struct {
	ID        leaseID
	Parent    wire.GUID
	HasParent bool
	Version   uint8 // 1 or 2
	State     uint32
	Epoch     uint16
}

// oplock is a right to cache a file that a client holds: of one open (an oplock), or of all opens that share a lease key (a lease). object.mu guards it.
type oplock struct {
	obj     *object
	opens   []*open
	isLease bool
	rec     leaseRecord // of an oplock, only State is used. State is what the client holds, also while it is being broken.
	gone    bool        // nobody holds it any more
	// removes says that one of the opens deletes the file when it is closed. (Lease.FileDeleteOnClose)
	removes bool

	via    *conn // where the last CREATE came from
	sealed bool  // it came encrypted

	// A break that is to be acknowledged. Requests that need it wait for done.
	breaking bool
	breakTo  uint32 // what the client was told
	wanted   uint32 // what is left to it after all conflicts that have come up since; a part of breakTo
	round    int    // counts breaks, so that a timer that comes too late does nothing
	timer    *time.Timer
	done     chan struct{}

	// A notification must not overtake the reply that tells of the oplock.
	unsent  int
	pending []*breakNote
}

// breakNote is a notification to be sent when no lock is held.
type breakNote struct {
	k        *oplock
	round    int // of the break that needs an acknowledgement, 0 if it needs none
	via      *conn
	sealed   bool
	sessions []*session
	oplock   wire.OplockBreak
	lease    wire.LeaseBreak
}

// contention collects what follows from a conflict and must be done without locks: notifications to send, opens to close whose clients are away, and
// breaks to wait for.
type contention struct {
	notes []*breakNote
	purge []*open
	freed []*object // other programs may do more with them
	done  []<-chan struct{}
}

func (c *contention) waits() bool { return len(c.done) > 0 || len(c.purge) > 0 }

// sameOplock says whether o is one of those that hold k, or is about to be: nobody breaks what he holds himself. [MS-FSA] 2.1.4.12.2
func (k *oplock) sameOplock(o *open) bool {
	return k.isLease && o.leased && o.lease == k.rec.ID || slices.Contains(k.opens, o)
}

// level is the oplock level that State amounts to.
func oplockLevel(state uint32) uint8 {
	switch {
	case state == cacheAll:
		return wire.OplockBatch
	case state&cacheWrite != 0:
		return wire.OplockExclusive
	case state&cacheRead != 0:
		return wire.OplockII
	}
	return wire.OplockNone
}

// stateOf is the opposite of oplockLevel.
func stateOf(level uint8) uint32 {
	switch level {
	case wire.OplockBatch:
		return cacheAll
	case wire.OplockExclusive:
		return cacheRead | cacheWrite
	case wire.OplockII:
		return cacheRead
	}
	return 0
}

// valid turns a wanted state into one that there is: nothing can be cached by whoever does not cache reads.
func validState(s uint32) uint32 {
	if s&cacheRead == 0 {
		return 0
	}
	return s & cacheAll
}

// operation says what one request does to the oplocks of others. [MS-FSA] 2.1.4.12
type operation struct {
	lose    uint32 // bits that others lose
	batch   bool   // batch oplocks too lose their handle caching, and with it everything
	oplocks bool   // leases are not touched
}

var (
	opOpen      = operation{lose: cacheWrite}
	opOverwrite = operation{lose: cacheRead | cacheWrite}
	opSharing   = operation{lose: cacheHandle}
	opWrite     = operation{lose: cacheRead | cacheWrite} // and locks, and changes of the size
	opRename    = operation{lose: cacheHandle, batch: true}
	opDelete    = operation{lose: cacheHandle}
)

// contend begins the breaks that an operation by o makes necessary. obj.mu is held. [MS-FSA] 2.1.4.12
func (obj *object) contend(o *open, op operation, c *contention) {
	affected := func(k *oplock) bool {
		// Level II ends with the holder's own writes and locks too.
		return k.rec.State&op.lose != 0 && (!k.sameOplock(o) || op == opWrite && !k.isLease && k.rec.State == cacheRead)
	}
	if !slices.ContainsFunc(obj.oplocks, affected) {
		return
	}
	for _, k := range slices.Clone(obj.oplocks) {
		if affected(k) {
			k.lose(op, c)
		}
	}
	obj.countReaders()
}

// lose begins or extends a break.
func (k *oplock) lose(op operation, c *contention) {
	state := k.rec.State
	if state&op.lose == 0 || k.isLease && op.oplocks || !k.isLease && op.lose == cacheHandle && !(op.batch && state == cacheAll) {
		return
	}
	left := validState(state &^ op.lose)
	if !k.isLease && left&cacheWrite == 0 {
		left &^= cacheHandle // level II, or nothing
	}
	if !k.isLease && op.lose&cacheHandle != 0 {
		left = 0
	}
	wait := state&op.lose&(cacheHandle|cacheWrite) != 0
	if k.breaking {
		k.wanted &= left
	} else {
		k.begin(left, c)
	}
	if wait && k.breaking {
		c.done = append(c.done, k.done)
	}
}

// begin tells the client that only left remains. If its answer is needed, the break goes on until it comes.
func (k *oplock) begin(left uint32, c *contention) {
	if k.away() {
		// Nobody is there to give anything up. Opens that are only durable are closed; persistent ones are told when they come back.
		if !slices.ContainsFunc(k.opens, func(o *open) bool { return o.durable.persistent }) {
			c.purge = append(c.purge, k.opens...)
			return
		}
	}
	n := &breakNote{k: k, via: k.via, sealed: k.sealed}
	for _, o := range k.opens {
		if !slices.Contains(n.sessions, o.sess) {
			n.sessions = append(n.sessions, o.sess)
		}
	}
	if k.isLease {
		n.lease = wire.LeaseBreak{Key: k.rec.ID.key, Current: k.rec.State, New: left}
		if k.rec.Version == 2 {
			if k.done == nil { // a break that follows from another one is still the same change, as Windows has it
				k.rec.Epoch++
			}
			n.lease.NewEpoch = k.rec.Epoch
		}
	} else {
		n.oplock = wire.OplockBreak{OplockLevel: oplockLevel(left), FileID: k.opens[0].id}
	}
	if k.rec.State == cacheRead {
		k.rec.State = left
		c.freed = append(c.freed, k.obj)
		if !k.isLease {
			k.end()
		}
		if k.isLease && k.away() {
			return // it will learn that from the reply to its return
		}
	} else {
		k.round++
		k.breaking, k.breakTo, k.wanted = true, left, left
		if k.done == nil {
			k.done = make(chan struct{})
		}
		n.round = k.round
		n.lease.Flags = wire.LeaseBreakAckRequired
		if k.away() {
			k.pending = append(k.pending, n)
			return
		}
		k.startTimer()
	}
	if k.unsent > 0 {
		k.pending = append(k.pending, n)
	} else {
		c.notes = append(c.notes, n)
	}
}

func (k *oplock) startTimer() {
	round := k.round
	k.timer = time.AfterFunc(k.obj.share.srv.lim.BreakTimeout, func() { k.expire(round) })
}

// away says whether all clients that hold k have lost their connections and may come back.
func (k *oplock) away() bool {
	for _, o := range k.opens {
		if o.durable == nil || !o.durable.parked.Load() {
			return false
		}
	}
	return len(k.opens) > 0
}

// finish ends a break: state is what the client holds from now on.
func (k *oplock) finish(state uint32, c *contention) {
	if k.timer != nil {
		k.timer.Stop()
		k.timer = nil
	}
	k.breaking, k.rec.State = false, state
	c.freed = append(c.freed, k.obj)
	k.pending = slices.DeleteFunc(k.pending, func(n *breakNote) bool { return n.round != 0 })
	switch wanted := validState(k.wanted & state); {
	case k.gone:
	case state == 0 && !k.isLease:
		k.end()
	case wanted != state:
		// There has been another conflict since the client was told. It goes down one step at a time, as Windows has it.
		next := wanted
		if wanted == 0 && state&cacheHandle != 0 {
			next = cacheRead
		}
		k.begin(next, c)
		k.wanted = wanted
	}
	if !k.breaking {
		close(k.done)
		k.done = nil
	}
	k.obj.countReaders()
}

// end forgets an oplock that nobody holds any more.
func (k *oplock) end() {
	k.gone = true
	for _, o := range k.opens {
		o.oplock = nil
	}
	k.opens = nil
	k.obj.oplocks = slices.DeleteFunc(k.obj.oplocks, func(x *oplock) bool { return x == k })
	if k.isLease {
		k.obj.share.srv.leases.drop(k)
	}
}

// leaveOplock takes an open that is being closed out of its oplock. obj.mu is held.
func (obj *object) leaveOplock(o *open, c *contention) {
	k := o.oplock
	if k == nil {
		return
	}
	o.oplock = nil
	k.opens = slices.DeleteFunc(k.opens, func(x *open) bool { return x == o })
	if len(k.opens) == 0 {
		k.gone = true
		if k.breaking {
			k.finish(0, c)
		}
		k.end()
	}
	obj.countReaders()
}

// expire ends a break that the client has not acknowledged. [MS-SMB2] 3.3.6.1, 3.3.6.5
func (k *oplock) expire(round int) {
	var c contention
	obj := k.obj
	obj.mu.Lock()
	late := k.breaking && k.round == round
	if late {
		k.wanted = 0
		k.finish(0, &c)
	}
	obj.mu.Unlock()
	if late {
		obj.share.srv.log.Warn("a client has not given up in time what it may cache of a file: it is taken away")
	}
	obj.share.srv.settle(&c)
}

// countReaders counts those whose cached data a write makes wrong.
func (obj *object) countReaders() {
	n := int32(0)
	for _, k := range obj.oplocks {
		if k.rec.State&cacheRead != 0 {
			n++
		}
	}
	obj.readers.Store(n)
}

// contendOpen says whether o may join the object, and begins the breaks that this needs. It must be tried again if c.waits. obj.mu is held.
// [MS-FSA] 2.1.5.1.2
func (obj *object) contendOpen(o *open, c *contention) ntstatus.Status {
	if !o.onlyLooks(false) {
		for _, k := range slices.Clone(obj.oplocks) {
			if !k.isLease && k.rec.State == cacheAll && !k.sameOplock(o) {
				op := opOpen
				if o.empties {
					op = opOverwrite
				}
				k.lose(op, c) // before share modes are looked at: its client may have closed the file long ago
			}
		}
		if c.waits() {
			return ntstatus.Success
		}
	}
	st := ntstatus.Success
	for _, e := range obj.opens {
		if e.durable != nil && e.durable.persistent && e.durable.parked.Load() && !(e.isDisk && o.isDisk) && !o.restoring && !(e.oplock != nil && e.oplock.keepsHandles()) {
			// Its client may come back. One that caches handles is told of conflicts then, and does not conflict with itself: of a CREATE whose reply was lost it
			// does not know. Shared disks do not exclude each other; what fences there is the reservation. [MS-SMB2] 3.3.5.9 and its note
			return ntstatus.FileNotAvailable
		}
		if conflict(e, o) {
			st = ntstatus.SharingViolation
		}
	}
	if st != ntstatus.Success {
		obj.contend(o, opSharing, c)
		return st
	}
	op := opOpen
	if o.empties || o.isDisk {
		op = opOverwrite // what a shared disk writes does not pass here
	}
	switch {
	case !o.onlyLooks(true):
		obj.contend(o, op, c)
	case !o.onlyLooks(false):
		op.oplocks = true
		obj.contend(o, op, c)
	}
	return st
}

// onlyLooks says whether an open can neither see nor change contents, so that it does not disturb who caches them. Holders of leases are not
// disturbed by looking at access rights either. [MS-FSA] 2.1.4.12
func (o *open) onlyLooks(leases bool) bool {
	looks := wire.AccessReadAttributes | wire.AccessWriteAttributes | wire.AccessSynchronize
	if leases {
		looks |= wire.AccessReadControl
	}
	return !o.isDisk && !o.empties && o.granted&^looks == 0
}

// grantable is the part of want that o can get, given all other opens. obj.mu is held. [MS-FSA] 2.1.5.18
func (obj *object) grantable(o *open, want uint32, lease bool) uint32 {
	want = validState(want)
	if obj.deletePending {
		want &^= cacheHandle
	}
	for _, e := range obj.opens {
		switch {
		case e == o || lease && e.leased && e.lease == o.lease:
		case e.isDisk:
			return 0
		case !e.onlyLooks(true):
			want &^= cacheWrite
		}
	}
	for _, k := range obj.oplocks {
		if k.sameOplock(o) || k.rec.State == 0 {
			continue
		}
		want &^= cacheWrite
		switch {
		case k.rec.State&cacheWrite != 0, !lease && k.rec.State&cacheHandle != 0:
			return 0
		case lease && !k.isLease:
			want &^= cacheHandle
		}
	}
	if want&cacheWrite == 0 && obj.locked.Load() {
		return 0
	}
	if !lease {
		if want&cacheWrite == 0 {
			want &^= cacheHandle // there is no such level
		}
	}
	return want
}

// grant gives o what it can get of want, and of what the rest of this host leaves possible. lease is nil for an oplock. brk says that the lease is being
// broken. obj.mu is held.
func (obj *object) grant(o *open, want, possible uint32, lease *wire.Lease) (k *oplock, brk bool) {
	for _, x := range obj.oplocks {
		if lease == nil || !x.isLease || x.rec.ID != o.lease {
			continue
		}
		k = x
		k.opens = append(k.opens, o)
		o.oplock = k
		if k.breaking {
			return k, true
		}
		// All of it or nothing, and nothing that is held is given up for it.
		if got := obj.grantable(o, want&possible, true); got == want && got&k.rec.State == k.rec.State && got != k.rec.State {
			k.rec.State = got
			k.rec.Epoch++
		}
		obj.countReaders()
		return k, false
	}
	got := obj.grantable(o, want&possible, lease != nil)
	if got == 0 && lease == nil {
		return nil, false
	}
	k = &oplock{obj: obj, opens: []*open{o}, rec: leaseRecord{State: got}}
	if lease != nil {
		k.isLease = true
		k.rec.ID, k.rec.Version, k.rec.Epoch = o.lease, uint8(lease.Version), lease.Epoch+1
		if lease.Flags&wire.LeaseParentKeySet != 0 && lease.Version == 2 {
			k.rec.Parent, k.rec.HasParent = lease.Parent, true
		}
		if !obj.share.srv.leases.add(k) {
			return nil, false // the key became that of another file meanwhile
		}
	}
	o.oplock = k
	obj.oplocks = append(obj.oplocks, k)
	obj.countReaders()
	return k, false
}
