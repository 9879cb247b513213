package link

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"vdbridge/client"
	"vdbridge/smb/fscc"
	"vdbridge/smb/wire"
)

// Hooks are what the owner of a File knows about what it holds. Each may be nil.
type Hooks struct {
	// Verify is called with a new open before any request is sent on it; kept says that it is the old one, which the server has kept. A *FencedError lets
	// reading go on and nothing else, a *FinalError ends everything; after another error the server is tried again.
	Verify func(ctx context.Context, h Handle, kept bool) error
	// Alive asks for a sign of life, on the File like any request. The default is ECHO.
	Alive func(ctx context.Context) error
}

// Kind says what may be done with a control when the connection is lost while it is under way.
type Kind uint8

// The kinds of controls.
const (
	Once      Kind = iota // not repeated; the caller gets an InterruptedError
	OnceWrite             // the same, and refused when fenced
	Read                  // repeated; changes nothing
	Write                 // repeated; changes the file; not durable before a flush
	Durable               // repeated; changes the file, and durable when it has returned
	Sync                  // repeated; makes durable what was written before
)

// incarnation is the open on one connection.
type incarnation struct {
	h      Handle
	w      Way
	lostAt time.Time   // when its predecessor was lost; zero for the first
	useful atomic.Bool // something was done by it
	lossy  atomic.Bool // it was lost, and its server may have lost what it acknowledged
}

// File is an open that outlives its connection, once Protect was called. All methods may be called at the same time. Errors are those of
// client.File, and LostError, FencedError, InterruptedError and ErrClosed.
type File struct {
	l     *Link
	name  string
	opts  client.OpenOptions
	hooks Hooks

	protected atomic.Bool
	cur       atomic.Pointer[incarnation] // nil while there is no way
	prev      *incarnation                // the last one; under l.mu
	closed    bool                        // under l.mu
	unsure    wire.GUID                   // CreateGuid of an open that the server may have made; of the link's goroutine
	fence     atomic.Pointer[FencedError]
	repeated  atomic.Uint64
	ledger    ledger

	mu   sync.Mutex
	last Handle // the newest open, whether it works or was lost
	kind Lasting

	closeOnce sync.Once
	closeErr  error
}

// maxRepeats bounds how often one request is sent: it may be what makes the server fail.
const maxRepeats = 32

// Protect makes the File outlive its connection from now on. It is called once. The hook Alive of the first File of a Link is the one that counts.
func (f *File) Protect(hooks Hooks) {
	l := f.l
	f.hooks = hooks
	in := f.cur.Load()
	f.setLast(in.h, in.w)
	f.protected.Store(true)
	l.mu.Lock()
	if l.state == Closed || f.closed {
		l.mu.Unlock()
		return
	}
	f.prev = in
	first := len(l.files) == 0
	l.files = append(slices.Clip(l.files), f)
	if first && !l.runs {
		l.runs = true
		l.wg.Go(l.run)
		l.wg.Go(func() { l.pulse(hooks.Alive) })
	}
	w, late := l.way, l.way != in.w || l.state != Connected
	if late {
		f.cur.Store(nil)
	}
	l.mu.Unlock()
	if late { // everything is got back once more, and this with it
		l.lose(w, errors.New("a file was opened on a connection that is lost"))
	}
}

func (f *File) setLast(h Handle, w Way) {
	f.mu.Lock()
	f.last, f.kind = h, w.Lasting(h)
	f.mu.Unlock()
}

func (f *File) lasting() Lasting {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.kind
}

// Name is the name relative to the share.
func (f *File) Name() string { return f.name }

// Reply is the reply to the newest CREATE.
func (f *File) Reply() wire.CreateResponse {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last.Reply()
}

// use returns the open to send a request on, and waits for one if need be. change says that the request changes something.
func (f *File) use(ctx context.Context, change bool) (*incarnation, error) {
	if in := f.cur.Load(); in != nil && (!change || f.fence.Load() == nil) {
		return in, nil
	}
	return f.await(ctx, change)
}

