package svhdx

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"vdbridge/scsi"
	"vdbridge/scsi/lu"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/tunnel"
	"vdbridge/smb/wire"
)

// open is one open of a shared virtual disk.
type open struct {
	s        *Service
	d        *disk
	nexus    *lu.Nexus // nil without an initiator
	opts     uint32    // CreateOptions
	isVHDSet bool      // by the extension of the name
	mayRead  bool
	mayWrite bool
	stored   senseRing
	replies  replyRing
	id       uint64 // tells opens apart; of a persistent one that of its file identifier
	once     sync.Once
}

// storedSense is what SRB_STATUS returns for an I/O that failed.
type storedSense struct {
	srb    uint8
	auto   bool
	status scsi.Status
	sense  [tunnel.MaxSense]byte
}

// senseRing holds the sense data of the last 256 failures of an open. [3.2.1.2]
type senseRing struct {
	mu       sync.Mutex
	sequence uint8
	entries  map[uint8]storedSense // at most 256
}

// store keeps an entry and returns the status that leads to it: the first failure has key 1. [3.2.5.3]
func (r *senseRing) store(e storedSense) ntstatus.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.entries == nil {
		r.entries = make(map[uint8]storedSense)
	}
	r.sequence++ // 0 follows 0xFF
	r.entries[r.sequence] = e
	return ntstatus.SVHDXErrorStored | ntstatus.Status(r.sequence)
}

func (r *senseRing) load(key uint8) (storedSense, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.entries[key]
	return e, ok
}

// noInitiator is what Windows stores when an open without an initiator reads or writes. [3.2.5.3 and product notes]
var noInitiator = storedSense{srb: tunnel.SRBAborted, status: scsi.CheckCondition, sense: [tunnel.MaxSense]byte{0: 0xF0, 7: 0x0A}}

// check verifies what [3.2.5.3] and [3.2.5.4] ask of an open before I/O.
func (o *open) check(granted bool) error {
	if o.nexus == nil {
		return o.stored.store(noInitiator)
	}
	if o.opts&wire.OptNoIntermediateBuffering == 0 {
		return ntstatus.NotSupported
	}
	if !granted {
		return ntstatus.AccessDenied
	}
	return nil
}

// Read is [server.DiskOpen].
func (o *open) Read(ctx context.Context, p []byte, off int64) error {
	if err := o.check(o.mayRead); err != nil {
		return err
	}
	if err := o.nexus.Read(ctx, p, off); err != nil {
		return o.failed("read", len(p), off, err)
	}
	return nil
}

// Write is [server.DiskOpen].
func (o *open) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	if err := o.check(o.mayWrite); err != nil {
		return err
	}
	if err := o.nexus.Write(ctx, p, off, fua); err != nil {
		return o.failed("write", len(p), off, err)
	}
	return nil
}

// Flush is [server.DiskOpen]. An open that cannot write has nothing to flush.
func (o *open) Flush(ctx context.Context) error {
	if o.nexus == nil || !o.mayWrite {
		return nil
	}
	if err := o.nexus.Flush(ctx); err != nil {
		return o.failed("flush", 0, 0, err)
	}
	return nil
}

// attentions are the unit attentions that have a status of their own. [2.2.3]
var attentions = map[scsi.Code]ntstatus.Status{
	scsi.CodeCapacityChanged:            ntstatus.SVHDXUnitAttentionCapacityDataChanged,
	scsi.CodeReservationsPreempted:      ntstatus.SVHDXUnitAttentionReservationsPreempted,
	scsi.CodeReservationsReleased:       ntstatus.SVHDXUnitAttentionReservationsReleased,
	scsi.CodeRegistrationsPreempted:     ntstatus.SVHDXUnitAttentionRegistrationsPreempted,
	scsi.CodeOperatingDefinitionChanged: ntstatus.SVHDXUnitAttentionOperatingDefinitionChanged,
}

// failed gives an error of the logical unit the status that [3.2.5.3] and [3.2.5.4] have for it. A unit attention that has a status has been
// reported with it and is no longer pending; another is stored, as other failures are, so that the client learns which.
func (o *open) failed(op string, n int, off int64, err error) error {
	var s ntstatus.Status
	var e *scsi.Error
	switch {
	case errors.Is(err, lu.ErrUnaligned):
		s = ntstatus.InvalidParameter
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		s = ntstatus.Cancelled
	case !errors.As(err, &e):
		s = ntstatus.IODeviceError
	case e.Status == scsi.ReservationConflict:
		s = ntstatus.SVHDXReservationConflict
	case e.Sense.Key == scsi.UnitAttention && attentions[e.Sense.Code()] != 0:
		s = attentions[e.Sense.Code()]
	default:
		if e.Sense.Key != scsi.UnitAttention && e.Sense.Key != scsi.IllegalRequest && e.Status != scsi.TaskAborted {
			o.s.log.Error("I/O error on a shared virtual disk", "path", o.d.path, "op", op, "bytes", n, "offset", off, "err", err)
		}
		entry := storedSense{status: e.Status, srb: srbStatus(e.Status), auto: e.Status == scsi.CheckCondition}
		if entry.auto {
			e.Sense.PutFixed(entry.sense[:])
		}
		s = o.stored.store(entry)
	}
	return fmt.Errorf("%s of %d bytes at %d: %w: %w", op, n, off, err, s)
}

// srbStatus says what the SRB status is of a command that ended with a SCSI status. [2.2.5] A reservation conflict is a success of the transport.
func srbStatus(s scsi.Status) uint8 {
	switch s {
	case scsi.CheckCondition:
		return tunnel.SRBError
	case scsi.TaskAborted:
		return tunnel.SRBAborted
	}
	return tunnel.SRBSuccess
}

// ioStatus gives an error of the file system a status.
func ioStatus(err error) error {
	if err == nil {
		return nil
	}
	s := ntstatus.IODeviceError
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		s = ntstatus.Cancelled
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		s = ntstatus.DiskFull
	case errors.Is(err, syscall.EROFS):
		s = ntstatus.MediaWriteProtected
	case errors.Is(err, syscall.EINVAL):
		s = ntstatus.InvalidParameter
	}
	return fmt.Errorf("%w: %w", err, s)
}

// Size is [server.DiskOpen]: the size of the virtual disk in bytes.
func (o *open) Size() int64 { return o.d.Size() }

// Persist is [server.PersistentDisk]: the initiator's registration stays when the process ends.
func (o *open) Persist(id uint64) error {
	o.id = id
	if o.nexus == nil {
		return nil
	}
	return o.nexus.Persist(context.Background())
}

// Suspend is [server.PersistentDisk].
func (o *open) Suspend() (err error) {
	o.once.Do(func() {
		if o.nexus != nil {
			err = o.nexus.Suspend(context.Background())
		}
		err = errors.Join(err, o.s.release(o.d))
	})
	return err
}

// Close is [server.DiskOpen]. A second call does nothing. [3.2.5.2]
func (o *open) Close() (err error) {
	o.once.Do(func() {
		if o.nexus != nil {
			o.nexus.Detach()
		}
		err = o.s.release(o.d)
	})
	return err
}
