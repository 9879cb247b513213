package bridge

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"slices"
	"syscall"

	"vdbridge/client"
	"vdbridge/client/link"
	"vdbridge/rsvd"
	"vdbridge/scsi"
	"vdbridge/smb/ntstatus"
	"vdbridge/vhdx"
)

// Class is the kind of a failure, as far as a user has to tell them apart. Exit codes and errnos follow from it.
type Class int

// The classes.
const (
	ClassOther       Class = iota
	ClassUsage             // what was typed makes no sense
	ClassAuth              // the server does not accept who we are
	ClassNotFound          // no such share, directory or file
	ClassUnsupported       // the server, or this program, cannot do it
	ClassCorrupt           // the image is damaged or no image
	ClassIO                // reading or writing failed
	ClassConflict          // another initiator's reservation
	ClassConnection        // no server, or it went away
	ClassBusy              // somebody else uses it in a way that excludes us
	ClassPermission        // known, but not allowed
	ClassReadOnly          // a write to what is read-only
	ClassNoSpace           // the server's disk is full
	ClassExists            // there already
	ClassInterrupted       // a signal, or the caller's context
)

var classNames = [...]string{"other", "usage", "auth", "not-found", "unsupported", "corrupt", "io", "reservation-conflict", "connection", "busy", "permission",
	"read-only", "no-space", "exists", "interrupted"}

// String is a stable name for machines.
func (c Class) String() string { return classNames[c] }

// ParseClass is the reverse of String; what it does not know is ClassOther.
func ParseClass(s string) Class { return Class(max(0, slices.Index(classNames[:], s))) }

// ErrAuth is matched by errors of logging on that did not come from the server.
var ErrAuth = errors.New("logon")

// Error is a failure with a sentence for the user: what was being done, what happened, what to do. The cause is inside.
type Error struct {
	Class    Class
	Sentence string
	Err      error
}

// Error is the sentence.
func (e *Error) Error() string { return e.Sentence }

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Classify finds the class of any error that this program makes.
func Classify(err error) Class {
	if err == nil {
		return ClassOther
	}
	var be *Error
	if errors.As(err, &be) && be.Class != ClassOther {
		return be.Class
	}
	switch {
	case errors.Is(err, link.ErrWritesLost), errors.Is(err, rsvd.ErrUndecided), errors.Is(err, rsvd.ErrOtherDisk), errors.Is(err, vhdx.ErrChanged):
		return ClassIO
	case errors.Is(err, ErrUsage), errors.Is(err, rsvd.ErrRange), errors.Is(err, vhdx.ErrRange):
		return ClassUsage
	case errors.Is(err, client.ErrConnectionLost), errors.Is(err, client.ErrSecurity), errors.Is(err, client.ErrProtocol):
		return ClassConnection
	case errors.Is(err, client.ErrUnsupportedServer):
		return ClassUnsupported
	case errors.Is(err, client.ErrGuest):
		return ClassAuth
	case errors.Is(err, ErrAuth):
		return ClassAuth
	case errors.Is(err, rsvd.ErrReservationConflict), errors.Is(err, rsvd.ErrPreempted), errors.Is(err, rsvd.ErrShutOut):
		return ClassConflict
	case errors.Is(err, rsvd.ErrNotSupported), errors.Is(err, vhdx.ErrUnsupported):
		return ClassUnsupported
	case errors.Is(err, rsvd.ErrWrongFileType), errors.Is(err, vhdx.ErrNotVHDX), errors.Is(err, vhdx.ErrCorrupt):
		return ClassCorrupt
	case errors.Is(err, rsvd.ErrInUse), errors.Is(err, vhdx.ErrInUse):
		return ClassBusy
	case errors.Is(err, rsvd.ErrReadOnly), errors.Is(err, vhdx.ErrReadOnly):
		return ClassReadOnly
	case errors.Is(err, context.Canceled):
		return ClassInterrupted
	}
	var se *scsi.Error
	if errors.As(err, &se) {
		return classOfSCSI(se)
	}
	if s, ok := ntstatus.Of(err); ok {
		return classOfStatus(s)
	}
	var de *DiskError
	var errno syscall.Errno
	if errors.As(err, &de) {
		return Classify(de.Err)
	}
	if errors.As(err, &errno) {
		return classOfErrno(errno)
	}
	var ne net.Error
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ClassNotFound
	case errors.Is(err, fs.ErrPermission):
		return ClassPermission
	case errors.Is(err, fs.ErrExist):
		return ClassExists
	case errors.As(err, &ne), errors.Is(err, net.ErrClosed), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, context.DeadlineExceeded):
		return ClassConnection
	}
	return ClassOther
}

