package rsvd

import (
	"errors"
	"testing"

	"vdbridge/scsi"
)

// What is concluded about an interrupted PERSISTENT RESERVE OUT of key 1 against key 2 from what there is afterwards.
func TestUndecided(t *testing.T) {
	const we, ea, all = scsi.WriteExclusive, scsi.ExclusiveAccess, scsi.WriteExclusiveAllRegistrants
	state := func(registered bool, held, ours bool, kind scsi.PRType, others ...uint64) *reservations {
		n := &reservations{registered: registered, held: held, ours: ours, kind: kind, others: map[uint64]bool{}}
		if registered {
			n.key = 1
		}
		for _, k := range others {
			n.others[k] = true
		}
		return n
	}
	for name, c := range map[string]struct {
		action    scsi.PROutAction
		typ       scsi.PRType
		actionKey uint64
		now       *reservations
		done      bool
		undecided bool
	}{
		"preempt, the victim is there":                         {scsi.PRPreempt, we, 2, state(true, true, false, we, 2), false, false},
		"preempt, we hold it":                                  {scsi.PRPreempt, we, 2, state(true, true, true, we), true, false},
		"preempt, all registrants hold it":                     {scsi.PRPreempt, all, 2, state(true, true, false, all), true, false},
		"preempt, the victim has gone with its reservation":    {scsi.PRPreempt, we, 2, state(true, false, false, 0), false, true},
		"preempt, a third one holds it":                        {scsi.PRPreempt, we, 2, state(true, true, false, we, 3), false, true},
		"preempt, we hold another kind":                        {scsi.PRPreempt, we, 2, state(true, true, true, ea), false, true},
		"preempt, we are gone":                                 {scsi.PRPreemptAndAbort, we, 2, state(false, false, false, 0), false, true},
		"release, we hold it":                                  {scsi.PRRelease, we, 0, state(true, true, true, we), false, false},
		"release, nobody holds it":                             {scsi.PRRelease, we, 0, state(true, false, false, 0), true, false},
		"release, another holds it":                            {scsi.PRRelease, we, 0, state(true, true, false, we, 2), true, false},
		"release, we are not registered":                       {scsi.PRRelease, we, 0, state(false, false, false, 0), false, true},
		"release, all registrants hold it, perhaps a new one":  {scsi.PRRelease, all, 0, state(true, true, false, all), false, true},
		"register, we are":                                     {scsi.PRRegister, 0, 1, state(true, false, false, 0), true, false},
		"register and ignore, we are not":                      {scsi.PRRegisterAndIgnore, 0, 1, state(false, false, false, 0), false, false},
		"unregister, we are not":                               {scsi.PRRegisterAndIgnore, 0, 0, state(false, false, false, 0), true, false},
		"clear, everything is gone":                            {scsi.PRClear, 0, 0, state(false, false, false, 0), true, false},
		"clear, we are there":                                  {scsi.PRClear, 0, 0, state(true, false, false, 0, 2), false, false},
		"clear, others are there":                              {scsi.PRClear, 0, 0, state(false, false, false, 0, 2), false, true},
		"reserve is repeated":                                  {scsi.PRReserve, we, 0, state(true, true, true, we), false, false},
		"move":                                                 {scsi.PRRegisterAndMove, we, 2, state(true, false, false, 0), false, true},
		"register with a key that was not ours, and is not it": {scsi.PRRegister, 0, 7, state(false, false, false, 0), false, true},
	} {
		t.Run(name, func(t *testing.T) {
			done, err := c.now.wasDone(c.action, c.typ, 1, c.actionKey)
			if done != c.done || errors.Is(err, ErrUndecided) != c.undecided {
				t.Errorf("%v, %v", done, err)
			}
		})
	}
}
