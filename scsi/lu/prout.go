package lu

import (
	"context"

	"vdbridge/scsi"
)

// relativeTargetPort is the only port of the unit. SPC-4 7.8.5.5
const relativeTargetPort = 1

var conflictResult = Result{Status: scsi.ReservationConflict}

func paramField(at int) Result {
	return fail(scsi.NewSense(scsi.IllegalRequest, scsi.CodeInvalidFieldInParams).WithParamField(at))
}

// reserveOut is PERSISTENT RESERVE OUT. SPC-4 6.16, 5.13.5 to 5.13.11. Unit attentions have been dealt with.
func (n *Nexus) reserveOut(ctx context.Context, cdb, out []byte) Result {
	c, err := scsi.ParsePROutCDB(cdb)
	if err != nil {
		return malformedCDB()
	}
	if c.Action > scsi.PRRegisterAndMove {
		return badCDBBit(1, 4)
	}
	if uint64(len(out)) < uint64(c.Length) || c.Length < scsi.PROutListSize {
		return fail(scsi.NewSense(scsi.IllegalRequest, scsi.CodeParameterListLength))
	}
	out = out[:c.Length]
	if n.readOnly && !n.lu.disk.ReadOnly() {
		r, _ := n.writable()
		return r
	}
	select {
	case n.lu.change <- struct{}{}:
	case <-ctx.Done():
		return cancelled(context.Cause(ctx))
	}
	defer func() { <-n.lu.change }()
	if n.lu.pr.wasDone(ctx, n.i.id) {
		n.lu.log.Info("reservation command that was executed before not executed again", "action", c.Action.String(), "initiator", n.i.id)
		return Result{}
	}
	if c.Action == scsi.PRRegisterAndMove {
		return n.registerAndMove(ctx, out)
	}
	// A list without SPEC_I_PT has exactly 24 bytes; SPEC_I_PT is for REGISTER only. SPC-4 6.16.3
	if specify := out[20]&8 != 0; specify && c.Action != scsi.PRRegister {
		return paramField(20)
	} else if !specify && c.Length != scsi.PROutListSize {
		return fail(scsi.NewSense(scsi.IllegalRequest, scsi.CodeParameterListLength))
	}
	list, err := scsi.ParsePROutList(out)
	if err != nil {
		return paramField(24)
	}
	switch c.Action {
	case scsi.PRRegister, scsi.PRRegisterAndIgnore:
		return n.register(ctx, c.Action, &list)
	}
	// The others are for registrants, with their key. SPC-4 table 66, 5.13.5
	st := n.lu.pr
	own := st.find(n.i.id)
	if own < 0 || st.regs[own].key != list.Key {
		return conflictResult
	}
	change := st.begin(n.i.id)
	switch c.Action {
	case scsi.PRReserve:
		if r, ok := checkType(c); !ok {
			return r
		}
		if st.held {
			if st.isHolder(n.i.id) && st.typ == c.Type {
				return Result{}
			}
			return conflictResult
		}
		change.next.held, change.next.typ, change.next.holder = true, c.Type, n.i.id
	case scsi.PRRelease:
		if !st.held || !st.isHolder(n.i.id) {
			return Result{}
		}
		if c.Scope != 0 || c.Type != st.typ {
			return fail(scsi.NewSense(scsi.IllegalRequest, scsi.CodeInvalidRelease))
		}
		change.endReservation()
	case scsi.PRClear:
		change.next.generation++
		change.tell(scsi.CodeReservationsPreempted)
		change.next.regs, change.next.held, change.next.typ, change.next.holder = nil, false, 0, InitiatorID{}
	case scsi.PRPreempt, scsi.PRPreemptAndAbort:
		if r, ok := preempt(change, c, list.ActionKey); !ok {
			return r
		}
		if c.Action == scsi.PRPreempt {
			change.aborts = nil
		}
	}
	return n.finish(ctx, c.Action, change)
}

