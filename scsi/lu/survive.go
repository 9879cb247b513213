package lu

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"vdbridge/scsi"
)

// A nexus can survive the unit: the process ends, and the next one attaches it again, without its initiator noticing. SPC-4 has no words for that. We take
// it as the same nexus all the time: it is not lost, and there was no power on. So its registration stays, whether or not registrations are kept over a power loss
// (APTPL), and so do its reservation, the generation and the unit attentions that were waiting. What initiators without such a
// nexus have, is as after a power loss.

// WriteThrough makes everything that commands of the nexus change durable before they end, as if there was no write cache. To be called before the
// first command.
func (n *Nexus) WriteThrough() { n.through = true }

// Persist says that the nexus is to survive the unit. When it returns, what its initiator has is saved, and from now on every change of reservations is before it
// is reported.
func (n *Nexus) Persist(ctx context.Context) error {
	l := n.lu
	if l.opt.State == nil {
		return fmt.Errorf("a nexus that survives: %w", errors.ErrUnsupported)
	}
	l.change <- struct{}{}
	defer func() { <-l.change }()
	if l.survives {
		return nil
	}
	if len(l.pr.regs) > 0 {
		if err := l.opt.State.Save(ctx, l.state(l.pr, nil, true)); err != nil {
			return fmt.Errorf("save reservations: %w", err)
		}
	}
	l.survives = true
	return nil
}

// Suspend closes the nexus of a unit that ends, for one that survives: what its initiator has stays.
func (n *Nexus) Suspend(ctx context.Context) (err error) {
	n.once.Do(func() {
		l := n.lu
		l.change <- struct{}{}
		defer func() { <-l.change }()
		l.suspended = true
		l.mu.Lock()
		n.i.refs--
		l.mu.Unlock()
		if l.survives && len(l.pr.regs) > 0 {
			// Unit attentions have come and gone since the last change.
			if err = l.opt.State.Save(ctx, l.state(l.pr, nil, true)); err != nil {
				err = fmt.Errorf("save reservations: %w", err)
			}
		}
	})
	return err
}

// lastDetached tidies up when no nexus is left, and none is suspended. The caller has the change token.
func (l *LU) lastDetached() {
	if !l.survives || l.suspended {
		return
	}
	l.survives = false
	var s *State
	if l.pr.aptpl {
		s = l.state(l.pr, nil, false)
	}
	if err := l.opt.State.Save(context.Background(), s); err != nil {
		l.log.Error("save reservations", "err", err)
	}
}

// Restored says that all nexuses that survived have been attached again. The registrations of initiators without one are dropped, unless they are kept over a power
// loss: then those initiators find the unit attention "power on occurred".
func (l *LU) Restored(ctx context.Context) error {
	l.change <- struct{}{}
	defer func() { <-l.change }()
	c := l.pr.begin(InitiatorID{})
	l.mu.Lock()
	c.next.done = slices.DeleteFunc(slices.Clone(l.pr.done), func(d doneCommand) bool {
		i := l.initiators[d.by]
		return i == nil || i.refs == 0
	})
	for _, r := range l.pr.regs {
		i := l.initiators[r.id]
		switch {
		case i != nil && i.refs > 0:
		case !l.pr.aptpl:
			c.unregister(r.id)
			l.log.Info("registration dropped: the initiator has not survived", "initiator", r.id)
		case i != nil:
			i.mu.Lock()
			i.attend(scsi.CodePowerOn)
			i.mu.Unlock()
		}
	}
	l.mu.Unlock()
	if len(c.next.regs) < len(l.pr.regs) || len(c.next.done) < len(l.pr.done) {
		if len(c.next.regs) < len(l.pr.regs) {
			c.next.generation++
		}
		if err := l.apply(ctx, c); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, i := range l.initiators {
		l.forget(i)
	}
	return nil
}

// load takes a saved state over. The unit is not shared yet.
func (l *LU) load(ctx context.Context, s *State) error {
	p, err := s.restore()
	if err != nil {
		return err
	}
	if !l.opt.Restore {
		if !s.PowerLoss {
			// What was kept for nexuses that survive, and none has.
			return l.opt.State.Save(ctx, nil)
		}
		p.generation, p.done = 0, nil
	}
	l.pr, l.shown, l.survives = p, p, l.opt.Restore
	for _, r := range p.regs {
		if i := l.initiator(r.id); !l.opt.Restore {
			i.attend(scsi.CodePowerOn)
		}
	}
	if l.opt.Restore {
		for _, a := range s.Attentions {
			l.initiator(a.Initiator).attend(a.Code)
		}
	}
	return nil
}

// state is what is saved of p, with the unit attentions that wait and those that are about to. whole is true if some nexus survives.
func (l *LU) state(p *prState, more []attention, whole bool) *State {
	s := p.save()
	if !whole {
		return s
	}
	s.Survives, s.Generation = true, p.generation
	for _, d := range p.done {
		s.Done = append(s.Done, SavedCommand{d.by, d.tag})
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, i := range l.initiators {
		i.mu.Lock()
		for _, c := range i.attn[:i.nattn] {
			s.Attentions = append(s.Attentions, SavedAttention{i.id, c})
		}
		i.mu.Unlock()
	}
	for _, a := range more {
		if a := (SavedAttention{a.to, a.code}); !slices.Contains(s.Attentions, a) {
			s.Attentions = append(s.Attentions, a)
		}
	}
	return s
}

// Tag names a command, so that it is done only once however often it is sent.
type Tag struct {
	Request [16]byte // of the initiator; a later command with the same one takes the place of the earlier
	Sum     [32]byte // of all that makes the command
}

type tagKey struct{}

type taggedAs struct {
	tag   Tag
	again bool
}

// WithTag gives the PERSISTENT RESERVE OUT command that is executed with the context a name, which no other command of its initiator may have. With again, the
// command may have been executed before: if it has, and has changed anything, it ends with GOOD and nothing happens. That is known as long as reservations are, over
// restarts too if they are saved; of the last maxDone changes of an initiator.
func WithTag(ctx context.Context, tag Tag, again bool) context.Context {
	return context.WithValue(ctx, tagKey{}, taggedAs{tag, again})
}

// maxDone is how many of an initiator's commands are remembered.
const maxDone = 8

// doneCommand is a PERSISTENT RESERVE OUT that changed something.
type doneCommand struct {
	by  InitiatorID
	tag Tag
}

// wasDone says whether the command of ctx may have been sent before, and was executed then.
func (s *prState) wasDone(ctx context.Context, by InitiatorID) bool {
	t, ok := ctx.Value(tagKey{}).(taggedAs)
	return ok && t.again && slices.Contains(s.done, doneCommand{by, t.tag})
}

// remember notes the command of ctx in the state that it makes.
func (c *prChange) remember(ctx context.Context) {
	t, ok := ctx.Value(tagKey{}).(taggedAs)
	if !ok {
		return
	}
	done := slices.DeleteFunc(slices.Clone(c.next.done), func(d doneCommand) bool { return d.by == c.by && d.tag.Request == t.tag.Request })
	n, oldest := 0, -1
	for i, d := range done {
		if d.by == c.by {
			if n++; oldest < 0 {
				oldest = i
			}
		}
	}
	if n >= maxDone {
		done = slices.Delete(done, oldest, oldest+1)
	} else if len(done) >= maxRegistrations {
		done = slices.Delete(done, 0, 1)
	}
	c.next.done = append(done, doneCommand{c.by, t.tag})
}
