package lu

import (
	"context"
	"fmt"
	"testing"

	"vdbridge/scsi"
	"vdbridge/scsi/lu/lutest"
)

// What the tables of SPC-4 and SBC-3 say about a command, read independently of the code: the letter for the holder is always "allowed".
// Columns: stranger under Write Exclusive types; stranger under Exclusive Access types; registrant under types without "registrants", WE and EA.
// A registrant under the four types with "registrants" is always allowed.
var conflictTable = []struct {
	name           string
	cdb            scsi.CDB
	out            []byte
	underWE, under bool // conflict for somebody who is no holder (or no registrant, where registrants may): Write Exclusive, Exclusive Access
}{
	{"TEST UNIT READY", scsi.TestUnitReady(), nil, false, false},
	{"REQUEST SENSE", scsi.RequestSense(false, 252), nil, false, false},
	{"INQUIRY", scsi.Inquiry(96), nil, false, false},
	{"REPORT LUNS", scsi.ReportLUNs(0, 64), nil, false, false},
	{"READ CAPACITY(10)", scsi.ReadCapacity10(), nil, false, false},
	{"READ CAPACITY(16)", scsi.ReadCapacity16(32), nil, false, false},
	{"PR IN READ KEYS", scsi.PersistentReserveIn(scsi.PRReadKeys, 512), nil, false, false},
	{"PR IN READ RESERVATION", scsi.PersistentReserveIn(scsi.PRReadReservation, 512), nil, false, false},
	{"PR IN REPORT CAPABILITIES", scsi.PersistentReserveIn(scsi.PRReportCapabilities, 512), nil, false, false},
	{"PR IN READ FULL STATUS", scsi.PersistentReserveIn(scsi.PRReadFullStatus, 512), nil, false, false},
	{"START STOP UNIT start", scsi.StartStopUnit(false, true, false), nil, false, false},
	{"PREVENT ALLOW allow", scsi.PreventAllow(false), nil, false, false},
	{"MODE SENSE(6)", scsi.ModeSense6(false, 0x3F, 0, 64), nil, false, true},
	{"MODE SENSE(10)", scsi.ModeSense10(false, false, 0x3F, 0, 64), nil, false, true},
	{"REPORT SUPPORTED OPERATION CODES", scsi.ReportOpCodes(0, false, 0, 0, 64), nil, false, true},
	{"READ(6)", scsi.Read6(0, 1), nil, false, true},
	{"READ(10)", scsi.Read10(0, 1, false), nil, false, true},
	{"READ(12)", scsi.Read12(0, 1, false), nil, false, true},
	{"READ(16)", scsi.Read16(0, 1, false), nil, false, true},
	{"VERIFY(10)", scsi.Verify10(0, 1, 0), nil, false, true},
	{"VERIFY(12)", scsi.Verify12(0, 1, 0), nil, false, true},
	{"VERIFY(16)", scsi.Verify16(0, 1, 0), nil, false, true},
	{"GET LBA STATUS", scsi.GetLBAStatus(0, 64), nil, false, true},
	{"WRITE(6)", scsi.Write6(0, 1), make([]byte, 512), true, true},
	{"WRITE(10)", scsi.Write10(0, 1, false), make([]byte, 512), true, true},
	{"WRITE(12)", scsi.Write12(0, 1, false), make([]byte, 512), true, true},
	{"WRITE(16)", scsi.Write16(0, 1, false), make([]byte, 512), true, true},
	{"COMPARE AND WRITE", scsi.CompareAndWrite(0, 1, false), make([]byte, 1024), true, true},
	{"WRITE SAME(10)", scsi.WriteSame10(0, 1, false), make([]byte, 512), true, true},
	{"WRITE SAME(16)", scsi.WriteSame16(0, 1, true, true), nil, true, true},
	{"UNMAP", scsi.Unmap(24), scsi.AppendUnmapList(nil, scsi.UnmapRange{LBA: 5, Blocks: 1}), true, true},
	{"SYNCHRONIZE CACHE(10)", scsi.SynchronizeCache10(0, 0, false), nil, true, true},
	{"SYNCHRONIZE CACHE(16)", scsi.SynchronizeCache16(0, 0, false), nil, true, true},
	{"START STOP UNIT stop", scsi.StartStopUnit(false, false, false), nil, true, true},
	{"PREVENT ALLOW prevent", scsi.PreventAllow(true), nil, true, true},
}

