package bridge

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// BenchOptions say what to measure.
type BenchOptions struct {
	Size       int // bytes of one request
	Depth      int // requests in flight
	Duration   time.Duration
	Sequential bool
	Write      bool // destroys what is on the disk
}

// BenchResult is what was measured. Latencies are in microseconds.
type BenchResult struct {
	Requests    int64   `json:"requests"`
	Seconds     float64 `json:"seconds"`
	IOPS        float64 `json:"iops"`
	BytesPerSec float64 `json:"bytes_per_second"`
	LatencyP50  float64 `json:"latency_p50_us"`
	LatencyP99  float64 `json:"latency_p99_us"`
	LatencyMax  float64 `json:"latency_max_us"`
}

// String is one line for people.
func (r *BenchResult) String() string {
	return fmt.Sprintf("%.0f requests/s, %.1f MiB/s, latency %.0f µs median, %.0f µs for 99 %%, %.0f µs at most (%d requests in %.1f s)", r.IOPS, r.BytesPerSec/(1<<20),
		r.LatencyP50, r.LatencyP99, r.LatencyMax, r.Requests, r.Seconds)
}

// maxBenchDepth bounds goroutines and, with the size, memory.
const (
	maxBenchDepth  = 4096
	maxBenchMemory = 1 << 30
	benchSamples   = 1 << 16 // latencies kept by each worker
)

// Bench measures d. It ends early, with the error, when a request fails.
func Bench(ctx context.Context, d *Disk, o BenchOptions) (*BenchResult, error) {
	logical, _, _, _ := d.BlockSizes()
	switch {
	case o.Size <= 0 || o.Size%logical != 0:
		return nil, Usagef("a request of %d bytes is not a whole number of sectors of %d bytes", o.Size, logical)
	case int64(o.Size) > d.Size():
		return nil, Usagef("a request of %d bytes is larger than the disk", o.Size)
	case o.Depth < 1 || o.Depth > maxBenchDepth || int64(o.Depth)*int64(o.Size) > maxBenchMemory:
		return nil, Usagef("%d requests of %d bytes in flight: at most %d, and 1 GiB together", o.Depth, o.Size, maxBenchDepth)
	case o.Duration <= 0:
		return nil, Usagef("the duration must be above zero")
	}
	slots := d.Size() / int64(o.Size)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		next    atomic.Int64
		total   atomic.Int64
		mu      sync.Mutex
		samples []time.Duration
		slowest time.Duration
		wg      sync.WaitGroup
	)
	start := time.Now()
	end := start.Add(o.Duration)
	for range o.Depth {
		wg.Go(func() {
			p := make([]byte, o.Size)
			if o.Write {
				for i := range p {
					p[i] = byte(rand.Uint32())
				}
			}
			var mine []time.Duration
			var worst time.Duration
			n := int64(0)
			for now := time.Now(); now.Before(end) && ctx.Err() == nil; n++ {
				slot := rand.Int64N(slots)
				if o.Sequential {
					slot = (next.Add(1) - 1) % slots
				}
				var err error
				if o.Write {
					err = d.Write(ctx, p, slot*int64(o.Size), false)
				} else {
					err = d.Read(ctx, p, slot*int64(o.Size))
				}
				if err != nil {
					cancel(err)
					break
				}
				done := time.Now()
				took := done.Sub(now)
				now = done
				worst = max(worst, took)
				if len(mine) < benchSamples {
					mine = append(mine, took)
				} else if i := rand.Int64N(n + 1); i < benchSamples {
					mine[i] = took
				}
			}
			total.Add(n)
			mu.Lock()
			samples = append(samples, mine...)
			slowest = max(slowest, worst)
			mu.Unlock()
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	secs := time.Since(start).Seconds()
	slices.Sort(samples)
	r := &BenchResult{Requests: total.Load(), Seconds: secs}
	r.IOPS = float64(r.Requests) / secs
	r.BytesPerSec = r.IOPS * float64(o.Size)
	if len(samples) > 0 {
		us := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
		r.LatencyP50, r.LatencyP99, r.LatencyMax = us(samples[len(samples)/2]), us(samples[len(samples)*99/100]), us(slowest)
	}
	if o.Write {
		return r, d.Flush(ctx)
	}
	return r, nil
}
