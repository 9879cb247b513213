package lu

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

func lockNow(t *testing.T, l *rangeLocks, exclusive bool, ranges ...int64) *lockRequest {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := l.newRequest(exclusive)
	for i := 0; i < len(ranges); i += 2 {
		r.add(ranges[i], ranges[i+1])
	}
	if err := l.acquire(ctx, r); err != nil {
		t.Fatalf("lock %v exclusive=%v is not free", ranges, exclusive)
	}
	return r
}

func lockBusy(t *testing.T, l *rangeLocks, exclusive bool, ranges ...int64) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := l.newRequest(exclusive)
	for i := 0; i < len(ranges); i += 2 {
		r.add(ranges[i], ranges[i+1])
	}
	if err := l.acquire(ctx, r); !errors.Is(err, context.Canceled) {
		t.Fatalf("lock %v exclusive=%v is free", ranges, exclusive)
	}
}

func (l *rangeLocks) empty() bool {
	for i := range l.shards {
		if l.shards[i].head != nil || l.shards[i].tail != nil {
			return false
		}
	}
	return true
}

func TestRangeLock(t *testing.T) {
	var l rangeLocks
	a := lockNow(t, &l, false, 0, 4096)
	b := lockNow(t, &l, false, 512, 512)
	lockBusy(t, &l, true, 1023, 1)
	c := lockNow(t, &l, true, 4096, 512)
	lockBusy(t, &l, false, 0, 8192)
	lockBusy(t, &l, false, 4607, 1)
	all := lockNow(t, &l, false, 4608, 1<<40) // touches every shard
	l.release(a)
	l.release(b)
	d := lockNow(t, &l, true, 0, 4096)
	l.release(c)
	l.release(d)
	lockBusy(t, &l, true, 1<<30, 1)
	l.release(all)
	e := lockNow(t, &l, true, 0, 512, 256, 512, 100<<20, 512) // ranges of one request may overlap
	lockBusy(t, &l, false, 700, 8)
	lockBusy(t, &l, false, 100<<20, 8)
	l.release(e)
	if r := lockNow(t, &l, true); r.shards != 0 { // no range at all
		t.Error("an empty request is in a shard")
	}
}

// A writer that waits is not overtaken by later readers, and a reader not by later writers.
func TestRangeLockFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l rangeLocks
		var order []string
		var mu sync.Mutex
		first := lockNow(t, &l, false, 0, 4096)
		take := func(name string, exclusive bool) {
			go func() {
				r := l.newRequest(exclusive)
				r.add(0, 512)
				if err := l.acquire(context.Background(), r); err != nil {
					t.Error(err)
				}
				mu.Lock()
				order = append(order, name)
				mu.Unlock()
				l.release(r)
			}()
			synctest.Wait()
		}
		take("w1", true)
		take("r1", false)
		take("w2", true)
		take("r2", false)
		if len(order) != 0 {
			t.Fatalf("%v went past a reader that was first", order)
		}
		l.release(first)
		synctest.Wait()
		if want := []string{"w1", "r1", "w2", "r2"}; len(order) != 4 || order[0] != want[0] || order[1] != want[1] || order[2] != want[2] || order[3] != want[3] {
			t.Errorf("order %v, want %v", order, want)
		}
		if !l.empty() {
			t.Error("something is left in the table")
		}
	})
}

// Random requests, some of them given up: nobody shares what is exclusive, all come to an end, nothing is left.
func TestRangeLockRandom(t *testing.T) {
	var l rangeLocks
	const cells = 256
	var use [cells]atomic.Int32 // readers, or -1
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 7))
			for range 2000 {
				excl := rnd.IntN(2) == 0
				r := l.newRequest(excl)
				var mine []int64
				for range 1 + rnd.IntN(3) {
					at := rnd.Int64N(cells)
					n := min(1+rnd.Int64N(8), cells-at)
					r.add(at<<18, n<<18) // a quarter of a stripe
					for c := at; c < at+n; c++ {
						mine = append(mine, c)
					}
				}
				ctx, cancel := context.WithCancel(context.Background())
				if rnd.IntN(4) == 0 {
					cancel()
				}
				err := l.acquire(ctx, r)
				cancel()
				if err != nil {
					continue
				}
				seen := map[int64]bool{}
				for _, c := range mine {
					if seen[c] {
						continue
					}
					seen[c] = true
					if excl && !use[c].CompareAndSwap(0, -1) || !excl && use[c].Add(1) <= 0 {
						t.Error("a range is held twice")
					}
				}
				for c := range seen {
					if excl {
						use[c].Store(0)
					} else {
						use[c].Add(-1)
					}
				}
				l.release(r)
			}
		})
	}
	wg.Wait()
	if !l.empty() {
		t.Error("something is left in the table")
	}
}
