package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"vdbridge/nbd/tlspsk"
)

// Config says what a server offers and how much it may use. Only Resolver is needed.
type Config struct {
	Resolver Resolver
	Logger   *slog.Logger // nil: silent

	MaxConns    int   // connections at once; more are turned away. 0: 1024
	MaxRequests int   // requests in flight of one connection. 0: 4096
	ConnBytes   int64 // bytes in flight of one connection. 0: 64 MiB
	ServerBytes int64 // bytes in flight of all connections together. 0: 512 MiB

	HandshakeTimeout time.Duration // for the whole handshake. 0: 30 s
	DrainTimeout     time.Duration // how long Close waits for requests in flight before it cancels them. 0: 10 s

	// TLS lets clients upgrade with STARTTLS by certificates, PSK by pre-shared keys; at most one of them is given. With RequireTLS they must upgrade
	// before anything else.
	TLS        *tls.Config
	PSK        tlspsk.Keys
	RequireTLS bool
}

// ErrServerClosed is returned by Serve and ServeConn after Close.
var ErrServerClosed = errors.New("nbd: server closed")

// Server serves exports to any number of clients on any number of listeners.
type Server struct {
	cfg      Config
	log      *slog.Logger
	budget   *budget
	draining atomic.Bool

	mu        sync.Mutex
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	wg        sync.WaitGroup // Serve calls and connections
	nextID    uint64
}

// NewServer returns a server that is not listening yet.
func NewServer(cfg Config) (*Server, error) {
	if cfg.Resolver == nil {
		return nil, errors.New("nbd: Config.Resolver is missing: say which exports to serve")
	}
	if cfg.RequireTLS && cfg.TLS == nil && cfg.PSK == nil {
		return nil, errors.New("nbd: TLS is required, but there is neither a certificate in Config.TLS nor a key in Config.PSK")
	}
	if cfg.TLS != nil && cfg.PSK != nil {
		return nil, errors.New("nbd: TLS has either certificates or pre-shared keys")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	setDefault(&cfg.MaxConns, 1024)
	setDefault(&cfg.MaxRequests, 4096)
	setDefault(&cfg.ConnBytes, 64<<20)
	setDefault(&cfg.ServerBytes, 512<<20)
	setDefault(&cfg.HandshakeTimeout, 30*time.Second)
	setDefault(&cfg.DrainTimeout, 10*time.Second)
	return &Server{
		cfg:       cfg,
		log:       cfg.Logger,
		budget:    newBudget(cfg.ServerBytes),
		listeners: make(map[net.Listener]struct{}),
		conns:     make(map[*conn]struct{}),
	}, nil
}

func setDefault[T int | int64 | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// Serve accepts connections from l until ctx is done or Close is called; it closes l. When ctx is done it closes the whole server and
// returns nil. After Close it returns ErrServerClosed, any other error is the listener's.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	s.mu.Lock()
	if s.draining.Load() {
		s.mu.Unlock()
		l.Close()
		return ErrServerClosed
	}
	s.listeners[l] = struct{}{}
	s.wg.Add(1)
	s.mu.Unlock()

	stop := context.AfterFunc(ctx, func() { l.Close() })
	err := s.accept(ctx, l)
	stop()
	l.Close()
	s.mu.Lock()
	delete(s.listeners, l)
	s.mu.Unlock()
	s.wg.Done()
	if ctx.Err() != nil {
		return s.Close()
	}
	return err
}

func (s *Server) accept(ctx context.Context, l net.Listener) error {
	pause := time.Duration(0)
	for {
		nc, err := l.Accept()
		switch {
		case err == nil:
			pause = 0
			s.start(nc, nil, nil)
		case s.draining.Load() || ctx.Err() != nil:
			return ErrServerClosed
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOBUFS),
			errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.ECONNABORTED):
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.log.Warn("nbd: cannot accept a connection now", "err", err, "retry in", pause)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
		default:
			return fmt.Errorf("nbd: accept on %v: %w", l.Addr(), err)
		}
	}
}

// ServeConn serves one connection, such as one that a service manager handed over, and returns when it has ended. nil means that the client has
// said goodbye. It closes nc.
func (s *Server) ServeConn(nc net.Conn) error {
	done := make(chan error, 1)
	s.start(nc, nil, done)
	return <-done
}

func (s *Server) start(nc net.Conn, kernel *Export, done chan<- error) {
	finish := func(err error) {
		if done != nil {
			done <- err
		}
	}
	s.mu.Lock()
	if s.draining.Load() {
		s.mu.Unlock()
		nc.Close()
		finish(ErrServerClosed)
		return
	}
	if len(s.conns) >= s.cfg.MaxConns {
		s.mu.Unlock()
		nc.Close()
		s.log.Warn("nbd: connection turned away: too many clients", "limit", s.cfg.MaxConns, "peer", peerName(nc))
		finish(fmt.Errorf("nbd: more than %d connections", s.cfg.MaxConns))
		return
	}
	s.nextID++
	c := newConn(s, nc, s.nextID)
	c.kernel = kernel
	s.conns[c] = struct{}{}
	s.wg.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.wg.Done()
		err := c.serve()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		finish(err)
	}()
}

// Close ends the server gracefully: no new connections, ESHUTDOWN for new requests, and what is in flight may finish for Config.DrainTimeout; then it is
// cancelled. It returns when every goroutine of the server has ended, and may be called more than once.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.DrainTimeout)
	defer cancel()
	return s.Shutdown(ctx)
}

// Shutdown is Close with the caller's idea of patience: requests in flight are cancelled when ctx is done. It returns nil if that was not
// needed, and otherwise ctx's error, in either case when every goroutine of the server has ended.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.draining.Store(true)
	for l := range s.listeners {
		l.Close()
	}
	for c := range s.conns {
		c.kick()
	}
	s.mu.Unlock()
	s.budget.wake()

	done := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	for c := range s.conns {
		c.cancel()
	}
	s.mu.Unlock()
	s.budget.wake()
	// The cancelled requests are answered now. A client that does not take the answers is cut off.
	select {
	case <-done:
	case <-time.After(cancelGrace):
		s.mu.Lock()
		for c := range s.conns {
			c.abort()
		}
		s.mu.Unlock()
		<-done
	}
	return fmt.Errorf("nbd: requests in flight were cancelled: %w", ctx.Err())
}

const cancelGrace = time.Second

func peerName(nc net.Conn) string {
	if a := nc.RemoteAddr(); a != nil && a.String() != "" && a.String() != "@" {
		return a.String()
	}
	return "local"
}
