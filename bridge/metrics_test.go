package bridge

import (
	"context"
	"encoding/json"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"syscall"
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

// What a disk has done shows in its status.
func TestStatusCounts(t *testing.T) {
	d := newDisk(&failing{}, Location{Local: true, Path: "/x"}, ModeFile, slog.New(slog.DiscardHandler))
	ctx := t.Context()
	if err := d.Read(ctx, make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Write(ctx, make([]byte, 512), 0, false); err == nil {
		t.Fatal("the write succeeded")
	}
	s := d.Status()
	if r := s.Ops["read"]; r.Count != 1 || r.Bytes != 4096 || r.Failed != 0 || r.Max <= 0 || r.P99 > r.Max {
		t.Errorf("reads: %+v", r)
	}
	if w := s.Ops["write"]; w.Count != 0 || w.Bytes != 0 || w.Failed != 1 {
		t.Errorf("writes: %+v", w)
	}
	if len(s.Ops) != 2 || s.Errors["io"] != 1 || s.InFlight != 0 || !s.Unflushed || s.State != StateConnected || s.Mode != "local" {
		t.Errorf("%+v", s)
	}
	if _, err := json.Marshal(s); err != nil {
		t.Error(err)
	}
}

// failing reads and does nothing else.
type failing struct{ backend }

func (*failing) Read(context.Context, []byte, int64) error        { return nil }
func (*failing) Write(context.Context, []byte, int64, bool) error { return syscall.EIO }
func (*failing) Size() int64                                      { return 4096 }
func (*failing) ReadOnly() bool                                   { return false }
func (*failing) BlockSizes() (int, int, int, int)                 { return 512, 4096, 0, 0 }
