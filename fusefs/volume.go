package fusefs

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Part is a part of a disk that is shown as a file of its own: a partition.
type Part struct {
	Name        string // of the file
	Start, Size int64  // bytes, within the disk; they need not be multiples of its blocks
}

// Volume is an open disk and what is shown of it. What is nil is not shown, or not asked.
type Volume struct {
	Disk         Disk
	Parts        func(ctx context.Context) ([]Part, error) // reads the partition table; asked again when the disk was written to
	Info         func(ctx context.Context) []byte          // makes the text of info.json
	Reservations func(ctx context.Context) []byte          // makes the text of reservations
	MayWrite     func(ctx context.Context) error           // asked when a file is opened for writing, says why not
	Close        func() error                              // when it is not needed any more; the disk has been flushed then
}

// opened is a Volume in use.
type opened struct {
	Volume
	*blocks
	readOnly bool
	owner    *pooled // in a tree
	serial   uint64  // of this open: what the kernel has cached of another is stale

	dirty   atomic.Bool  // written to since the last flush began
	changes atomic.Int64 // writes that have returned

	mu    sync.Mutex
	parts []Part
	asOf  int64 // changes when parts was read, -1 before
}

var serials atomic.Uint64

func newOpened(v Volume, readOnly bool) (*opened, error) {
	b, err := newBlocks(v.Disk)
	if err != nil {
		return nil, err
	}
	return &opened{Volume: v, blocks: b, readOnly: readOnly || v.Disk.ReadOnly(), serial: serials.Add(1), asOf: -1}, nil
}

// list returns the partitions as they are on the disk now.
func (o *opened) list(ctx context.Context) ([]Part, error) {
	if o.Parts == nil {
		return nil, nil
	}
	now := o.changes.Load()
	o.mu.Lock()
	if o.asOf == now && !o.shared {
		defer o.mu.Unlock()
		return o.parts, nil
	}
	o.mu.Unlock()
	parts, err := o.Parts(ctx)
	if err != nil {
		return nil, err
	}
	ok := parts[:0:0]
	for _, p := range parts {
		if p.Start >= 0 && p.Size > 0 && p.Size <= o.size-p.Start {
			ok = append(ok, p)
		}
	}
	o.mu.Lock()
	o.parts, o.asOf = ok, now
	o.mu.Unlock()
	return ok, nil
}

// part finds a partition by the name of its file.
func (o *opened) part(ctx context.Context, name string) (Part, bool, error) {
	list, err := o.list(ctx)
	for _, p := range list {
		if p.Name == name {
			return p, true, nil
		}
	}
	return Part{}, false, err
}

// wrote notes a change of the disk.
func (o *opened) wrote() {
	o.changes.Add(1)
	if !o.dirty.Load() {
		o.dirty.Store(true)
	}
}

// flush makes durable what was written.
func (o *opened) flush(ctx context.Context) error {
	if o.readOnly {
		return nil
	}
	o.dirty.Store(false)
	if err := o.disk.Flush(ctx); err != nil {
		o.dirty.Store(true)
		return err
	}
	return nil
}

// source has the disk that a folder shows. acquire opens it if it is not open, and keeps it open until release; write asks for one that can be written.
type source interface {
	acquire(ctx context.Context, write bool) (*opened, error)
	release(*opened)
}

// always is the source of a disk that is open for as long as the mount.
type always struct{ *opened }

func (a always) acquire(context.Context, bool) (*opened, error) { return a.opened, nil }
func (always) release(*opened)                                  {}

// common is what all nodes of a mount need.
type common struct {
	reporter
	readOnly       bool
	mounted        time.Time
	interruptAfter time.Duration
	lasting        bool // disks stay open, so what is known of them stays true
}

// operation returns the context of one request. The kernel interrupts a request when its caller gets any signal: a timer's, or those that the Go runtime sends
// itself all the time. No program expects a read of a disk to fail for that, and a cancelled write may have happened or not. So a
// signal counts only once the request has taken so long that somebody may want to end it.
func (c *common) operation(ctx context.Context) (context.Context, func()) {
	interrupted := ctx.Done()
	op, cancel := context.WithCancel(context.WithoutCancel(ctx))
	t := time.AfterFunc(c.interruptAfter, func() {
		select {
		case <-interrupted:
			cancel()
		case <-op.Done():
		}
	})
	return op, func() {
		t.Stop()
		cancel()
	}
}
