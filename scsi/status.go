package scsi

import "fmt"

// Status is a SCSI status byte. SAM-5 5.3.1
type Status uint8

// The status codes in use.
const (
	Good                Status = 0x00
	CheckCondition      Status = 0x02
	ConditionMet        Status = 0x04
	Busy                Status = 0x08
	ReservationConflict Status = 0x18
	TaskSetFull         Status = 0x28
	ACAActive           Status = 0x30
	TaskAborted         Status = 0x40
)

// String returns the standard's name, or the number.
func (s Status) String() string {
	switch s {
	case Good:
		return "GOOD"
	case CheckCondition:
		return "CHECK CONDITION"
	case ConditionMet:
		return "CONDITION MET"
	case Busy:
		return "BUSY"
	case ReservationConflict:
		return "RESERVATION CONFLICT"
	case TaskSetFull:
		return "TASK SET FULL"
	case ACAActive:
		return "ACA ACTIVE"
	case TaskAborted:
		return "TASK ABORTED"
	}
	return fmt.Sprintf("SCSI status %#02x", uint8(s))
}

// Error is a command that did not end with GOOD.
type Error struct {
	Op     OpCode // the command; meaningless zero (TEST UNIT READY) is possible
	Status Status
	Sense  Sense // with CheckCondition
	Err    error // what lies below, if known; may be nil
}

// Error says what failed, and why, in words.
func (e *Error) Error() string {
	s := e.Op.String() + ": "
	switch e.Status {
	case CheckCondition:
		s += e.Sense.String()
	case ReservationConflict:
		s += "reservation conflict: another initiator holds a reservation that forbids it"
	case TaskAborted:
		s += "aborted by another initiator"
	default:
		s += e.Status.String()
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns what lies below.
func (e *Error) Unwrap() error { return e.Err }

// Is matches another *Error whose non-zero fields are equal: errors.Is(err, &scsi.Error{Status: scsi.ReservationConflict}).
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	if !ok {
		return false
	}
	return (t.Op == 0 || t.Op == e.Op) && (t.Status == 0 || t.Status == e.Status) &&
		(t.Sense == Sense{} || t.Sense.Code() == e.Sense.Code() && t.Sense.Key == e.Sense.Key)
}
