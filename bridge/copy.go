package bridge

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// CopyOptions say how a disk is copied.
type CopyOptions struct {
	From, To Format        // of files; FormatAuto: by name
	Create   CreateOptions // of a new .vhdx; Size is the source's
	Force    bool          // overwrite what is there
	Resume   bool          // go on where an interrupted copy has stopped
	Workers  int           // requests in flight on each side; 0: 8
	Progress func(CopyProgress)
	Opts     Options // to reach both ends
}

// CopyProgress is how far a copy is. Bytes count the virtual disk.
type CopyProgress struct {
	Total   int64 `json:"total"`
	Done    int64 `json:"done"`    // of Total: copied or known to be zeros
	Data    int64 `json:"data"`    // bytes that were written
	Resumed int64 `json:"resumed"` // of Done: was there from an earlier run
}

const (
	copyChunk      = 1 << 20
	zeroAtOnce     = 1 << 30
	checkpointTime = 5 * time.Second
)

// errGrown says that the disk to copy to is too small.
var errTooSmall = errors.New("the destination is smaller than the source")

// Copy copies the disk at from to to: files of this machine and of shares, raw or in an image, block devices, and NBD exports, in any pairing. Parts that are known to be
// zeros are not read, and not written where the destination is new. After an interruption what was copied and is durable is noted, for Resume.
func Copy(ctx context.Context, from, to Endpoint, o CopyOptions) (p CopyProgress, err error) {
	o.Workers = cmp.Or(o.Workers, 8)
	if from.key() == to.key() {
		return p, Usagef("%s would be copied to itself", from)
	}
	src, err := from.openSource(ctx, o)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	size := src.Size()
	note := o.note(from, to, src)
	var begin int64
	if o.Resume {
		if begin, err = note.load(); err != nil {
			return p, err
		}
	}
	dst, fresh, err := to.openDestination(ctx, size, o)
	if err != nil {
		return p, err
	}
	closed := false
	defer func() {
		if !closed {
			err = errors.Join(err, dst.Close())
		}
	}()
	if dst.Size() < size {
		return p, &Error{ClassNoSpace, fmt.Sprintf("%s has %d bytes, and %s %d: it does not fit", to, dst.Size(), from, size), errors.Join(errTooSmall, syscall.ENOSPC)}
	}
	c := &copier{src: src, dst: dst, size: size, fresh: fresh && begin == 0 || o.Resume && fresh, note: note, o: o}
	c.p.Total, c.p.Done, c.p.Resumed = size, begin, begin
	c.mark = begin
	err = c.run(ctx)
	p = c.progress()
	if err != nil {
		// What is durable by now is noted; everything behind it is copied again.
		if cerr := c.checkpoint(context.WithoutCancel(ctx)); cerr == nil && c.saved > 0 && Classify(err) == ClassInterrupted {
			return p, &Error{ClassInterrupted, fmt.Sprintf("interrupted after %d of %d bytes; the same command with --resume goes on", c.saved, size), err}
		}
		return p, err
	}
	if err := dst.Flush(ctx); err != nil {
		return p, fmt.Errorf("flush %s: %w", to, err)
	}
	closed = true
	if err := dst.Close(); err != nil {
		return p, err
	}
	if err := to.checkSize(ctx, size, o); err != nil {
		return p, err
	}
	return p, note.remove()
}

// segment is a part of the disk to copy, in order.
type segment struct {
	off, n int64
	zero   bool
	done   atomic.Bool
}

type copier struct {
	src, dst backend
	size     int64
	fresh    bool // the destination reads as zeros where nothing was written
	note     *copyNote
	o        CopyOptions

	mu    sync.Mutex
	queue []*segment // in order, not all done
	p     CopyProgress
	mark  int64 // everything before it is written
	saved int64 // everything before it is durable, and noted

	checking sync.Mutex
}

func (c *copier) progress() CopyProgress {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.p
}

func (c *copier) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan *segment, 2*c.o.Workers)
	var workers, noter sync.WaitGroup
	for range c.o.Workers {
		workers.Go(func() {
			buf := make([]byte, copyChunk)
			for s := range work {
				if ctx.Err() != nil {
					continue
				}
				n, err := c.copy(ctx, s, buf)
				if err != nil {
					cancel(err)
					continue
				}
				c.finished(s, n)
			}
		})
	}
	noter.Go(func() {
		t := time.NewTicker(checkpointTime)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				if err := c.checkpoint(ctx); err != nil {
					cancel(err)
				}
			case <-ctx.Done():
				return
			}
		}
	})
	if err := c.plan(ctx, work); err != nil {
		cancel(err)
	}
	close(work)
	workers.Wait()
	err := context.Cause(ctx)
	cancel(nil)
	noter.Wait()
	if err == nil && c.mark != c.size {
		err = fmt.Errorf("only %d of %d bytes were copied", c.mark, c.size)
	}
	return err
}

