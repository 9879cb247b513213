package bridge

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// diskOp is one of the operations that are counted.
type diskOp int

const (
	opRead diskOp = iota
	opWrite
	opFlush
	opTrim
	opZero
	opExtents
	diskOps
)

var diskOpNames = [diskOps]string{"read", "write", "flush", "trim", "write-zeroes", "extents"}

// metrics counts what a disk does. Nothing in it allocates or waits, as every request passes here.
type metrics struct {
	inFlight atomic.Int64
	ops      [diskOps]opMetrics
	errors   [len(classNames)]atomic.Uint64 // by Class
}

type opMetrics struct {
	done   atomic.Uint64 // successes
	failed atomic.Uint64
	bytes  atomic.Uint64 // of the successes
	took   histogram     // of the successes
}

// begin is called before an operation; end takes what it returns.
func (m *metrics) begin() time.Time {
	m.inFlight.Add(1)
	return time.Now()
}

func (m *metrics) end(op diskOp, start time.Time, n int64, err error) {
	m.inFlight.Add(-1)
	o := &m.ops[op]
	if err != nil {
		o.failed.Add(1)
		m.errors[Classify(err)].Add(1)
		return
	}
	o.done.Add(1)
	o.bytes.Add(uint64(n))
	o.took.add(time.Since(start))
}

// histogram counts durations in buckets that are an eighth of a power of two wide, so a percentile is right within 12 %. Durations of
// 1 µs and less share the first bucket.
type histogram struct {
	buckets [histogramBuckets]atomic.Uint64
	longest atomic.Int64 // ns
}

const (
	histogramUnit    = 1 << 10 // ns; close enough to a microsecond
	histogramBuckets = 8 * 31  // up to two hours
)

func (h *histogram) add(d time.Duration) {
	h.buckets[bucketOf(d)].Add(1)
	for {
		old := h.longest.Load()
		if int64(d) <= old || h.longest.CompareAndSwap(old, int64(d)) {
			return
		}
	}
}

// bucketOf numbers the units 0 to 15 by themselves, and from there on eight buckets for each power of two.
func bucketOf(d time.Duration) int {
	u := uint64(max(d, 0)) / histogramUnit
	if u < 16 {
		return int(u)
	}
	shift := bits.Len64(u) - 4
	return min(8*shift+int(u>>shift), histogramBuckets-1)
}

// bucketTop is the shortest duration that is too long for the bucket.
func bucketTop(i int) time.Duration {
	if i < 16 {
		return time.Duration(i+1) * histogramUnit
	}
	shift := i/8 - 1
	return time.Duration(uint64(i%8+8+1)<<shift) * histogramUnit
}

// percentiles gives for each share (0 to 1, ascending) the duration that so many did not exceed.
func (h *histogram) percentiles(shares ...float64) []time.Duration {
	var counts [histogramBuckets]uint64
	var total uint64
	for i := range h.buckets {
		counts[i] = h.buckets[i].Load()
		total += counts[i]
	}
	out := make([]time.Duration, len(shares))
	if total == 0 {
		return out
	}
	longest := time.Duration(h.longest.Load())
	sum, next := uint64(0), 0
	for i, n := range counts {
		sum += n
		for next < len(shares) && float64(sum) >= shares[next]*float64(total) {
			out[next] = min(bucketTop(i), longest)
			next++
		}
	}
	return out
}
