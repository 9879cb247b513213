package fusefs

import (
	"math/bits"
	"sync"
)

const (
	stripeCount = 64 // bits in a uint64
	stripeShift = 20 // bytes
)

// stripes keep writes of whole blocks (which share) and changes of parts of blocks (which own) of the same range apart. The disk is
// cut into stripes, and those of one number have one lock.
type stripes [stripeCount]sync.RWMutex

// set returns the locks of a range.
func (s *stripes) set(off, n int64) (set uint64) {
	first, last := off>>stripeShift, (off+max(n, 1)-1)>>stripeShift
	for i := first; i <= min(last, first+stripeCount-1); i++ {
		set |= 1 << (i % stripeCount)
	}
	return set
}

// share waits until nobody owns the range, and returns what ends the sharing.
func (s *stripes) share(off, n int64) func() {
	set := s.set(off, n)
	each(set, func(i int) { s[i].RLock() })
	return func() { each(set, func(i int) { s[i].RUnlock() }) }
}

// own waits until nobody shares or owns the range, and returns what ends the ownership.
func (s *stripes) own(off, n int64) func() {
	set := s.set(off, n)
	each(set, func(i int) { s[i].Lock() })
	return func() { each(set, func(i int) { s[i].Unlock() }) }
}

// each goes through a set in rising order, so that two who lock several cannot wait for each other.
func each(set uint64, f func(int)) {
	for ; set != 0; set &= set - 1 {
		f(bits.TrailingZeros64(set))
	}
}
