package vhdx

import (
	"context"
	"fmt"
	"math/bits"
	"sync/atomic"
)

// Sector bitmaps are kept in memory in pages of 4 KiB, the unit of the log. [MS-VHDX] 2.4
const (
	bitmapBlock    = mib
	bitPageShift   = 15 // sectors of the disk in a page
	bitPageBits    = 1 << bitPageShift
	bitPageWords   = bitPageBits / 64
	chunkPages     = bitmapBlock / logSector
	chunkPageShift = 8
	maxBitPages    = 2048
)

// bitPage is a part of a sector bitmap. Bits are read without a lock and written under changes.mu.
type bitPage struct {
	w     [bitPageWords]atomic.Uint64
	used  atomic.Bool
	index int64 // of the page on the disk
	at    int64 // in the file
	st    pageState
}

func (p *bitPage) state() *pageState { return &p.st }
func (p *bitPage) place(int) int64   { return p.at }

func (p *bitPage) encode(_ int, out *[logSector]byte) {
	for i := range p.w {
		le.PutUint64(out[8*i:], p.w[i].Load())
	}
}

// zeroBits stands for the pages of a chunk that has no bitmap yet. It is never changed.
var zeroBits = &bitPage{index: -1}

// bitmapChunk is the sector bitmap of one chunk.
type bitmapChunk struct {
	off   atomic.Int64 // of the bitmap block in the file; 0: there is none, or none that is durable
	pages [chunkPages]atomic.Pointer[bitPage]
}

// bitmapTable is the sector bitmap of a differencing disk with a bounded cache of its pages.
type bitmapTable struct {
	b        Backing
	bat      *batTable
	geo      *geometry
	fileSize func() int64
	chunks   []atomic.Pointer[bitmapChunk]
	max      int
	making   chan struct{} // 1 token: held while a bitmap block is made

	*changes // shared with the BAT; its mu guards what follows too
	loading  map[int64]chan struct{}
	resident []*bitPage
	hand     int
	clearing map[int64]bool // blocks whose bits were cleared and not yet committed
}

func newBitmapTable(bat *batTable, pages int) *bitmapTable {
	bat.limit = min(bat.limit, pages/2)
	return &bitmapTable{
		b: bat.b, bat: bat, geo: bat.geo, fileSize: bat.fileSize,
		chunks: make([]atomic.Pointer[bitmapChunk], ceilDiv(bat.geo.blocks, bat.geo.ratio)),
		max:    pages, making: make(chan struct{}, 1), changes: bat.changes,
		loading: make(map[int64]chan struct{}), clearing: make(map[int64]bool),
	}
}

// chunk finds the bitmap of a chunk.
func (t *bitmapTable) chunk(ctx context.Context, i int64) (*bitmapChunk, error) {
	if c := t.chunks[i].Load(); c != nil {
		return c, nil
	}
	entry := t.geo.bitmapEntry(i)
	v, err := t.bat.entry(ctx, entry)
	if err != nil {
		return nil, err
	}
	c := &bitmapChunk{}
	if v&stateMask != blockNotPresent {
		if why, good := checkBitmapEntry(v, t.fileSize(), true); !good {
			return nil, corrupt("BAT", t.bat.region.off+entry*batEntrySize, "the sector bitmap of chunk %d: %s", i, why)
		}
		c.off.Store(int64(v & offsetMask))
	}
	if !t.chunks[i].CompareAndSwap(nil, c) {
		c = t.chunks[i].Load()
	}
	return c, nil
}

// checkBitmapEntry judges the entry of a sector bitmap. [MS-VHDX] 2.5.1.2
func checkBitmapEntry(v uint64, limit int64, differencing bool) (string, bool) {
	off := v & offsetMask
	switch {
	case v&stateMask == blockNotPresent:
		return "", true
	case !differencing:
		return "only a differencing image can have one", false
	case v&stateMask != blockPresent:
		return fmt.Sprintf("its state %d is not known", v&stateMask), false
	case off < headerSectionLen:
		return fmt.Sprintf("its offset %d is inside the header section", off), false
	case off > maxFileSize || int64(off)+bitmapBlock > limit:
		return fmt.Sprintf("it lies at %d, outside the file of %d bytes", off, limit), false
	}
	return "", true
}

