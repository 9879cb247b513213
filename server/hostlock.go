package server

import (
	"golang.org/x/sys/unix"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// Bytes of a file on which programs of this host put shared locks to say what they do with it (100 and up) and what they do not want others to do
// (200 and up). QEMU began it, and package vhdx does the same.
const (
	hostRead          = 100
	hostWrite         = 101
	hostResize        = 103
	hostUnshareRead   = 200
	hostUnshareWrite  = 201
	hostUnshareResize = 203
)

// hostLock tells the other programs of this host, among them other servers on the same directory, which access this open has and shares, and
// refuses it if theirs speaks against it: two that interpret one image would destroy it. The locks end with the descriptor.
//
// Share modes among the opens of this server have been checked already, and are the same; so only others can stand in the way.
func (o *open) hostLock() ntstatus.Status {
	access, share := o.shareMode()
	if o.isDisk || o.dir || o.path || access&(accessRead|accessWrite) == 0 {
		return ntstatus.Success
	}
	var mine, against []int64
	if access&accessRead != 0 {
		mine, against = append(mine, hostRead), append(against, hostUnshareRead)
	}
	if access&accessWrite != 0 {
		mine, against = append(mine, hostWrite, hostResize), append(against, hostUnshareWrite, hostUnshareResize)
	}
	if share&wire.ShareRead == 0 {
		mine, against = append(mine, hostUnshareRead), append(against, hostRead)
	}
	if share&wire.ShareWrite == 0 {
		mine, against = append(mine, hostUnshareWrite, hostUnshareResize), append(against, hostWrite, hostResize)
	}
	for _, at := range mine {
		lk := unix.Flock_t{Type: unix.F_RDLCK, Start: at, Len: 1}
		switch err := unix.FcntlFlock(uintptr(o.fd), unix.F_OFD_SETLK, &lk); err {
		case nil:
		case unix.EAGAIN, unix.EACCES:
			return ntstatus.SharingViolation
		default: // a file system without locks, where nobody else can have one either
			return ntstatus.Success
		}
	}
	for _, at := range against {
		lk := unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: 1}
		if err := unix.FcntlFlock(uintptr(o.fd), unix.F_OFD_GETLK, &lk); err == nil && lk.Type != unix.F_UNLCK {
			return ntstatus.SharingViolation
		}
	}
	return ntstatus.Success
}
