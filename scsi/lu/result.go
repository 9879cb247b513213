package lu

import (
	"context"
	"errors"
	"syscall"

	"vdbridge/scsi"
)

// Result is how a command ended.
type Result struct {
	Status scsi.Status
	Sense  scsi.Sense // with CheckCondition
	N      int        // bytes written to the caller's buffer for data
	// Want is how many bytes the command would have returned to a buffer that is large enough (but no more than its allocation length
	// allows). A READ for which the buffer is too small reads nothing and fails.
	Want int
	Err  error // the error of the disk or the context behind a failure
}

// Error makes an error of a result that is not GOOD (or CONDITION MET); nil otherwise.
func (r *Result) Error(op scsi.OpCode) error {
	if r.Status == scsi.Good || r.Status == scsi.ConditionMet {
		return nil
	}
	return &scsi.Error{Op: op, Status: r.Status, Sense: r.Sense, Err: r.Err}
}

func fail(s scsi.Sense) Result { return Result{Status: scsi.CheckCondition, Sense: s} }

func badCDBField(at int) Result {
	return fail(scsi.NewSense(scsi.IllegalRequest, scsi.CodeInvalidFieldInCDB).WithCDBField(at))
}

func badCDBBit(at int, bit uint8) Result {
	return fail(scsi.NewSense(scsi.IllegalRequest, scsi.CodeInvalidFieldInCDB).WithCDBBit(at, bit))
}

// malformedCDB is for a CDB that is shorter than its operation code demands.
func malformedCDB() Result {
	return fail(scsi.NewSense(scsi.IllegalRequest, scsi.CodeInvalidFieldInCDB))
}

func outOfRange(lba uint64) Result {
	return fail(scsi.NewSense(scsi.IllegalRequest, scsi.CodeLBAOutOfRange).WithInfo(lba))
}

// cancelled is for a command whose caller has gone away. Whether a write has happened is unknown.
func cancelled(err error) Result {
	return Result{Status: scsi.CheckCondition, Sense: scsi.NewSense(scsi.AbortedCommand, 0x0006), Err: err}
}

// diskError turns an error of the disk into sense data.
func diskError(err error, write bool, lba uint64) Result {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return cancelled(err)
	}
	s := scsi.NewSense(scsi.MediumError, scsi.CodeUnrecoveredRead)
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		s = scsi.NewSense(scsi.DataProtect, scsi.CodeSpaceAllocation)
	case errors.Is(err, syscall.EROFS):
		s = scsi.NewSense(scsi.DataProtect, scsi.CodeWriteProtected)
	case write:
		s = scsi.NewSense(scsi.MediumError, scsi.CodeWriteError)
	}
	return Result{Status: scsi.CheckCondition, Sense: s.WithInfo(lba), Err: err}
}

// give copies parameter data to the caller, up to the allocation length.
func give(in, data []byte, alloc uint64) Result {
	data = data[:min(uint64(len(data)), alloc)]
	return Result{N: copy(in, data), Want: len(data)}
}
