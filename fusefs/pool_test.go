package fusefs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"vdbridge/test/ramdisk"
)

// openings counts what a pool has open, and notices what must not be.
type openings struct {
	t        *testing.T
	mu       sync.Mutex
	open     map[string]bool // path: for writing
	most     int
	total    atomic.Int64
	failures atomic.Int64
}

func (o *openings) volume(_ context.Context, path string, write bool) (Volume, error) {
	if path == "bad" {
		o.failures.Add(1)
		return Volume{}, syscall.EMEDIUMTYPE
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, twice := o.open[path]; twice {
		o.t.Errorf("%s is opened twice", path)
	}
	o.open[path] = write
	o.most = max(o.most, len(o.open))
	o.total.Add(1)
	return Volume{Disk: ramdisk.New(4096, 512), Close: func() error {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.open, path)
		return nil
	}}, nil
}

// TestPool has many users of more disks than may be open.
func TestPool(t *testing.T) {
	o := &openings{t: t, open: map[string]bool{}}
	p := newPool(o.volume, 5, time.Hour, false, slog.New(slog.DiscardHandler))
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 1))
			for range 300 {
				path, write := fmt.Sprint(r.IntN(20)), r.IntN(4) == 0
				d, err := p.acquire(context.Background(), path, write)
				if errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.EBUSY) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				o.mu.Lock()
				if got, ok := o.open[path]; !ok || write && !got {
					t.Errorf("%s was given for writing %v, and is open %v, for writing %v", path, write, ok, got)
				}
				o.mu.Unlock()
				if write == d.vol.readOnly && write {
					t.Error("given read-only")
				}
				p.release(d)
			}
		})
	}
	wg.Wait()
	if o.most > 5 || p.count() > 5 {
		t.Errorf("%d disks were open at once, %d are", o.most, p.count())
	}
	if _, err := p.acquire(context.Background(), "bad", false); !errors.Is(err, syscall.EMEDIUMTYPE) || o.failures.Load() != 1 {
		t.Errorf("a disk that cannot be opened: %v", err)
	}
	if err := p.close(); err != nil || len(o.open) != 0 {
		t.Errorf("%d disks are open after the end: %v", len(o.open), err)
	}
	if _, err := p.acquire(context.Background(), "1", false); !errors.Is(err, syscall.ESHUTDOWN) {
		t.Errorf("after the end: %v", err)
	}
}

// TestPoolWaits has the clock of the test: what is idle is closed, what is in use is waited for, but not for ever.
func TestPoolWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &openings{t: t, open: map[string]bool{}}
		p := newPool(o.volume, 2, time.Minute, false, slog.New(slog.DiscardHandler))
		ctx := context.Background()
		get := func(path string, write bool) *pooled {
			t.Helper()
			d, err := p.acquire(ctx, path, write)
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		a, b := get("dir/a", false), get("b", false)
		start := time.Now()
		if _, err := p.acquire(ctx, "c", false); !errors.Is(err, syscall.ENFILE) || time.Since(start) != poolPatience {
			t.Errorf("a third: %v after %v", err, time.Since(start))
		}
		if _, err := p.acquire(ctx, "b", true); !errors.Is(err, syscall.EBUSY) {
			t.Errorf("for writing, while somebody reads: %v", err)
		}
		time.AfterFunc(time.Second, func() { p.release(b) })
		start = time.Now()
		b = get("b", true)
		if time.Since(start) != time.Second || o.total.Load() != 3 {
			t.Errorf("for writing, once the reader has gone: after %v, %d openings", time.Since(start), o.total.Load())
		}
		if !p.inUse(ctx, "dir") || !p.inUse(ctx, "b") || p.inUse(ctx, "di") {
			t.Error("what is in use")
		}
		p.release(a)
		p.release(b)
		if p.inUse(ctx, "dir") || p.count() != 1 {
			t.Errorf("a disk that nobody uses is in use; %d are open", p.count())
		}
		time.Sleep(59 * time.Second)
		synctest.Wait()
		if p.count() != 1 {
			t.Error("closed too soon")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if p.count() != 0 || len(o.open) != 0 {
			t.Errorf("%d are open long after their last use", p.count())
		}
		if err := p.close(); err != nil {
			t.Error(err)
		}
	})
}
