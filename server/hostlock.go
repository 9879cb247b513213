package server

import (
	"sync"

	"golang.org/x/sys/unix"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// Bytes of a file on which programs of this host put shared locks to say what they do with it (100 and up) and what they do not want others to do
// (200 and up). QEMU began it, and package vhdx does the same.
const (
	hostRead uint8 = 1 << iota
	hostWrite
	hostResize
	hostUnshareRead
	hostUnshareWrite
	hostUnshareResize
	hostUses = hostRead | hostWrite | hostResize
)

// hostBytes are where the bits are in the file.
var hostBytes = [...]int64{100, 101, 103, 200, 201, 203}

// opposite turns what is done into what speaks against it, and the other way round.
func opposite(bits uint8) uint8 { return (bits&hostUses)<<3 | bits>>3 }

// hostLocks tell the other programs of this host, among them other servers on the same directory, what the opens of a file do with it and do not want
// others to do: two that interpret one image would destroy it. What clients may cache is part of that: while one caches what it has read, no other program may write, and
// while one caches writes, none may read.
//
// The locks belong to one descriptor, so that those that stand against it are of others. Programs that take no locks are not noticed.
type hostLocks struct {
	mu   sync.Mutex // before object.mu
	fd   int        // a duplicate of the first open's; 0 if there is none yet
	held uint8
	off  bool // a file system without locks, where nobody else can have one either
}

// hostBits says what an open does, and what it does not want others to do.
func (o *open) hostBits() (bits uint8) {
	access, share := o.shareMode()
	if o.isDisk || o.dir || o.path || access&(accessRead|accessWrite) == 0 {
		return 0
	}
	if access&accessRead != 0 {
		bits |= hostRead
	}
	if access&accessWrite != 0 {
		bits |= hostWrite | hostResize
	}
	if share&wire.ShareRead == 0 {
		bits |= hostUnshareRead
	}
	if share&wire.ShareWrite == 0 {
		bits |= hostUnshareWrite | hostUnshareResize
	}
	return bits
}

// leaseBits is what nobody else may do while a client caches.
func leaseBits(state uint32) (bits uint8) {
	if state&cacheRead != 0 {
		bits |= hostUnshareWrite | hostUnshareResize
	}
	if state&cacheWrite != 0 {
		bits |= hostUnshareRead
	}
	return bits
}

// hostBits is what all opens of the object say together. obj.mu is held.
func (obj *object) hostBits() (bits uint8) {
	for _, e := range obj.opens {
		bits |= e.hostBits()
	}
	for _, k := range obj.oplocks {
		bits |= leaseBits(k.rec.State)
	}
	return bits
}

// hostLock tells the other programs of this host of a new open, and refuses it if theirs speaks against it.
//
// Share modes among the opens of this server have been checked already, and are the same; so only others can stand in the way.
func (o *open) hostLock() ntstatus.Status {
	bits := o.hostBits()
	if bits == 0 {
		return ntstatus.Success
	}
	h := &o.obj.host
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.begin(o.fd); err != nil {
		return statusOf(err)
	}
	if !h.take(bits) || h.others(opposite(bits)) {
		return ntstatus.SharingViolation
	}
	return ntstatus.Success
}

// begin sees to it that there is a descriptor for the locks. mu is held.
func (h *hostLocks) begin(fd int) (err error) {
	if h.fd == 0 && !h.off {
		h.fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			h.fd = 0
		}
	}
	return err
}

// hostUnlock gives up what no open needs any more.
func (obj *object) hostUnlock() {
	obj.host.mu.Lock()
	defer obj.host.mu.Unlock()
	obj.mu.Lock()
	bits := obj.hostBits()
	obj.mu.Unlock()
	obj.host.drop(obj.host.held &^ bits)
}

// take adds locks, and says whether that was possible. mu is held.
func (h *hostLocks) take(bits uint8) bool {
	for i, at := range hostBytes {
		if b := uint8(1) << i; bits&b == 0 || h.held&b != 0 || h.off {
			continue
		}
		lk := unix.Flock_t{Type: unix.F_RDLCK, Start: at, Len: 1}
		switch err := unix.FcntlFlock(uintptr(h.fd), unix.F_OFD_SETLK, &lk); err {
		case nil:
			h.held |= 1 << i
		case unix.EAGAIN, unix.EACCES:
			return false
		default:
			h.off = true
		}
	}
	return true
}

// drop gives up locks. mu is held.
func (h *hostLocks) drop(bits uint8) {
	for i, at := range hostBytes {
		if b := uint8(1) << i; bits&b != 0 && h.held&b != 0 {
			lk := unix.Flock_t{Type: unix.F_UNLCK, Start: at, Len: 1}
			_ = unix.FcntlFlock(uintptr(h.fd), unix.F_OFD_SETLK, &lk)
			h.held &^= b
		}
	}
}

// others says whether another program holds any of these locks. mu is held.
func (h *hostLocks) others(bits uint8) bool {
	for i, at := range hostBytes {
		if bits&(1<<i) == 0 || h.off {
			continue
		}
		lk := unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: 1}
		if err := unix.FcntlFlock(uintptr(h.fd), unix.F_OFD_GETLK, &lk); err == nil && lk.Type != unix.F_UNLCK {
			return true
		}
	}
	return false
}

// cacheable is the part of want that other programs of this host leave room for; the locks for it are taken. fd is open for reading. mu is held.
func (h *hostLocks) cacheable(fd int, want uint32) uint32 {
	if h.off {
		return want
	}
	if h.begin(fd) != nil {
		return 0
	}
	fits := func(state uint32) bool {
		bits := leaseBits(state)
		return h.take(bits) && !h.others(opposite(bits))
	}
	for _, state := range []uint32{want, want &^ cacheWrite} {
		if fits(state) {
			return state
		}
	}
	return 0
}

func (h *hostLocks) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fd != 0 {
		h.drop(h.held) // the descriptor that this one was made of may be closed only later
		unix.Close(h.fd)
	}
	h.fd, h.held, h.off = 0, 0, true
}
