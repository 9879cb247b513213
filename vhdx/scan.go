package vhdx

import (
	"context"
	"fmt"
)

// usageMap marks every MiB of a file that something occupies. It costs memory only where something lies: at most a bit per MiB.
type usageMap struct {
	pages map[int64]*[1024]uint64 // of 64 GiB each
}

const usagePage = 1024 * 64 // MiB

// add marks an extent and reports the first byte that was marked before, or -1.
func (u *usageMap) add(x extent) int64 {
	clash := int64(-1)
	if u.pages == nil {
		u.pages = make(map[int64]*[1024]uint64)
	}
	for m, end := x.off/mib, ceilDiv(x.end(), mib); m < end; {
		p := u.pages[m/usagePage]
		if p == nil {
			p = new([1024]uint64)
			u.pages[m/usagePage] = p
		}
		w, bit := m%usagePage/64, m%64
		n := min(64-bit, end-m)
		mask := (^uint64(0) >> (64 - n)) << bit
		if clash < 0 && p[w]&mask != 0 {
			for b := bit; b < bit+n; b++ {
				if p[w]&(1<<b) != 0 {
					clash = (m + b - bit) * mib
					break
				}
			}
		}
		p[w] |= mask
		m += n
	}
	return clash
}

// gaps calls fn with every unmarked extent below end, in order, until fn returns false.
func (u *usageMap) gaps(end int64, fn func(extent) bool) {
	from := int64(-1)
	for m := int64(0); m < end/mib; {
		p := u.pages[m/usagePage]
		if p == nil {
			if from < 0 {
				from = m
			}
			m = (m/usagePage + 1) * usagePage
			continue
		}
		if w := p[m%usagePage/64]; m%64 == 0 && (w == 0 || w == ^uint64(0)) {
			switch {
			case w == 0 && from < 0:
				from = m
			case w != 0 && from >= 0:
				if !fn(extent{from * mib, (m - from) * mib}) {
					return
				}
				from = -1
			}
			m += 64
			continue
		}
		switch used := p[m%usagePage/64]&(1<<(m%64)) != 0; {
		case !used && from < 0:
			from = m
		case used && from >= 0:
			if !fn(extent{from * mib, (m - from) * mib}) {
				return
			}
			from = -1
		}
		m++
	}
	if from >= 0 && from < end/mib {
		fn(extent{from * mib, end - from*mib})
	}
}

// eachEntry reads the BAT from the file in large pieces and calls fn for every entry that is not zero; it skips what is a hole in the file.
func eachEntry(ctx context.Context, b Backing, region extent, entries int64, fn func(i int64, v uint64) error) error {
	total := roundUp(entries*batEntrySize, batEntrySize)
	parts := []extent{{region.off, total}}
	if q, ok := b.(RangeQuerier); ok && total > mib {
		var data []extent
		err := q.AllocatedRanges(ctx, region.off, total, func(off, n int64) bool {
			from, to := off/logSector*logSector, min(roundUp(off+n, logSector), region.off+total)
			if k := len(data); k > 0 && from-data[k-1].end() < 64*kib {
				data[k-1].n = to - data[k-1].off // close enough for one read, and the list stays short
			} else {
				data = append(data, extent{from, to - from})
			}
			return len(data) < 1<<16
		})
		if err == nil && len(data) < 1<<16 {
			parts = data
		}
	}
	buf := make([]byte, min(total, mib))
	for _, part := range parts {
		for at := part.off; at < part.end(); at += int64(len(buf)) {
			p := buf[:min(int64(len(buf)), part.end()-at)]
			if err := readFull(ctx, b, p, at); err != nil {
				return fmt.Errorf("read the BAT: %w", err)
			}
			if isZero(p) {
				continue
			}
			first := (at - region.off) / batEntrySize
			for k := 0; k < len(p); k += batEntrySize {
				if v := le.Uint64(p[k:]); v != 0 {
					if err := fn(first+int64(k/batEntrySize), v); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// reservesSpace reports whether an entry holds on to the place that it names. A trimmed block may keep its place.
func reservesSpace(v uint64) bool {
	switch v & stateMask {
	case blockPresent, blockPartPresent:
		return true
	case blockUndefined, blockUnmapped:
		return v&offsetMask != 0
	}
	return false
}

// scanSpace reads the whole BAT and finds the free places in the file. An entry that cannot be right is an ErrCorrupt: nobody should write to such an image.
// With tight everything behind the last used place counts as beyond the end; the caller cuts it off.
func (d *Disk) scanSpace(ctx context.Context, tight bool) error {
	var used usageMap
	for _, x := range d.layout.structures() {
		used.add(x)
	}
	size := d.space.size.Load()
	last := int64(0)
	for _, x := range d.layout.structures() {
		last = max(last, x.end())
	}
	diff := d.params.hasParent
	err := eachEntry(ctx, d.file, d.layout.bat, d.geo.entries, func(i int64, v uint64) error {
		at := d.layout.bat.off + i*batEntrySize
		block, payload := d.geo.blockOf(i)
		n := d.geo.blockSize
		switch {
		case payload:
			if why, good := checkEntryValue(v, d.geo.blockLen(block), size, diff); !good {
				return corrupt("BAT", at, "block %d: %s", block, why)
			}
			if !reservesSpace(v) {
				return nil
			}
		case !d.geo.isBitmap(i):
			return nil // behind the last block: nobody looks at it
		default:
			if why, good := checkBitmapEntry(v, size, diff); !good {
				return corrupt("BAT", at, "a sector bitmap: %s", why)
			}
			if notPresent(v) {
				return nil
			}
			n = bitmapBlock
		}
		x := extent{int64(v & offsetMask), n}
		if x.off < headerSectionLen || x.off > maxFileSize || x.off >= size && v&stateMask != blockPresent && v&stateMask != blockPartPresent {
			if v&stateMask == blockUndefined || v&stateMask == blockUnmapped {
				return nil // a stale place that is never used
			}
			return corrupt("BAT", at, "it points to %d, outside the file", x.off)
		}
		if clash := used.add(x); clash >= 0 {
			return corrupt("BAT", at, "entry %d uses the space at %d, which something else uses too", i, clash)
		}
		last = max(last, x.off+n)
		return nil
	})
	if err != nil {
		return err
	}
	s := d.space
	s.mu.Lock()
	defer s.mu.Unlock()
	last = roundUp(last, mib)
	if tight {
		s.end.Store(last)
	}
	s.end.Store(max(s.end.Load(), last)) // the last block of the disk may reach beyond the end of the file
	used.gaps(min(roundUp(size, mib), s.end.Load()), func(x extent) bool {
		for ; x.n >= d.geo.blockSize; x.off, x.n = x.off+d.geo.blockSize, x.n-d.geo.blockSize {
			s.dirty.push(x.off)
		}
		for ; x.n >= bitmapBlock && d.differencing(); x.off, x.n = x.off+bitmapBlock, x.n-bitmapBlock {
			s.small.push(x.off)
		}
		return len(s.dirty.items) < maxFree
	})
	return nil
}
