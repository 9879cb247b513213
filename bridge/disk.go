package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"vdbridge/client/link"
	"vdbridge/rsvd"
	"vdbridge/vhdx"
)

// backend is what every disk below has: the contract of docs/architecture.md.
type backend interface {
	Read(ctx context.Context, p []byte, off int64) error
	Write(ctx context.Context, p []byte, off int64, fua bool) error
	Flush(ctx context.Context) error
	Trim(ctx context.Context, off, n int64) error
	WriteZeroes(ctx context.Context, off, n int64, unmap, fua bool) error
	Extents(ctx context.Context, off, n int64, yield func(n int64, hole, zero bool) bool) error
	Size() int64
	BlockSizes() (logical, physical, optimal, maxTransfer int)
	ReadOnly() bool
	Close() error
}

// Mode is how an image is opened.
type Mode int

// The modes.
const (
	ModeAuto Mode = iota // RSVD if the server has it, otherwise the file
	ModeRSVD             // a shared disk
	ModeFile             // the file, for us alone, interpreted on this side
)

// String is the value on a command line.
func (m Mode) String() string { return [...]string{"auto", "rsvd", "file"}[m] }

// ParseMode is the reverse of String.
func ParseMode(s string) (Mode, error) {
	for m := ModeAuto; m <= ModeFile; m++ {
		if s == m.String() {
			return m, nil
		}
	}
	return 0, Usagef("the mode %q is not known; it is auto, rsvd or file", s)
}

// Disk is an open disk, wherever it lies. It fits the contract of docs/architecture.md; every error of its methods unwraps to a
// syscall.Errno and to what the server said. All methods may be called at the same time.
type Disk struct {
	back   backend
	shared *rsvd.Disk // in ModeRSVD
	image  *vhdx.Disk // in ModeFile
	loc    Location
	mode   Mode // never ModeAuto
	log    *slog.Logger

	remote    *Remote    // nil for a local image
	file      *link.File // at the server; nil for a local image
	initiator *Initiator // nil in ModeFile

	written atomic.Uint64 // changes that have returned
	flushed atomic.Uint64 // of those, how many were there when the last successful Flush began

	reads, writes incident
	conflicts     atomic.Uint64
	onResize      atomic.Pointer[func(int64)]

	looking atomic.Bool  // somebody asks whether we are still shut out
	looked  atomic.Int64 // when that was, Unix nanoseconds

	opened  time.Time
	metrics metrics

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	close  sync.Once
	err    error
}

// incident is a row of reservation conflicts that no success has interrupted.
type incident struct{ open atomic.Bool }

func newDisk(back backend, loc Location, mode Mode, log *slog.Logger) *Disk {
	d := &Disk{back: back, loc: loc, mode: mode, log: log, opened: time.Now()}
	d.shared, _ = back.(*rsvd.Disk)
	d.image, _ = back.(*vhdx.Disk)
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

// settle looks whether we are still shut out, if we are.
func (d *Disk) settle(ctx context.Context) {
	if d.file != nil && d.file.Fenced() != nil {
		d.admitted(ctx)
	}
}

// Read reads len(p) bytes at off.
func (d *Disk) Read(ctx context.Context, p []byte, off int64) error {
	start := d.metrics.begin()
	err := d.back.Read(ctx, p, off)
	d.metrics.end(opRead, start, int64(len(p)), err)
	if err != nil {
		return d.fail(&d.reads, "read", err)
	}
	if d.reads.open.Load() {
		d.over(&d.reads, "reads")
	}
	return nil
}

// Write writes len(p) bytes at off; with fua they are durable on return.
func (d *Disk) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	d.settle(ctx)
	start := d.metrics.begin()
	err := d.back.Write(ctx, p, off, fua)
	d.metrics.end(opWrite, start, int64(len(p)), err)
	if !fua {
		d.written.Add(1)
	}
	return d.wrote(err, "write")
}

// Flush makes everything durable whose Write returned before.
func (d *Disk) Flush(ctx context.Context) error {
	n := d.written.Load()
	start := d.metrics.begin()
	err := d.back.Flush(ctx)
	d.metrics.end(opFlush, start, 0, err)
	if err != nil {
		return d.fail(&d.writes, "flush", err)
	}
	for {
		old := d.flushed.Load()
		if old >= n || d.flushed.CompareAndSwap(old, n) {
			return nil
		}
	}
}

// dirty says whether something was written that no Flush has covered.
func (d *Disk) dirty() bool { return d.written.Load() > d.flushed.Load() }

// Trim says that a range is not needed any more.
func (d *Disk) Trim(ctx context.Context, off, n int64) error {
	d.settle(ctx)
	start := d.metrics.begin()
	err := d.back.Trim(ctx, off, n)
	d.metrics.end(opTrim, start, n, err)
	d.written.Add(1)
	return d.wrote(err, "trim")
}

// WriteZeroes makes a range read back as zeros.
func (d *Disk) WriteZeroes(ctx context.Context, off, n int64, unmap, fua bool) error {
	d.settle(ctx)
	start := d.metrics.begin()
	err := d.back.WriteZeroes(ctx, off, n, unmap, fua)
	d.metrics.end(opZero, start, n, err)
	if !fua {
		d.written.Add(1)
	}
	return d.wrote(err, "write zeroes")
}