// planAhead is how many extents are asked for at once.
const planAhead = 4096

// plan cuts the disk into segments, by what the source says about its extents.
func (c *copier) plan(ctx context.Context, work chan<- *segment) error {
	type run struct {
		n    int64
		zero bool
	}
	for off := c.mark; off < c.size; {
		var runs []run
		// They are collected first: what asks for them may hold up others while it does.
		err := c.src.Extents(ctx, off, c.size-off, func(n int64, _, zero bool) bool {
			if k := len(runs); k > 0 && runs[k-1].zero == zero {
				runs[k-1].n += n
			} else {
				runs = append(runs, run{n, zero})
			}
			return len(runs) < planAhead
		})
		if err != nil {
			return err
		}
		if len(runs) == 0 {
			return fmt.Errorf("the source does not tell what is at %d", off)
		}
		for _, r := range runs {
			for n := min(r.n, c.size-off); n > 0; {
				k := min(n, zeroAtOnce)
				if !r.zero {
					k = min(n, copyChunk-off%copyChunk) // at multiples of its size, as blocks of images lie
				}
				s := &segment{off: off, n: k, zero: r.zero}
				c.mu.Lock()
				c.queue = append(c.queue, s)
				c.mu.Unlock()
				if r.zero && c.fresh {
					c.finished(s, 0)
				} else {
					select {
					case work <- s:
					case <-ctx.Done():
						return context.Cause(ctx)
					}
				}
				off, n = off+k, n-k
			}
		}
	}
	return context.Cause(ctx)
}

// copy copies a segment and says how many bytes of data it has written.
func (c *copier) copy(ctx context.Context, s *segment, buf []byte) (int64, error) {
	if s.zero {
		return 0, c.zero(ctx, s.off, s.n)
	}
	p := buf[:s.n]
	if err := c.src.Read(ctx, p, s.off); err != nil {
		return 0, fmt.Errorf("read the source: %w", err)
	}
	if isZero(p) {
		if c.fresh {
			return 0, nil
		}
		return 0, c.zero(ctx, s.off, s.n)
	}
	// The last sector of a source that ends within one is filled up.
	unit, _, _, _ := c.dst.BlockSizes()
	if rest := len(p) % unit; rest != 0 {
		p = append(append([]byte(nil), p...), make([]byte, unit-rest)...)
	}
	if err := c.dst.Write(ctx, p, s.off, false); err != nil {
		return 0, fmt.Errorf("write the destination: %w", err)
	}
	return s.n, nil
}

func (c *copier) zero(ctx context.Context, off, n int64) error {
	unit, _, _, _ := c.dst.BlockSizes()
	n = min((n+int64(unit)-1)/int64(unit)*int64(unit), c.dst.Size()-off)
	if err := c.dst.WriteZeroes(ctx, off, n, true, false); err != nil {
		return fmt.Errorf("write zeros to the destination: %w", err)
	}
	return nil
}

// isZero compares a buffer with itself, shifted: as fast as memory is read.
func isZero(p []byte) bool {
	return len(p) == 0 || p[0] == 0 && bytes.Equal(p[:len(p)-1], p[1:])
}

// finished notes a segment that is written.
func (c *copier) finished(s *segment, data int64) {
	c.mu.Lock()
	s.done.Store(true)
	c.p.Done += s.n
	c.p.Data += data
	for len(c.queue) > 0 && c.queue[0].done.Load() {
		c.mark = c.queue[0].off + c.queue[0].n
		c.queue[0] = nil
		c.queue = c.queue[1:]
	}
	p := c.p
	c.mu.Unlock()
	if c.o.Progress != nil {
		c.o.Progress(p)
	}
}

// checkpoint makes durable what is written and notes how far that is.
func (c *copier) checkpoint(ctx context.Context) error {
	c.checking.Lock()
	defer c.checking.Unlock()
	c.mu.Lock()
	mark := c.mark
	c.mu.Unlock()
	if mark == c.saved {
		return nil
	}
	if err := c.dst.Flush(ctx); err != nil {
		return fmt.Errorf("flush the destination: %w", err)
	}
	if err := c.note.save(mark); err != nil {
		return err
	}
	c.saved = mark
	return nil
}
