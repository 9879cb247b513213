package server

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// open is one open of a file, directory, pipe or virtual disk.
type open struct {
	id      wire.FileID
	sess    *session // sess, tree and id.Volatile of a persistent open change when its client comes back
	tree    *tree
	fd      int // -1 for pipes and disks
	path    bool
	dir     bool
	granted uint32
	share   uint32 // ShareAccess
	options uint32
	obj     *object // nil for pipes
	isDisk  bool    // a shared virtual disk
	empties bool    // about to empty the file, which counts as writing whatever access was asked for; under obj.mu
	disk    DiskOpen
	pipe    *pipe

	rel           string // path below the share; under obj.mu
	nextRel       string // the one that it is about to get, "" if none; under obj.mu
	deleteOnClose bool   // under obj.mu

	leased bool    // the client named a lease
	lease  leaseID // which one; constant
	oplock *oplock // what the open is a holder of; under obj.mu

	durable *durable     // nil if the open does not survive its connection
	app     *appInstance // nil if the client named none
	share0  *share       // constant, unlike tree

	restoring bool // of an open that is being made from the database; under obj.mu
	suspended bool // the next process has it: what it would delete, stays; under obj.mu
	sequenced bool // sequence has been set since the server began

	lockSeq []uint8 // by index, the number of the last LOCK that was done plus one; under obj.mu. [MS-SMB2] 3.3.1.10

	sequence channelSequence

	position atomic.Uint64
	modeBits atomic.Uint32 // set by FileModeInformation

	listMu  sync.Mutex // guards list
	list    dirList
	watch   *watch      // under notifier.mu
	created bool        // by this open
	named   atomic.Bool // the name of what it created is durable
	ending  atomic.Bool // a CLOSE has arrived: requests that arrive later do not hold it up

	refs    atomic.Int64 // requests that use the open; closing is a bit of it
	drained chan struct{}
}

// closing is set in refs when CLOSE has begun: nobody may come in any more.
const closing = 1 << 40

// acquire keeps the open from being closed until release. It fails when CLOSE has begun.
func (o *open) acquire() bool {
	if o.refs.Add(1)&closing != 0 {
		o.release()
		return false
	}
	return true
}

func (o *open) release() {
	if o.refs.Add(-1) == closing {
		o.drainOnce()
	}
}

func (o *open) drainOnce() {
	// Late comers of acquire can bring refs to closing more than once.
	select {
	case o.drained <- struct{}{}:
	default:
	}
}

// beginClose makes the open unusable; true for the first caller, who must call finishClose.
func (o *open) beginClose() bool {
	for {
		v := o.refs.Load()
		if v&closing != 0 {
			return false
		}
		if o.refs.CompareAndSwap(v, v|closing) {
			if v == 0 {
				o.drainOnce()
			}
			return true
		}
	}
}

// waitIdle waits for all requests that use an open whose close has begun.
func (o *open) waitIdle() {
	for o.refs.Load() != closing {
		<-o.drained
	}
}

// finishClose waits for all requests that use the open, then closes it: locks go, a pending deletion is done, the descriptor is closed last.
func (o *open) finishClose() {
	o.waitIdle()
	// Only now, as one of those requests may just have become a pending operation.
	o.sess.cancelPending(o, ntstatus.NotifyCleanup)
	s := o.tree.share.srv
	s.durables.drop(o)
	s.unrecord(o)
	s.notify.drop(o)
	o.list.close()
	if o.obj != nil {
		o.obj.leave(o)
	}
	if o.disk != nil {
		if err := o.disk.Close(); err != nil {
			s.log.Warn("close of a shared virtual disk failed", "path", o.rel, "err", err)
		}
	}
	if o.fd >= 0 {
		unix.Close(o.fd)
		o.fd = -1
	}
	s.opens.Add(-1)
}

// fileKey identifies a file on this machine.
type fileKey struct{ dev, ino uint64 }

// object is a file that is open, however often and under whatever names.
type object struct {
	table *objectTable
	key   fileKey

	mu            sync.Mutex
	share         *share
	opens         []*open
	deletePending bool
	posixDelete   bool
	locks         lockTable
	locked        atomic.Bool // there are byte-range locks
	syncer        syncer
	oplocks       []*oplock
	readers       atomic.Int32 // oplocks whose holders cache what they have read
	host          hostLocks
}

// objectTable is all files that are open.
type objectTable struct {
	mu sync.Mutex
	m  map[fileKey]*object
}

