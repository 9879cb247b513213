package bridge

import (
	"context"
	"errors"
	"syscall"

	"vdbridge/client/link"
	"vdbridge/rsvd"
	"vdbridge/scsi"
	"vdbridge/vhdx"
)

// Errno is the errno that a kernel or an NBD client is told for err; 0 for nil. It is the only place where statuses and sense data
// become errnos.
func Errno(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	var de *DiskError
	if errors.As(err, &de) {
		return de.Errno
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return syscall.ETIMEDOUT
	}
	if errors.Is(err, rsvd.ErrClosed) || errors.Is(err, link.ErrClosed) || errors.Is(err, vhdx.ErrClosed) {
		return syscall.ESHUTDOWN
	}
	var se *scsi.Error
	if errors.As(err, &se) && isOutOfRange(se) {
		return syscall.EINVAL
	}
	switch Classify(err) {
	case ClassConflict:
		return syscall.EBADE // as the kernel's SCSI layer has it
	case ClassAuth, ClassPermission:
		return syscall.EACCES
	case ClassNotFound:
		return syscall.ENOENT
	case ClassUnsupported:
		return syscall.EOPNOTSUPP
	case ClassReadOnly:
		return syscall.EROFS
	case ClassNoSpace:
		return syscall.ENOSPC
	case ClassBusy:
		return syscall.EBUSY
	case ClassExists:
		return syscall.EEXIST
	case ClassUsage:
		return syscall.EINVAL
	case ClassConnection:
		return syscall.ENOTCONN
	case ClassInterrupted:
		return syscall.EINTR
	}
	return syscall.EIO
}

// DiskError is an error of a Disk: the cause, and the errno that it amounts to. errors.As finds both.
type DiskError struct {
	Errno syscall.Errno
	Err   error
}

// Error is the text of the cause.
func (e *DiskError) Error() string { return e.Err.Error() }

// Unwrap gives the errno and the cause.
func (e *DiskError) Unwrap() []error { return []error{e.Errno, e.Err} }

// diskError adds the errno. It keeps nil and what already has one.
func diskError(err error) error {
	if err == nil {
		return nil
	}
	var de *DiskError
	if errors.As(err, &de) {
		return err
	}
	return &DiskError{Errno: Errno(err), Err: err}
}
