package bridge

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"vdbridge/rsvd"
	"vdbridge/scsi"
)

// Fencing by persistent reservations: every node of a cluster registers a key of its own, one of them holds a reservation under which only the registered
// may write, and whoever fences a node takes its registration away by PREEMPT AND ABORT.

// fenceType is the reservation that fencing makes. Nodes that are not registered may still read, which lets them boot and find out.
const fenceType = scsi.WriteExclusiveRegistrantsOnly

// FenceKey is the key of a node, which follows from its name, so that every node knows those of all others. It is never 0.
func FenceKey(node string) uint64 {
	sum := sha256.Sum256([]byte("vdbridge fence key of " + node))
	return binary.BigEndian.Uint64(sum[:]) | 1
}

// FenceState is what a disk says about the nodes of a cluster.
type FenceState struct {
	Own      uint64 // our initiator's key, 0: it is not registered
	Keys     map[uint64]bool
	foreign  map[uint64]bool // keys of other initiators
	held     bool
	heldType scsi.PRType
}

// shutsOut says whether initiators without a registration cannot write.
func (s *FenceState) shutsOut() bool {
	return s.held && s.heldType.Registrants()
}

// ReadFenceState asks the disk.
func ReadFenceState(ctx context.Context, d *rsvd.Disk) (*FenceState, error) {
	full, err := d.ReadFullStatus(ctx)
	if err != nil {
		return nil, err
	}
	r, err := d.ReadReservation(ctx)
	if err != nil {
		return nil, err
	}
	s := &FenceState{Keys: map[uint64]bool{}, foreign: map[uint64]bool{}, held: r.Held, heldType: r.Type}
	for _, reg := range full.Registrations {
		s.Keys[reg.Key] = true
		id, _, err := scsi.ParseTransportID(reg.TransportID)
		if err == nil && id.Protocol == scsi.ProtocolSRP && id.Port == d.InitiatorID() {
			s.Own = reg.Key
		} else {
			s.foreign[reg.Key] = true
		}
	}
	return s, nil
}

// FenceOn registers key for our initiator and sees to it that only registered initiators can write.
func FenceOn(ctx context.Context, d *rsvd.Disk, key uint64, aptpl bool) error {
	if key == 0 {
		return Usagef("the key 0 means no registration; choose another")
	}
	s, err := ReadFenceState(ctx, d)
	if err != nil {
		return err
	}
	if s.foreign[key] {
		// The node under another initiator, such as one of before it was installed anew. To take its registration away we need a key that is not the same.
		passing := max(key+1, 2) // never 0
		if err := d.RegisterIgnore(ctx, passing, aptpl); err != nil {
			return err
		}
		if err := d.PreemptAbort(ctx, passing, key, s.preemptType()); err != nil {
			return err
		}
	}
	if s.Own != key || s.foreign[key] {
		if err := d.RegisterIgnore(ctx, key, aptpl); err != nil {
			return err
		}
	}
	if s, err = reserveForFencing(ctx, d, key); err != nil {
		return err
	}
	if s.Own != key {
		return fmt.Errorf("the registration of key %#x did not last: the disk says %#x", key, s.Own)
	}
	return nil
}

// preemptType is the type to preempt with: that of the reservation, which changes hands as it is.
func (s *FenceState) preemptType() scsi.PRType {
	if s.held {
		return s.heldType
	}
	return fenceType
}

// reserveForFencing makes the reservation unless there is one, and returns the state with one that shuts others out.
func reserveForFencing(ctx context.Context, d *rsvd.Disk, own uint64) (*FenceState, error) {
	for attempt := 0; ; attempt++ {
		s, err := ReadFenceState(ctx, d)
		switch {
		case err != nil:
			return nil, err
		case s.shutsOut():
			return s, nil
		case s.held:
			return nil, &Error{ClassConflict, fmt.Sprintf("the disk has a reservation of another kind (%v), under which registered nodes cannot all write: release it first", s.heldType), rsvd.ErrReservationConflict}
		}
		// Another node may be faster, and then it is its reservation.
		if err := d.Reserve(ctx, own, fenceType); err != nil && (attempt > 0 || !errors.Is(err, rsvd.ErrReservationConflict)) {
			return nil, err
		}
	}
}

// FenceOff takes the registration with the key victim away, and returns nil only if the disk says afterwards that it is gone, that only registered
// initiators can write, and that we still are one. What the victim had under way has ended then.
func FenceOff(ctx context.Context, d *rsvd.Disk, victim uint64) error {
	s, err := ReadFenceState(ctx, d)
	switch {
	case err != nil:
		return err
	case s.Own == 0:
		return &Error{ClassConflict, "this node is not registered, so it cannot fence others: run the action on for it first, while the disk is attached", rsvd.ErrReservationConflict}
	case s.Own == victim:
		return Usagef("the key %#x is that of this node, which cannot fence itself", victim)
	}
	if s, err = reserveForFencing(ctx, d, s.Own); err != nil {
		return err
	}
	own := s.Own
	if s.Keys[victim] {
		if err := d.PreemptAbort(ctx, own, victim, s.preemptType()); err != nil {
			return err
		}
	}
	if s, err = ReadFenceState(ctx, d); err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	switch {
	case s.Keys[victim]:
		return fmt.Errorf("verify: the key %#x is still registered", victim)
	case !s.shutsOut():
		return errors.New("verify: there is no reservation, so the node could write without a registration")
	case s.Own != own:
		return errors.New("verify: this node has been fenced itself")
	}
	return nil
}