// Extents yields consecutive runs from off.
func (d *Disk) Extents(ctx context.Context, off, n int64, yield func(n int64, hole, zero bool) bool) error {
	start := d.metrics.begin()
	err := d.back.Extents(ctx, off, n, yield)
	d.metrics.end(opExtents, start, n, err)
	if err != nil {
		return d.fail(&d.reads, "extents", err)
	}
	return nil
}

// OnResize has f called, from any goroutine and with the new size in bytes, whenever the server says that a shared disk has another size. It replaces
// what was set before; nil ends it. f must not wait for the disk.
func (d *Disk) OnResize(f func(size int64)) { d.onResize.Store(&f) }

func (d *Disk) resized(size int64) {
	if f := d.onResize.Load(); f != nil && *f != nil {
		(*f)(size)
	}
}

// Size is the size in bytes.
func (d *Disk) Size() int64 { return d.back.Size() }

// BlockSizes are in bytes; optimal and maxTransfer 0 = not known, unlimited.
func (d *Disk) BlockSizes() (logical, physical, optimal, maxTransfer int) { return d.back.BlockSizes() }

// ReadOnly says whether writes are refused.
func (d *Disk) ReadOnly() bool { return d.back.ReadOnly() }

// FastZero says whether WriteZeroes is faster than writing zeros.
func (d *Disk) FastZero() bool {
	f, ok := d.back.(interface{ FastZero() bool })
	return ok && f.FastZero()
}

// Mode is ModeRSVD or ModeFile.
func (d *Disk) Mode() Mode { return d.mode }

// Shared says whether other hosts may use the disk at the same time.
func (d *Disk) Shared() bool { return d.shared != nil }

// RSVD is the shared disk below, nil in ModeFile.
func (d *Disk) RSVD() *rsvd.Disk { return d.shared }

// Location says where the disk is.
func (d *Disk) Location() Location { return d.loc }

// Initiator is who we are to the shared disk, nil in ModeFile.
func (d *Disk) Initiator() *Initiator { return d.initiator }

// Conflicts counts the commands that a reservation of another initiator forbade.
func (d *Disk) Conflicts() uint64 { return d.conflicts.Load() }

// wrote is the end of everything that changes the disk.
func (d *Disk) wrote(err error, op string) error {
	if err != nil {
		return d.fail(&d.writes, op, err)
	}
	if d.writes.open.Load() {
		d.over(&d.writes, "writes")
	}
	return nil
}

func (d *Disk) over(i *incident, what string) {
	if i.open.CompareAndSwap(true, false) {
		d.log.Info("the reservation conflict is over: "+what+" succeed again", "disk", d.loc.String(), "conflicts", d.conflicts.Load())
	}
}

// fail gives an error its errno, and logs the first reservation conflict of an incident.
func (d *Disk) fail(i *incident, op string, err error) error {
	if errors.Is(err, rsvd.ErrReservationConflict) {
		d.conflicts.Add(1)
		if i.open.CompareAndSwap(false, true) {
			d.report(op)
		}
	}
	return diskError(err)
}

// reportTimeout bounds the question who holds the reservation.
const reportTimeout = 10 * time.Second

// report says in words who shut us out. It asks the server on a goroutine of its own, as the failed request has waited long enough.
func (d *Disk) report(op string) {
	if d.ctx.Err() != nil {
		return
	}
	d.wg.Go(func() {
		ctx, cancel := context.WithTimeout(d.ctx, reportTimeout)
		defer cancel()
		attrs := []any{"disk", d.loc.String(), "op", op}
		if d.initiator != nil {
			attrs = append(attrs, "initiator", d.initiator.GUID())
		}
		r, err := d.shared.ReadReservation(ctx)
		switch {
		case err != nil:
			attrs = append(attrs, "err", err)
		case !r.Held:
			attrs = append(attrs, "holder", "the reservation has been released since")
		default:
			attrs = append(attrs, "holder_key", fmt.Sprintf("%#016x", r.Key), "type", r.Type.String())
		}
		d.log.Error("reservation conflict: another initiator has reserved the disk, so this "+op+" was refused and is not repeated; "+
			"'vdbridge pr status' shows who, 'vdbridge pr register' joins a registrants-only reservation", attrs...)
	})
}

// Close flushes what has not been, closes the disk, and then the tree, the session and the connection under it. It does all of it whatever
// fails, and says what that means for the data. It may be called more than once.
func (d *Disk) Close() error {
	d.close.Do(func() {
		d.cancel()
		d.GiveUp()
		d.wg.Wait()
		var errs []error
		lost := ""
		if d.dirty() {
			ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
			if err := d.Flush(ctx); err != nil {
				errs = append(errs, err)
				lost = "; what was written since the last flush may be lost"
			}
			cancel()
		}
		if err := d.back.Close(); err != nil {
			errs = append(errs, err)
		}
		if d.remote != nil {
			if err := d.remote.Close(); err != nil {
				errs = append(errs, err)
			}
		}
		err := errors.Join(errs...)
		switch {
		case err == nil:
		case Classify(errs[0]) == ClassConnection:
			d.err = &Error{ClassConnection, fmt.Sprintf("the connection to %s was lost%s", d.loc.Host, lost), err}
		case lost != "":
			d.err = &Error{Classify(errs[0]), fmt.Sprintf("the last flush of %s failed%s: %v", d.loc, lost, errs[0]), err}
		default:
			d.err = fmt.Errorf("close %s: %w", d.loc, err)
		}
	})
	return d.err
}

// closeTimeout bounds each step of closing when the server does not answer.
const closeTimeout = 30 * time.Second
