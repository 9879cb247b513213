package vhdx

import "sync"

// loggedPage is a page of a structure that changes through the log: of the BAT, or of a sector bitmap.
type loggedPage interface {
	state() *pageState
	place(sector int) int64                  // in the file
	encode(sector int, out *[logSector]byte) // in the form that the file has
}

// pageState is what the commit knows of a page. It is guarded by changes.mu.
type pageState struct {
	dirty uint8 // a bit for each sector that has changes which no commit has picked up
	pins  int   // sectors that a commit works on
}

func (s *pageState) clean() bool { return s.dirty == 0 && s.pins == 0 }

// sectorRef is a dirty sector of a page.
type sectorRef struct {
	page   loggedPage
	sector int
}

// changes are the changes of logged structures that no commit has made durable yet.
//
// Every order in which the sectors are made durable is sound: a block that becomes partially present has a bitmap of zeros that is durable before, and
// whatever must be durable before an entry that refers to it is either so, or payload says that it has to be.
type changes struct {
	mu      sync.Mutex
	dirty   []sectorRef // in the order in which they became dirty
	freed   []extent    // space that changed entries no longer refer to
	payload bool        // the payload has to be durable before the sectors in dirty are
	limit   int         // dirty sectors from which on a commit is due
}

// mark makes a sector dirty. mu is held.
func (c *changes) mark(p loggedPage, sector int) {
	if s := p.state(); s.dirty&(1<<sector) == 0 {
		s.dirty |= 1 << sector
		c.dirty = append(c.dirty, sectorRef{p, sector})
	}
}

// crowded reports whether so much is dirty that a commit is due.
func (c *changes) crowded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.dirty) >= c.limit
}

// pending says how many sectors are dirty and takes over the space that becomes free once these are durable.
func (c *changes) pending() (sectors int, freed []extent) {
	c.mu.Lock()
	defer c.mu.Unlock()
	freed, c.freed = c.freed, nil
	return len(c.dirty), freed
}

// take picks up to n dirty sectors for a commit, with copies of their contents, which are in the form that the file has. payload reports whether
// the payload has to be durable first. The pages stay in memory until putBack or done.
func (c *changes) take(n int, updates []logUpdate) (refs []sectorRef, out []logUpdate, payload bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n = min(n, len(c.dirty))
	refs = append(refs, c.dirty[:n]...)
	c.dirty = c.dirty[:copy(c.dirty, c.dirty[n:])]
	payload, c.payload = c.payload, c.payload && len(c.dirty) > 0
	for _, r := range refs {
		s := r.page.state()
		s.dirty &^= 1 << r.sector
		s.pins++
		u := logUpdate{off: r.page.place(r.sector), data: new([logSector]byte)}
		r.page.encode(r.sector, u.data)
		updates = append(updates, u)
	}
	return refs, updates, payload
}

// done lets pages go that take has picked.
func (c *changes) done(refs []sectorRef) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range refs {
		r.page.state().pins--
	}
}

// putBack makes sectors dirty again whose commit failed.
func (c *changes) putBack(refs []sectorRef, payload bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.payload = c.payload || payload
	for _, r := range refs {
		r.page.state().pins--
		c.mark(r.page, r.sector)
	}
}

// putBackFreed returns what pending has handed out when the commit failed.
func (c *changes) putBackFreed(freed []extent) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.freed = append(c.freed, freed...)
}
