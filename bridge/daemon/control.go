package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vdbridge/bridge"
)

// Handler answers requests. Calls may overlap.
type Handler interface {
	Handle(ctx context.Context, r *Request) *Response
}

// control serves a control socket.
type control struct {
	l       net.Listener
	h       Handler
	log     *slog.Logger
	allowed func(uid uint32) bool

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

const requestTimeout = 10 * time.Second // until a client has said what it wants

// serveControl answers requests at path until close. A socket that a dead process left there is replaced.
func serveControl(path string, h Handler, log *slog.Logger) (*control, error) {
	return serveControlFor(path, h, log, func(uid uint32) bool { return uid == 0 || int(uid) == os.Geteuid() })
}

func serveControlFor(path string, h Handler, log *slog.Logger, allowed func(uid uint32) bool) (*control, error) {
	l, err := bridge.Listen("unix:" + path)
	if err != nil {
		return nil, err
	}
	c := &control{l: l, h: h, log: log, allowed: allowed}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.wg.Go(c.accept)
	return c, nil
}

// close ends the socket and waits for the answers that are under way; their contexts are done.
func (c *control) close() {
	c.cancel()
	c.l.Close()
	c.wg.Wait()
}

func (c *control) accept() {
	for {
		conn, err := c.l.Accept()
		if err != nil {
			if c.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			c.log.Warn("control socket", "err", err)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-c.ctx.Done():
				return
			}
			continue
		}
		c.wg.Go(func() { c.serve(conn) })
	}
}

func (c *control) serve(conn net.Conn) {
	defer conn.Close()
	resp := c.answer(conn)
	if resp == nil {
		return
	}
	resp.Version, resp.PID = Version, os.Getpid()
	b, err := json.Marshal(resp)
	if err != nil {
		c.log.Error("control socket: an answer cannot be said", "err", err)
		return
	}
	_ = conn.SetWriteDeadline(time.Now().Add(requestTimeout))
	if _, err := conn.Write(append(b, '\n')); err != nil {
		c.log.Debug("control socket: the client did not wait", "err", err)
	}
}

// answer receives a request and has it carried out. The context of that ends when the client goes.
func (c *control) answer(conn net.Conn) *Response {
	_ = conn.SetReadDeadline(time.Now().Add(requestTimeout))
	line, err := readLine(conn, maxRequest)
	if err != nil {
		return nil
	}
	// After the request was read, as a client that is cut off while it writes does not see the refusal.
	if uid, err := peerUID(conn); err != nil || !c.allowed(uid) {
		c.log.Warn("control socket: refused", "uid", uid, "err", err)
		return &Response{Error: failure(&bridge.Error{Class: bridge.ClassPermission, Sentence: "only root may control this daemon"})}
	}
	r, err := parseRequest(line)
	if err != nil {
		return &Response{Error: failure(err)}
	}
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	if r.Timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, r.Timeout)
		defer stop()
	}
	_ = conn.SetReadDeadline(time.Time{})
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		var b [1]byte
		_, _ = conn.Read(b[:]) // nothing comes: it returns when the client is gone, or when we set the deadline
		cancel()
	}()
	resp := c.h.Handle(ctx, r)
	_ = conn.SetReadDeadline(time.Unix(1, 0))
	<-gone
	return resp
}

// readLine reads up to a newline or the end, at most limit bytes.
func readLine(r io.Reader, limit int) ([]byte, error) {
	var b []byte
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		b = append(b, buf[:n]...)
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			return b[:i], nil
		}
		if len(b) > limit {
			return nil, fmt.Errorf("a message is longer than %d bytes", limit)
		}
		if err == io.EOF && len(b) > 0 {
			return b, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// peerUID is the user at the other end of a unix socket.
func peerUID(conn net.Conn) (uint32, error) {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, errors.New("not a unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(cerr, err); err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

// ErrNotRunning is when nobody answers at a control socket.
var ErrNotRunning = errors.New("no daemon runs")

// Call asks the daemon of a run-time directory. Its refusals come back as a *bridge.Error with the daemon's sentence.
func Call(ctx context.Context, runDir string, r *Request) (*Response, error) {
	return call(ctx, filepath.Join(runDir, daemonSocket), r)
}

func call(ctx context.Context, path string, r *Request) (*Response, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w (%w)", ErrNotRunning, err)
	case errors.Is(err, syscall.EACCES):
		return nil, &bridge.Error{Class: bridge.ClassPermission, Sentence: "only root may control the daemon: use sudo", Err: err}
	case err != nil:
		return nil, fmt.Errorf("control socket: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if uid, err := peerUID(conn); err != nil || uid != 0 && int(uid) != os.Geteuid() {
		return nil, &bridge.Error{Class: bridge.ClassPermission, Sentence: fmt.Sprintf("%s belongs to somebody else (user %d): nothing is told to it", path, uid), Err: err}
	}
	r.Version = Version
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if _, err := conn.Write(append(b, '\n')); err != nil {
		return nil, callError(ctx, err)
	}
	line, err := readLine(conn, maxResponse)
	if err != nil {
		return nil, callError(ctx, err)
	}
	resp := new(Response)
	if err := json.Unmarshal(line, resp); err != nil {
		return nil, fmt.Errorf("the daemon's answer is not understood: %w", err)
	}
	return resp, resp.Error.err()
}

func callError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return &bridge.Error{Class: bridge.ClassConnection, Sentence: fmt.Sprintf("the daemon ended before it answered (%v): its log says why", err), Err: err}
}

// StatusAll asks the daemon and every other process that has a socket in the directory, at the same time. A process that does not answer before ctx is done is
// left out and counted in silent.
func StatusAll(ctx context.Context, runDir string) (list []Status, silent int, err error) {
	paths, err := sockets(runDir)
	if err != nil {
		return nil, 0, err
	}
	answers := make([]*Response, len(paths))
	errs := make([]error, len(paths))
	var wg sync.WaitGroup
	for i, p := range paths {
		wg.Go(func() { answers[i], errs[i] = call(ctx, p, &Request{Verb: VerbStatus}) })
	}
	wg.Wait()
	for i, a := range answers {
		switch {
		case errs[i] == nil:
			list = append(list, a.Status...)
		case errors.Is(errs[i], ErrNotRunning):
			// Left behind by a process that was killed. Its name is its process id, so nobody else will need it.
			if name := filepath.Base(paths[i]); name != daemonSocket && dead(name) {
				_ = os.Remove(paths[i])
			}
		case bridge.Classify(errs[i]) == bridge.ClassPermission:
			return nil, 0, errs[i]
		default:
			silent++
		}
	}
	return list, silent, nil
}

// dead says whether the process that a socket is named after has ended.
func dead(name string) bool {
	pid, err := strconv.Atoi(name[:len(name)-len(".sock")])
	return err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}
