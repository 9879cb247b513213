package rsvd

import (
	"context"
	"errors"
	"fmt"

	"vdbridge/scsi"
	"vdbridge/smb/ntstatus"
)

// attention is what a unit attention means to us.
type attention int

const (
	noAttention              attention = iota
	attentionAny                       // ask the unit what it is
	attentionOther                     // nothing of consequence: reset, parameters changed
	attentionCapacity                  // the disk has another size
	attentionReleased                  // somebody's reservation was released
	attentionReservationLost           // our reservation was preempted
	attentionRegistrationLost
	attentionDefinition // the format of the image changed
)

func (a attention) String() string {
	return [...]string{"none", "unit attention", "unit attention", "capacity data changed", "reservations released", "reservations preempted",
		"registrations preempted", "operating definition changed"}[a]
}

// attentionOfStatus knows the statuses that stand for unit attentions. [MS-RSVD] 2.2.3
func attentionOfStatus(s ntstatus.Status) attention {
	switch s {
	case ntstatus.SVHDXUnitAttentionAvailable:
		return attentionAny
	case ntstatus.SVHDXUnitAttentionCapacityDataChanged:
		return attentionCapacity
	case ntstatus.SVHDXUnitAttentionReservationsPreempted:
		return attentionReservationLost
	case ntstatus.SVHDXUnitAttentionReservationsReleased:
		return attentionReleased
	case ntstatus.SVHDXUnitAttentionRegistrationsPreempted:
		return attentionRegistrationLost
	case ntstatus.SVHDXUnitAttentionOperatingDefinitionChanged:
		return attentionDefinition
	}
	return noAttention
}

// attentionOfSense is the same for sense data with the key UNIT ATTENTION. SPC-4 5.14
func attentionOfSense(se *scsi.Error) attention {
	switch se.Sense.Code() {
	case scsi.CodeCapacityChanged:
		return attentionCapacity
	case scsi.CodeReservationsPreempted:
		return attentionReservationLost
	case scsi.CodeReservationsReleased:
		return attentionReleased
	case scsi.CodeRegistrationsPreempted:
		return attentionRegistrationLost
	case scsi.CodeOperatingDefinitionChanged:
		return attentionDefinition
	}
	return attentionOther
}

// requestSense asks the unit which attention is waiting, and so takes it away.
func (d *Disk) requestSense(ctx context.Context) attention {
	buf := make([]byte, 18)
	n, err := d.Execute(ctx, new(scsi.RequestSense(false, uint8(len(buf)))).Bytes(), nil, buf)
	if err != nil {
		var se *scsi.Error
		if errors.As(err, &se) && se.Sense.Key == scsi.UnitAttention {
			return attentionOfSense(se)
		}
		return attentionOther
	}
	s, err := scsi.ParseSense(buf[:n])
	if err != nil || s.Key != scsi.UnitAttention {
		return attentionOther
	}
	return attentionOfSense(&scsi.Error{Status: scsi.CheckCondition, Sense: s})
}

// attend does what a unit attention calls for, and decides whether the command that met it is sent again.
func (d *Disk) attend(ctx context.Context, ua attention, cause error, attempt int, change bool) (again bool, err error) {
	if ua == attentionAny {
		ua = d.requestSense(ctx)
	}
	d.met.Or(1 << ua)
	if attempt >= maxAttentions {
		return false, cause
	}
	switch ua {
	case attentionRegistrationLost:
		d.log.Error("this host's registration was preempted: it is shut out of the disk until it registers again", "path", d.path)
		return false, &preemptedError{ua, cause}
	case attentionReservationLost:
		d.log.Warn("this host's reservation was preempted by another initiator", "path", d.path)
		if change {
			return false, &preemptedError{ua, cause}
		}
	case attentionCapacity:
		if err := d.refreshSize(ctx); err != nil {
			return false, errors.Join(cause, err)
		}
	case attentionDefinition:
		d.log.Warn("the format of the disk changed at the server", "path", d.path)
		if err := d.refreshSize(ctx); err != nil {
			return false, errors.Join(cause, err)
		}
	default:
		d.log.Info("unit attention; the command is repeated", "path", d.path, "attention", ua.String(), "err", cause)
	}
	return true, nil
}

// preemptedError is ErrPreempted with the command's own error inside.
type preemptedError struct {
	ua  attention
	err error
}

func (e *preemptedError) Error() string        { return fmt.Sprintf("%v: %v", ErrPreempted, e.ua) }
func (e *preemptedError) Unwrap() error        { return e.err }
func (e *preemptedError) Is(target error) bool { return target == ErrPreempted }

// refreshSize reads the geometry again. A disk whose sectors changed cannot go on.
func (d *Disk) refreshSize(ctx context.Context) error {
	info, err := d.InitialInfo(ctx)
	if err != nil {
		return err
	}
	if info.SectorSize != d.sectorSize || info.VirtualSize > maxDisk || info.VirtualSize%uint64(d.sectorSize) != 0 {
		return fmt.Errorf("%w: the disk changed to %d bytes in sectors of %d", ErrProtocol, info.VirtualSize, info.SectorSize)
	}
	d.resized(int64(info.VirtualSize))
	return nil
}

// resized takes over the size that the server has told.
func (d *Disk) resized(size int64) {
	if old := d.size.Swap(size); old != size {
		d.log.Info("the disk has another size", "path", d.path, "old", old, "new", size)
		if d.opts.OnResize != nil {
			d.opts.OnResize(size)
		}
	}
}
