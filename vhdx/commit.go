package vhdx

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
)

// committer makes BAT changes durable. Many calls of sync at once share one run.
type committer struct {
	b     Backing
	bat   *batTable
	space *space
	log   *logWriter

	sem     chan struct{} // 1 token: held by the run
	started atomic.Uint64 // runs
	done    atomic.Uint64 // number of the newest run that succeeded
	broken  atomic.Pointer[error]

	flushes, entries atomic.Int64 // of the backing file, and of the log
}

// failed is the error that ended writing, or nil.
func (c *committer) failed() error {
	if p := c.broken.Load(); p != nil {
		return *p
	}
	return nil
}

// flush makes the backing file durable. When that fails nobody knows what is on the disk: the system may have dropped the writes and report success
// the next time. So it is the end of writing for this open.
func (c *committer) flush(ctx context.Context) error {
	size := c.space.size.Load()
	c.flushes.Add(1)
	if err := c.b.Flush(ctx); err != nil {
		given := ctx.Err() != nil && errors.Is(err, ctx.Err()) // up, before the system was asked
		err = fmt.Errorf("flush the image: %w", err)
		if !given {
			final := fmt.Errorf("an earlier flush failed, so writes may be lost; close the image and open it again: %w", err)
			c.broken.CompareAndSwap(nil, &final)
		}
		return err
	}
	if size > c.space.stable.Load() {
		c.space.stable.Store(size)
	}
	return nil
}

// sync makes everything durable whose call returned before: payload, then log, then BAT.
func (c *committer) sync(ctx context.Context) error {
	arrived := c.started.Load()
	select {
	case c.sem <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-c.sem }()
	if c.done.Load() > arrived { // a run that began after we came has succeeded
		return nil
	}
	if err := c.failed(); err != nil {
		return err
	}
	run := c.started.Add(1)
	if err := c.run(ctx); err != nil {
		return err
	}
	c.done.Store(run)
	return nil
}

// run is one commit. sem is held.
func (c *committer) run(ctx context.Context) error {
	sectors, freed := c.bat.pending()
	if sectors == 0 {
		if err := c.flush(ctx); err != nil {
			c.bat.putBackFreed(freed)
			return err
		}
		c.log.checkpointed()
		return c.reclaim(ctx)
	}
	for sectors > 0 {
		n, err := c.batch(ctx, sectors)
		if err != nil {
			c.bat.putBackFreed(freed)
			return err
		}
		sectors -= n
	}
	c.space.release(freed)
	return c.reclaim(ctx)
}

// reclaim makes free space usable; what goes wrong with that is not the caller's concern, as everything is durable already.
func (c *committer) reclaim(ctx context.Context) error {
	if err := c.space.reclaim(ctx); err != nil && !errors.Is(err, ctx.Err()) {
		return err
	}
	return nil
}

// batch commits up to n dirty BAT sectors and returns how many.
func (c *committer) batch(ctx context.Context, n int) (int, error) {
	if err := c.log.start(ctx, c.space.stable.Load(), c.space.end.Load()); err != nil {
		return 0, fmt.Errorf("start the log: %w", err)
	}
	k, ok := c.log.room(n)
	if !ok {
		if err := c.makeRoom(ctx); err != nil {
			return 0, err
		}
		if k, ok = c.log.room(n); !ok {
			return 0, corrupt("log", c.log.log.off, "its %d bytes are too few for an entry", c.log.log.n)
		}
	}
	refs, updates, payload := c.bat.take(k, nil)
	err := c.commit(ctx, refs, updates, payload)
	if err != nil {
		c.bat.putBack(refs, payload)
		return 0, err
	}
	c.bat.done(refs)
	return len(refs), nil
}

func (c *committer) commit(ctx context.Context, refs []sectorRef, updates []logUpdate, payload bool) error {
	if payload || c.space.stable.Load() < c.space.size.Load() {
		if err := c.flush(ctx); err != nil {
			return err
		}
		c.log.checkpointed()
	}
	if err := c.log.append(ctx, updates, c.space.stable.Load(), c.space.end.Load()); err != nil {
		return err
	}
	if err := c.flush(ctx); err != nil {
		return err
	}
	c.entries.Add(1)
	c.log.advance(entryLen(len(updates)))
	return c.apply(ctx, updates)
}

// apply writes updates that are in the log to their places, neighbours together. It does not wait until they are durable there: the next flush, whoever
// asks for it, sees to that.
func (c *committer) apply(ctx context.Context, updates []logUpdate) error {
	slices.SortFunc(updates, func(a, b logUpdate) int { return int((a.off - b.off) / logSector) })
	for len(updates) > 0 {
		n := 1
		for n < len(updates) && updates[n].off == updates[0].off+int64(n)*logSector {
			n++
		}
		b := updates[0].data[:]
		if n > 1 {
			b = make([]byte, 0, n*logSector)
			for _, u := range updates[:n] {
				b = append(b, u.data[:]...)
			}
		}
		if err := writeFull(ctx, c.b, b, updates[0].off); err != nil {
			return fmt.Errorf("write the BAT: %w", err)
		}
		updates = updates[n:]
	}
	return nil
}

// makeRoom makes the updates of all log entries durable in place and writes an entry that says so.
func (c *committer) makeRoom(ctx context.Context) error {
	if err := c.flush(ctx); err != nil {
		return err
	}
	c.log.checkpointed()
	if err := c.log.append(ctx, nil, c.space.stable.Load(), c.space.end.Load()); err != nil {
		return err
	}
	if err := c.flush(ctx); err != nil {
		return err
	}
	c.log.advance(logSector)
	c.log.checkpointed()
	return nil
}
