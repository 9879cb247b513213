package lu

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"vdbridge/scsi"
)

// maxRegistrations bounds the registrations of a unit, and with them the length of READ FULL STATUS.
const maxRegistrations = 1024

// prState is the state of persistent reservations. SPC-4 5.13. Values are never changed once they are published.
type prState struct {
	generation uint32 // PRGENERATION
	aptpl      bool   // reservations are kept over a power loss
	regs       []registration
	held       bool
	typ        scsi.PRType
	holder     InitiatorID // meaningless for the "all registrants" types
	done       []doneCommand
}

type registration struct {
	id       InitiatorID
	key      uint64
	allPorts bool
}

func (s *prState) find(id InitiatorID) int {
	return slices.IndexFunc(s.regs, func(r registration) bool { return r.id == id })
}

func (s *prState) isHolder(id InitiatorID) bool {
	return s.held && (s.typ.AllRegistrants() && s.find(id) >= 0 || !s.typ.AllRegistrants() && s.holder == id)
}

// holderKey returns the key that READ RESERVATION reports.
func (s *prState) holderKey() uint64 {
	if i := s.find(s.holder); s.held && !s.typ.AllRegistrants() && i >= 0 {
		return s.regs[i].key
	}
	return 0
}

// rights is the conflict table for commands that read or write the medium. SPC-4 table 65, SBC-3 table 13
func (s *prState) rights(id InitiatorID) rights {
	switch {
	case !s.held, s.isHolder(id), s.typ.Registrants() && s.find(id) >= 0:
		return mayAll
	case s.typ.ReadsAllowed():
		return mayRead
	}
	return 0
}

// prChange is a change of reservations in the making.
type prChange struct {
	by     InitiatorID
	old    *prState
	next   *prState
	attn   []attention
	aborts []InitiatorID
}

type attention struct {
	to   InitiatorID
	code scsi.Code
}

func (s *prState) begin(by InitiatorID) *prChange {
	next := *s
	next.regs = slices.Clone(s.regs)
	return &prChange{by: by, old: s, next: &next}
}

// tell queues a unit attention for every registrant (of the new state) but the one who makes the change.
func (c *prChange) tell(code scsi.Code) {
	for _, r := range c.next.regs {
		if r.id != c.by {
			c.attn = append(c.attn, attention{r.id, code})
		}
	}
}

// endReservation removes the reservation, and tells the other registrants where the type asks for it. SPC-4 5.13.11.2.2
func (c *prChange) endReservation() {
	registrants := c.next.typ.Registrants()
	c.next.held, c.next.typ, c.next.holder = false, 0, InitiatorID{}
	if registrants {
		c.tell(scsi.CodeReservationsReleased)
	}
}

// unregister removes one registration, and the reservation if it hung on that. SPC-4 5.13.11.3
func (c *prChange) unregister(id InitiatorID) {
	i := c.next.find(id)
	if i < 0 {
		return
	}
	wasHolder := c.next.isHolder(id)
	c.next.regs = slices.Delete(c.next.regs, i, i+1)
	if wasHolder && (!c.next.typ.AllRegistrants() || len(c.next.regs) == 0) {
		c.endReservation()
	}
}

// register adds or replaces a registration.
func (c *prChange) register(id InitiatorID, key uint64, allPorts bool) bool {
	if i := c.next.find(id); i >= 0 {
		c.next.regs[i].key, c.next.regs[i].allPorts = key, allPorts
		return true
	}
	if len(c.next.regs) >= maxRegistrations {
		return false
	}
	c.next.regs = append(c.next.regs, registration{id, key, allPorts})
	return true
}

// remove takes away the registrations for which gone says so, as PREEMPT does.
func (c *prChange) remove(gone func(r registration) bool) (n int) {
	c.next.regs = slices.DeleteFunc(c.next.regs, func(r registration) bool {
		if !gone(r) {
			return false
		}
		n++
		if r.id != c.by {
			c.attn = append(c.attn, attention{r.id, scsi.CodeRegistrationsPreempted})
			c.aborts = append(c.aborts, r.id)
		}
		return true
	})
	return n
}

