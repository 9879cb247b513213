package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"vdbridge/server/journal"
	"vdbridge/smb/transport"
	"vdbridge/smb/wire"
)

// Server is an SMB 3 file server. Make one with New, run it with Serve, end it with Shutdown or Close.
type Server struct {
	cfg      Config
	log      *slog.Logger
	lim      Limits
	name     string
	guid     wire.GUID
	started  time.Time
	shares   map[string]*share // by folded name; fixed after New
	objects  objectTable
	notify   notifier
	durables durables
	state    *State           // nil if there is none
	db       *journal.Journal // of persistent opens; nil if there is none
	epoch    uint64           // of db
	leases   leases

	memory memoryLimit // requests and replies of all connections

	opens    atomic.Int64 // how many there are, for the limit
	nextID   atomic.Uint64
	ctx      context.Context
	cancel   context.CancelFunc
	resource sync.Once // releases the shares

	mu        sync.Mutex
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	halfOpen  []*conn // those on which nobody has logged on yet, in the order of arrival
	dropped   int     // of halfOpen, to make room, since the log was told
	told      time.Time
	sessions  map[uint64]*session
	closing   bool
	wg        sync.WaitGroup // connections
}

// ErrClosed is returned by Serve after Close or Shutdown.
var ErrClosed = errors.New("server closed")

// New checks the configuration and opens the shared directories. The server has no goroutine until Serve is called, but holds descriptors until Close.
func New(cfg Config) (*Server, error) {
	if cfg.Users == nil && cfg.Kerberos == nil {
		return nil, errors.New("file server: no user database")
	}
	if cfg.MinDialect == 0 {
		cfg.MinDialect = wire.Dialect300
	}
	if cfg.MaxDialect == 0 {
		cfg.MaxDialect = wire.Dialect311
	}
	if cfg.MinDialect < wire.Dialect210 || cfg.MinDialect > cfg.MaxDialect || cfg.MaxDialect > wire.Dialect311 {
		return nil, fmt.Errorf("file server: dialects %v to %v: the server speaks 2.1 to 3.1.1", cfg.MinDialect, cfg.MaxDialect)
	}
	if cfg.Encrypt && cfg.MinDialect < wire.Dialect300 {
		return nil, errors.New("file server: encryption needs dialect 3.0 or later")
	}
	cfg.Limits.setDefaults()
	s := &Server{cfg: cfg, log: cfg.Logger, lim: cfg.Limits, name: cfg.ServerName, guid: cfg.GUID, started: time.Now(),
		shares: map[string]*share{}, listeners: map[net.Listener]struct{}{}, conns: map[*conn]struct{}{}, sessions: map[uint64]*session{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.name == "" {
		h, err := os.Hostname()
		if err != nil || h == "" {
			h = "vdbridge"
		}
		s.name, _, _ = strings.Cut(h, ".")
	}
	if s.state = cfg.State; s.state != nil {
		if s.guid == (wire.GUID{}) {
			s.guid = s.state.guid
		}
		if s.db = s.state.db; s.db != nil {
			s.epoch = s.db.Epoch()
		}
	}
	if s.guid == (wire.GUID{}) {
		rand.Read(s.guid[:])
	}
	s.memory.limit = s.lim.InflightTotal
	s.objects.init()
	s.notify.init()
	s.durables.init()
	s.leases.init()
	s.ctx, s.cancel = context.WithCancel(context.Background())
	for _, sh := range cfg.Shares {
		v, err := newShare(s, sh)
		if err != nil {
			s.releaseShares()
			return nil, fmt.Errorf("file server: %w", err)
		}
		if _, dup := s.shares[foldName(sh.Name)]; dup {
			v.close()
			s.releaseShares()
			return nil, fmt.Errorf("file server: two shares are called %q", sh.Name)
		}
		s.shares[foldName(sh.Name)] = v
	}
	s.shares[foldName(ipcName)] = &share{srv: s, cfg: Share{Name: ipcName, Comment: "remote IPC"}, ipc: true, root: -1}
	if s.db != nil {
		if err := s.restore(s.ctx); err != nil {
			s.Close()
			return nil, fmt.Errorf("file server: %w", err)
		}
	}
	return s, nil
}

func (s *Server) releaseShares() {
	s.resource.Do(func() {
		for _, sh := range s.shares {
			sh.close()
		}
	})
}

// Serve accepts connections from l until ctx is done, Close or Shutdown is called, or l fails. It may be called for several listeners. l is closed
// when it returns. The error is ErrClosed after Close and Shutdown, ctx's when ctx ended it. Ending ctx does not close the connections: that is what
// Close and Shutdown are for.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		l.Close()
		return ErrClosed
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer func() {
		stop()
		l.Close()
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()
	s.log.Info("SMB server listening", "addr", l.Addr().String(), "shares", len(s.shares)-1)
	var backoff time.Duration
	for {
		nc, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			s.mu.Lock()
			closing := s.closing
			s.mu.Unlock()
			if closing {
				return ErrClosed
			}
			if ne, ok := errors.AsType[net.Error](err); ok && !ne.Timeout() && !errors.Is(err, net.ErrClosed) && backoff < time.Second {
				// Usually too many open files: it passes when connections end.
				backoff = max(5*time.Millisecond, 2*backoff)
				s.log.Warn("accept failed, trying again", "err", err, "after", backoff)
				select {
				case <-time.After(backoff):
				case <-ctx.Done():
				}
				continue
			}
			return fmt.Errorf("accept SMB connection: %w", err)
		}
		backoff = 0
		s.start(nc)
	}
}

// start runs a connection on goroutines of its own.
func (s *Server) start(nc net.Conn) {
	opts := transport.Options{}
	if s.cfg.Tap != nil {
		opts.Tap = s.cfg.Tap(nc.LocalAddr(), nc.RemoteAddr())
	}
	tc := transport.NewTCP(nc, opts)
	c := newConn(s, tc)
	s.mu.Lock()
	if s.closing || len(s.conns)-len(s.halfOpen) >= s.lim.MaxConnections {
		full := !s.closing
		s.mu.Unlock()
		c.abandon()
		if full {
			s.log.Warn("connection refused: too many", "from", nc.RemoteAddr().String(), "limit", s.lim.MaxConnections)
		}
		return
	}
	// Connections without a logon are for everybody to make, so they must not keep out those who can log on: when there are too many, the oldest goes. Who means to
	// log on needs much less time than it takes to make so many.
	var oldest *conn
	tell := 0
	if len(s.halfOpen) >= s.lim.MaxHalfOpen {
		oldest, s.halfOpen = s.halfOpen[0], append(s.halfOpen[:0], s.halfOpen[1:]...)
		if s.dropped++; time.Since(s.told) > time.Minute {
			tell, s.dropped, s.told = s.dropped, 0, time.Now()
		}
	}
	s.conns[c] = struct{}{}
	s.halfOpen = append(s.halfOpen, c)
	s.wg.Add(1)
	s.mu.Unlock()
	if oldest != nil {
		oldest.close(errCrowd)
	}
	if tell > 0 {
		s.log.Warn("too many connections on which nobody logs on: the oldest are dropped", "from", oldest.tc.RemoteAddr().String(), "limit", s.lim.MaxHalfOpen, "dropped", tell)
	}
	go func() {
		defer s.wg.Done()
		c.run()
		s.mu.Lock()
		delete(s.conns, c)
		s.forgetHalfOpen(c)
		s.mu.Unlock()
	}()
}

// forgetHalfOpen takes a connection off the list. mu is held.
func (s *Server) forgetHalfOpen(c *conn) {
	if i := slices.Index(s.halfOpen, c); i >= 0 {
		s.halfOpen = slices.Delete(s.halfOpen, i, i+1)
	}
}

// Shutdown stops listening, lets requests that are running finish and their replies go out, then ends all connections. When ctx is
// done first, the connections are ended at once, and ctx's error is returned.
func (s *Server) Shutdown(ctx context.Context) error {
	conns := s.stop()
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() { c.quiesce(ctx) })
	}
	wg.Wait()
	err := ctx.Err()
	return errors.Join(err, s.Close())
}

