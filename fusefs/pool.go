package fusefs

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"syscall"
	"time"
)

// pool keeps the disks of a tree open while they are used, and a while longer. How many are open at once is bounded: of those nobody uses, the one that was not used
// for longest makes room.
type pool struct {
	open func(ctx context.Context, path string, write bool) (Volume, error)
	most int           // open at once
	idle time.Duration // after which a disk nobody uses is closed
	only bool          // read-only
	log  *slog.Logger

	mu      sync.Mutex
	disks   map[string]*pooled
	changed chan struct{} // closed and renewed whenever a disk was opened, closed or released
	closed  bool
	timer   *time.Timer
	wg      sync.WaitGroup // closings under way
}

type pooled struct {
	path  string
	vol   *opened // nil while it is being opened or closed
	write bool
	users int
	last  time.Time
	err   error
}

// errPoolFull says that all disks that may be open are in use.
var errPoolFull = errors.Join(errors.New("too many disks of this mount are in use at once"), syscall.ENFILE)

func newPool(open func(context.Context, string, bool) (Volume, error), most int, idle time.Duration, readOnly bool, log *slog.Logger) *pool {
	return &pool{open: open, most: most, idle: idle, only: readOnly, log: log, disks: map[string]*pooled{}, changed: make(chan struct{})}
}

// signal tells who waits that something has changed. p.mu is held.
func (p *pool) signal() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// wait waits for a change, with p.mu held before and after.
func (p *pool) wait(ctx context.Context, end <-chan time.Time) error {
	c := p.changed
	p.mu.Unlock()
	defer p.mu.Lock()
	select {
	case <-c:
		return nil
	case <-end:
		return syscall.EBUSY
	case <-ctx.Done():
		return ctx.Err()
	}
}

// poolPatience is how long one waits for a disk that others use in a way that excludes it: most do so for a moment only.
const poolPatience = 5 * time.Second

func (p *pool) acquire(ctx context.Context, path string, write bool) (*pooled, error) {
	limit := time.NewTimer(poolPatience)
	defer limit.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if p.closed {
			return nil, syscall.ESHUTDOWN
		}
		d := p.disks[path]
		switch {
		case d != nil && d.vol != nil && (d.write || !write):
			d.users++
			return d, nil
		case d != nil && d.vol != nil && d.users == 0:
			p.remove(d) // it is open read-only; comes again for writing
			continue
		case d != nil:
			// Being opened or closed, or read by somebody while we want to write.
			if err := p.wait(ctx, limit.C); err != nil {
				return nil, err
			}
			continue
		case len(p.disks) >= p.most:
			if old := p.oldest(); old != nil {
				p.remove(old)
				continue
			}
			if err := p.wait(ctx, limit.C); err == syscall.EBUSY {
				return nil, errPoolFull
			} else if err != nil {
				return nil, err
			}
			continue
		}
		d = &pooled{path: path, write: write}
		p.disks[path] = d
		p.mu.Unlock()
		vol, err := p.open(ctx, path, write)
		var o *opened
		if err == nil {
			if o, err = newOpened(vol, !write); err != nil && vol.Close != nil {
				err = errors.Join(err, vol.Close())
			}
		}
		p.mu.Lock()
		p.signal()
		if err != nil {
			delete(p.disks, path)
			return nil, err
		}
		o.owner = d
		d.vol, d.users = o, 1
		return d, nil
	}
}

func (p *pool) release(d *pooled) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d.users--
	d.last = time.Now()
	p.signal()
	if d.users == 0 && p.timer == nil && !p.closed {
		p.timer = time.AfterFunc(p.idle, p.sweep)
	}
}

// oldest is the disk without users that was not used for longest, or nil. p.mu is held.
func (p *pool) oldest() (found *pooled) {
	for _, d := range p.disks {
		if d.vol != nil && d.users == 0 && (found == nil || d.last.Before(found.last)) {
			found = d
		}
	}
	return found
}

// remove closes a disk without users. p.mu is held, but not during the closing; the disk counts as open until it is closed.
func (p *pool) remove(d *pooled) {
	vol := d.vol
	d.vol = nil
	p.wg.Add(1)
	p.mu.Unlock()
	err := vol.flush(context.Background())
	if vol.Close != nil {
		err = errors.Join(err, vol.Close())
	}
	if err != nil {
		p.log.Error("a disk could not be closed well", "disk", d.path, "err", err)
	}
	p.wg.Done()
	p.mu.Lock()
	delete(p.disks, d.path)
	d.err = err
	p.signal()
}

// sweep closes what has been idle for long, and comes again when the next may be.
func (p *pool) sweep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer = nil
	for {
		old := p.oldest()
		if old == nil || p.closed {
			return
		}
		if left := p.idle - time.Since(old.last); left > 0 {
			if p.timer == nil {
				p.timer = time.AfterFunc(left, p.sweep)
			}
			return
		}
		p.remove(old)
	}
}

// inUse says whether the disk at path, or one below it, is open; those nobody uses are closed first.
func (p *pool) inUse(ctx context.Context, path string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
again:
	for name, d := range p.disks {
		if name != path && (path != "" && !hasPrefixDir(name, path)) {
			continue
		}
		if d.users > 0 {
			return true
		}
		if d.vol == nil {
			if p.wait(ctx, nil) != nil {
				return true
			}
		} else {
			p.remove(d)
		}
		goto again
	}
	return false
}

func hasPrefixDir(name, dir string) bool {
	return len(name) > len(dir) && name[:len(dir)] == dir && name[len(dir)] == '/'
}

// count says how many disks are open.
func (p *pool) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.disks)
}

// close closes all disks. Nobody uses them any more.
func (p *pool) close() error {
	p.mu.Lock()
	p.closed = true
	if p.timer != nil {
		p.timer.Stop()
	}
	var errs []error
	for {
		var d *pooled
		for _, x := range p.disks {
			if x.vol != nil {
				d = x
				break
			}
		}
		if d == nil {
			break
		}
		p.remove(d)
		errs = append(errs, d.err)
	}
	p.mu.Unlock()
	p.wg.Wait()
	return errors.Join(errs...)
}

// fromPool is the source of a disk in a tree.
type fromPool struct {
	p    *pool
	path func() string // where the disk is now
}

func (f *fromPool) acquire(ctx context.Context, write bool) (*opened, error) {
	d, err := f.p.acquire(ctx, f.path(), write)
	if err != nil {
		return nil, err
	}
	return d.vol, nil // it has a user now, so it stays
}

func (f *fromPool) release(o *opened) { f.p.release(o.owner) }
