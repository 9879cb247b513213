package link

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"vdbridge/smb/ntstatus"
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
			if errors.Is(err, ErrOtherServer) && told != err.Error() {
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
	wait = wait/2 + rand.N(wait) // half to one and a half of it
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

// takeUp gets the open back on a new way, and lets requests go on there.
func (l *Link) takeUp(ctx context.Context, w Way) error {
	f := l.file
	var h Handle
	var err error
	kept := false
	if f.lasting().Kind != LastingNone {
		h, err = w.Reopen(ctx, f.last)
		switch {
		case err == nil:
			kept = true
		case !errors.Is(err, ErrOpenGone):
			return fmt.Errorf("get the open back: %w", err)
		default:
			l.log.Warn("the server has not kept the open, so a new one is made", "server", w.Server().Address, "err", err)
		}
	}
	if h == nil {
		if h, err = w.Open(ctx, f.name, f.opts); err != nil {
			return fmt.Errorf("open again: %w", err)
		}
	}
	f.setLast(h, w)
	// What the server promised to keep, and what a server has that was never stopped, is safe.
	safe := kept || l.first.sameRun(w.Server())
	var fence *FencedError
	if verify := f.hooks.Verify; verify != nil {
		if err := verify(ctx, h, kept); err != nil && !errors.As(err, &fence) {
			return fmt.Errorf("look at the disk again: %w", err)
		}
	}
	if err := w.Err(); err != nil {
		return err
	}
	l.publish(&incarnation{h: h, w: w, began: time.Now(), lostAt: l.since}, fence, safe)
	return nil
}

// publish lets requests go on.
func (l *Link) publish(in *incarnation, fence *FencedError, safe bool) {
	f := l.file
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == Closed {
		return // Close ends the way
	}
	if !safe {
		l.first.Started = in.w.Server().Started
		if f.lossy() {
			l.log.Error("the server may have lost what was written since the last flush; the next flush fails, to say so", "server", in.w.Server().Address)
		}
	}
	if fence != nil {
		f.fence.Store(fence)
		l.log.Error("shut out: what was under way is given up, and nothing is written until this is settled", "why", fence.Err)
	}
	l.stopDeadline()
	l.state, l.refuse, l.lastErr = Connected, nil, nil
	in.lostAt, l.since = l.since, time.Now()
	l.back++
	f.prev = in
	f.cur.Store(in)
	l.notify()
}
