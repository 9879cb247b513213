package vhdx

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
)

// States of a payload block, the low three bits of its BAT entry. [MS-VHDX] 2.5.1.1
const (
	blockNotPresent  = 0
	blockUndefined   = 1
	blockZero        = 2
	blockUnmapped    = 3
	blockBad         = 4 // reserved in the format; in memory: an entry that cannot be used, its value is in batPage.bad
	blockPresent     = 6
	blockPartPresent = 7

	stateMask = 7
	// offsetMask gives the byte offset of a block: the format counts in MiB from bit 20 up.
	offsetMask = ^uint64(mib - 1)
)

// checkEntryValue judges the entry of a payload block. limit is the size of the file, n how much of the block belongs to the disk.
func checkEntryValue(v uint64, n, limit int64, differencing bool) (string, bool) {
	off := v & offsetMask
	switch v & stateMask {
	case blockNotPresent, blockZero:
		return "", true
	case blockUndefined, blockUnmapped:
		return "", true // the offset may be stale: it is never read through
	case blockPresent:
	case blockPartPresent:
		if !differencing {
			return "its state is partially present, which only a differencing image can have", false
		}
	default:
		return fmt.Sprintf("its state %d is not known", v&stateMask), false
	}
	switch {
	case off < headerSectionLen:
		return fmt.Sprintf("its offset %d is inside the header section", off), false
	case off > maxFileSize || int64(off)+n > limit:
		return fmt.Sprintf("it lies at %d (%d bytes), outside the file of %d bytes", off, n, limit), false
	}
	return "", true
}

// Pages of the BAT are what is read from the file and kept in memory at once.
const (
	pageShift      = 11 // entries
	pageEntries    = 1 << pageShift
	pageBytes      = pageEntries * batEntrySize
	pageSectors    = pageBytes / logSector
	sectorEntries  = logSector / batEntrySize
	defaultCacheSz = 16 * mib
	minCachePages  = 4
)

// batPage is a part of the BAT in memory. Entries are read without a lock and written under changes.mu.
type batPage struct {
	e     [pageEntries]atomic.Uint64
	used  atomic.Bool // since the clock hand was here
	index int64
	at    int64 // in the file
	st    pageState
	bad   map[int]uint64 // what blockBad stands for; not changed after loading
}

func (p *batPage) state() *pageState      { return &p.st }
func (p *batPage) place(sector int) int64 { return p.at + int64(sector)*logSector }

func (p *batPage) encode(sector int, out *[logSector]byte) {
	for k := range sectorEntries {
		i := sector*sectorEntries + k
		v := p.e[i].Load()
		if raw, ok := p.bad[i]; ok && v == blockBad {
			v = raw
		}
		le.PutUint64(out[k*batEntrySize:], v)
	}
}

// zeroPage stands for every page of which no entry was ever used, so that a large empty image costs no memory. It is never changed.
var zeroPage = &batPage{index: -1}

// batTable is the BAT with a bounded cache of its pages.
type batTable struct {
	b        Backing
	region   extent
	geo      *geometry
	diff     bool
	fileSize func() int64
	dir      []atomic.Pointer[batPage]
	max      int // resident pages
	reads    atomic.Int64

	*changes // its mu guards what follows too
	loading  map[int64]chan struct{}
	resident []*batPage
	hand     int
}

func newBATTable(b Backing, region extent, geo *geometry, diff bool, cacheBytes int64, fileSize func() int64) *batTable {
	if cacheBytes <= 0 {
		cacheBytes = defaultCacheSz
	}
	pages := int(max(cacheBytes/pageBytes, minCachePages))
	return &batTable{
		b: b, region: region, geo: geo, diff: diff, fileSize: fileSize,
		dir:     make([]atomic.Pointer[batPage], ceilDiv(geo.entries, pageEntries)),
		max:     pages,
		changes: &changes{limit: pages / 2 * pageSectors},
		loading: make(map[int64]chan struct{}),
	}
}

// entry returns an entry by its index in the BAT.
func (t *batTable) entry(ctx context.Context, i int64) (uint64, error) {
	p := t.dir[i>>pageShift].Load()
	if p == nil {
		var err error
		if p, err = t.load(ctx, i>>pageShift); err != nil {
			return 0, err
		}
	}
	if !p.used.Load() {
		p.used.Store(true)
	}
	return p.e[i&(pageEntries-1)].Load(), nil
}

