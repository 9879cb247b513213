package server

// window is the set of message identifiers that the client may use: the CommandSequenceWindow of [MS-SMB2] 3.3.1.1. Identifiers from low
// up to, but not including, high were granted; those of them whose bit is set were used.
type window struct {
	low, high uint64
	used      []uint64 // ring of bits, by identifier
	mask      uint64
	limit     int // of unused identifiers
	unused    int
}

func (w *window) init(limit int) {
	size := uint64(64)
	for size < 2*uint64(limit) {
		size *= 2
	}
	w.used, w.mask, w.limit = make([]uint64, size/64), size-1, limit
	w.high, w.unused = 1, 1 // the first request may use identifier 0
}

// take marks n identifiers from id on as used and reports whether all of them were there to be used. [MS-SMB2] 3.3.5.2.3
func (w *window) take(id uint64, n int) bool {
	if n < 1 || id < w.low || id >= w.high || w.high-id < uint64(n) {
		return false
	}
	for i := id; i < id+uint64(n); i++ {
		if w.used[i&w.mask>>6]&(1<<(i&63)) != 0 {
			return false
		}
	}
	for i := id; i < id+uint64(n); i++ {
		w.used[i&w.mask>>6] |= 1 << (i & 63)
	}
	w.unused -= n
	for w.low < w.high && w.used[w.low&w.mask>>6]&(1<<(w.low&63)) != 0 {
		w.used[w.low&w.mask>>6] &^= 1 << (w.low & 63)
		w.low++
	}
	return true
}

// grant adds up to want identifiers and returns how many: never so many that the client has more than the limit, and at least
// one if it has none left.
func (w *window) grant(want int) int {
	if want < 1 {
		want = 1
	}
	n := min(want, w.limit-w.unused, int(w.mask+1-(w.high-w.low)))
	if n < 0 {
		n = 0
	}
	w.high += uint64(n)
	w.unused += n
	return n
}
