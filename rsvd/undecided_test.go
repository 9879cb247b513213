package rsvd

import (
	"errors"
	"testing"

	"vdbridge/scsi"
)

// What is there after an interruption tells whether the command was carried out, or that nobody can tell.
func TestWasDone(t *testing.T) {
	const mine, fresh, theirs = 0xA1, 0xA2, 0xB2
	const typ, all = scsi.WriteExclusiveRegistrantsOnly, scsi.WriteExclusiveAllRegistrants
	keys := func(k ...uint64) map[uint64]bool {
		m := map[uint64]bool{}
		for _, v := range k {
			m[v] = true
		}
		return m
	}
	const done, again, undecided = "done", "again", "undecided"
	for name, tc := range map[string]struct {
		now          reservations
		action       scsi.PROutAction
		typ          scsi.PRType
		key, action2 uint64
		want         string
	}{
		"registered":                        {reservations{registered: true, key: fresh}, scsi.PRRegister, 0, mine, fresh, done},
		"not registered yet":                {reservations{registered: true, key: mine}, scsi.PRRegister, 0, mine, fresh, again},
		"first registration missing":        {reservations{}, scsi.PRRegister, 0, 0, fresh, undecided},
		"registered with something else":    {reservations{registered: true, key: 0xC3}, scsi.PRRegister, 0, mine, fresh, undecided},
		"registration gone":                 {reservations{}, scsi.PRRegister, 0, mine, fresh, undecided},
		"unregistered":                      {reservations{}, scsi.PRRegister, 0, mine, 0, done},
		"not unregistered":                  {reservations{registered: true, key: mine}, scsi.PRRegister, 0, mine, 0, again},
		"ignoring, done":                    {reservations{registered: true, key: fresh}, scsi.PRRegisterAndIgnore, 0, 0, fresh, done},
		"ignoring, gone":                    {reservations{}, scsi.PRRegisterAndIgnore, 0, 0, fresh, undecided},
		"ignoring, the old one is there":    {reservations{registered: true, key: mine}, scsi.PRRegisterAndIgnore, 0, 0, fresh, again},
		"reserve":                           {reservations{registered: true, key: mine, held: true, ours: true, kind: typ}, scsi.PRReserve, typ, mine, 0, again},
		"released":                          {reservations{registered: true, key: mine}, scsi.PRRelease, typ, mine, 0, done},
		"released, and reserved by another": {reservations{registered: true, key: mine, held: true, kind: typ}, scsi.PRRelease, typ, mine, 0, done},
		"not released":                      {reservations{registered: true, key: mine, held: true, ours: true, kind: typ}, scsi.PRRelease, typ, mine, 0, again},
		"release of all registrants":        {reservations{registered: true, key: mine, held: true, ours: true, kind: all}, scsi.PRRelease, all, mine, 0, undecided},
		"cleared":                           {reservations{}, scsi.PRClear, 0, mine, 0, done},
		"not cleared":                       {reservations{registered: true, key: mine, others: keys(theirs)}, scsi.PRClear, 0, mine, 0, again},
		"cleared or preempted":              {reservations{others: keys(theirs)}, scsi.PRClear, 0, mine, 0, undecided},
		"preempted":                         {reservations{registered: true, key: mine, held: true, ours: true, kind: typ}, scsi.PRPreempt, typ, mine, theirs, done},
		"not preempted":                     {reservations{registered: true, key: mine, others: keys(theirs)}, scsi.PRPreemptAndAbort, typ, mine, theirs, again},
		"preempt, and we are gone":          {reservations{others: keys(theirs)}, scsi.PRPreempt, typ, mine, theirs, undecided},
		"preempt of ourselves":              {reservations{registered: true, key: mine}, scsi.PRPreempt, typ, mine, mine, undecided},
		"preempt of key 0":                  {reservations{registered: true, key: mine}, scsi.PRPreempt, typ, mine, 0, undecided},
		"move":                              {reservations{registered: true, key: mine}, scsi.PRRegisterAndMove, 0, mine, theirs, undecided},
	} {
		ok, err := tc.now.wasDone(tc.action, tc.typ, tc.key, tc.action2)
		got := again
		switch {
		case errors.Is(err, ErrUndecided):
			got = undecided
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case ok:
			got = done
		}
		if got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}

// A registration or a reservation that is missing afterwards shuts us out; what others do does not.
func TestLostTo(t *testing.T) {
	for name, tc := range map[string]struct {
		before, now Standing
		lost        bool
	}{
		"nothing":                     {Standing{}, Standing{Generation: 7}, false},
		"the same":                    {Standing{Registered: true, Key: 1}, Standing{Registered: true, Key: 1}, false},
		"others registered":           {Standing{Registered: true, Key: 1, Generation: 1}, Standing{Registered: true, Key: 1, Generation: 5}, false},
		"another key of ours":         {Standing{Registered: true, Key: 1}, Standing{Registered: true, Key: 2, Generation: 1}, false},
		"registration gone":           {Standing{Registered: true, Key: 1}, Standing{Generation: 1}, true},
		"reservation gone":            {Standing{Registered: true, Key: 1, Holds: true}, Standing{Registered: true, Key: 1}, true},
		"keys without owners":         {Standing{keys: []uint64{1, 2}}, Standing{keys: []uint64{1, 2}}, false},
		"keys without owners, fewer":  {Standing{keys: []uint64{1, 2}}, Standing{keys: []uint64{2}}, true},
		"keys without owners, change": {Standing{keys: []uint64{1}}, Standing{keys: []uint64{1}, Generation: 2}, true},
	} {
		if err := tc.before.lostTo(&tc.now); errors.Is(err, ErrShutOut) != tc.lost {
			t.Errorf("%s: %v", name, err)
		}
	}
}
