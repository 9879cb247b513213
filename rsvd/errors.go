package rsvd

import (
	"errors"
	"fmt"

	"vdbridge/scsi"
	"vdbridge/smb/ntstatus"
)

var (
	// ErrNotSupported: the server, or the dialect, has no MS-RSVD. The file may still be opened as a plain file.
	ErrNotSupported = errors.New("the server does not offer shared virtual disks (MS-RSVD)")
	// ErrReservationConflict: another initiator's persistent reservation forbids the command. Nothing was done, unless the error matches ErrNotDurable
	// as well; it was not and must not be repeated by itself.
	ErrReservationConflict = errors.New("reservation conflict: another initiator holds a reservation that forbids this")
	// ErrPreempted: another initiator took away our reservation or our registration. Writes must not be repeated before the caller has
	// registered again and knows that the disk is still its own.
	ErrPreempted = errors.New("another initiator preempted our registration or reservation")
	// ErrNotDurable: the data of a write with FUA are on the disk, and others may see them, but the flush that should have made them durable failed.
	ErrNotDurable = errors.New("written, but not known to be durable")
	// ErrWrongFileType: the file is no virtual disk that the server can share.
	ErrWrongFileType = errors.New("the file is not a virtual disk that the server can share")
	// ErrInUse: the file is open in a way that excludes ours.
	ErrInUse = errors.New("the file is in use in a way that excludes this open")
	// ErrNoInitiator: the open carries no initiator identifier, so it can only ask for information.
	ErrNoInitiator = errors.New("the disk was opened without an initiator identifier")
	// ErrRange: offset or length is not a multiple of the logical block, or beyond the end.
	ErrRange = errors.New("not a whole number of blocks within the disk")
	// ErrReadOnly: the disk was opened read-only.
	ErrReadOnly = errors.New("the disk is open read-only")
	// ErrClosed: the disk has been closed.
	ErrClosed = errors.New("the disk is closed")
	// ErrProtocol: the server's reply contradicts the specification.
	ErrProtocol = errors.New("the server's reply is not as MS-RSVD specifies")
)

// Error is a failed operation. It unwraps to the status, and answers errors.Is for the errors above.
type Error struct {
	Op     string          // the operation, as the specification calls it
	Status ntstatus.Status // what the server said
	Tunnel bool            // said in the tunnel header, not in the SMB2 header
	Err    error           // what carried the status, nil if the tunnel did
}

// Error implements error.
func (e *Error) Error() string {
	if kind := kindOf(e.Status); kind != nil {
		return fmt.Sprintf("%s: %v (%v)", e.Op, kind, e.Status)
	}
	if e.Err != nil {
		return fmt.Sprintf("%s: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("%s: %v", e.Op, e.Status)
}

// Unwrap gives the cause, in which the status is.
func (e *Error) Unwrap() error {
	if e.Err != nil {
		return e.Err
	}
	return e.Status
}

// Is makes a status match the error that it stands for.
func (e *Error) Is(target error) bool {
	kind := kindOf(e.Status)
	return kind != nil && target == kind
}

// kindOf classifies the statuses that have a meaning of their own here. [MS-RSVD] 2.2.3
func kindOf(s ntstatus.Status) error {
	switch s {
	case ntstatus.SVHDXReservationConflict:
		return ErrReservationConflict
	case ntstatus.SVHDXUnitAttentionReservationsPreempted, ntstatus.SVHDXUnitAttentionRegistrationsPreempted:
		return ErrPreempted
	case ntstatus.SVHDXWrongFileType:
		return ErrWrongFileType
	case ntstatus.VHDShared, ntstatus.SharingViolation:
		return ErrInUse
	case ntstatus.SVHDXNoInitiator:
		return ErrNoInitiator
	}
	return nil
}

// conflictError is ErrReservationConflict as the unit says it.
type conflictError struct{ err *scsi.Error }

func (e *conflictError) Error() string { return e.err.Error() }

// Unwrap gives the *scsi.Error.
func (e *conflictError) Unwrap() error { return e.err }

// Is makes it match ErrReservationConflict.
func (e *conflictError) Is(target error) bool { return target == ErrReservationConflict }

// wrap turns an error of the SMB open into an *Error, so that it says what was being done. Errors without a status stay as they are inside.
func wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	if s, ok := ntstatus.Of(err); ok {
		return &Error{Op: op, Status: s, Err: err}
	}
	return fmt.Errorf("%s: %w", op, err)
}

// protocolf makes an ErrProtocol.
func protocolf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}
