package bridge

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"vdbridge/client"
	"vdbridge/rsvd"
	"vdbridge/scsi"
	"vdbridge/smb/ntstatus"
	"vdbridge/vhdx"
)

func TestErrno(t *testing.T) {
	sense := func(k scsi.Key, c scsi.Code) error {
		return &scsi.Error{Op: scsi.OpWrite16, Status: scsi.CheckCondition, Sense: scsi.NewSense(k, c)}
	}
	for _, c := range []struct {
		err   error
		errno syscall.Errno
		class Class
	}{
		{&client.Error{Op: "write", Status: ntstatus.DiskFull}, syscall.ENOSPC, ClassNoSpace},
		{sense(scsi.DataProtect, scsi.CodeSpaceAllocation), syscall.ENOSPC, ClassNoSpace},
		{sense(scsi.DataProtect, scsi.CodeWriteProtected), syscall.EROFS, ClassReadOnly},
		{&client.Error{Op: "write", Status: ntstatus.MediaWriteProtected}, syscall.EROFS, ClassReadOnly},
		{rsvd.ErrReadOnly, syscall.EROFS, ClassReadOnly},
		{vhdx.ErrReadOnly, syscall.EROFS, ClassReadOnly},
		{sense(scsi.MediumError, scsi.CodeUnrecoveredRead), syscall.EIO, ClassIO},
		{sense(scsi.IllegalRequest, scsi.CodeLBAOutOfRange), syscall.EINVAL, ClassIO},
		{sense(scsi.UnitAttention, scsi.CodeRegistrationsPreempted), syscall.EBADE, ClassConflict},
		{&scsi.Error{Op: scsi.OpWrite16, Status: scsi.ReservationConflict, Err: rsvd.ErrReservationConflict}, syscall.EBADE, ClassConflict},
		{&rsvd.Error{Op: "WRITE", Status: ntstatus.SVHDXReservationConflict, Err: &client.Error{Status: ntstatus.SVHDXReservationConflict}}, syscall.EBADE, ClassConflict},
		{rsvd.ErrPreempted, syscall.EBADE, ClassConflict},
		{&client.Error{Op: "read", Status: ntstatus.AccessDenied}, syscall.EACCES, ClassPermission},
		{&client.Error{Op: "read", Status: ntstatus.SharingViolation}, syscall.EBUSY, ClassBusy},
		{&client.Error{Op: "read", Status: ntstatus.ObjectNameNotFound}, syscall.ENOENT, ClassNotFound},
		{&client.Error{Op: "read", Status: ntstatus.NetworkNameDeleted}, syscall.ENOTCONN, ClassConnection},
		{&client.OpError{Op: "read", Err: &client.ConnError{Err: errors.New("gone")}}, syscall.ENOTCONN, ClassConnection},
		{&client.Error{Op: "x", Status: ntstatus.NotSupported}, syscall.EOPNOTSUPP, ClassUnsupported},
		{rsvd.ErrRange, syscall.EINVAL, ClassUsage},
		{vhdx.ErrRange, syscall.EINVAL, ClassUsage},
		{vhdx.ErrClosed, syscall.ESHUTDOWN, ClassOther},
		{fmt.Errorf("x: %w", syscall.ENOSPC), syscall.ENOSPC, ClassNoSpace},
		{vhdx.ErrInUse, syscall.EBUSY, ClassBusy},
		{&vhdx.CorruptError{Structure: "BAT"}, syscall.EIO, ClassCorrupt},
		{vhdx.ErrDifferencing, syscall.EOPNOTSUPP, ClassUnsupported},
		{&client.Error{Op: "log on", Status: ntstatus.LogonFailure}, syscall.EACCES, ClassAuth},
		{context.Canceled, syscall.EINTR, ClassInterrupted},
		{errors.New("something"), syscall.EIO, ClassOther},
	} {
		err := fmt.Errorf("outer: %w", c.err)
		if got := Errno(err); got != c.errno {
			t.Errorf("%v: %v, want %v", c.err, got, c.errno)
		}
		if got := Classify(err); got != c.class {
			t.Errorf("%v: class %v, want %v", c.err, got, c.class)
		}
		// What a Disk returns keeps the cause and shows the errno to those who only know that.
		de := diskError(err)
		var errno syscall.Errno
		if !errors.As(de, &errno) || errno != c.errno || !errors.Is(de, c.err) || Classify(de) != c.class {
			t.Errorf("%v as a disk error: %v %v %v", c.err, errno, errors.Is(de, c.err), Classify(de))
		}
		if again := diskError(de); again != de {
			t.Errorf("%v is wrapped twice", c.err)
		}
	}
	if diskError(nil) != nil || Errno(nil) != 0 {
		t.Error("nil is an error")
	}
}