// load reads a page; one goroutine reads, others that want the same wait.
func (t *batTable) load(ctx context.Context, index int64) (*batPage, error) {
	for {
		t.mu.Lock()
		if p := t.dir[index].Load(); p != nil {
			t.mu.Unlock()
			return p, nil
		}
		wait := t.loading[index]
		if wait == nil {
			break
		}
		t.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	done := make(chan struct{})
	t.loading[index] = done
	t.mu.Unlock()

	p, err := t.readPage(ctx, index)

	t.mu.Lock()
	if err == nil {
		t.install(index, p)
	}
	delete(t.loading, index)
	t.mu.Unlock()
	close(done)
	return p, err
}

// install makes a page visible and another one leave if there are too many. mu is held.
func (t *batTable) install(index int64, p *batPage) {
	if p != zeroPage {
		if len(t.resident) >= t.max {
			t.evict()
		}
		t.resident = append(t.resident, p)
	}
	t.dir[index].Store(p)
}

// evict takes clean pages out by the clock rule. When all are dirty the cache grows; the commits that allocations ask for shrink it again. mu is held.
func (t *batTable) evict() {
	for tries := 2 * len(t.resident); tries > 0 && len(t.resident) >= t.max; tries-- {
		t.hand %= len(t.resident)
		p := t.resident[t.hand]
		switch {
		case !p.st.clean():
			t.hand++
		case p.used.Load():
			p.used.Store(false)
			t.hand++
		default:
			t.dir[p.index].Store(nil)
			last := len(t.resident) - 1
			t.resident[t.hand] = t.resident[last]
			t.resident[last] = nil
			t.resident = t.resident[:last]
		}
	}
}

var pageBuffers = sync.Pool{New: func() any { return new([pageBytes]byte) }}

func (t *batTable) readPage(ctx context.Context, index int64) (*batPage, error) {
	buf := pageBuffers.Get().(*[pageBytes]byte)
	defer pageBuffers.Put(buf)
	b := buf[:min(pageBytes, t.region.n-index*pageBytes)]
	at := t.region.off + index*pageBytes
	t.reads.Add(1)
	if err := readFull(ctx, t.b, b, at); err != nil {
		return nil, fmt.Errorf("read the BAT: %w", err)
	}
	if isZero(b) {
		return zeroPage, nil
	}
	p := &batPage{index: index, at: at}
	limit := t.fileSize()
	for k := 0; k < len(b)/batEntrySize; k++ {
		v := le.Uint64(b[k*batEntrySize:])
		if v == 0 {
			continue
		}
		i := index<<pageShift + int64(k)
		if block, ok := t.geo.blockOf(i); ok {
			if _, good := checkEntryValue(v, t.geo.blockLen(block), limit, t.diff); !good {
				if p.bad == nil {
					p.bad = make(map[int]uint64)
				}
				p.bad[k] = v
				v = blockBad
			}
		}
		p.e[k].Store(v)
	}
	return p, nil
}

// badEntry explains an entry that cannot be used.
func (t *batTable) badEntry(i int64) error {
	at := t.region.off + i*batEntrySize
	block, _ := t.geo.blockOf(i)
	if p := t.dir[i>>pageShift].Load(); p != nil {
		if v, ok := p.bad[int(i&(pageEntries-1))]; ok {
			why, _ := checkEntryValue(v, t.geo.blockLen(block), t.fileSize(), t.diff)
			return corrupt("BAT", at, "block %d: %s", block, why)
		}
	}
	return corrupt("BAT", at, "block %d: its entry cannot be used", block)
}

// batChange is what goes along with a changed entry.
type batChange struct {
	payloadFirst bool   // what the entry now refers to must be durable before the entry is
	freed        extent // space that the entry no longer refers to; n 0: none
}

// set changes an entry in memory. The caller holds whatever keeps others from changing the same entry.
func (t *batTable) set(ctx context.Context, i int64, v uint64, c batChange) error {
	index, k := i>>pageShift, int(i&(pageEntries-1))
	for {
		if t.dir[index].Load() == nil {
			if _, err := t.load(ctx, index); err != nil {
				return err
			}
		}
		t.mu.Lock()
		p := t.dir[index].Load()
		if p == nil { // evicted in between
			t.mu.Unlock()
			continue
		}
		if p == zeroPage {
			p = &batPage{index: index, at: t.region.off + index*pageBytes}
			t.install(index, p)
		}
		p.e[k].Store(v)
		p.used.Store(true)
		t.mark(p, k/sectorEntries)
		t.payload = t.payload || c.payloadFirst
		if c.freed.n != 0 {
			t.freed = append(t.freed, c.freed)
		}
		t.mu.Unlock()
		return nil
	}
}

// Kinds of entries that runs are made of.

// absent reports whether a block of a disk without a parent has no place, reads as zeros, and needs no change to be trimmed or zeroed.
func absent(v uint64) bool { return notPresent(v) || zeroHere(v) }

func notPresent(v uint64) bool { return v&stateMask == blockNotPresent }

// zeroHere is absent for a differencing disk, whose parent shows through a block that is not present.
func zeroHere(v uint64) bool { return v&stateMask == blockZero || v == blockUnmapped }

// run returns how many payload blocks from block on are of a kind, as far as one page of the BAT tells; 0 if the first is not. Going through
// an empty disk block by block would take seconds.
func (t *batTable) run(ctx context.Context, block int64, is func(v uint64) bool) int64 {
	g := t.geo
	i := g.entryOf(block)
	p := t.dir[i>>pageShift].Load()
	if p == nil {
		var err error
		if p, err = t.load(ctx, i>>pageShift); err != nil {
			return 0 // whoever needs the entry will meet the error
		}
	}
	end := (i>>pageShift + 1) << pageShift
	if p == zeroPage {
		if !is(0) {
			return 0
		}
	} else {
		k := i
		for k < end && is(p.e[k&(pageEntries-1)].Load()) {
			k++ // a run ends at the sector bitmap entry of a differencing image, which does no harm
		}
		if end = k; end == i {
			return 0
		}
	}
	// Blocks whose entries are below end; the sector bitmap entries in between are not blocks.
	last := end/(g.ratio+1)*g.ratio + end%(g.ratio+1)
	return min(last, g.blocks) - block
}

// unused reports whether an entry lies in a page that is known to be all zero.
func (t *batTable) unused(i int64) bool { return t.dir[i>>pageShift].Load() == zeroPage }
