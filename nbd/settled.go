package nbd

import (
	"context"
	"sync"
)

// Settled is a Disk on which no change overtakes another one of the same place: a Write, Trim or WriteZeroes that overlaps one in progress
// waits for its end before it begins, and once begun it goes on to its end though its caller's context is cancelled.
//
// It is for a client that, after a timeout or the death of a connection, sends a request again while the first may still be on its way
// to the disk, as the Linux nbd driver does. Without it the first WRITE could arrive after the second one was answered and something newer
// written there, and undo that. All connections of the client must share one Settled.
type Settled struct {
	Disk
	ctx context.Context

	mu     sync.Mutex
	active []*change
	free   []*change
}

// change is a change in progress.
type change struct {
	from, to int64
	at       int           // in active
	done     chan struct{} // made by the first who waits
}

// NewSettled wraps d. When ctx is done, changes in progress are cancelled: whether they happened is then unknown, so nothing may be sent again
// to the disk afterwards.
func NewSettled(ctx context.Context, d Disk) *Settled { return &Settled{Disk: d, ctx: ctx} }

// begin waits until nothing in progress overlaps the range, and enters it.
func (s *Settled) begin(ctx context.Context, off, n int64) (*change, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		s.mu.Lock()
		var wait chan struct{}
		for _, c := range s.active {
			if off < c.to && c.from < off+n {
				if c.done == nil {
					c.done = make(chan struct{})
				}
				wait = c.done
				break
			}
		}
		if wait == nil {
			var c *change
			if k := len(s.free); k > 0 {
				c, s.free = s.free[k-1], s.free[:k-1]
			} else {
				c = new(change)
			}
			c.from, c.to, c.at = off, off+n, len(s.active)
			s.active = append(s.active, c)
			s.mu.Unlock()
			return c, nil
		}
		s.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
		}
	}
}

func (s *Settled) end(c *change) {
	s.mu.Lock()
	last := len(s.active) - 1
	s.active[c.at] = s.active[last]
	s.active[c.at].at = c.at
	s.active[last] = nil
	s.active = s.active[:last]
	done := c.done
	c.done = nil
	s.free = append(s.free, c)
	s.mu.Unlock()
	if done != nil {
		close(done)
	}
}

// Write implements Disk. A cancelled ctx ends it only before it has begun.
func (s *Settled) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	c, err := s.begin(ctx, off, int64(len(p)))
	if err != nil {
		return err
	}
	defer s.end(c)
	return s.Disk.Write(s.ctx, p, off, fua)
}

// Trim implements Disk, as Write does.
func (s *Settled) Trim(ctx context.Context, off, n int64) error {
	c, err := s.begin(ctx, off, n)
	if err != nil {
		return err
	}
	defer s.end(c)
	return s.Disk.Trim(s.ctx, off, n)
}

// WriteZeroes implements Disk, as Write does.
func (s *Settled) WriteZeroes(ctx context.Context, off, n int64, unmap, fua bool) error {
	c, err := s.begin(ctx, off, n)
	if err != nil {
		return err
	}
	defer s.end(c)
	return s.Disk.WriteZeroes(s.ctx, off, n, unmap, fua)
}

// FastZero implements FastZeroer.
func (s *Settled) FastZero() bool { return isTrue(s.Disk, FastZeroer.FastZero) }

// NonBlocking implements NonBlocker.
func (s *Settled) NonBlocking() bool { return isTrue(s.Disk, NonBlocker.NonBlocking) }

// InProgress is how many changes are in progress, also those that nobody waits for any more.
func (s *Settled) InProgress() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.active)
}
