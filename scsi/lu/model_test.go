package lu

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"vdbridge/scsi"
	"vdbridge/scsi/lu/lutest"
)

// model is persistent reservations again, told from the text of SPC-4 5.13 with sets and maps, for a handful of initiators called 0 to n-1.
type model struct {
	key     map[int]uint64 // who is registered
	present map[int]bool   // who has a nexus
	holder  int            // -1: nobody. For "all registrants" any value from 0
	typ     int
	gen     uint32
	ua      map[int][]scsi.Code
}

func (m *model) all() bool { return m.typ == 7 || m.typ == 8 }

func (m *model) holds(i int) bool {
	if m.holder < 0 {
		return false
	}
	if m.all() {
		return m.key[i] != 0
	}
	return m.holder == i
}

func (m *model) attention(i int, c scsi.Code) {
	if !slices.Contains(m.ua[i], c) {
		m.ua[i] = append(m.ua[i], c)
	}
}

func (m *model) others(i int, c scsi.Code) {
	for j := range m.key {
		if j != i {
			m.attention(j, c)
		}
	}
}

// free ends the reservation because of what i did.
func (m *model) free(i int) {
	t := m.typ
	m.holder, m.typ = -1, 0
	if t >= 5 {
		m.others(i, 0x2A04)
	}
}

func (m *model) drop(i int) {
	held := m.holds(i)
	delete(m.key, i)
	if held && (!m.all() || len(m.key) == 0) {
		m.free(i)
	}
}

// Statuses are strings here: "good", "conflict" or "check".
func (m *model) register(i int, ignore bool, key, newKey uint64) string {
	if !ignore && m.key[i] != key {
		return "conflict"
	}
	if newKey == 0 && m.key[i] == 0 {
		return "good"
	}
	m.gen++
	if newKey == 0 {
		m.drop(i)
	} else {
		m.key[i] = newKey
	}
	return "good"
}

func (m *model) other(i, action int, key, victim uint64, typ int) string {
	if m.key[i] == 0 || m.key[i] != key {
		return "conflict"
	}
	valid := map[int]bool{1: true, 3: true, 5: true, 6: true, 7: true, 8: true}[typ]
	switch action {
	case 1: // RESERVE
		switch {
		case !valid:
			return "check"
		case m.holder < 0:
			m.holder, m.typ = i, typ
		case !m.holds(i) || m.typ != typ:
			return "conflict"
		}
	case 2: // RELEASE
		if m.holds(i) {
			if m.typ != typ {
				return "check"
			}
			m.free(i)
		}
	case 3: // CLEAR
		m.others(i, 0x2A03)
		m.key, m.holder, m.typ = map[int]uint64{}, -1, 0
		m.gen++
	case 4, 5: // PREEMPT, PREEMPT AND ABORT
		if victim == 0 && !(m.holder >= 0 && m.all()) {
			return "check"
		}
		reservationToo := m.holder >= 0 && (m.all() && victim == 0 || !m.all() && m.key[m.holder] == victim)
		if reservationToo {
			if !valid {
				return "check"
			}
			for j, k := range m.key {
				if j != i && (victim == 0 || k == victim) {
					delete(m.key, j)
					m.attention(j, 0x2A05)
				}
			}
			if m.typ != typ {
				m.others(i, 0x2A04)
			}
			m.holder, m.typ = i, typ
			m.gen++
			return "good"
		}
		found := false
		for j, k := range m.key {
			if k == victim {
				found = true
				delete(m.key, j)
				if j != i {
					m.attention(j, 0x2A05)
				}
			}
		}
		if !found {
			return "conflict"
		}
		m.gen++
		if m.holder >= 0 && m.all() && len(m.key) == 0 {
			m.free(i)
		}
	}
	return "good"
}

func (m *model) move(i int, key, newKey uint64, to int, unregister bool) string {
	switch {
	case m.key[i] == 0 || m.key[i] != key || !m.holds(i) || m.all():
		return "conflict"
	case newKey == 0 || to == i || !m.present[to] && m.key[to] == 0:
		return "check"
	}
	m.gen++
	m.key[to] = newKey
	m.holder = to
	if unregister {
		delete(m.key, i)
	}
	return "good"
}

// may says whether i may read or write.
func (m *model) may(i int, write bool) bool {
	switch {
	case m.holder < 0 || m.holds(i):
		return true
	case m.typ >= 5 && m.key[i] != 0:
		return true
	case m.typ == 1 || m.typ == 5 || m.typ == 7:
		return !write
	}
	return false
}

