package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"vdbridge/smb/auth"
	"vdbridge/smb/ntstatus"
)

const (
	// firstRetry and longestRetry bound the time between attempts to authenticate again when nobody says no: the KDC is away, or the connection.
	firstRetry   = 100 * time.Millisecond
	longestRetry = 10 * time.Second
	// leastAhead is how long before the end the proof is renewed at the latest, as far as its life is that long.
	leastAhead = time.Minute
)

// renewal is one authentication that has become necessary because the session has expired.
type renewal struct {
	done chan struct{}
	err  error // once done is closed
}

func (w *renewal) wait(ctx context.Context) error {
	select {
	case <-w.done:
		return w.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// noteExpiry keeps when the proof of identity ends.
func (s *Session) noteExpiry(a auth.Initiator) {
	var at int64
	if e, ok := a.(auth.Expirer); ok && !e.Expiry().IsZero() {
		at = e.Expiry().UnixNano()
	}
	s.expiry.Store(at)
}

// Expiry returns when the proof of the user's identity ends, which is when a Kerberos ticket does; zero if it does not, as far as is known here. The server may
// have limits of its own.
func (s *Session) Expiry() time.Time {
	if at := s.expiry.Load(); at != 0 {
		return time.Unix(0, at)
	}
	return time.Time{}
}

// Reauthenticate proves the user's identity again, by one of the mechanisms, so that the session does not expire. It must be the same user. Keys stay as they
// are, and requests go on meanwhile. Without mechanisms, those of SessionOptions.Renew are used. When the server refuses the user, it usually ends the
// session. [MS-SMB2] 3.2.4.2.3.1
//
// With SessionOptions.Renew the session does this by itself, both when its proof of identity is about to end and when the server says that it has.
func (s *Session) Reauthenticate(ctx context.Context, mechs ...auth.MechInitiator) error {
	if err := s.reauthenticate(ctx, mechs); err != nil {
		return wrap("log on again to "+s.c.server, "", err)
	}
	return nil
}

func (s *Session) reauthenticate(ctx context.Context, mechs []auth.MechInitiator) error {
	if len(mechs) == 0 {
		if s.renew == nil {
			return errors.New("no mechanisms were given")
		}
		var err error
		if mechs, err = s.renew(ctx); err != nil {
			return err
		}
	}
	select {
	case s.proving <- struct{}{}: // the server knows one authentication of a session at a time
		defer func() { <-s.proving }()
	case <-ctx.Done():
		return ctx.Err()
	}
	a, err := auth.NewInitiator(s.c.neg.token, mechs...)
	if err != nil {
		return err
	}
	ch := s.pick()
	if err := s.authenticate(ctx, ch, logonAgain, a, SessionOptions{}); err != nil {
		return err
	}
	s.noteExpiry(a)
	s.renewals.Add(1)
	select {
	case s.proved <- struct{}{}:
	default:
	}
	s.c.log.Info("logged on again", "server", ch.c.addr, "user", s.identity)
	return nil
}

// renewExpired has the session authenticated again, once for all who ask, unless that has happened since before counted that many renewals.
func (s *Session) renewExpired(ctx context.Context, before uint32) error {
	s.mu.Lock()
	w := s.renewing.Load()
	switch {
	case s.err != nil:
		s.mu.Unlock()
		return s.Err()
	case w == nil && s.renewals.Load() != before:
		s.mu.Unlock()
		return nil
	case w == nil:
		w = &renewal{done: make(chan struct{})}
		s.renewing.Store(w)
		s.wg.Go(func() { s.revive(w) })
	}
	s.mu.Unlock()
	return w.wait(ctx)
}

// revive authenticates the session again. It goes on trying as long as nobody refuses; a refusal ends the session. [MS-SMB2] 3.2.5.1.6
func (s *Session) revive(w *renewal) {
	s.c.log.Info("session has expired", "server", s.c.addr, "user", s.identity)
	err := s.retry(time.Time{})
	if err != nil {
		s.end(fmt.Errorf("the session has expired: %w", err))
		w.err = s.Err()
	}
	s.renewing.Store(nil)
	close(w.done)
}

// retry authenticates again until that is done or refused, the session has ended, or deadline has passed, if it is not zero.
func (s *Session) retry(deadline time.Time) error {
	for delay := firstRetry; ; delay = min(2*delay, longestRetry) {
		ctx, cancel := context.WithTimeout(s.ctx, defaultPatience)
		err := s.reauthenticate(ctx, nil)
		cancel()
		if err == nil || s.ctx.Err() != nil || refusal(err) {
			return err
		}
		s.c.log.Warn("not logged on again yet", "server", s.c.addr, "error", err)
		if !deadline.IsZero() && time.Now().Add(delay).After(deadline) {
			return err
		}
		t := time.NewTimer(delay/2 + rand.N(delay/2+1))
		select {
		case <-t.C:
		case <-s.done:
			t.Stop()
			return s.Err()
		}
	}
}

// refusal says whether err comes of somebody who will say no again.
func refusal(err error) bool {
	switch st, ok := ntstatus.Of(err); {
	case st == ntstatus.RequestNotAccepted, st == ntstatus.InsufficientResources, st == ntstatus.NetworkSessionExpired:
	case ok:
		return true
	}
	return errors.Is(err, auth.ErrRefused) || errors.Is(err, ErrGuest) || errors.Is(err, ErrSecurity)
}

// renewLoop authenticates the session again whenever its proof of identity is about to end.
func (s *Session) renewLoop() {
	ours := true // the end is one that has not been dealt with
	for {
		end := s.Expiry()
		if end.IsZero() || !ours {
			select {
			case <-s.proved:
				ours = true
				continue
			case <-s.done:
				return
			}
		}
		left := time.Until(end)
		t := time.NewTimer(max(left-max(left/10, min(leastAhead, left/2)), firstRetry))
		select {
		case <-t.C:
		case <-s.done:
			t.Stop()
			return
		}
		if !s.Expiry().Equal(end) {
			continue // somebody was quicker
		}
		if err := s.retry(end); err != nil {
			if s.ctx.Err() == nil {
				s.c.log.Warn("session will expire", "server", s.c.addr, "at", end, "error", err)
			}
			ours = false // the server will say when it is over
		} else if s.Expiry().Equal(end) {
			s.c.log.Debug("the new proof of identity lasts no longer than the old one", "server", s.c.addr, "until", end)
			ours = false
		}
		select {
		case <-s.proved: // that was here
		default:
		}
	}
}
