package rsvd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"vdbridge/scsi"
)

// ErrUndecided: the connection was lost while a command was under way that must not be sent twice, and what the unit says now does not tell whether it was carried out. It
// will not be carried out any more. The caller has to look, and decide.
var ErrUndecided = errors.New("the connection was lost meanwhile, and whether this was carried out cannot be told: look at the state and decide")

// interruptions is how often in a row one command may be interrupted before it is given up.
const interruptions = 16

// wasReserved finds out whether an interrupted PERSISTENT RESERVE OUT was carried out. It is called when it cannot be carried out any more. False without an error
// says that it was not, or that to send it again has the same effect. SPC-4 5.13, 6.16
func (d *Disk) wasReserved(ctx context.Context, action scsi.PROutAction, t scsi.PRType, list []byte) (bool, error) {
	full, err := unattended(func() (scsi.PRFullStatus, error) { return d.ReadFullStatus(ctx) })
	if err != nil {
		return false, fmt.Errorf("%w (%w)", ErrUndecided, err)
	}
	r, err := unattended(func() (scsi.PRReservation, error) { return d.ReadReservation(ctx) })
	if err != nil {
		return false, fmt.Errorf("%w (%w)", ErrUndecided, err)
	}
	now := reservations{held: r.Held, kind: r.Type, others: map[uint64]bool{}}
	for _, reg := range full.Registrations {
		id, _, err := scsi.ParseTransportID(reg.TransportID)
		if err == nil && id.Protocol == scsi.ProtocolSRP && id.Port == d.opts.InitiatorID {
			now.registered, now.key, now.ours = true, reg.Key, r.Held && reg.Holder
			continue
		}
		now.others[reg.Key] = true
	}
	if len(list) < 16 {
		return false, ErrUndecided
	}
	return now.wasDone(action, t, binary.BigEndian.Uint64(list), binary.BigEndian.Uint64(list[8:]))
}

// reservations is what there is after an interruption.
type reservations struct {
	registered bool
	key        uint64          // ours
	others     map[uint64]bool // keys of others
	held, ours bool            // the reservation; it is ours alone
	kind       scsi.PRType
}

// wasDone decides. key and actionKey are those of the command.
func (n *reservations) wasDone(action scsi.PROutAction, t scsi.PRType, key, actionKey uint64) (bool, error) {
	switch action {
	case scsi.PRRegister, scsi.PRRegisterAndIgnore:
		if n.registered == (actionKey != 0) && n.key == actionKey {
			return true, nil
		}
		if n.registered && (action == scsi.PRRegisterAndIgnore || n.key == key) {
			return false, nil
		}
		// No registration: it was never made, or made and taken away, and to come back after that would undo a fencing.
	case scsi.PRReserve:
		return false, nil // who holds it may reserve it again, others meet the same conflict as before. SPC-4 5.13.9
	case scsi.PRRelease:
		switch {
		case !n.registered: // it may have been refused for that
		case !n.held, n.kind != t, !n.ours && !t.AllRegistrants():
			return true, nil // what we had is released
		case n.ours && !t.AllRegistrants():
			return false, nil
		}
		// All registrants hold it: it may be another one, made since.
	case scsi.PRClear:
		switch {
		case !n.registered && len(n.others) == 0 && !n.held:
			return true, nil
		case n.registered:
			return false, nil // it would have taken our own registration away
		}
	case scsi.PRPreempt, scsi.PRPreemptAndAbort:
		switch {
		case !n.registered || n.key != key || actionKey == 0 || actionKey == key:
		case n.others[actionKey]:
			return false, nil
		case n.held && n.kind == t && (n.ours || t.AllRegistrants()):
			return true, nil
		}
		// The victim is gone, with or without us. Whoever preempts believes afterwards that the reservation is his, so this must not be called a success.
	}
	// REGISTER AND MOVE leaves nothing that only it could have left.
	return false, ErrUndecided
}