func (f *File) await(ctx context.Context, change bool) (*incarnation, error) {
	l := f.l
	for {
		l.mu.Lock()
		in, refuse, changed, lastErr := f.cur.Load(), l.refuse, l.changed, l.lastErr
		if f.closed {
			in, refuse = nil, ErrClosed
		}
		l.mu.Unlock()
		if in != nil {
			if e := f.fence.Load(); e != nil && change {
				return nil, e
			}
			return in, nil
		}
		if refuse != nil {
			return nil, refuse
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the server, which is lost (%v): %w", lastErr, ctx.Err())
		}
	}
}

// again says whether a request that failed with err is to be carried out on another connection, which is then looked for.
func (f *File) again(in *incarnation, err error, tries int) bool {
	if !f.protected.Load() || !f.l.cfg.Policy.hold || !isLoss(err) {
		return false
	}
	if errors.Is(err, client.ErrOutcomeUnknown) && in.w.Err() == nil {
		return true // the session lives on other channels
	}
	f.l.lose(in.w, err)
	if tries >= maxRepeats {
		f.l.log.Error("a request is given up: the connection was lost each time when it was sent", "times", tries+1, "err", err)
		return false
	}
	return true
}

// interrupted waits until a request that must not be repeated cannot be carried out any more, and makes its error.
func (f *File) interrupted(ctx context.Context, change bool, cause error) error {
	for tries := 0; ; tries++ {
		in, err := f.use(ctx, change)
		if err != nil {
			return err
		}
		if err = in.h.Settle(ctx); err == nil {
			return &InterruptedError{cause}
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w (interrupted by: %v)", err, cause) // the caller gave up, not we
		}
		if !f.again(in, err, tries) {
			return errors.Join(cause, err)
		}
	}
}

// done notes that something was done.
func (f *File) done(in *incarnation) {
	if in.useful.Load() || in.useful.Swap(true) || in.lostAt.IsZero() {
		return
	}
	f.l.log.Warn("the server is back, and requests are carried out again", "server", in.w.Server().Address, "after", time.Since(in.lostAt).Round(time.Millisecond),
		"open", f.lasting().Kind.String())
}

// ReadAt is client.File.ReadAt.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	for tries := 0; ; tries++ {
		in, err := f.use(ctx, false)
		if err != nil {
			return 0, err
		}
		n, err := in.h.ReadAt(ctx, p, off)
		if err == nil {
			f.done(in)
			return n, nil
		}
		if !f.again(in, err, tries) {
			return n, err
		}
		f.repeated.Add(1)
	}
}

// WriteAt is client.File.WriteAt.
func (f *File) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	for tries := 0; ; tries++ {
		in, err := f.use(ctx, true)
		if err != nil {
			return 0, err
		}
		n, err := in.h.WriteAt(ctx, p, off)
		if err == nil {
			if f.ledger.wrote(in) {
				continue
			}
			f.done(in)
			return n, nil
		}
		if !f.again(in, err, tries) {
			return n, err
		}
		f.repeated.Add(1)
	}
}

// Flush makes everything durable whose write has returned before. See ErrWritesLost.
func (f *File) Flush(ctx context.Context) error {
	mark, err := f.ledger.begin()
	if err != nil {
		return err
	}
	for tries := 0; ; tries++ {
		in, err := f.use(ctx, true)
		if err != nil {
			return err
		}
		if err = in.h.Flush(ctx); err == nil {
			f.done(in)
			return f.ledger.end(mark)
		}
		if !f.again(in, err, tries) {
			return err
		}
		f.repeated.Add(1)
	}
}

// Ioctl is client.File.Ioctl with kind Once.
func (f *File) Ioctl(ctx context.Context, code uint32, in1, in2, out1, out2 []byte) (int, error) {
	return f.Control(ctx, Once, code, in1, in2, out1, out2)
}

