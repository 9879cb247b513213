package bridge

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// Every duration lies in its bucket, and buckets are at most an eighth wide.
func TestHistogramBuckets(t *testing.T) {
	last := -1
	for _, d := range []time.Duration{-1, 0, 1, 1023, 1024, 16 << 10, 17 << 10, 31 << 10, 32 << 10, time.Millisecond, time.Second, time.Hour, 24 * time.Hour, math.MaxInt64} {
		i := bucketOf(d)
		if i < last || i >= histogramBuckets {
			t.Errorf("%v is in bucket %d, after %d", d, i, last)
		}
		last = i
	}
	for i := 1; i < histogramBuckets; i++ {
		low, high := bucketTop(i-1), bucketTop(i)
		if bucketOf(low) != i || bucketOf(high-1) != i {
			t.Errorf("bucket %d is said to span %v to %v, but those are in %d and %d", i, low, high, bucketOf(low), bucketOf(high-1))
		}
		if i >= 16 && float64(high-low) > float64(low)/8+1 {
			t.Errorf("bucket %d spans %v to %v, which is more than an eighth", i, low, high)
		}
	}
}

// Percentiles are within an eighth above the true ones.
func TestHistogramPercentiles(t *testing.T) {
	var h histogram
	r := rand.New(rand.NewPCG(1, 2))
	var all []time.Duration
	for range 10000 {
		d := time.Duration(math.Exp(r.NormFloat64()*2+11)) + 20*time.Microsecond
		all = append(all, d)
		h.add(d)
	}
	slices.Sort(all)
	shares := []float64{0.5, 0.9, 0.99, 0.999, 1}
	for i, got := range h.percentiles(shares...) {
		want := all[int(shares[i]*float64(len(all)))-1]
		if got < want || float64(got) > float64(want)*1.13+1024 {
			t.Errorf("percentile %v is %v, want %v", shares[i], got, want)
		}
	}
	var none histogram
	if p := none.percentiles(0.5); p[0] != 0 {
		t.Errorf("nothing was counted, and half of it took %v", p[0])
	}
}
