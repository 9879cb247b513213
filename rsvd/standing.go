package rsvd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"vdbridge/scsi"
	"vdbridge/smb/tunnel"
	"vdbridge/smb/wire"
)

// ErrShutOut: our registration, or the reservation that we held, is gone, and it was not we who gave it up. Nothing may be written before we have registered again.
var ErrShutOut = errors.New("this initiator's registration is gone, so another host may have taken over: nothing is written until it registers again ('vdbridge pr register')")

// ErrOtherDisk: what the server has now under the name is not the disk that was opened.
var ErrOtherDisk = errors.New("the server has another disk under this name now")

// Standing is how we stand with the unit.
type Standing struct {
	Generation uint32 // of the registrations: it changes with each of them, and starts again with the unit
	Registered bool
	Key        uint64 // that we are registered with
	Holds      bool   // the reservation, alone or together with all registrants

	keys []uint64 // of everybody, where the unit does not tell whose they are
}

// standing is what a Disk remembers for the time after a loss.
type standing struct {
	mu       sync.Mutex
	last     *Standing // nil: not known
	shutOut  bool
	settled  bool      // while shut out: we were registered again before we noticed
	diskID   wire.GUID // zero: not known
	noStatus bool      // the unit has no READ FULL STATUS
}

// Standing asks the unit how we stand. What it says is remembered, and held against what it says after a loss: see Recover. An error that is ErrShutOut says
// that the unit has told us that we were pre-empted, since it was last asked.
func (d *Disk) Standing(ctx context.Context) (Standing, error) {
	s, err := d.askStanding(ctx)
	if err != nil {
		return s, err
	}
	st := &d.standing
	st.mu.Lock()
	defer st.mu.Unlock()
	preempted := d.tookAway()
	switch {
	case preempted && !s.Registered:
		st.shutOut = true
	case st.shutOut && s.Registered && (st.settled || st.last == nil || s.Generation != st.last.Generation):
		st.shutOut, st.settled = false, false // somebody has registered us again
	}
	if !st.shutOut || st.last == nil {
		st.last = &s
	}
	if st.shutOut {
		return s, ErrShutOut
	}
	return s, nil
}

// stands notes what a command of ours on the reservations has changed, before its caller hears of it: whoever has registered counts on it that Recover knows. Without Remember
// there is nothing to note.
func (d *Disk) stands(ctx context.Context, action scsi.PROutAction, list []byte) {
	st := &d.standing
	st.mu.Lock()
	if st.last == nil || len(list) < 16 {
		st.mu.Unlock()
		return
	}
	now := *st.last
	switch action {
	case scsi.PRRegister, scsi.PRRegisterAndIgnore:
		now.Key = binary.BigEndian.Uint64(list[8:])
		now.Registered = now.Key != 0
		now.Holds = now.Holds && now.Registered
	case scsi.PRReserve:
		now.Holds = true
	case scsi.PRRelease:
		now.Holds = false
	case scsi.PRClear:
		now.Registered, now.Key, now.Holds = false, 0, false
	}
	st.last = &now
	st.mu.Unlock()
	_, _ = d.Standing(ctx) // for the rest, such as what PREEMPT took; if it fails, the pulse asks again
}

// tookAway says whether a unit attention has told us that registration or reservation were pre-empted, and forgets it.
func (d *Disk) tookAway() bool {
	const bits = 1<<attentionRegistrationLost | 1<<attentionReservationLost
	return d.met.And(^uint32(bits))&bits != 0
}

// askStanding reads what there is about us. Unit attentions do not stop it: they are in d.met afterwards.
func (d *Disk) askStanding(ctx context.Context) (s Standing, err error) {
	d.standing.mu.Lock()
	noStatus := d.standing.noStatus
	d.standing.mu.Unlock()
	var r scsi.PRReservation
	if r, err = unattended(func() (scsi.PRReservation, error) { return d.ReadReservation(ctx) }); err != nil {
		if isUnknownCommand(err) {
			return s, nil // a unit without reservations
		}
		return s, err
	}
	if !noStatus {
		var full scsi.PRFullStatus
		full, err = unattended(func() (scsi.PRFullStatus, error) { return d.ReadFullStatus(ctx) })
		if err == nil {
			s.Generation = full.Generation
			for _, reg := range full.Registrations {
				id, _, err := scsi.ParseTransportID(reg.TransportID)
				if err != nil || id.Protocol != scsi.ProtocolSRP || id.Port != d.opts.InitiatorID {
					continue
				}
				s.Registered, s.Key = true, reg.Key
				s.Holds = r.Held && (reg.Holder || r.Type.AllRegistrants())
			}
			return s, nil
		}
		if !isUnknownCommand(err) {
			return s, err
		}
		d.standing.mu.Lock()
		d.standing.noStatus = true
		d.standing.mu.Unlock()
	}
	k, err := unattended(func() (scsi.PRKeys, error) { return d.ReadKeys(ctx) })
	if err != nil {
		return s, err
	}
	slices.Sort(k.Keys)
	s.Generation, s.keys = k.Generation, k.Keys
	return s, nil
}

