package server

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// syncer makes files durable, and remembers when that has failed. Linux reports a failure once and takes the pages for clean afterwards, though what was in
// them may never have reached the disk: a second call would succeed and mean nothing. So the first failure is the last word, as long as the file is open.
type syncer struct {
	failed atomic.Pointer[error]
	call   atomic.Pointer[syncCall] // nil for the system's; a test's fails
}

type syncCall func(fd int, data bool) error

func (y *syncer) sync(fd int, data bool) error {
	if p := y.failed.Load(); p != nil {
		return *p
	}
	call := syncFD
	if p := y.call.Load(); p != nil {
		call = *p
	}
	err := call(fd, data)
	if err != nil {
		y.failed.CompareAndSwap(nil, &err)
	}
	return err
}

// syncFD is fdatasync, or fsync.
func syncFD(fd int, data bool) error {
	for {
		call := unix.Fsync
		if data {
			call = unix.Fdatasync
		}
		if err := call(fd); err != unix.EINTR {
			return err
		}
	}
}

// sync makes the contents of a file durable, with the times and so on unless data is set; and the name of one that the open has made.
func (o *open) sync(data bool) ntstatus.Status {
	y := &o.obj.syncer
	known := y.failed.Load() != nil
	err := y.sync(o.fd, data)
	if err == nil && o.created && !o.named.Load() {
		if err = o.tree.share.syncParent(o.currentRel()); err == nil {
			o.named.Store(true)
		}
	}
	if err == nil {
		return ntstatus.Success
	}
	if !known {
		o.tree.share.srv.log.Error("a file cannot be made durable: writes may be lost; it fails from now on, until it has been closed everywhere",
			"share", o.tree.share.cfg.Name, "path", o.currentRel(), "err", err)
	}
	return statusOf(err)
}

// settle is sync for an open that writes through, after a change that is not a WRITE.
func (o *open) settle() ntstatus.Status {
	if (o.options|o.modeBits.Load())&wire.OptWriteThrough == 0 {
		return ntstatus.Success
	}
	return o.sync(true)
}

// syncParent makes the directory entry rel durable.
func (sh *share) syncParent(rel string) error {
	dir, _ := split(rel)
	fd, err := sh.openBeneath(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return syncFD(fd, false)
}