var allTypes = []struct {
	typ         scsi.PRType
	readers     bool // everybody may read
	registrants bool // registrants may do everything
	all         bool // every registrant holds it
}{
	{scsi.WriteExclusive, true, false, false},
	{scsi.ExclusiveAccess, false, false, false},
	{scsi.WriteExclusiveRegistrantsOnly, true, true, false},
	{scsi.ExclusiveAccessRegistrantsOnly, false, true, false},
	{scsi.WriteExclusiveAllRegistrants, true, true, true},
	{scsi.ExclusiveAccessAllRegistrants, false, true, true},
}

// reserved makes a unit with a holder A (key 0xA), a registrant B (0xB) and a stranger C.
func reserved(t testing.TB, typ scsi.PRType) (l *LU, a, b, c *Nexus) {
	l = newLU(t, lutest.New(1<<20), Options{State: &memState{}})
	a, b, c = l.Attach(idA, false), l.Attach(idB, false), l.Attach(idC, false)
	reserveOK(t, a, scsi.PRRegister, 0, 0, 0xA)
	reserveOK(t, b, scsi.PRRegister, 0, 0, 0xB)
	reserveOK(t, a, scsi.PRReserve, typ, 0xA, 0)
	return l, a, b, c
}

// memState keeps reservations in memory.
type memState struct {
	s   *State
	err error
}

func (m *memState) Load(context.Context) (*State, error) { return m.s, m.err }
func (m *memState) Save(_ context.Context, s *State) error {
	if m.err == nil {
		m.s = s
	}
	return m.err
}

func TestConflictMatrix(t *testing.T) {
	seen := map[scsi.OpCode]bool{scsi.OpPersistentReserveOut: true}
	for _, ty := range allTypes {
		_, a, b, c := reserved(t, ty.typ)
		for _, cmd := range conflictTable {
			seen[cmd.cdb.Op()] = true
			for _, role := range []struct {
				name  string
				n     *Nexus
				bound bool // by the reservation
			}{{"holder", a, false}, {"registrant", b, !ty.registrants}, {"stranger", c, true}} {
				want := scsi.Good
				if role.bound && (ty.readers && cmd.underWE || !ty.readers && cmd.under) {
					want = scsi.ReservationConflict
				}
				if r, _ := run(role.n, cmd.cdb, cmd.out...); r.Status != want {
					t.Errorf("%v, %s: %s is %v %v, want %v", ty.typ, role.name, cmd.name, r.Status, r.Sense, want)
				}
			}
		}
		for _, role := range []struct {
			n     *Nexus
			bound bool
		}{{a, false}, {b, !ty.registrants}, {c, true}} {
			ctx, p := t.Context(), make([]byte, 512)
			for what, got := range map[string]struct {
				err      error
				conflict bool
			}{
				"Read":  {role.n.Read(ctx, p, 0), role.bound && !ty.readers},
				"Write": {role.n.Write(ctx, p, 0, false), role.bound},
				"Flush": {role.n.Flush(ctx), role.bound},
			} {
				if e, ok := got.err.(*scsi.Error); (ok && e.Status == scsi.ReservationConflict) != got.conflict {
					t.Errorf("%v: plain %s of %v: %v, conflict wanted: %v", ty.typ, what, role.n.i.id, got.err, got.conflict)
				}
			}
		}
	}
	for i := range commands {
		if !seen[commands[i].op] {
			t.Errorf("%v is not in the table", commands[i].op)
		}
	}
	// Without a reservation nothing conflicts, registered or not.
	l := newLU(t, lutest.New(1<<20), Options{})
	a, c := l.Attach(idA, false), l.Attach(idC, false)
	reserveOK(t, a, scsi.PRRegister, 0, 0, 1)
	for _, cmd := range conflictTable {
		mustGood(t, a, cmd.cdb, cmd.out...)
		mustGood(t, c, cmd.cdb, cmd.out...)
	}
}

