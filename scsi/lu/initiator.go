package lu

import (
	"sync"
	"sync/atomic"

	"vdbridge/scsi"
)

// InitiatorID names an initiator. (In RSVD: the InitiatorId of the open context.)
type InitiatorID [16]byte

// rights are what an initiator may do under the present reservation.
type rights uint8

const (
	mayRead rights = 1 << iota
	mayWrite
	mayAll = mayRead | mayWrite
)

// maxAttentions bounds the unit attentions that wait for one initiator. There are fewer kinds of them than this.
const maxAttentions = 8

// initiator is what the unit knows of one initiator.
type initiator struct {
	id   InitiatorID
	refs int // nexuses; guarded by LU.mu

	// aborts counts how often commands of this initiator have been aborted. A command compares it with its ticket before its I/O.
	aborts atomic.Uint32

	mu     sync.Mutex
	rights rights
	// In flight are counted in two generations, so that the commands of one can be waited for while others begin.
	generation uint8
	inflight   [2]int
	drained    chan struct{} // closed when the older generation has ended; non-nil while somebody waits
	nattn      int
	attn       [maxAttentions]scsi.Code
}

// ticket says that a command has been admitted.
type ticket struct {
	generation uint8
	aborts     uint32
}

// admit takes a command in that needs the given rights. When it refuses, either attention is the unit attention to report, which is no longer
// pending, or conflict is true.
func (i *initiator) admit(need rights) (t ticket, attention scsi.Code, conflict bool) {
	i.mu.Lock()
	if i.nattn != 0 {
		attention = i.popAttention()
		i.mu.Unlock()
		return t, attention, false
	}
	if i.rights&need != need {
		i.mu.Unlock()
		return t, 0, true
	}
	t = ticket{i.generation, i.aborts.Load()}
	i.inflight[t.generation]++
	i.mu.Unlock()
	return t, 0, false
}

// leave ends an admitted command.
func (i *initiator) leave(t ticket) {
	i.mu.Lock()
	i.inflight[t.generation]--
	if i.drained != nil && t.generation != i.generation && i.inflight[t.generation] == 0 {
		close(i.drained)
		i.drained = nil
	}
	i.mu.Unlock()
}

// aborted says whether the command's initiator has lost its commands since it was admitted.
func (i *initiator) aborted(t ticket) bool { return i.aborts.Load() != t.aborts }

// drain waits until every command that is in flight now has ended. Only the owner of the change token may call it, so the older generation
// is empty when it begins.
func (i *initiator) drain() {
	i.mu.Lock()
	older := i.generation
	i.generation ^= 1
	if i.inflight[older] == 0 {
		i.mu.Unlock()
		return
	}
	ch := make(chan struct{})
	i.drained = ch
	i.mu.Unlock()
	<-ch
}

// attend queues a unit attention unless the same one waits already. Called with i.mu held.
func (i *initiator) attend(c scsi.Code) {
	for _, have := range i.attn[:i.nattn] {
		if have == c {
			return
		}
	}
	if i.nattn < maxAttentions {
		i.attn[i.nattn] = c
		i.nattn++
	}
}

// popAttention takes the oldest unit attention. Called with i.mu held and at least one waiting.
func (i *initiator) popAttention() scsi.Code {
	c := i.attn[0]
	copy(i.attn[:], i.attn[1:i.nattn])
	i.nattn--
	return c
}

// takeAttention takes the oldest unit attention, if there is one.
func (i *initiator) takeAttention() (c scsi.Code, ok bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.nattn == 0 {
		return 0, false
	}
	return i.popAttention(), true
}
