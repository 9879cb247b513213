package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"vdbridge/bridge"
)

// Announcement makes another process that serves one disk visible to status.
type Announcement struct {
	kind, where string
	disk        Disk
	c           *control
	ctx         context.Context
	cancel      context.CancelFunc
	wg          sync.WaitGroup
	reservation reservationCache
	rates       rates
}

// Announce opens a control socket for this process in the run-time directory, until Close. kind and where say what it does: nbd and
// an address, mount and a directory. It knows the verb status.
func Announce(runDir, kind, where string, d Disk, log *slog.Logger) (*Announcement, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := makeRunDir(runDir); err != nil {
		return nil, err
	}
	a := &Announcement{kind: kind, where: where, disk: d}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	var err error
	if a.c, err = serveControl(filepath.Join(runDir, fmt.Sprintf("%d.sock", os.Getpid())), a, log); err != nil {
		a.cancel()
		return nil, err
	}
	a.wg.Go(func() {
		t := time.NewTicker(sampleEvery)
		defer t.Stop()
		for {
			select {
			case <-a.ctx.Done():
				return
			case now := <-t.C:
				s := d.Status()
				a.rates.note(now, &s)
			}
		}
	})
	return a, nil
}

// Close takes the socket away. It must come before the disk is closed. A nil Announcement is closed.
func (a *Announcement) Close() {
	if a == nil {
		return
	}
	a.cancel()
	a.c.close()
	a.wg.Wait()
}

// Status says how the disk is.
func (a *Announcement) Status() []Status {
	d := a.disk.Status()
	s := Status{Kind: a.kind, PID: os.Getpid(), Where: a.where, URL: d.URL, State: StateServing, Disk: &d, Rates: a.rates.get()}
	if d.Shared != nil && d.State == bridge.StateConnected {
		s.Reservation = a.reservation.get(a.disk, func(f func(context.Context)) { a.wg.Go(func() { f(a.ctx) }) })
	}
	return []Status{s}
}

// Handle implements Handler.
func (a *Announcement) Handle(_ context.Context, r *Request) *Response {
	switch r.Verb {
	case VerbPing:
		return &Response{}
	case VerbStatus:
		return &Response{Status: a.Status()}
	}
	return &Response{Error: failure(&bridge.Error{Class: bridge.ClassUnsupported, Sentence: fmt.Sprintf("process %d serves one disk and does not know %q; end it to end that", os.Getpid(), r.Verb)})}
}