// Every action of PERSISTENT RESERVE OUT, by every role, under every type: status by the standard's tables and text.
func TestReserveOutMatrix(t *testing.T) {
	roles := []string{"holder", "registrant", "stranger"}
	keys := []uint64{0xA, 0xB, 0}
	const (
		ok   = scsi.Good
		conf = scsi.ReservationConflict
		chk  = scsi.CheckCondition
	)
	for _, ty := range allTypes {
		// want[action][role]; the registrant is a holder, too, of the types of all registrants
		regReserve, regRelease := conf, ok
		if ty.all {
			regReserve = ok
		}
		for _, tt := range []struct {
			name      string
			action    scsi.PROutAction
			actionKey uint64
			want      [3]scsi.Status
		}{
			{"register anew", scsi.PRRegister, 0x77, [3]scsi.Status{ok, ok, ok}},
			{"unregister", scsi.PRRegister, 0, [3]scsi.Status{ok, ok, ok}},
			{"register and ignore", scsi.PRRegisterAndIgnore, 0x77, [3]scsi.Status{ok, ok, ok}},
			{"reserve", scsi.PRReserve, 0, [3]scsi.Status{ok, regReserve, conf}},
			{"release", scsi.PRRelease, 0, [3]scsi.Status{ok, regRelease, conf}},
			{"clear", scsi.PRClear, 0, [3]scsi.Status{ok, ok, conf}},
			{"preempt the holder", scsi.PRPreempt, 0xA, [3]scsi.Status{ok, ok, conf}},
			{"preempt and abort the registrant", scsi.PRPreemptAndAbort, 0xB, [3]scsi.Status{ok, ok, conf}},
			{"preempt nobody", scsi.PRPreempt, 0xDEAD, [3]scsi.Status{conf, conf, conf}},
			{"preempt without a key", scsi.PRPreempt, 0, map[bool][3]scsi.Status{true: {ok, ok, conf}, false: {chk, chk, conf}}[ty.all]},
		} {
			for i, role := range roles {
				l, a, b, c := reserved(t, ty.typ)
				n := []*Nexus{a, b, c}[i]
				gen := l.pr.generation
				cdb, list := prOut(tt.action, ty.typ, keys[i], tt.actionKey)
				if r, _ := run(n, cdb, list...); r.Status != tt.want[i] {
					t.Errorf("%v: %s by the %s: %v %v, want %v", ty.typ, tt.name, role, r.Status, r.Sense, tt.want[i])
				}
				if bad := l.pr.generation != gen && (tt.want[i] != ok || tt.action == scsi.PRReserve || tt.action == scsi.PRRelease); bad {
					t.Errorf("%v: %s by the %s changes the generation", ty.typ, tt.name, role)
				}
				// With a wrong key all but REGISTER AND IGNORE conflict.
				if tt.action != scsi.PRRegisterAndIgnore {
					_, a, b, c = reserved(t, ty.typ)
					cdb, list = prOut(tt.action, ty.typ, 0xBAD, tt.actionKey)
					mustFail(t, []*Nexus{a, b, c}[i], conf, 0, 0, cdb, list...)
				}
			}
		}
	}
}

