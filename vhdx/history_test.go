package vhdx

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
)

// history is what happened to the sectors of a disk: enough to say what each may hold after a crash.
type history struct {
	mu      sync.Mutex
	events  map[int64][]event // by sector
	flushes []flushEvent
	clock   int64
	sector  int64
	opts    Options // how the disk is opened
	ops     func() int
	sorted  []int64 // the sectors in order, once the history is over, and their events
	lists   [][]event
}

// event is one change of a sector.
type event struct {
	start, end int64 // clock when the call began and returned; end 0: it had not
	value      uint64
	trim       bool // the sector may also keep its old value
	fuaOps     int  // operations of the file when it returned durable; 0: it did not ask for that
	from       int  // operations of the file when it began
}

// flushEvent is a flush that was acknowledged. What ended before it began is durable in every crash at a later operation.
type flushEvent struct {
	start int64
	ops   int // operations of the file when it returned
}

func newHistory(sector int) *history {
	return &history{events: make(map[int64][]event), sector: int64(sector)}
}

// begin notes a change that starts now and returns what notes its end, with the operations of the file if it is durable.
func (h *history) begin(off, n int64, value uint64, trim bool) func(fuaOps int) {
	from := 0
	if h.ops != nil {
		from = h.ops()
	}
	h.mu.Lock()
	h.clock++
	t := h.clock
	for s := off / h.sector; s < (off+n)/h.sector; s++ {
		h.events[s] = append(h.events[s], event{start: t, value: value, trim: trim, from: from})
	}
	h.mu.Unlock()
	return func(fuaOps int) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.clock++
		for s := off / h.sector; s < (off+n)/h.sector; s++ {
			for i := range h.events[s] {
				if h.events[s][i].start == t {
					h.events[s][i].end, h.events[s][i].fuaOps = h.clock, fuaOps
				}
			}
		}
	}
}

// given says what sectors hold from the beginning.
func (h *history) given(off, n int64, value uint64) {
	for s := off / h.sector; s < (off+n)/h.sector; s++ {
		h.events[s] = append(h.events[s], event{value: value, fuaOps: -1})
	}
}

func (h *history) flush(call func() error, ops func() int) error {
	h.mu.Lock()
	h.clock++
	t := h.clock
	h.mu.Unlock()
	err := call()
	if err == nil {
		h.mu.Lock()
		h.flushes = append(h.flushes, flushEvent{t, ops()})
		h.mu.Unlock()
	}
	return err
}

// durableAt is the clock before which everything that had ended is durable in a crash when the file had seen that many operations.
func (h *history) durableAt(ops int) (t int64) {
	for _, f := range h.flushes {
		if f.ops < ops {
			t = max(t, f.start)
		}
	}
	return t
}

// allows reports whether a sector may have a value after a crash: that of the last durable change, or of any later one. 0 is zeros.
func allows(events []event, durable int64, ops int, value uint64) bool {
	ok := value == 0
	for _, e := range events {
		if ops >= 0 && e.from >= ops && e.from > 0 {
			continue // it had not begun
		}
		done := e.end != 0 && e.end < durable || e.fuaOps != 0 && e.fuaOps < ops
		if done && !e.trim {
			// Changes of one sector do not overlap in these tests, so that the order of events is the order of effects.
			ok = false
		}
		ok = ok || value == e.value
	}
	return ok
}

// stamp fills p, whole sectors from off on, with a value that also says where it belongs.
func stamp(p []byte, off, sector int64, value uint64) {
	for at := int64(0); at < int64(len(p)); at += 16 {
		binary.LittleEndian.PutUint64(p[at:], value)
		binary.LittleEndian.PutUint64(p[at+8:], uint64((off+at)/sector)+1)
	}
}

// readStamp is the inverse of stamp for one sector. With size 512 the sectors that a crash can tear are whole.
func readStamp(p []byte, s int64) (uint64, error) {
	if isZero(p) {
		return 0, nil
	}
	v, at := binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:])
	if at != uint64(s)+1 {
		return 0, fmt.Errorf("sector %d holds data of sector %d (value %d)", s, int64(at)-1, v)
	}
	for i := 0; i < len(p); i += 16 {
		if binary.LittleEndian.Uint64(p[i:]) != v || binary.LittleEndian.Uint64(p[i+8:]) != at {
			return 0, fmt.Errorf("sector %d is mixed", s)
		}
	}
	return v, nil
}

// touched lists the sectors that were changed, in order. The history must be over.
func (h *history) touched() []int64 {
	if h.sorted == nil {
		for s := range h.events {
			h.sorted = append(h.sorted, s)
		}
		slices.Sort(h.sorted)
		for _, s := range h.sorted {
			h.lists = append(h.lists, h.events[s])
		}
	}
	return h.sorted
}

// verify reads a disk after a crash. full reads every sector of the blocks that were touched, to find data where none was written.
func (h *history) verify(ctx context.Context, d *Disk, ops int, full bool) error {
	durable := h.durableAt(ops)
	sectors := h.touched()
	buf := make([]byte, 256*h.sector)
	for i := 0; i < len(sectors); {
		n := 1
		for n < 256 && i+n < len(sectors) && sectors[i+n] == sectors[i]+int64(n) {
			n++
		}
		b := buf[:int64(n)*h.sector]
		if err := d.Read(ctx, b, sectors[i]*h.sector); err != nil {
			return err
		}
		for k := range n {
			s := sectors[i+k]
			v, err := readStamp(b[int64(k)*h.sector:int64(k+1)*h.sector], s)
			if err != nil {
				return err
			}
			if !allows(h.lists[i+k], durable, ops, v) {
				return fmt.Errorf("sector %d (block %d) has the value %d; its history is %+v (durable before %d)", s, s*h.sector/d.geo.blockSize, v, h.events[s], durable)
			}
		}
		i += n
	}
	if !full {
		return nil
	}
	block := make([]byte, d.geo.blockSize)
	for i := 0; i < len(sectors); {
		base := sectors[i] * h.sector / d.geo.blockSize * d.geo.blockSize
		b := block[:min(d.geo.blockSize, d.Size()-base)]
		if err := d.Read(ctx, b, base); err != nil {
			return err
		}
		for ; i < len(sectors) && sectors[i]*h.sector < base+int64(len(b)); i++ {
			at := sectors[i]*h.sector - base
			clear(b[at : at+h.sector])
		}
		if !isZero(b) {
			return fmt.Errorf("the block at %d has data where nothing was written", base)
		}
	}
	return nil
}
