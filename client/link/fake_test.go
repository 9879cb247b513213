package link

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"vdbridge/client"
	"vdbridge/smb/fscc"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// fakeServer is a server with one file, as far as a Link can see it.
type fakeServer struct {
	mu      sync.Mutex
	id      Server
	up      bool
	lasting LastingKind
	gone    bool // opens are not kept, whatever was granted
	refuse  error
	ways    []*fakeWay
	stall   chan struct{} // requests wait for it, and are not carried out if it is lost before; nil: they do not
	log     []string      // what was carried out
	dials   int
	prev    []uint64
	opens   []client.OpenOptions
	cause   error // of the next losses; nil: any
	lose    bool  // the reply to the next CREATE gets lost
}

func newServer() *fakeServer {
	return &fakeServer{id: Server{GUID: wire.GUID{1}, Dialect: wire.Dialect311, Started: 7}, up: true}
}

func (s *fakeServer) did(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, fmt.Sprintf(format, args...))
}

func (s *fakeServer) done() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.log)
}

// stallAll keeps requests from being carried out.
func (s *fakeServer) stallAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stall = make(chan struct{})
}

func (s *fakeServer) dialled() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dials
}

func (s *fakeServer) previous() []uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.prev)
}

func (s *fakeServer) opened() []client.OpenOptions {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.opens)
}

func (s *fakeServer) identity() Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.id
}

// down loses all connections, and takes no others until change is called by up.
func (s *fakeServer) down() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.up = false
	s.cutLocked()
}

func (s *fakeServer) cutLocked() {
	err := s.cause
	if err == nil {
		err = errors.New("cut")
	}
	for _, w := range s.ways {
		w.end(&client.ConnError{Addr: "fake", Err: err})
	}
	s.ways = nil
}

// start brings the server back, changed.
func (s *fakeServer) start(change func(*fakeServer)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.up = true
	if change != nil {
		change(s)
	}
}

func (s *fakeServer) dial(ctx context.Context, addr string, previous uint64) (Way, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dials++
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case !s.up:
		return nil, errors.New("connection refused")
	case s.refuse != nil:
		return nil, s.refuse
	}
	s.prev = append(s.prev, previous)
	w := &fakeWay{s: s, id: uint64(s.dials), gone: make(chan struct{}), server: s.id}
	w.server.Address = addr
	s.ways = append(s.ways, w)
	return w, nil
}

type fakeWay struct {
	s      *fakeServer
	id     uint64
	server Server
	gone   chan struct{}
	once   sync.Once
	err    error
	closed bool
}

func (w *fakeWay) end(err error) { w.once.Do(func() { w.err = err; close(w.gone) }) }

func (w *fakeWay) Done() <-chan struct{} { return w.gone }

func (w *fakeWay) Err() error {
	select {
	case <-w.gone:
		return w.err
	default:
		return nil
	}
}
func (w *fakeWay) Server() Server             { return w.server }
func (w *fakeWay) SessionID() uint64          { return w.id }
func (w *fakeWay) Echo(context.Context) error { return w.Err() }
func (w *fakeWay) Channels() []Channel        { return nil }
func (w *fakeWay) Abort()                     { w.end(client.ErrClosed) }
func (w *fakeWay) Close() error               { w.closed = true; w.end(client.ErrClosed); return nil }

func (w *fakeWay) Lasting(Handle) Lasting {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	return Lasting{Kind: w.s.lasting}
}

func (w *fakeWay) Open(_ context.Context, name string, o client.OpenOptions) (Handle, error) {
	w.s.did("open %s", name)
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.s.opens = append(w.s.opens, o)
	if w.s.lose {
		w.s.lose = false
		w.end(&client.ConnError{Err: errors.New("cut")})
		return nil, w.Err()
	}
	return &fakeHandle{w: w}, w.Err()
}

func (w *fakeWay) Reopen(_ context.Context, lost Handle) (Handle, error) {
	w.s.mu.Lock()
	gone := w.s.gone
	w.s.mu.Unlock()
	if gone {
		return nil, fmt.Errorf("%w: %w", ErrOpenGone, ntstatus.ObjectNameNotFound)
	}
	w.s.did("reopen")
	return &fakeHandle{w: w}, w.Err()
}

// fakeHandle carries requests out at once, or after the server's stall has ended.
type fakeHandle struct{ w *fakeWay }

func (h *fakeHandle) carry(ctx context.Context, format string, args ...any) error {
	h.w.s.mu.Lock()
	stall := h.w.s.stall
	h.w.s.mu.Unlock()
	if stall != nil {
		select {
		case <-stall:
		case <-h.w.gone:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := h.w.Err(); err != nil {
		return err
	}
	h.w.s.did(format, args...)
	return nil
}

func (h *fakeHandle) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	return len(p), h.carry(ctx, "read %d", off)
}

func (h *fakeHandle) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	return len(p), h.carry(ctx, "write %d", off)
}
func (h *fakeHandle) Flush(ctx context.Context) error { return h.carry(ctx, "flush") }

func (h *fakeHandle) Ioctl(ctx context.Context, code uint32, _, _, _, _ []byte) (int, error) {
	return 0, h.carry(ctx, "once %d", code)
}

func (h *fakeHandle) IoctlIdempotent(ctx context.Context, code uint32, _, _, _, _ []byte) (int, error) {
	return 0, h.carry(ctx, "again %d", code)
}

func (h *fakeHandle) Settle(context.Context) error {
	h.w.s.did("settle")
	return h.w.Err()
}

func (h *fakeHandle) Size(ctx context.Context) (int64, error) { return 1 << 20, h.carry(ctx, "size") }

func (h *fakeHandle) Truncate(ctx context.Context, n int64) error {
	return h.carry(ctx, "truncate %d", n)
}

func (h *fakeHandle) ZeroRange(ctx context.Context, off, n int64) error {
	return h.carry(ctx, "zero %d %d", off, n)
}

func (h *fakeHandle) AllocatedRanges(ctx context.Context, off, n int64) ([]fscc.Range, error) {
	return nil, h.carry(ctx, "ranges")
}

func (h *fakeHandle) Stat(ctx context.Context) (client.FileInfo, error) {
	return client.FileInfo{}, h.carry(ctx, "stat")
}
func (h *fakeHandle) Reply() wire.CreateResponse { return wire.CreateResponse{} }

func (h *fakeHandle) Close() error {
	h.w.s.did("close")
	return h.w.Err()
}