func TestReserveOutErrors(t *testing.T) {
	l, a, b, c := reserved(t, scsi.WriteExclusive)
	bad := func(n *Nexus, code scsi.Code, cdb scsi.CDB, out []byte) {
		t.Helper()
		mustFail(t, n, scsi.CheckCondition, scsi.IllegalRequest, code, cdb, out...)
	}
	cdb, list := prOut(scsi.PRReserve, 2, 0xA, 0)
	bad(a, scsi.CodeInvalidFieldInCDB, cdb, list)
	cdb, list = prOut(scsi.PRReserve, scsi.WriteExclusive, 0xA, 0)
	cdb[2] |= 0x10 // scope
	bad(a, scsi.CodeInvalidFieldInCDB, cdb, list)
	cdb, list = prOut(scsi.PRRelease, scsi.ExclusiveAccess, 0xA, 0)
	bad(a, scsi.CodeInvalidRelease, cdb, list)
	cdb, list = prOut(scsi.PRReserve, scsi.ExclusiveAccess, 0xA, 0) // another type than is held
	mustFail(t, a, scsi.ReservationConflict, 0, 0, cdb, list...)
	bad(a, scsi.CodeInvalidFieldInCDB, scsi.PersistentReserveOut(8, 0, 24), make([]byte, 24))
	bad(a, scsi.CodeInvalidFieldInCDB, scsi.PersistentReserveIn(4, 24), nil)
	for _, n := range []int{0, 23, 25} {
		bad(a, scsi.CodeParameterListLength, scsi.PersistentReserveOut(scsi.PRReserve, 1, uint32(n)), make([]byte, n))
	}
	bad(a, scsi.CodeParameterListLength, scsi.PersistentReserveOut(scsi.PRReserve, 1, 24), make([]byte, 20))
	bad(a, scsi.CodeParameterListLength, scsi.PersistentReserveOut(scsi.PRReserve, 1, 0xFFFFFFFF), make([]byte, 24))
	withIDs := func(ids ...scsi.TransportID) []byte {
		return (&scsi.PROutList{ActionKey: 5, TransportIDs: append([]scsi.TransportID{}, ids...)}).Append(nil)
	}
	p := withIDs(scsi.SRPTransportID(idB))
	bad(c, scsi.CodeInvalidFieldInParams, scsi.PersistentReserveOut(scsi.PRRegisterAndIgnore, 0, uint32(len(p))), p)
	p = withIDs(scsi.SRPTransportID(InitiatorID{99}))
	bad(c, scsi.CodeInvalidFieldInParams, scsi.PersistentReserveOut(scsi.PRRegister, 0, uint32(len(p))), p)
	p = withIDs(scsi.TransportID{Protocol: scsi.ProtocolSAS})
	bad(c, scsi.CodeInvalidFieldInParams, scsi.PersistentReserveOut(scsi.PRRegister, 0, uint32(len(p))), p)
	p[24+3]++
	bad(c, scsi.CodeInvalidFieldInParams, scsi.PersistentReserveOut(scsi.PRRegister, 0, uint32(len(p))), p)
	d := l.Attach(InitiatorID{4}, false)
	p = withIDs(scsi.SRPTransportID(d.Initiator()))
	mustGood(t, c, scsi.PersistentReserveOut(scsi.PRRegister, 0, uint32(len(p))), p...)
	if i := l.pr.find(d.Initiator()); i < 0 || l.pr.regs[i].key != 5 || len(l.pr.regs) != 4 {
		t.Error("SPEC_I_PT did not register")
	}
	none := newLU(t, lutest.New(1<<20), Options{}).Attach(idA, false)
	bad(none, scsi.CodeInvalidFieldInParams, scsi.PersistentReserveOut(scsi.PRRegister, 0, 24), (&scsi.PROutList{ActionKey: 1, PersistPower: true}).Append(nil))

	move := func(n *Nexus, key, to uint64, id InitiatorID, port uint16, unreg bool) (scsi.CDB, []byte) {
		p := (&scsi.PRMoveList{Key: key, ActionKey: to, Unregister: unreg, TargetPort: port, TransportID: scsi.SRPTransportID(id)}).Append(nil)
		return scsi.PersistentReserveOut(scsi.PRRegisterAndMove, 0, uint32(len(p))), p
	}
	for _, tt := range []struct {
		n       *Nexus
		key, to uint64
		id      InitiatorID
		port    uint16
		status  scsi.Status
	}{
		{l.Attach(InitiatorID{5}, false), 0, 1, idB, 1, scsi.ReservationConflict}, // a stranger
		{b, 0xB, 1, idC, 1, scsi.ReservationConflict},                             // not the holder
		{a, 0xBAD, 1, idB, 1, scsi.ReservationConflict},
		{a, 0xA, 0, idB, 1, scsi.CheckCondition},
		{a, 0xA, 1, idA, 1, scsi.CheckCondition}, // itself
		{a, 0xA, 1, idB, 2, scsi.CheckCondition}, // no such port
		{a, 0xA, 1, InitiatorID{77}, 1, scsi.CheckCondition},
	} {
		cdb, p := move(tt.n, tt.key, tt.to, tt.id, tt.port, false)
		code := scsi.CodeInvalidFieldInParams
		mustFail(t, tt.n, tt.status, scsi.IllegalRequest, code, cdb, p...)
	}
	cdb, p = move(a, 0xA, 0xB0B, idB, 1, true)
	bad(a, scsi.CodeParameterListLength, scsi.PersistentReserveOut(scsi.PRRegisterAndMove, 0, uint32(len(p)-1)), p[:len(p)-1])
	mustGood(t, a, cdb, p...)
	if st := l.pr; !st.isHolder(idB) || st.find(idA) >= 0 || st.holderKey() != 0xB0B || st.typ != scsi.WriteExclusive {
		t.Errorf("after REGISTER AND MOVE: %+v", st)
	}
	mustFail(t, a, scsi.ReservationConflict, 0, 0, scsi.Write16(0, 1, false), make([]byte, 512)...)
	mustGood(t, b, scsi.Write16(0, 1, false), make([]byte, 512)...)
}