// unattended repeats a command that was told of a pre-emption instead of being carried out.
func unattended[T any](command func() (T, error)) (v T, err error) {
	for range maxAttentions {
		if v, err = command(); !errors.Is(err, ErrPreempted) {
			break
		}
	}
	return v, err
}

// lostTo says whether a registration or reservation of before is missing from now.
func (before *Standing) lostTo(now *Standing) error {
	switch {
	case before.Registered && !now.Registered:
		return fmt.Errorf("%w (it had the key %#016x)", ErrShutOut, before.Key)
	case before.Holds && !now.Holds:
		return fmt.Errorf("%w (it held the reservation)", ErrShutOut)
	case len(before.keys) > 0 && (before.Generation != now.Generation || !slices.Equal(before.keys, now.keys)):
		return fmt.Errorf("%w (the registrations have changed, and this unit does not say whose they are)", ErrShutOut)
	}
	return nil
}

// Remember notes what Recover will hold the disk against: its identity, and how we stand.
func (d *Disk) Remember(ctx context.Context) error {
	if info, err := d.DiskInfo(ctx); err == nil {
		d.standing.mu.Lock()
		d.standing.diskID = info.VirtualDiskID
		d.standing.mu.Unlock()
	} else if !canDoWithout(err) && !isRefusal(err) {
		return err
	}
	if d.opts.InitiatorID == [16]byte{} {
		return nil
	}
	if _, err := d.Standing(ctx); err != nil && !errors.Is(err, ErrShutOut) {
		return err
	}
	return nil
}

// Recover looks through f, an open that takes the place of a lost one, whether the disk is still the one that was opened, and whether we still stand as we did. kept
// says that the server has kept the open; otherwise contexts are those of the reply to the CREATE. Errors: ErrOtherDisk; ErrShutOut, after which the
// disk may be read; others say that the question has no answer now. Requests on f carry nothing of the disk's. [MS-RSVD] 3.2.5.1, [MS-SMB2] 3.3.5.9.12
func (d *Disk) Recover(ctx context.Context, f File, contexts []wire.CreateContext, kept bool) error {
	p := &Disk{path: d.path, opts: d.opts, log: d.log, done: d.done, file: f, sectorSize: d.sectorSize, sectorBits: d.sectorBits, maxData: d.maxData}
	p.opts.OnResize = nil
	p.calls.New = d.calls.New
	p.bareIn.Store(d.bareIn.Load())
	size := int64(-1)
	if !kept {
		info, err := p.sameDisk(ctx, contexts, d)
		if err != nil {
			return err
		}
		size = int64(info.VirtualSize)
	} else if err := p.CheckConnection(ctx); err != nil {
		return err
	}
	if d.opts.InitiatorID != [16]byte{} {
		if err := d.stillStands(ctx, p); err != nil {
			return err
		}
	}
	if size >= 0 {
		d.resized(size)
	}
	return nil
}

// sameDisk checks a new open against the disk that there was.
func (d *Disk) sameDisk(ctx context.Context, contexts []wire.CreateContext, was *Disk) (tunnel.InitialInfoResponse, error) {
	for _, c := range contexts {
		if c.Name != wire.CreateSVHDX {
			continue
		}
		r, err := tunnel.ParseOpenContextResponse(c.Data)
		if err != nil {
			return tunnel.InitialInfoResponse{}, fmt.Errorf("CREATE: %w: %w", ErrProtocol, err)
		}
		if r.Version != was.version {
			return tunnel.InitialInfoResponse{}, fmt.Errorf("%w: it is open with version %d of MS-RSVD instead of %d", ErrOtherDisk, r.Version, was.version)
		}
	}
	info, err := d.InitialInfo(ctx)
	if err != nil {
		return info, err
	}
	if info.SectorSize != was.sectorSize || info.VirtualSize > maxDisk || info.VirtualSize%uint64(was.sectorSize) != 0 {
		return info, fmt.Errorf("%w: it has %d bytes in sectors of %d, where there were sectors of %d", ErrOtherDisk, info.VirtualSize, info.SectorSize, was.sectorSize)
	}
	was.standing.mu.Lock()
	id := was.standing.diskID
	was.standing.mu.Unlock()
	if id == (wire.GUID{}) {
		return info, nil
	}
	di, err := d.DiskInfo(ctx)
	if err != nil {
		return info, err
	}
	if di.VirtualDiskID != id {
		return info, fmt.Errorf("%w: its identifier is %x instead of %x", ErrOtherDisk, di.VirtualDiskID[:], id[:])
	}
	return info, nil
}

// stillStands asks through p, which stands on the new open, how we stand, and holds it against what is remembered.
func (d *Disk) stillStands(ctx context.Context, p *Disk) error {
	now, err := p.askStanding(ctx)
	if err != nil {
		return err
	}
	st := &d.standing
	st.mu.Lock()
	defer st.mu.Unlock()
	preempted := p.tookAway() || d.tookAway()
	before := st.last
	st.last = &now
	var lost error
	switch {
	case st.shutOut:
		lost = ErrShutOut
	case preempted:
		lost = fmt.Errorf("%w (the unit says so)", ErrShutOut)
	case before != nil:
		lost = before.lostTo(&now)
	}
	st.shutOut, st.settled = lost != nil, preempted && now.Registered
	return lost
}
