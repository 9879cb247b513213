package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"vdbridge/bridge"
)

// Daemon is a Manager with its control socket: the one of a run-time directory.
type Daemon struct {
	*Manager
	lock *os.File
	c    *control

	stopOnce sync.Once
	stop     chan struct{}
}

// Start makes the daemon of runDir: it takes the lock, takes back the devices of the last daemon, and answers on the control socket. A second
// daemon for a directory is refused.
func Start(runDir string, cfg Config) (_ *Daemon, err error) {
	if err := makeRunDir(runDir); err != nil {
		return nil, err
	}
	d := &Daemon{stop: make(chan struct{})}
	if d.lock, err = lockDaemon(runDir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			d.lock.Close()
		}
	}()
	if d.Manager, err = NewManager(cfg); err != nil {
		return nil, err
	}
	if _, err = d.Resume(); err == nil {
		d.c, err = serveControl(filepath.Join(runDir, daemonSocket), d, d.log)
	}
	if err != nil {
		_ = d.Manager.Close()
		return nil, err
	}
	return d, nil
}

// Stopped is closed when a client has asked the daemon to end.
func (d *Daemon) Stopped() <-chan struct{} { return d.stop }

// Close ends the daemon and leaves the devices to the next one.
func (d *Daemon) Close() error {
	d.c.close()
	err := d.Manager.Close()
	d.lock.Close()
	return err
}

// Handle implements Handler.
func (d *Daemon) Handle(ctx context.Context, r *Request) *Response {
	switch r.Verb {
	case VerbPing:
		return &Response{}
	case VerbStatus:
		return &Response{Status: d.Status()}
	case VerbAttach:
		a, err := d.Attach(ctx, *r.Spec, r.Env)
		return respond(a, err)
	case VerbDetach:
		a, err := d.Detach(ctx, r)
		return respond(a, err)
	case VerbStop:
		d.stopOnce.Do(func() { close(d.stop) })
		return &Response{}
	}
	return &Response{Error: failure(&bridge.Error{Class: bridge.ClassUnsupported, Sentence: fmt.Sprintf("the daemon does not know %q", r.Verb)})}
}

func respond(a *Attached, err error) *Response {
	if err != nil {
		return &Response{Error: failure(err)}
	}
	return &Response{Attached: a}
}

// LogHandler is a text handler for a service's standard error. When the journal reads that, each line begins with its priority in angle brackets
// (sd-daemon(3)) and has no time, which the journal adds.
func LogHandler(w *os.File, level slog.Leveler) slog.Handler {
	if !isJournal(w) {
		return slog.NewTextHandler(w, &slog.HandlerOptions{Level: level})
	}
	return newJournal(w, level)
}