func TestUnitAttentions(t *testing.T) {
	quiet := func(t *testing.T, nexuses ...*Nexus) {
		t.Helper()
		for _, n := range nexuses {
			mustGood(t, n, scsi.TestUnitReady())
		}
	}
	for _, ty := range allTypes {
		t.Run(fmt.Sprint(ty.typ), func(t *testing.T) {
			_, a, b, c := reserved(t, ty.typ)
			reserveOK(t, a, scsi.PRRelease, ty.typ, 0xA, 0)
			if ty.registrants {
				wantAttention(t, b, scsi.CodeReservationsReleased)
			}
			quiet(t, a, b, c)

			l, a, b, c := reserved(t, ty.typ)
			reserveOK(t, a, scsi.PRRegister, 0, 0xA, 0) // the holder unregisters
			if ty.registrants && !ty.all {
				wantAttention(t, b, scsi.CodeReservationsReleased)
			}
			if l.pr.held != ty.all {
				t.Errorf("held: %v", l.pr.held)
			}
			quiet(t, a, b, c)

			l, a, b, c = reserved(t, ty.typ)
			a.Detach() // as good as unregistering
			if ty.registrants && !ty.all {
				wantAttention(t, b, scsi.CodeReservationsReleased)
			}
			if l.pr.held != ty.all || l.pr.find(idA) >= 0 {
				t.Errorf("after the last nexus is closed: %+v", l.pr)
			}
			quiet(t, b, c)

			l, _, _, _ = reserved(t, ty.typ)
			l.Attach(idA, false).Detach() // not the last one
			if l.pr.find(idA) < 0 {
				t.Error("registration lost though a nexus is open")
			}

			_, a, b, c = reserved(t, ty.typ)
			reserveOK(t, b, scsi.PRClear, 0, 0xB, 0)
			wantAttention(t, a, scsi.CodeReservationsPreempted)
			quiet(t, a, b, c)
			mustGood(t, c, scsi.Write16(0, 1, false), make([]byte, 512)...)

			l, a, b, c = reserved(t, ty.typ)
			reserveOK(t, c, scsi.PRRegister, 0, 0, 0xC)
			reserveOK(t, b, scsi.PRPreempt, scsi.ExclusiveAccess, 0xB, 0xA)
			wantAttention(t, a, scsi.CodeRegistrationsPreempted)
			if ty.all { // only a registration was removed
				quiet(t, a, b, c)
				if l.pr.typ != ty.typ {
					t.Errorf("type %v", l.pr.typ)
				}
				reserveOK(t, b, scsi.PRPreempt, scsi.WriteExclusiveAllRegistrants, 0xB, 0)
				wantAttention(t, c, scsi.CodeRegistrationsPreempted)
				if len(l.pr.regs) != 1 || l.pr.typ != scsi.WriteExclusiveAllRegistrants {
					t.Errorf("after preempting all: %+v", l.pr)
				}
			} else {
				if ty.typ != scsi.ExclusiveAccess {
					wantAttention(t, c, scsi.CodeReservationsReleased)
				}
				if !l.pr.isHolder(idB) || l.pr.typ != scsi.ExclusiveAccess {
					t.Errorf("after preempting the holder: %+v", l.pr)
				}
			}
			quiet(t, a, b, c)
		})
	}
}