func classOfStatus(s ntstatus.Status) Class {
	switch s {
	case ntstatus.LogonFailure, ntstatus.WrongPassword, ntstatus.NoSuchUser, ntstatus.AccountRestriction, ntstatus.InvalidLogonHours, ntstatus.InvalidWorkstation,
		ntstatus.PasswordExpired, ntstatus.AccountDisabled, ntstatus.LogonTypeNotGranted, ntstatus.AccountExpired, ntstatus.PasswordMustChange,
		ntstatus.AccountLockedOut, ntstatus.NoLogonServers, ntstatus.TrustFailure, ntstatus.TimeDifferenceAtDC, ntstatus.NologonWorkstationTrustAccount:
		return ClassAuth
	case ntstatus.ObjectNameNotFound, ntstatus.ObjectPathNotFound, ntstatus.NoSuchFile, ntstatus.BadNetworkName, ntstatus.NotFound, ntstatus.NoSuchDevice,
		ntstatus.ObjectNameInvalid, ntstatus.ObjectPathInvalid, ntstatus.NotADirectory, ntstatus.FileIsADirectory:
		return ClassNotFound
	case ntstatus.NameTooLong:
		return ClassUsage
	case ntstatus.NotSupported, ntstatus.InvalidDeviceRequest, ntstatus.NotImplemented, ntstatus.SVHDXVersionMismatch, ntstatus.PathNotCovered:
		return ClassUnsupported
	case ntstatus.FileCorruptError, ntstatus.SVHDXWrongFileType, ntstatus.VHDSetBackingStorageNotFound:
		return ClassCorrupt
	case ntstatus.SVHDXReservationConflict, ntstatus.SVHDXUnitAttentionRegistrationsPreempted, ntstatus.SVHDXUnitAttentionReservationsPreempted:
		return ClassConflict
	case ntstatus.NetworkNameDeleted, ntstatus.ConnectionDisconnected, ntstatus.ConnectionReset, ntstatus.ConnectionRefused, ntstatus.NetworkUnreachable,
		ntstatus.HostUnreachable, ntstatus.UserSessionDeleted, ntstatus.NetworkSessionExpired, ntstatus.InvalidConnection, ntstatus.BadNetworkPath,
		ntstatus.InvalidSignature, ntstatus.ServerUnavailable, ntstatus.FileForcedClosed:
		return ClassConnection
	case ntstatus.SharingViolation, ntstatus.VHDShared, ntstatus.FileLockConflict, ntstatus.DeletePending, ntstatus.LockNotGranted:
		return ClassBusy
	case ntstatus.AccessDenied, ntstatus.NetworkAccessDenied, ntstatus.PrivilegeNotHeld:
		return ClassPermission
	case ntstatus.MediaWriteProtected:
		return ClassReadOnly
	case ntstatus.DiskFull, ntstatus.QuotaExceeded:
		return ClassNoSpace
	case ntstatus.ObjectNameCollision:
		return ClassExists
	case ntstatus.Cancelled:
		return ClassInterrupted
	}
	return ClassIO
}

func classOfErrno(e syscall.Errno) Class {
	switch e {
	case syscall.ENOENT, syscall.ENOTDIR, syscall.EISDIR:
		return ClassNotFound
	case syscall.EACCES, syscall.EPERM:
		return ClassPermission
	case syscall.EROFS:
		return ClassReadOnly
	case syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG:
		return ClassNoSpace
	case syscall.EEXIST:
		return ClassExists
	case syscall.EBUSY, syscall.ETXTBSY, syscall.EADDRINUSE:
		return ClassBusy
	case syscall.EBADE:
		return ClassConflict
	case syscall.EOPNOTSUPP, syscall.ENOSYS:
		return ClassUnsupported
	case syscall.EINVAL, syscall.ENAMETOOLONG:
		return ClassUsage
	case syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.ECONNABORTED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ETIMEDOUT, syscall.EPIPE, syscall.ENETDOWN, syscall.EHOSTDOWN:
		return ClassConnection
	case syscall.EINTR, syscall.ECANCELED:
		return ClassInterrupted
	}
	return ClassIO
}

// classOfSCSI classifies a command that the logical unit refused.
func classOfSCSI(e *scsi.Error) Class {
	if e.Status == scsi.ReservationConflict {
		return ClassConflict
	}
	switch e.Sense.Key {
	case scsi.DataProtect:
		if e.Sense.Code() == scsi.CodeSpaceAllocation {
			return ClassNoSpace
		}
		return ClassReadOnly
	case scsi.UnitAttention:
		if c := e.Sense.Code(); c == scsi.CodeReservationsPreempted || c == scsi.CodeRegistrationsPreempted {
			return ClassConflict
		}
	case scsi.IllegalRequest:
		if e.Sense.Code() == scsi.CodeInvalidOpCode {
			return ClassUnsupported
		}
	}
	return ClassIO
}

// isOutOfRange says that the unit found the request beyond its end.
func isOutOfRange(e *scsi.Error) bool {
	return e.Sense.Key == scsi.IllegalRequest && e.Sense.Code() == scsi.CodeLBAOutOfRange
}