// page finds a page of the bitmap by its index on the disk.
func (t *bitmapTable) page(ctx context.Context, index int64) (*bitPage, error) {
	c, err := t.chunk(ctx, index>>chunkPageShift)
	if err != nil {
		return nil, err
	}
	slot := &c.pages[index&(chunkPages-1)]
	for {
		if p := slot.Load(); p != nil {
			if !p.used.Load() {
				p.used.Store(true)
			}
			return p, nil
		}
		off := c.off.Load()
		if off == 0 {
			return zeroBits, nil
		}
		t.mu.Lock()
		if slot.Load() != nil {
			t.mu.Unlock()
			continue
		}
		if wait := t.loading[index]; wait != nil {
			t.mu.Unlock()
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		done := make(chan struct{})
		t.loading[index] = done
		t.mu.Unlock()

		p := &bitPage{index: index, at: off + index&(chunkPages-1)*logSector}
		var buf [logSector]byte
		err := readFull(ctx, t.b, buf[:], p.at)
		for i := range p.w {
			if v := le.Uint64(buf[8*i:]); v != 0 {
				p.w[i].Store(v)
			}
		}
		t.mu.Lock()
		if err == nil {
			if len(t.resident) >= t.max {
				t.evict()
			}
			t.resident = append(t.resident, p)
			slot.Store(p)
		}
		delete(t.loading, index)
		t.mu.Unlock()
		close(done)
		if err != nil {
			return nil, fmt.Errorf("read the sector bitmap: %w", err)
		}
		return p, nil
	}
}

// evict takes clean pages out by the clock rule, as that of the BAT does. mu is held.
func (t *bitmapTable) evict() {
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
			t.chunks[p.index>>chunkPageShift].Load().pages[p.index&(chunkPages-1)].Store(nil)
			last := len(t.resident) - 1
			t.resident[t.hand] = t.resident[last]
			t.resident[last] = nil
			t.resident = t.resident[:last]
		}
	}
}

// run says whether a sector is present, and how many of the n sectors from it on are alike.
func (t *bitmapTable) run(ctx context.Context, sector, n int64) (present bool, k int64, err error) {
	var p *bitPage
	for k < n {
		s := sector + k
		if p == nil || s&(bitPageBits-1) == 0 {
			if p, err = t.page(ctx, s>>bitPageShift); err != nil {
				return false, 0, err
			}
			if p == zeroBits {
				return false, 0, corrupt("BAT", t.bat.region.off+t.geo.bitmapEntry(s>>bitPageShift>>chunkPageShift)*batEntrySize,
					"chunk %d has no sector bitmap, and a block that needs it", s>>bitPageShift>>chunkPageShift)
			}
		}
		bit := s & 63
		w := p.w[s>>6&(bitPageWords-1)].Load()
		if k == 0 {
			present = w>>bit&1 != 0
		}
		if present {
			w = ^w
		}
		same := int64(bits.TrailingZeros64(w >> bit))
		if left := 64 - bit; same < left {
			k += same
			break
		} else {
			k += left
		}
	}
	return present, min(k, n), nil
}

// set marks sectors as present, whose payload was written. changed is false if all were so before.
func (t *bitmapTable) set(ctx context.Context, sector, n int64) (changed bool, err error) {
	return t.change(ctx, sector, n, true)
}

// clear marks sectors as not present.
func (t *bitmapTable) clear(ctx context.Context, sector, n int64) (changed bool, err error) {
	return t.change(ctx, sector, n, false)
}

func (t *bitmapTable) change(ctx context.Context, sector, n int64, present bool) (changed bool, err error) {
	for n > 0 {
		k := min(n, bitPageBits-sector&(bitPageBits-1))
		if is, same, err := t.run(ctx, sector, k); err != nil {
			return changed, err
		} else if is == present && same == k {
			sector, n = sector+k, n-k
			continue
		}
		p, err := t.page(ctx, sector>>bitPageShift)
		if err != nil {
			return changed, err
		}
		slot := &t.chunks[p.index>>chunkPageShift].Load().pages[p.index&(chunkPages-1)]
		t.mu.Lock()
		if slot.Load() != p { // evicted in between
			t.mu.Unlock()
			continue
		}
		for at, end := sector, sector+k; at < end; {
			bit := at & 63
			m := min(64-bit, end-at)
			mask := (^uint64(0) >> (64 - m)) << bit
			w := &p.w[at>>6&(bitPageWords-1)]
			if present {
				w.Store(w.Load() | mask)
			} else {
				w.Store(w.Load() &^ mask)
			}
			at += m
		}
		t.mark(p, 0)
		t.payload = t.payload || present
		t.mu.Unlock()
		changed = true
		sector, n = sector+k, n-k
	}
	return changed, nil
}
