package nbd

import (
	"sync/atomic"
	"time"
)

// pace knows whether the disk answers so fast that handing requests out would cost more than it gains. It counts up with
// each short call to paceMax and drops far below zero with a long one, so one slow call is not forgiven at once.
type pace struct{ n atomic.Int32 }

const (
	paceStart   = -8                     // a disk has to prove itself first
	paceMax     = 8                      // so that a few calls of middling length do not matter
	pacePenalty = 64                     // short calls needed after a long one
	paceShort   = 12 * time.Microsecond  // about the cost of handing a request out and of waking the client twice
	paceLong    = 100 * time.Microsecond // also the noise of a busy machine stays below this mostly
)

func (p *pace) fast() bool { return p.n.Load() >= 0 }

// note records a call that took d and moved or touched n bytes.
func (p *pace) note(d time.Duration, n uint64) {
	d -= time.Duration(min(n, maxPayloadAdvertised) / 4) // copying, at 4 GB/s
	v := p.n.Load()
	switch {
	case d > paceLong:
		p.n.Store(-pacePenalty)
	case d > paceShort:
		p.n.Store(max(v-1, -pacePenalty))
	case v < paceMax:
		p.n.Store(v + 1)
	}
}