func TestPersistence(t *testing.T) {
	state := &memState{}
	d := lutest.New(1 << 20)
	l := newLU(t, d, Options{State: state})
	a, b := l.Attach(idA, false), l.Attach(idB, false)
	reserveOK(t, b, scsi.PRRegister, 0, 0, 0xB)
	if state.s != nil {
		t.Error("saved without APTPL")
	}
	mustGood(t, a, scsi.PersistentReserveOut(scsi.PRRegister, 0, 24), (&scsi.PROutList{ActionKey: 0xA, PersistPower: true}).Append(nil)...)
	reserveOK(t, a, scsi.PRReserve, scsi.WriteExclusive, 0xA, 0)
	if c, err := scsi.ParsePRCapabilities(mustGood(t, a, scsi.PersistentReserveIn(scsi.PRReportCapabilities, 8))); err != nil || !c.PersistActive || !c.PersistThroughPower || len(c.Types) != 6 {
		t.Errorf("REPORT CAPABILITIES: %+v %v", c, err)
	}
	a.Detach()
	b.Detach()
	if l.pr.find(idA) < 0 || l.pr.find(idB) < 0 {
		t.Error("a kept registration went with its last nexus")
	}
	l = newLU(t, d, Options{State: state}) // the power comes back
	a, c := l.Attach(idA, false), l.Attach(idC, false)
	mustFail(t, c, scsi.ReservationConflict, 0, 0, scsi.Write16(0, 1, false), make([]byte, 512)...)
	wantAttention(t, a, scsi.CodePowerOn)
	mustGood(t, a, scsi.Write16(0, 1, false), make([]byte, 512)...)
	full, err := scsi.ParsePRFullStatus(mustGood(t, a, scsi.PersistentReserveIn(scsi.PRReadFullStatus, 4096)))
	if err != nil || len(full.Registrations) != 2 || full.Generation != 0 {
		t.Errorf("READ FULL STATUS: %+v %v", full, err)
	}
	for _, r := range full.Registrations {
		if id, _, err := scsi.ParseTransportID(r.TransportID); err != nil || r.Holder != (id.Port == idA) || r.TargetPort != 1 {
			t.Errorf("registration %+v %v", r, err)
		}
	}
	// What cannot be kept does not happen.
	state.err = context.DeadlineExceeded
	cdb, list := prOut(scsi.PRRelease, scsi.WriteExclusive, 0xA, 0)
	mustFail(t, a, scsi.CheckCondition, scsi.HardwareError, scsi.CodeInternalTargetFailure, cdb, list...)
	mustFail(t, c, scsi.ReservationConflict, 0, 0, scsi.Write16(0, 1, false), make([]byte, 512)...)
	state.err = nil
	reserveOK(t, a, scsi.PRRegister, 0, 0xA, 0xA1) // APTPL off again
	if state.s != nil {
		t.Error("still kept after APTPL was withdrawn")
	}
	for _, s := range []State{
		{Held: true, Type: 1, Holder: idA},
		{Registrations: []SavedRegistration{{idA, 0, false}}},
		{Registrations: []SavedRegistration{{idA, 1, false}, {idA, 2, false}}},
		{Held: true, Type: 2, Holder: idA, Registrations: []SavedRegistration{{idA, 1, false}}},
		{Held: true, Type: 1, Holder: idB, Registrations: []SavedRegistration{{idA, 1, false}}},
		{Registrations: make([]SavedRegistration, maxRegistrations+1)},
	} {
		if _, err := New(context.Background(), d, Options{State: &memState{s: &s}}); err == nil {
			t.Errorf("accepts the saved state %+v", s)
		}
	}
}