func checkType(c scsi.PROutCDB) (Result, bool) {
	if c.Scope != 0 {
		return badCDBBit(2, 7), false
	}
	if !c.Type.Valid() {
		return badCDBBit(2, 3), false
	}
	return Result{}, true
}

// register is REGISTER and REGISTER AND IGNORE EXISTING KEY. SPC-4 5.13.7
func (n *Nexus) register(ctx context.Context, action scsi.PROutAction, list *scsi.PROutList) Result {
	st := n.lu.pr
	own := st.find(n.i.id)
	if action == scsi.PRRegister && (own < 0 && list.Key != 0 || own >= 0 && st.regs[own].key != list.Key) {
		return conflictResult
	}
	if list.PersistPower && n.lu.opt.State == nil {
		return paramField(20)
	}
	if list.TransportIDs != nil && own >= 0 {
		return paramField(20) // further initiators only with the first registration. SPC-4 6.16.3
	}
	if own < 0 && list.ActionKey == 0 {
		return Result{} // nothing to remove
	}
	c := st.begin(n.i.id)
	c.next.generation++
	c.next.aptpl = list.PersistPower
	ok := true
	if list.ActionKey == 0 {
		c.unregister(n.i.id)
	} else {
		ok = c.register(n.i.id, list.ActionKey, list.AllTargetPorts)
	}
	for i := range list.TransportIDs {
		id, known := n.lu.known(&list.TransportIDs[i])
		if !known || id == n.i.id {
			return paramField(28)
		}
		// The key of an initiator that is registered already stays: registering is not a way around its key.
		if c.next.find(id) < 0 {
			ok = ok && c.register(id, list.ActionKey, list.AllTargetPorts)
		}
	}
	if !ok {
		return fail(scsi.NewSense(scsi.IllegalRequest, scsi.CodeInsufficientRegistrations))
	}
	return n.finish(ctx, action, c)
}

// known finds the initiator that a transport ID names, among those with a nexus or a registration.
func (l *LU) known(t *scsi.TransportID) (InitiatorID, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.initiators[InitiatorID(t.Port)]
	return InitiatorID(t.Port), ok && t.Protocol == scsi.ProtocolSRP
}

// preempt is PREEMPT and PREEMPT AND ABORT. SPC-4 5.13.11.2
func preempt(c *prChange, cdb scsi.PROutCDB, key uint64) (Result, bool) {
	st := c.old
	allRegistrants := st.held && st.typ.AllRegistrants()
	takes := st.held && (allRegistrants && key == 0 || !allRegistrants && key != 0 && key == st.holderKey())
	if key == 0 && !allRegistrants {
		return paramField(8), false
	}
	c.next.generation++
	if !takes {
		if c.remove(func(r registration) bool { return r.key == key }) == 0 {
			return conflictResult, false
		}
		// Only the last registrant of an "all registrants" reservation can take it along: itself.
		if allRegistrants && len(c.next.regs) == 0 {
			c.endReservation()
		}
		return Result{}, true
	}
	if r, ok := checkType(cdb); !ok {
		return r, false
	}
	c.remove(func(r registration) bool { return r.id != c.by && (key == 0 || r.key == key) })
	if st.typ != cdb.Type {
		for _, r := range c.next.regs {
			if r.id != c.by {
				c.attn = append(c.attn, attention{r.id, scsi.CodeReservationsReleased})
			}
		}
	}
	c.next.held, c.next.typ, c.next.holder = true, cdb.Type, c.by
	return Result{}, true
}

