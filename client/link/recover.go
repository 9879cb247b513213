package link

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"time"

	"vdbridge/client"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// recover gets the server back, however long it takes. False means that this has ended, by Close or for good.
func (l *Link) recover() bool {
	l.mu.Lock()
	old, began, wait := l.way, l.since, firstWait
	for range min(l.flaps, 10) { // it has come back before, only to be lost at once
		wait *= 2
	}
	first := l.flaps == 0
	l.mu.Unlock()
	old.Abort() // and not Close: the open is to be kept
	var told string
	for n := 1; ; n++ {
		if !first {
			if !l.pause(began, wait) {
				return false
			}
			wait = min(2*wait, lastWait)
		}
		first = false
		refused := false
		for range l.cfg.Addresses {
			l.mu.Lock()
			addr := l.cfg.Addresses[l.turn%len(l.cfg.Addresses)]
			l.attempts = n
			l.mu.Unlock()
			err := l.attempt(addr)
			var final *FinalError
			switch {
			case err == nil:
				return true
			case l.ctx.Err() != nil:
				return false
			case errors.As(err, &final):
				l.log.Error("the server is back, but the disk cannot go on", "server", addr, "err", err)
				l.fail(err)
				return false
			}
			l.mu.Lock()
			l.turn++
			l.lastErr = err
			l.mu.Unlock()
			refused = refused || isAuth(err)
			l.log.Debug("the server is not back", "server", addr, "attempt", n, "err", err)
			if errors.Is(err, client.ErrOtherServer) && told != err.Error() {
				told = err.Error()
				l.log.Error("the address answers, but nothing is sent there", "server", addr, "err", err)
			}
		}
		if refused {
			wait = max(wait, authWait)
		}
	}
}

// pause waits before the next attempt.
func (l *Link) pause(began time.Time, wait time.Duration) bool {
	if time.Since(began) < patience && wait < authWait {
		wait = min(wait, soonWait)
	}
	wait = wait/2 + mrand.N(wait) // half to one and a half of it
	l.mu.Lock()
	l.nextTry = time.Now().Add(wait)
	l.mu.Unlock()
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-l.ctx.Done():
		return false
	}
}

// isAuth says that the server did not let us in.
func isAuth(err error) bool {
	s, ok := ntstatus.Of(err)
	if !ok {
		return false
	}
	switch s {
	case ntstatus.LogonFailure, ntstatus.WrongPassword, ntstatus.NoSuchUser, ntstatus.AccountRestriction, ntstatus.PasswordExpired, ntstatus.AccountDisabled,
		ntstatus.AccountExpired, ntstatus.PasswordMustChange, ntstatus.AccountLockedOut:
		return true
	}
	return false
}

// attempt tries to get everything back by one address. When it has, requests go on.
func (l *Link) attempt(addr string) error {
	ctx, cancel := context.WithTimeout(l.ctx, l.cfg.AttemptTimeout)
	defer cancel()
	l.mu.Lock()
	previous, first := l.session, l.first
	l.mu.Unlock()
	w, err := l.cfg.Dial(ctx, addr, previous)
	if err != nil {
		return err
	}
	if err := otherServer(first, w.Server()); err != nil {
		w.Abort()
		return err
	}
	l.mu.Lock()
	l.session, l.way = w.SessionID(), w
	l.mu.Unlock()
	if err := l.takeUp(ctx, w); err != nil {
		w.Abort() // an open that the server has given back must be kept for the next attempt
		return err
	}
	return nil
}

// takeUp gets the opens back on a new way, and lets requests go on there.
func (l *Link) takeUp(ctx context.Context, w Way) error {
	l.mu.Lock()
	files := l.files
	l.mu.Unlock()
	list := make([]back, 0, len(files))
	for _, f := range files {
		b, err := f.takeUp(ctx, w)
		if err != nil {
			return err
		}
		list = append(list, b)
	}
	if err := w.Err(); err != nil {
		return err
	}
	l.publish(w, list)
	return nil
}

// back is a File that can be used again.
type back struct {
	f     *File
	in    *incarnation
	safe  bool // what was acknowledged is there
	fence *FencedError
}

// takeUp gets the open back on a new way.
func (f *File) takeUp(ctx context.Context, w Way) (back, error) {
	l := f.l
	var h Handle
	var err error
	kept := false
	if f.lasting().Kind != LastingNone {
		h, err = w.Reopen(ctx, f.last)
		switch {
		case err == nil:
			kept = true
		case !errors.Is(err, ErrOpenGone):
			return back{}, fmt.Errorf("get the open back: %w", err)
		default:
			l.log.Warn("the server has not kept the open, so a new one is made", "server", w.Server().Address, "err", err)
		}
	}
	if h == nil {
		if h, err = f.openAgain(ctx, w); err != nil {
			return back{}, fmt.Errorf("open again: %w", err)
		}
	}
	f.setLast(h, w)
	// What the server promised to keep, and what a server has that was never stopped, is safe.
	safe := kept || l.first.sameRun(w.Server())
	var fence *FencedError
	if verify := f.hooks.Verify; verify != nil {
		if err := verify(ctx, h, kept); err != nil && !errors.As(err, &fence) {
			return back{}, fmt.Errorf("look at the disk again: %w", err)
		}
	}
	return back{f, &incarnation{h: h, w: w}, safe, fence}, nil
}

// openAgain opens the file anew. If the server may have done that for an attempt whose reply got lost, it is asked for that open.
func (f *File) openAgain(ctx context.Context, w Way) (Handle, error) {
	opts := f.opts
	if opts.Durable != nil {
		d := *opts.Durable
		if d.Replay = f.unsure != (wire.GUID{}); !d.Replay {
			_, _ = rand.Read(f.unsure[:]) // never fails
		}
		d.CreateGUID = f.unsure
		opts.Durable = &d
	}
	h, err := w.Open(ctx, f.name, opts)
	if _, answered := ntstatus.Of(err); err == nil || answered {
		f.unsure = wire.GUID{}
	}
	return h, err
}

// publish lets requests go on.
func (l *Link) publish(w Way, list []back) {
	var closed []Handle
	l.mu.Lock()
	defer func() {
		l.mu.Unlock()
		for _, h := range closed {
			_ = h.Close() // its File was closed in the meantime
		}
	}()
	if l.state == Closed {
		return // Close ends the way
	}
	l.first.Started = w.Server().Started
	for _, b := range list {
		f := b.f
		if f.closed {
			closed = append(closed, b.in.h)
			continue
		}
		if !b.safe && f.lossy() {
			l.log.Error("the server may have lost what was written since the last flush; the next flush fails, to say so", "server", w.Server().Address)
		}
		if b.fence != nil {
			f.fence.Store(b.fence)
			l.log.Error("shut out: what was under way is given up, and nothing is written until this is settled", "why", b.fence.Err)
		}
		b.in.lostAt = l.since
		f.prev = b.in
		f.cur.Store(b.in)
	}
	l.stopDeadline()
	l.state, l.since, l.refuse, l.lastErr = Connected, time.Now(), nil, nil
	l.back++
	l.notify()
}
