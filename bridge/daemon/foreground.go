package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"vdbridge/bridge"
)

// foreground is a Manager with one attachment, in the foreground of a process.
type foreground struct {
	*Manager
	once sync.Once
	done chan struct{}
}

// Handle implements Handler: status and detach.
func (f *foreground) Handle(ctx context.Context, r *Request) *Response {
	switch r.Verb {
	case VerbPing:
		return &Response{}
	case VerbStatus:
		return &Response{Status: f.Status()}
	case VerbDetach:
		a, err := f.Detach(ctx, r)
		if err == nil {
			f.once.Do(func() { close(f.done) })
		}
		return respond(a, err)
	}
	return &Response{Error: failure(&bridge.Error{Class: bridge.ClassUnsupported, Sentence: fmt.Sprintf("process %d has one disk attached in the foreground and does not know %q", os.Getpid(), r.Verb)})}
}

// Foreground attaches one disk and serves its device until ctx is done or it is detached. A device that an earlier process left for the same disk is taken back.
// At the end the device is detached; one that is in use stays for the next process, and the error says so. ready is called once the device can be used;
// what it returns is called at the end.
func Foreground(ctx context.Context, runDir string, cfg Config, s Spec, env map[string]string, ready func(*Manager, *Attached) (func(), error)) (err error) {
	loc, err := s.location()
	if err != nil {
		return err
	}
	if err := makeRunDir(runDir); err != nil {
		return err
	}
	h := sha256.Sum256([]byte(loc.String()))
	cfg.Instance = hex.EncodeToString(h[:6])
	m, err := NewManager(cfg)
	if err != nil {
		return err
	}
	f := &foreground{Manager: m, done: make(chan struct{})}
	left, err := m.Resume()
	if err != nil {
		return errors.Join(err, m.Close())
	}
	c, err := serveControl(filepath.Join(runDir, fmt.Sprintf("%d.sock", os.Getpid())), f, m.log)
	if err != nil {
		return errors.Join(err, m.Close())
	}
	var a *Attached
	if list := m.list(); left > 0 && len(list) > 0 {
		a, err = list[0].comeBack(ctx, env)
	} else {
		a, err = m.Attach(ctx, s, env)
	}
	if err == nil {
		var done func()
		done, err = ready(m, a)
		defer done()
	}
	if err == nil {
		select {
		case <-ctx.Done():
		case <-f.done:
		}
	}
	c.close()
	if a != nil && m.Attachments() > 0 {
		_, derr := m.Detach(context.Background(), &Request{Target: a.Device})
		err = errors.Join(err, derr)
	}
	return errors.Join(err, m.Close())
}

// CallFor asks the process of the run-time directory that has the target: the daemon, or one in the foreground.
func CallFor(ctx context.Context, runDir string, r *Request) (*Response, error) {
	paths, err := sockets(runDir)
	if err != nil {
		return nil, err
	}
	var first error
	for _, p := range paths {
		resp, err := call(ctx, p, r)
		switch class := bridge.Classify(err); {
		case err == nil:
			return resp, nil
		case errors.Is(err, ErrNotRunning), class == bridge.ClassUnsupported:
		case class == bridge.ClassNotFound:
			if first == nil {
				first = err
			}
		default:
			return nil, err
		}
	}
	if first == nil {
		first = &bridge.Error{Class: bridge.ClassNotFound, Sentence: fmt.Sprintf("nothing is attached as %q: no daemon runs ('vdbridge status' lists what there is)", r.Target), Err: ErrNotRunning}
	}
	return nil, first
}
