package rsvd

import (
	"context"
	"errors"
	"fmt"
	"math"

	"vdbridge/scsi"
)

// Persistent reservations. A registration belongs to the initiator that the disk was opened with, not to this connection. The server drops it with the
// initiator's last open. What conflicts is ErrReservationConflict. None of the commands is repeated by itself after it may have been carried
// out: PERSISTENT RESERVE OUT is not idempotent. If the connection was lost meanwhile, what is registered and reserved then tells whether it was; where it does not, the error is
// ErrUndecided. SPC-4 5.13

// Register registers newKey in the place of key (0 if none is registered); newKey 0 gives the registration up. aptpl asks that registrations survive
// a loss of power.
func (d *Disk) Register(ctx context.Context, key, newKey uint64, aptpl bool) error {
	return d.reserveOut(ctx, scsi.PRRegister, 0, scsi.PROutList{Key: key, ActionKey: newKey, PersistPower: aptpl})
}

// RegisterIgnore registers newKey, whatever was registered before.
func (d *Disk) RegisterIgnore(ctx context.Context, newKey uint64, aptpl bool) error {
	return d.reserveOut(ctx, scsi.PRRegisterAndIgnore, 0, scsi.PROutList{ActionKey: newKey, PersistPower: aptpl})
}

// Reserve reserves the unit; key is the one registered.
func (d *Disk) Reserve(ctx context.Context, key uint64, t scsi.PRType) error {
	return d.reserveOut(ctx, scsi.PRReserve, t, scsi.PROutList{Key: key})
}

// Release releases the reservation, which must be of type t.
func (d *Disk) Release(ctx context.Context, key uint64, t scsi.PRType) error {
	return d.reserveOut(ctx, scsi.PRRelease, t, scsi.PROutList{Key: key})
}

// Clear takes the reservation and all registrations away.
func (d *Disk) Clear(ctx context.Context, key uint64) error {
	return d.reserveOut(ctx, scsi.PRClear, 0, scsi.PROutList{Key: key})
}

// Preempt takes the registrations with the key victim away, and the reservation over if they held it.
func (d *Disk) Preempt(ctx context.Context, key, victim uint64, t scsi.PRType) error {
	return d.reserveOut(ctx, scsi.PRPreempt, t, scsi.PROutList{Key: key, ActionKey: victim})
}

// PreemptAbort is Preempt, and aborts what the victims have under way.
func (d *Disk) PreemptAbort(ctx context.Context, key, victim uint64, t scsi.PRType) error {
	return d.reserveOut(ctx, scsi.PRPreemptAndAbort, t, scsi.PROutList{Key: key, ActionKey: victim})
}

// Move registers newKey for another initiator and moves the reservation there; with unregister our own registration goes.
func (d *Disk) Move(ctx context.Context, key, newKey uint64, to [16]byte, unregister, aptpl bool) error {
	list := scsi.PRMoveList{Key: key, ActionKey: newKey, Unregister: unregister, PersistPower: aptpl, TargetPort: 1, TransportID: scsi.SRPTransportID(to)}
	b := list.Append(nil)
	return d.reserveBytes(ctx, scsi.PRRegisterAndMove, 0, b)
}

func (d *Disk) reserveOut(ctx context.Context, action scsi.PROutAction, t scsi.PRType, list scsi.PROutList) error {
	return d.reserveBytes(ctx, action, t, list.Append(nil))
}

func (d *Disk) reserveBytes(ctx context.Context, action scsi.PROutAction, t scsi.PRType, list []byte) error {
	cdb := scsi.PersistentReserveOut(action, t, uint32(len(list)))
	_, err := d.command(ctx, cdb, list, nil, true)
	if errors.Is(err, ErrPreempted) && (action == scsi.PRRegister || action == scsi.PRRegisterAndIgnore) {
		// To register again is what one does after having been preempted. The command was not carried out: a unit attention comes first.
		_, err = d.command(ctx, cdb, list, nil, true)
	}
	for range interruptions {
		if !interrupted(err) {
			break
		}
		done, aerr := d.wasReserved(ctx, action, t, list)
		if aerr != nil {
			return fmt.Errorf("%v: %w: %w", action, aerr, err)
		}
		if done {
			err = nil
			break
		}
		_, err = d.command(ctx, cdb, list, nil, true)
	}
	if err != nil {
		return fmt.Errorf("%v: %w", action, err)
	}
	d.stands(ctx, action, list)
	return nil
}

// reserveIn reads what PERSISTENT RESERVE IN has to say, with as large a buffer as it needs.
func (d *Disk) reserveIn(ctx context.Context, action scsi.PRInAction, size int, parse func([]byte) (truncated bool, err error)) error {
	for {
		buf := make([]byte, size)
		n, err := d.command(ctx, scsi.PersistentReserveIn(action, uint16(size)), nil, buf, false)
		if err != nil {
			return fmt.Errorf("%v: %w", action, err)
		}
		more, err := parse(buf[:n])
		if err != nil {
			return malformed(action, err)
		}
		if !more {
			return nil
		}
		if size == math.MaxUint16 {
			return errors.New(action.String() + ": the reply does not fit into 64 KiB")
		}
		size = math.MaxUint16
	}
}

// ReadKeys lists the registered keys.
func (d *Disk) ReadKeys(ctx context.Context) (k scsi.PRKeys, err error) {
	err = d.reserveIn(ctx, scsi.PRReadKeys, 1024, func(b []byte) (bool, error) {
		k, err = scsi.ParsePRKeys(b)
		return k.Truncated, err
	})
	return k, err
}

// ReadReservation says who holds the reservation.
func (d *Disk) ReadReservation(ctx context.Context) (r scsi.PRReservation, err error) {
	err = d.reserveIn(ctx, scsi.PRReadReservation, 24, func(b []byte) (bool, error) {
		r, err = scsi.ParsePRReservation(b)
		return false, err
	})
	return r, err
}

// ReadFullStatus lists the registrations with their initiators.
func (d *Disk) ReadFullStatus(ctx context.Context) (f scsi.PRFullStatus, err error) {
	err = d.reserveIn(ctx, scsi.PRReadFullStatus, 4096, func(b []byte) (bool, error) {
		f, err = scsi.ParsePRFullStatus(b)
		return f.Truncated, err
	})
	return f, err
}

// Capabilities says what kinds of reservations the unit has.
func (d *Disk) Capabilities(ctx context.Context) (c scsi.PRCapabilities, err error) {
	err = d.reserveIn(ctx, scsi.PRReportCapabilities, 8, func(b []byte) (bool, error) {
		c, err = scsi.ParsePRCapabilities(b)
		return false, err
	})
	return c, err
}