// Close ends everything at once and returns when all goroutines of the server have ended and all files are closed. It may be called
// more than once.
func (s *Server) Close() error {
	for _, c := range s.stop() {
		c.close(ErrClosed)
	}
	s.cancel()
	s.wg.Wait()
	s.closeParked()
	s.notify.close()
	s.releaseShares()
	return nil
}

// stop refuses new connections and returns those there are.
func (s *Server) stop() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closing = true
	for l := range s.listeners {
		l.Close()
	}
	out := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		out = append(out, c)
	}
	return out
}

// newID returns a number that was never used before for a session or an open.
func (s *Server) newID() uint64 { return s.nextID.Add(1) }

// memoryLimit counts bytes and makes readers wait while there are too many.
type memoryLimit struct {
	limit int64
	used  atomic.Int64
	mu    sync.Mutex
	wait  chan struct{} // closed when used has fallen below limit; nil when nobody waits
}

func (m *memoryLimit) add(n int64) { m.used.Add(n) }

func (m *memoryLimit) sub(n int64) {
	after := m.used.Add(-n)
	if after >= m.limit || after+n < m.limit {
		return // still too many, or nobody waits as it was below before
	}
	m.mu.Lock()
	if m.wait != nil {
		close(m.wait)
		m.wait = nil
	}
	m.mu.Unlock()
}

// below waits until there is room.
func (m *memoryLimit) below(ctx context.Context) error {
	for m.used.Load() >= m.limit {
		m.mu.Lock()
		if m.wait == nil {
			m.wait = make(chan struct{})
		}
		ch := m.wait
		m.mu.Unlock()
		if m.used.Load() < m.limit {
			return nil
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