// registerAndMove is REGISTER AND MOVE. SPC-4 5.13.8
func (n *Nexus) registerAndMove(ctx context.Context, out []byte) Result {
	st := n.lu.pr
	own := st.find(n.i.id)
	list, err := scsi.ParsePRMoveList(out)
	if own < 0 || err == nil && st.regs[own].key != list.Key {
		return conflictResult
	}
	if err != nil {
		return fail(scsi.NewSense(scsi.IllegalRequest, scsi.CodeParameterListLength))
	}
	if !st.isHolder(n.i.id) || st.typ.AllRegistrants() {
		return conflictResult
	}
	to, known := n.lu.known(&list.TransportID)
	switch {
	case list.ActionKey == 0:
		return paramField(8)
	case list.PersistPower && n.lu.opt.State == nil:
		return paramField(17)
	case list.TargetPort != relativeTargetPort:
		return paramField(18)
	case !known || to == n.i.id:
		return paramField(24)
	}
	c := st.begin(n.i.id)
	c.next.generation++
	c.next.aptpl = list.PersistPower
	if !c.register(to, list.ActionKey, st.regs[own].allPorts) {
		return fail(scsi.NewSense(scsi.IllegalRequest, scsi.CodeInsufficientRegistrations))
	}
	c.next.holder = to
	if list.Unregister {
		c.unregister(n.i.id)
	}
	return n.finish(ctx, scsi.PRRegisterAndMove, c)
}

// finish applies a change and says so in the log.
func (n *Nexus) finish(ctx context.Context, action scsi.PROutAction, c *prChange) Result {
	c.remember(ctx)
	if err := n.lu.apply(ctx, c); err != nil {
		n.lu.log.Error("change of reservations failed", "action", action.String(), "initiator", n.i.id, "err", err)
		if ctx.Err() != nil {
			return cancelled(err)
		}
		r := fail(scsi.NewSense(scsi.HardwareError, scsi.CodeInternalTargetFailure))
		r.Err = err
		return r
	}
	n.lu.log.Info("reservations changed", "action", action.String(), "initiator", n.i.id, "registrations", len(c.next.regs),
		"held", c.next.held, "type", uint8(c.next.typ), "holder", c.next.holder)
	return Result{}
}

// reserveIn is PERSISTENT RESERVE IN. SPC-4 6.15
func (n *Nexus) reserveIn(cdb, in []byte) Result {
	c, err := scsi.ParsePRInCDB(cdb)
	if err != nil {
		return malformedCDB()
	}
	n.lu.mu.Lock()
	st := n.lu.shown
	n.lu.mu.Unlock()
	var b []byte
	switch c.Action {
	case scsi.PRReadKeys:
		k := scsi.PRKeys{Generation: st.generation}
		for _, r := range st.regs {
			k.Keys = append(k.Keys, r.key)
		}
		b = k.Append(nil)
	case scsi.PRReadReservation:
		b = (&scsi.PRReservation{Generation: st.generation, Held: st.held, Key: st.holderKey(), Type: st.typ}).Append(nil)
	case scsi.PRReportCapabilities:
		b = (&scsi.PRCapabilities{SpecifyInitiators: true, AllTargetPorts: true, PersistThroughPower: n.lu.opt.State != nil,
			PersistActive: st.aptpl, TypesValid: true, Types: []scsi.PRType{scsi.WriteExclusive, scsi.ExclusiveAccess,
				scsi.WriteExclusiveRegistrantsOnly, scsi.ExclusiveAccessRegistrantsOnly, scsi.WriteExclusiveAllRegistrants,
				scsi.ExclusiveAccessAllRegistrants}}).Append(nil)
	case scsi.PRReadFullStatus:
		f := scsi.PRFullStatus{Generation: st.generation}
		for _, r := range st.regs {
			id := scsi.SRPTransportID(r.id)
			f.Registrations = append(f.Registrations, scsi.PRRegistration{Key: r.key, AllTargetPorts: r.allPorts, Holder: st.isHolder(r.id),
				Type: st.typ, TargetPort: relativeTargetPort, TransportID: id.Append(nil)})
		}
		b = f.Append(nil)
	default:
		return badCDBBit(1, 4)
	}
	return give(in, b, uint64(c.Alloc))
}