func (t *objectTable) init() { t.m = map[fileKey]*object{} }

// lookup returns the object of a file that is open, nil if none.
func (t *objectTable) lookup(key fileKey) *object {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.m[key]
}

// join adds an open to its object, if share modes allow. If c.waits, others have to give something up before it can be tried again.
// [MS-FSA] 2.1.5.1.2.1, 2.1.4.12
func (t *objectTable) join(key fileKey, o *open, c *contention) ntstatus.Status {
	t.mu.Lock()
	obj := t.m[key]
	if obj == nil {
		obj = &object{table: t, key: key, share: o.tree.share}
		t.m[key] = obj
	}
	obj.mu.Lock()
	t.mu.Unlock()
	defer obj.mu.Unlock()
	if obj.deletePending && !o.restoring {
		return ntstatus.DeletePending
	}
	if st := obj.contendOpen(o, c); st != ntstatus.Success || c.waits() {
		return st
	}
	o.obj = obj
	obj.opens = append(obj.opens, o)
	return ntstatus.Success
}

const (
	accessRead   = wire.AccessReadData | wire.AccessExecute
	accessWrite  = wire.AccessWriteData | wire.AccessAppendData
	accessDelete = wire.AccessDelete
)

// conflict says whether two opens of the same file exclude each other.
//
// Opens of a shared virtual disk do not exclude each other, and towards others count as opens that read, write and let others read.
func conflict(a, b *open) bool {
	if a.isDisk && b.isDisk {
		return false
	}
	aAccess, aShare := a.shareMode()
	bAccess, bShare := b.shareMode()
	return denies(aAccess, bShare) || denies(bAccess, aShare)
}

func (o *open) shareMode() (access, share uint32) {
	if o.isDisk {
		return wire.AccessReadData | wire.AccessWriteData, wire.ShareRead
	}
	access = o.granted & (accessRead | accessWrite | accessDelete)
	if o.empties {
		access |= wire.AccessWriteData
	}
	if access == 0 {
		return 0, wire.ShareRead | wire.ShareWrite | wire.ShareDelete // only looks at attributes: no part in sharing
	}
	return access, o.share
}

func denies(access, share uint32) bool {
	return access&accessRead != 0 && share&wire.ShareRead == 0 ||
		access&accessWrite != 0 && share&wire.ShareWrite == 0 ||
		access&accessDelete != 0 && share&wire.ShareDelete == 0
}

// leave removes an open from its object. The last one deletes the file if that is pending.
func (obj *object) leave(o *open) {
	sh := o.tree.share
	obj.mu.Lock()
	rel := o.rel
	obj.mu.Unlock()
	unlock := sh.lockName(rel)
	obj.mu.Lock()
	for obj.opens != nil && rel != o.rel {
		// Renamed meanwhile.
		rel = o.rel
		obj.mu.Unlock()
		unlock()
		unlock = sh.lockName(rel)
		obj.mu.Lock()
	}
	for i, e := range obj.opens {
		if e == o {
			obj.opens = append(obj.opens[:i], obj.opens[i+1:]...)
			break
		}
	}
	var c contention
	if o.deleteOnClose && !o.suspended {
		obj.deletePending = true
		obj.contend(o, opDelete, &c)
	}
	woken := obj.locks.dropOwner(o)
	obj.locked.Store(!obj.locks.empty())
	obj.leaveOplock(o, &c)
	last := len(obj.opens) == 0
	remove := obj.deletePending && (last || obj.posixDelete) && !o.suspended
	obj.mu.Unlock()
	if remove && o.deleter(last) {
		if err := sh.remove(rel, obj.key, o.dir); err != nil {
			sh.srv.log.Warn("delete on close failed", "share", sh.cfg.Name, "path", rel, "err", err)
		} else {
			sh.srv.notify.removed(sh, rel, o.dir)
		}
	}
	if last {
		t := obj.table
		t.mu.Lock()
		obj.mu.Lock()
		over := len(obj.opens) == 0 && t.m[obj.key] == obj
		if over {
			delete(t.m, obj.key)
		}
		obj.mu.Unlock()
		t.mu.Unlock()
		if over {
			obj.host.close()
		}
	}
	obj.hostUnlock()
	unlock()
	for _, w := range woken {
		w.granted()
	}
	sh.srv.settle(&c)
}

// deleter says whether this close is the one that deletes: the last one, or with POSIX semantics that of the open that asked for it.
func (o *open) deleter(last bool) bool { return last || o.deleteOnClose }