// Control is client.File.Ioctl that says of which kind the control is.
func (f *File) Control(ctx context.Context, kind Kind, code uint32, in1, in2, out1, out2 []byte) (int, error) {
	var m mark
	if kind == Sync {
		var err error
		if m, err = f.ledger.begin(); err != nil {
			return 0, err
		}
	}
	change := kind != Once && kind != Read
	for tries := 0; ; tries++ {
		in, err := f.use(ctx, change)
		if err != nil {
			return 0, err
		}
		once := kind == Once || kind == OnceWrite
		var n int
		if once {
			n, err = in.h.Ioctl(ctx, code, in1, in2, out1, out2)
		} else {
			n, err = in.h.IoctlIdempotent(ctx, code, in1, in2, out1, out2)
		}
		if err == nil {
			if (kind == Write || kind == OnceWrite) && f.ledger.wrote(in) && kind == Write {
				continue
			}
			f.done(in)
			if kind == Sync {
				err = f.ledger.end(m)
			}
			return n, err
		}
		if !f.again(in, err, tries) {
			return n, err
		}
		if once {
			return 0, f.interrupted(ctx, change, err)
		}
		f.repeated.Add(1)
	}
}

// do carries out what is rare.
func (f *File) do(ctx context.Context, change bool, op func(h Handle) error) error {
	for tries := 0; ; tries++ {
		in, err := f.use(ctx, change)
		if err != nil {
			return err
		}
		if err = op(in.h); err == nil {
			if change && f.ledger.wrote(in) {
				continue
			}
			f.done(in)
			return nil
		}
		if !f.again(in, err, tries) {
			return err
		}
		f.repeated.Add(1)
	}
}

// Size is client.File.Size.
func (f *File) Size(ctx context.Context) (n int64, err error) {
	err = f.do(ctx, false, func(h Handle) error { n, err = h.Size(ctx); return err })
	return n, err
}

// Truncate is client.File.Truncate.
func (f *File) Truncate(ctx context.Context, size int64) error {
	return f.do(ctx, true, func(h Handle) error { return h.Truncate(ctx, size) })
}

// ZeroRange is client.File.ZeroRange.
func (f *File) ZeroRange(ctx context.Context, off, n int64) error {
	return f.do(ctx, true, func(h Handle) error { return h.ZeroRange(ctx, off, n) })
}

// AllocatedRanges is client.File.AllocatedRanges.
func (f *File) AllocatedRanges(ctx context.Context, off, n int64) (list []fscc.Range, err error) {
	err = f.do(ctx, false, func(h Handle) error { list, err = h.AllocatedRanges(ctx, off, n); return err })
	return list, err
}

// Stat is client.File.Stat.
func (f *File) Stat(ctx context.Context) (i client.FileInfo, err error) {
	err = f.do(ctx, false, func(h Handle) error { i, err = h.Stat(ctx); return err })
	return i, err
}

// Fence refuses everything that changes something from now on, with err.
func (f *File) Fence(err error) {
	if f.fence.CompareAndSwap(nil, &FencedError{err}) {
		f.l.log.Error("shut out: nothing is written until this is settled", "why", err)
	}
}

// Unfence ends that.
func (f *File) Unfence() {
	if f.fence.Swap(nil) != nil {
		f.l.log.Warn("no longer shut out: writing goes on")
	}
}

// Fenced is why changes are refused, nil if they are not.
func (f *File) Fenced() error {
	if e := f.fence.Load(); e != nil {
		return e.Err
	}
	return nil
}

// Close ends the open. If the server is lost just then, the error says so.
func (f *File) Close() error {
	f.closeOnce.Do(func() {
		l := f.l
		l.mu.Lock()
		f.closed = true
		l.files = slices.DeleteFunc(slices.Clone(l.files), func(x *File) bool { return x == f })
		in, err := f.cur.Swap(nil), l.lastErr
		l.notify()
		l.mu.Unlock()
		if in == nil {
			f.closeErr = &LostError{err}
			return
		}
		f.closeErr = in.h.Close()
	})
	return f.closeErr
}
