package rsvd

import (
	"context"
	"errors"

	"vdbridge/scsi"
	"vdbridge/smb/tunnel"
	"vdbridge/smb/wire"
)

// File is the SMB open that a Disk stands on. All methods may be called at the same time. Errors carry an ntstatus.Status. None of
// the slices is touched after the call has returned, also when ctx was cancelled.
type File interface {
	// ReadAt and WriteAt are READ and WRITE; a file splits what is larger than its server takes.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
	WriteAt(ctx context.Context, p []byte, off int64) (int, error)
	// Flush is FLUSH.
	Flush(ctx context.Context) error
	// Ioctl sends in1 and in2, one behind the other, and scatters the reply into out1, then out2. MaxOutputResponse is the length of
	// both. It returns the bytes received. On STATUS_BUFFER_OVERFLOW there are data and an error.
	Ioctl(ctx context.Context, code uint32, in1, in2, out1, out2 []byte) (n int, err error)
	Close() error
}

// transactLimiter is a File that knows the most bytes of an IOCTL's input or output (MaxTransactSize). Others are taken to allow 64 KiB.
type transactLimiter interface{ MaxTransactSize() int }

// Kind says what may be done with a control that was under way when the connection was lost.
type Kind uint8

// The kinds.
const (
	KindOnce      Kind = iota // it must not be sent again unseen
	KindOnceWrite             // the same, and it changes the disk
	KindRead                  // it may be sent again, and changes nothing
	KindWrite                 // it may be sent again, and changes the disk
	KindDurable               // the same, and what it changed is durable
	KindSync                  // it makes durable what was written before
)

// controller is a File that outlives its connection, and so has to know what may be sent again. Of others nothing is sent again. If a control of the
// kinds that are sent once was interrupted, the error has a method Interrupted that returns true, and it will not be carried out any more if it was not.
type controller interface {
	Control(ctx context.Context, kind Kind, code uint32, in1, in2, out1, out2 []byte) (n int, err error)
}

// control sends a control as what it is.
func (d *Disk) control(ctx context.Context, kind Kind, in1, in2, out1, out2 []byte) (int, error) {
	if d.controls != nil {
		return d.controls.Control(ctx, kind, tunnel.FsctlSyncTunnelRequest, in1, in2, out1, out2)
	}
	return d.file.Ioctl(ctx, tunnel.FsctlSyncTunnelRequest, in1, in2, out1, out2)
}

// interrupted says that err leaves open whether the command was carried out.
func interrupted(err error) bool {
	var i interface{ Interrupted() bool }
	return errors.As(err, &i) && i.Interrupted()
}

// kindOfCDB says what may be done with a command.
func kindOfCDB(cdb *scsi.CDB) Kind {
	switch cdb.Op() {
	case scsi.OpRead16, scsi.OpRead6, scsi.OpRead10, scsi.OpRead12, scsi.OpTestUnitReady, scsi.OpInquiry, scsi.OpModeSense6, scsi.OpModeSense10, scsi.OpReadCapacity10,
		scsi.OpVerify10, scsi.OpVerify12, scsi.OpVerify16, scsi.OpServiceActionIn16, scsi.OpPersistentReserveIn, scsi.OpReportLUNs, scsi.OpMaintenanceIn:
		return KindRead
	case scsi.OpWrite16, scsi.OpWrite10, scsi.OpWrite12:
		if cdb[1]&fuaBit != 0 {
			return KindDurable
		}
		return KindWrite
	case scsi.OpWrite6, scsi.OpUnmap, scsi.OpWriteSame10, scsi.OpWriteSame16:
		return KindWrite
	case scsi.OpSynchronizeCache10, scsi.OpSynchronizeCache16:
		return KindSync
	case scsi.OpPersistentReserveOut, scsi.OpRequestSense:
		return KindOnce // how to come back when shut out, and what takes something away by being read
	}
	return KindOnceWrite
}

// fuaBit of byte 1 of WRITE(10), (12) and (16). SBC-3 5.26
const fuaBit = 1 << 3

// CreateFunc sends a CREATE and returns the open and the create contexts of the reply. An error carries an ntstatus.Status if the
// server refused.
type CreateFunc func(ctx context.Context, req *wire.CreateRequest) (File, []wire.CreateContext, error)