// apply makes a change happen: durable first where that is promised, then withdraw, wait, give. The caller has the change token. Only
// the saving can fail, and then nothing has changed; ctx is for that alone. The wait is not given up with the caller: a change that were half
// made could be taken for a whole one by whoever reads the reservation afterwards.
func (l *LU) apply(ctx context.Context, c *prChange) error {
	if l.opt.State != nil && (c.next.aptpl || c.old.aptpl || l.survives) {
		var s *State
		if c.next.aptpl || l.survives {
			s = l.state(c.next, c.attn, l.survives)
		}
		if err := l.opt.State.Save(ctx, s); err != nil {
			return fmt.Errorf("save persistent reservations: %w", err)
		}
	}
	var wait []*initiator
	l.mu.Lock()
	l.pr = c.next
	for _, i := range l.initiators {
		aborted := slices.Contains(c.aborts, i.id)
		i.mu.Lock()
		kept := i.rights & c.next.rights(i.id)
		if kept != i.rights || aborted {
			wait = append(wait, i)
		}
		i.rights = kept
		if aborted {
			i.aborts.Add(1)
		}
		for _, a := range c.attn {
			if a.to == i.id {
				i.attend(a.code)
			}
		}
		i.mu.Unlock()
	}
	l.mu.Unlock()
	for _, i := range wait {
		i.drain()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shown = c.next
	for id, i := range l.initiators {
		i.mu.Lock()
		i.rights = c.next.rights(id)
		i.mu.Unlock()
		l.forget(i)
	}
	return nil
}

// forget drops the record of an initiator that has neither a nexus nor a registration. Called with l.mu held.
func (l *LU) forget(i *initiator) {
	if i.refs == 0 && l.pr.find(i.id) < 0 && l.initiators[i.id] == i {
		delete(l.initiators, i.id)
	}
}

// State is what is kept of reservations over a power loss.
type State struct {
	Registrations []SavedRegistration
	Held          bool
	Type          scsi.PRType
	Holder        InitiatorID // not for the "all registrants" types
	PowerLoss     bool        // it is kept over a power loss (APTPL)

	// Survives says that it is kept for nexuses that survive the unit, with what follows.
	Survives   bool
	Generation uint32
	Attentions []SavedAttention // that wait, the oldest first
	Done       []SavedCommand   // the last ones, the oldest first
}

// SavedAttention is a unit attention that an initiator has not been told.
type SavedAttention struct {
	Initiator InitiatorID
	Code      scsi.Code
}

// SavedCommand is a PERSISTENT RESERVE OUT that has been executed; see WithTag.
type SavedCommand struct {
	Initiator InitiatorID
	Tag       Tag
}

// SavedRegistration is one registration of a State.
type SavedRegistration struct {
	Initiator InitiatorID
	Key       uint64
	AllPorts  bool
}

// PersistentState keeps reservations over a power loss. Its calls do not overlap.
type PersistentState interface {
	// Load returns what was saved last; nil if nothing is kept.
	Load(ctx context.Context) (*State, error)
	// Save makes s durable before it returns, or leaves what was; nil means that nothing is to be kept any more.
	Save(ctx context.Context, s *State) error
}

func (s *prState) save() *State {
	out := &State{Held: s.held, Type: s.typ, Holder: s.holder, PowerLoss: s.aptpl}
	for _, r := range s.regs {
		out.Registrations = append(out.Registrations, SavedRegistration{r.id, r.key, r.allPorts})
	}
	return out
}

// restore checks a saved state and makes it the unit's.
func (s *State) restore() (*prState, error) {
	p := &prState{aptpl: s.PowerLoss, held: s.Held, typ: s.Type, holder: s.Holder, generation: s.Generation}
	if len(s.Attentions) > maxRegistrations*maxAttentions || len(s.Done) > maxRegistrations {
		return nil, errors.New("there are too many unit attentions or commands")
	}
	for _, d := range s.Done {
		p.done = append(p.done, doneCommand{d.Initiator, d.Tag})
	}
	if len(s.Registrations) > maxRegistrations {
		return nil, fmt.Errorf("%d registrations where at most %d are possible", len(s.Registrations), maxRegistrations)
	}
	for _, r := range s.Registrations {
		if r.Key == 0 || p.find(r.Initiator) >= 0 {
			return nil, fmt.Errorf("registration of %v is there twice or has no key", r.Initiator)
		}
		p.regs = append(p.regs, registration{r.Initiator, r.Key, r.AllPorts})
	}
	if p.held && (!p.typ.Valid() || len(p.regs) == 0 || !p.typ.AllRegistrants() && p.find(p.holder) < 0) {
		return nil, errors.New("the reservation has no holder")
	}
	return p, nil
}
