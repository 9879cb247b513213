package client

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
)

// Disk is an export of a server as a disk: the contract of docs/architecture.md. Errors of the server unwrap to a syscall.Errno. All methods may be called at the same time.
type Disk struct {
	addr  Address
	conns []*conn
	e     export
	next  atomic.Uint32
	ro    bool
}

// Options say how an export is opened.
type Options struct {
	ReadOnly    bool
	Connections int // at most, if the server allows several; 0: 1
}

// Open connects to the export that the URI names.
func Open(ctx context.Context, uri string, o Options) (*Disk, error) {
	a, err := ParseURI(uri)
	if err != nil {
		return nil, err
	}
	c, err := dial(ctx, a)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", uri, err)
	}
	d := &Disk{addr: a, conns: []*conn{c}, e: c.e, ro: o.ReadOnly || c.e.flags&transReadOnly != 0}
	if c.e.flags&transMulti == 0 {
		return d, nil
	}
	for len(d.conns) < o.Connections {
		c, err := dial(ctx, a)
		if err != nil {
			break // one is enough
		}
		if c.e.size != d.e.size || c.e.flags != d.e.flags {
			_ = c.close()
			break
		}
		d.conns = append(d.conns, c)
	}
	return d, nil
}

func (d *Disk) conn() *conn { return d.conns[int(d.next.Add(1))%len(d.conns)] }

func (d *Disk) check(off, n int64, write bool) error {
	switch {
	case write && d.ro:
		return syscall.EROFS
	case off < 0 || n < 0 || n > d.e.size-off || (off|n)%int64(d.e.min) != 0:
		return syscall.EINVAL
	}
	return nil
}

func opError(op string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("nbd %s: %w", op, err)
}

// Read reads len(p) bytes at off.
func (d *Disk) Read(ctx context.Context, p []byte, off int64) error {
	if err := d.check(off, int64(len(p)), false); err != nil {
		return opError("read", err)
	}
	for len(p) > 0 {
		n := min(len(p), d.e.max)
		if err := d.conn().do(ctx, 0, &request{kind: cmdRead, p: p[:n], off: off, n: int64(n)}, nil); err != nil {
			return opError("read", err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// Write writes p at off; with fua it is durable on return.
func (d *Disk) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	if err := d.check(off, int64(len(p)), true); err != nil {
		return opError("write", err)
	}
	flags, flush := d.fua(fua)
	for len(p) > 0 {
		n := min(len(p), d.e.max)
		if err := d.conn().do(ctx, flags, &request{kind: cmdWrite, off: off, n: int64(n)}, p[:n]); err != nil {
			return opError("write", err)
		}
		p, off = p[n:], off+int64(n)
	}
	if flush {
		return d.Flush(ctx)
	}
	return nil
}

// fua is how a durable write is asked for: by the flag of the request, or by a flush behind it.
func (d *Disk) fua(want bool) (flags uint16, flush bool) {
	if !want {
		return 0, false
	}
	if d.e.flags&transFUA != 0 {
		return cmdFUA, false
	}
	return 0, true
}

// Flush makes durable what was written. A server without it has nothing to flush.
func (d *Disk) Flush(ctx context.Context) error {
	if d.e.flags&transFlush == 0 || d.ro {
		return nil
	}
	return opError("flush", d.conn().do(ctx, 0, &request{kind: cmdFlush}, nil))
}

// step is how much a request without data may be about.
const step = 1 << 30

// Trim says that a range is not needed any more. A server that cannot do it leaves it as it is.
func (d *Disk) Trim(ctx context.Context, off, n int64) error {
	if err := d.check(off, n, true); err != nil {
		return opError("trim", err)
	}
	if d.e.flags&transTrim == 0 {
		return nil
	}
	for n > 0 {
		k := min(n, step)
		if err := d.conn().do(ctx, 0, &request{kind: cmdTrim, off: off, n: k}, nil); err != nil {
			return opError("trim", err)
		}
		off, n = off+k, n-k
	}
	return nil
}

var zeros [1 << 20]byte

// WriteZeroes makes a range read as zeros; unmap lets the server give its space back.
func (d *Disk) WriteZeroes(ctx context.Context, off, n int64, unmap, fua bool) error {
	if err := d.check(off, n, true); err != nil {
		return opError("write zeroes", err)
	}
	if d.e.flags&transZeroes == 0 {
		for n > 0 {
			k := min(n, int64(min(len(zeros), d.e.max)))
			if err := d.Write(ctx, zeros[:k], off, fua); err != nil {
				return err
			}
			off, n = off+k, n-k
		}
		return nil
	}
	flags, flush := d.fua(fua)
	if !unmap {
		flags |= cmdNoHole
	}
	for n > 0 {
		k := min(n, step)
		if err := d.conn().do(ctx, flags, &request{kind: cmdZeroes, off: off, n: k}, nil); err != nil {
			return opError("write zeroes", err)
		}
		off, n = off+k, n-k
	}
	if flush {
		return d.Flush(ctx)
	}
	return nil
}

// Extents yields consecutive runs from off. A server that does not tell has one run of data.
func (d *Disk) Extents(ctx context.Context, off, n int64, yield func(n int64, hole, zero bool) bool) error {
	if err := d.check(off, n, false); err != nil {
		return opError("extents", err)
	}
	if !d.e.status {
		if n > 0 {
			yield(n, false, false)
		}
		return nil
	}
	type run struct {
		n     int64
		flags uint32
	}
	for n > 0 {
		ask := min(n, step)
		var runs []run
		got := int64(0)
		// The runs are collected first: yield may take its time, and nothing else could be received meanwhile.
		r := &request{kind: cmdStatus, off: off, n: ask, extra: func(k, flags uint32) bool {
			if got >= ask || len(runs) >= 1<<20 {
				return false
			}
			m := min(int64(k), ask-got)
			runs = append(runs, run{m, flags})
			got += m
			return true
		}}
		err := d.conn().do(ctx, 0, r, nil)
		if err != nil {
			return opError("extents", err)
		}
		if got == 0 {
			return opError("extents", broken("it tells nothing of the range"))
		}
		for _, x := range runs {
			if !yield(x.n, x.flags&1 != 0, x.flags&2 != 0) {
				return nil
			}
		}
		off, n = off+got, n-got
	}
	return nil
}

// Size is the size in bytes.
func (d *Disk) Size() int64 { return d.e.size }

// BlockSizes are what the server says; logical is the least that it takes.
func (d *Disk) BlockSizes() (logical, physical, optimal, maxTransfer int) {
	return d.e.min, max(d.e.best, d.e.min), 0, 0
}

// ReadOnly says whether writes are refused.
func (d *Disk) ReadOnly() bool { return d.ro }

// FastZero says whether WriteZeroes is a request of its own.
func (d *Disk) FastZero() bool { return d.e.flags&transZeroes != 0 }

// Tells says whether the server knows what is allocated.
func (d *Disk) Tells() bool { return d.e.status }

// Close says goodbye and closes the connections.
func (d *Disk) Close() error {
	var errs []error
	for _, c := range d.conns {
		errs = append(errs, c.close())
	}
	return errors.Join(errs...)
}