func TestReservationsAgainstModel(t *testing.T) {
	const people = 4
	rapid.Check(t, func(t *rapid.T) {
		m := &model{key: map[int]uint64{}, present: map[int]bool{}, holder: -1, ua: map[int][]scsi.Code{}}
		l, err := New(context.Background(), lutest.New(1<<16), Options{})
		if err != nil {
			t.Fatal(err)
		}
		id := func(i int) InitiatorID { return InitiatorID{byte(i), 15: byte(i + 1)} }
		nexus := make([]*Nexus, people)
		for i := range nexus {
			nexus[i], m.present[i] = l.Attach(id(i), false), true
		}
		keys := rapid.SampledFrom([]uint64{0, 1, 2, 3, 4})
		types := rapid.SampledFrom([]int{1, 3, 5, 6, 7, 8, 1, 3, 5, 6, 7, 8, 2})
		for step := range rapid.IntRange(1, 60).Draw(t, "steps") {
			i := rapid.IntRange(0, people-1).Draw(t, "initiator")
			n := nexus[i]
			own := keys.Draw(t, "key")
			if rapid.IntRange(0, 3).Draw(t, "right key") > 0 {
				own = m.key[i]
			}
			action := rapid.IntRange(0, 9).Draw(t, "action")
			if action == 8 { // the last nexus goes, a new one comes
				n.Detach()
				delete(m.present, i)
				if m.key[i] != 0 {
					m.gen++
					m.drop(i)
				}
				delete(m.ua, i)
				nexus[i], m.present[i] = l.Attach(id(i), false), true
				continue
			}
			want, cdb, out := "good", scsi.TestUnitReady(), []byte(nil)
			waiting := len(m.ua[i]) != 0
			switch {
			case action == 9:
				write := rapid.Bool().Draw(t, "write")
				cdb = scsi.Read16(0, 1, false)
				if write {
					cdb, out = scsi.Write16(0, 1, false), make([]byte, 512)
				}
				if !m.may(i, write) {
					want = "conflict"
				}
			case action == 7:
				newKey, to, unreg := keys.Draw(t, "new key"), rapid.IntRange(0, people-1).Draw(t, "to"), rapid.Bool().Draw(t, "unregister")
				out = (&scsi.PRMoveList{Key: own, ActionKey: newKey, Unregister: unreg, TargetPort: 1, TransportID: scsi.SRPTransportID(id(to))}).Append(nil)
				cdb = scsi.PersistentReserveOut(scsi.PRRegisterAndMove, 0, uint32(len(out)))
				if !waiting {
					want = m.move(i, own, newKey, to, unreg)
				}
			default:
				victim, typ := keys.Draw(t, "action key"), types.Draw(t, "type")
				cdb, out = prOut(scsi.PROutAction(action), scsi.PRType(typ), own, victim)
				switch {
				case waiting:
				case action == 0 || action == 6:
					want = m.register(i, action == 6, own, victim)
				default:
					want = m.other(i, action, own, victim, typ)
				}
			}
			r := n.Execute(context.Background(), cdb.Bytes(), out, make([]byte, 512))
			if waiting {
				code := m.ua[i][0]
				m.ua[i] = m.ua[i][1:]
				if r.Status != scsi.CheckCondition || r.Sense.Key != scsi.UnitAttention || r.Sense.Code() != code {
					t.Fatalf("step %d: %v of %d: %v %v, want the unit attention %v", step, cdb.String(), i, r.Status, r.Sense, code)
				}
				continue
			}
			got := map[scsi.Status]string{scsi.Good: "good", scsi.ReservationConflict: "conflict", scsi.CheckCondition: "check"}[r.Status]
			if got != want {
				t.Fatalf("step %d: %v of %d (key %d): %v %v, want %s; model %+v", step, cdb.String(), i, own, r.Status, r.Sense, want, m)
			}
			check(t, l, m, id)
		}
	})
}

// check compares what the unit reports with the model.
func check(t *rapid.T, l *LU, m *model, id func(int) InitiatorID) {
	observer := l.Attach(InitiatorID{0xEE}, false)
	defer observer.Detach()
	get := func(a scsi.PRInAction) []byte {
		cdb, in := scsi.PersistentReserveIn(a, 4096), make([]byte, 4096)
		r := observer.Execute(context.Background(), cdb.Bytes(), nil, in)
		if r.Status != scsi.Good {
			t.Fatalf("%v: %v", a, r.Status)
		}
		return in[:r.N]
	}
	full, err := scsi.ParsePRFullStatus(get(scsi.PRReadFullStatus))
	if err != nil || full.Generation != m.gen {
		t.Fatalf("generation %d, want %d (%v)", full.Generation, m.gen, err)
	}
	have := map[string]uint64{}
	for _, r := range full.Registrations {
		tid, _, err := scsi.ParseTransportID(r.TransportID)
		if err != nil {
			t.Fatal(err)
		}
		i := int(tid.Port[0])
		have[fmt.Sprint(i)] = r.Key
		if r.Holder != m.holds(i) || r.Holder && int(r.Type) != m.typ {
			t.Fatalf("registration of %d: %+v; model %+v", i, r, m)
		}
	}
	want := map[string]uint64{}
	for i, k := range m.key {
		want[fmt.Sprint(i)] = k
	}
	if fmt.Sprint(have) != fmt.Sprint(want) {
		t.Fatalf("registrations %v, want %v", have, want)
	}
	res, err := scsi.ParsePRReservation(get(scsi.PRReadReservation))
	if err != nil || res.Held != (m.holder >= 0) || res.Held && (int(res.Type) != m.typ || !m.all() && res.Key != m.key[m.holder] || m.all() && res.Key != 0) {
		t.Fatalf("reservation %+v %v; model %+v", res, err, m)
	}
	if k, err := scsi.ParsePRKeys(get(scsi.PRReadKeys)); err != nil || len(k.Keys) != len(m.key) {
		t.Fatalf("keys %v %v", k, err)
	}
	for i := range m.present {
		l.mu.Lock()
		ini := l.initiators[id(i)]
		l.mu.Unlock()
		ini.mu.Lock()
		r := ini.rights
		ini.mu.Unlock()
		if r&mayRead != 0 != m.may(i, false) || r&mayWrite != 0 != m.may(i, true) {
			t.Fatalf("rights of %d are %d; model %+v", i, r, m)
		}
	}
}
