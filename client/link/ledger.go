package link

import "sync/atomic"

// ledger knows whether something was written that no flush has made durable, and tells the flushes when that was lost.
type ledger struct {
	written atomic.Uint64 // changes that were acknowledged
	flushed atomic.Uint64 // of those, how many had been when the last successful flush began
	lost    atomic.Uint64 // times that some of them may have been lost
	told    atomic.Uint64 // of those, how many a flush has failed for
}

// mark is what a flush notes when it begins.
type mark struct{ written, lost uint64 }

// wrote counts a change that was acknowledged on in. It says whether to send it again: its server may have lost it before it was counted.
//
// Either lossy sees the count, or wrote sees in.lossy.
func (g *ledger) wrote(in *incarnation) (again bool) {
	g.written.Add(1)
	return in.lossy.Load()
}

// begin is called before a flush. Its error is that of the flush.
func (g *ledger) begin() (mark, error) {
	m := mark{g.written.Load(), g.lost.Load()}
	return m, g.tell(g.told.Load(), m.lost)
}

// end is called after a flush that succeeded.
func (g *ledger) end(m mark) error {
	if err := g.tell(m.lost, g.lost.Load()); err != nil {
		return err
	}
	raise(&g.flushed, m.written)
	return nil
}

// tell returns ErrWritesLost if more was lost than was known, and notes that it was told.
func (g *ledger) tell(known, lost uint64) error {
	if lost == known {
		return nil
	}
	raise(&g.told, lost)
	return ErrWritesLost
}

// raise sets v to n unless it is higher.
func raise(v *atomic.Uint64, n uint64) {
	for {
		old := v.Load()
		if old >= n || v.CompareAndSwap(old, n) {
			return
		}
	}
}

// lossy notes that the server of the last incarnation may have lost what it acknowledged and what was not flushed. It says whether there was such.
// l.mu is held.
func (f *File) lossy() bool {
	f.prev.lossy.Store(true)
	g := &f.ledger
	n := g.written.Load()
	if n <= g.flushed.Load() {
		return false
	}
	g.lost.Add(1)
	raise(&g.flushed, n)
	return true
}
