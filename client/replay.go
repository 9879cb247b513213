package client

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// repeat says what may be done with a request whose connection is lost before its reply has come.
type repeat uint8

const (
	never  repeat = iota // executed twice it could do harm: what has become of it is for the caller to find out
	always               // executed twice it does what it does once
)

const (
	// firstPause and longestPause bound the time between attempts that the server refuses because older ones may still be executed.
	firstPause   = time.Millisecond
	longestPause = 250 * time.Millisecond
	// defaultPatience is how long that goes on when Config.ServerTimeout says nothing.
	defaultPatience = time.Minute
	// maxRenewals bounds how often one request makes the session authenticate again.
	maxRenewals = 3
)

// attempt is how a request is sent: for the first time, or again. It lives on the stack of the call.
type attempt struct {
	s      *Session
	ch     *channel // that it was sent on, or was to be
	sent   bool     // the server may have seen it
	repeat repeat
	flags  uint32 // of the header
	file   bool   // FILE_NOT_AVAILABLE means that older requests on the same open stand in the way
	f      *File  // to be settled before the request is sent again, or nil

	expired  uint8  // how often the session had expired
	renewals uint32 // of the session, when it was sent
	pause    time.Duration
	until    time.Time
}

// request returns a protected request for the tree with that id.
func (s *Session) request(cmd wire.Command, tree uint32, seal bool, a *attempt) *request {
	a.s = s
	a.ch, a.sent, a.renewals = s.pick(), false, s.renewals.Load()
	r := a.ch.c.request(cmd, a.ch, tree)
	s.protect(r, seal)
	r.flags = a.flags
	return r
}

// request returns a protected request for this open, with n bytes of payload.
func (f *File) request(cmd wire.Command, a *attempt, n int) *request {
	r := f.t.sess.request(cmd, f.t.id, f.t.seal, a)
	r.base = f.base
	r.weigh(n)
	return r
}

// requestCost is what a request without payload counts in the load of a connection, in bytes.
const requestCost = 1024

// weigh counts r, which has n bytes of payload, in the load of its connection, until it ends.
func (r *request) weigh(n int) {
	r.cost = int64(n) + requestCost
	r.c.load.Add(r.cost)
	if r.ch != nil {
		r.ch.served.Add(1)
	}
}

// again decides what comes of a request that has ended with err, and waits for what must be waited for. nil means that the request is to be sent again as the
// attempt now says. Otherwise it returns the error for the caller. [MS-SMB2] 3.2.7.1, 3.2.5.1.6, 3.2.5.12, 3.2.5.14, 3.2.5.18
func (a *attempt) again(ctx context.Context, err error) error {
	switch e := err.(type) {
	case ntstatus.Status:
		switch {
		case e == ntstatus.FileNotAvailable && (a.file || a.flags&wire.FlagReplayOperation != 0) && a.s.sequenced:
			return a.refused(ctx, e)
		case e == ntstatus.NetworkSessionExpired && a.expired < maxRenewals && a.s.renew != nil:
			a.expired++
			return a.s.renewExpired(ctx, a.renewals)
		case e == ntstatus.UserSessionDeleted:
			a.s.deleted()
		}
		return err
	case *ConnError:
		return a.moved(ctx, err)
	}
	return err
}

// refused is for a request that the server has not executed, as older ones on the same open may still be. With the flag of replay it is executed when those
// have ended. [MS-SMB2] 3.3.5.2.10
func (a *attempt) refused(ctx context.Context, st ntstatus.Status) error {
	a.flags |= wire.FlagReplayOperation
	a.s.replayed.Add(1)
	now := time.Now()
	if a.pause == 0 {
		patience := a.s.c.cfg.ServerTimeout
		if patience <= 0 {
			patience = defaultPatience
		}
		a.pause, a.until = firstPause, now.Add(patience)
	}
	if now.After(a.until) {
		return st
	}
	t := time.NewTimer(a.pause/2 + rand.N(a.pause/2+1))
	defer t.Stop()
	a.pause = min(2*a.pause, longestPause)
	select {
	case <-t.C:
		return nil
	case <-a.s.done:
		return a.s.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// moved is for a request whose connection is lost.
func (a *attempt) moved(ctx context.Context, err error) error {
	select {
	case <-a.ch.gone:
	case <-a.s.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-a.s.done:
		return err
	default:
	}
	switch {
	case !a.sent:
		return nil
	case a.repeat == never:
		return &ConnError{Addr: a.ch.c.addr, Err: fmt.Errorf("%w: %w", ErrOutcomeUnknown, rootOf(err))}
	}
	a.flags |= wire.FlagReplayOperation
	a.s.replayed.Add(1)
	if a.f != nil {
		return a.f.settle(ctx)
	}
	return nil
}

// exchange sends r, whose body is complete, with the charge, and waits for the reply. After nil, r is the caller's to unref.
func (a *attempt) exchange(ctx context.Context, r *request, charge int) error {
	if charge > 1 {
		r.c.stockUp(ctx, charge)
	}
	if err := r.acquire(ctx, charge, false); err != nil {
		r.unref()
		return err
	}
	a.sent = true
	r.send()
	ok, err := r.wait(ctx)
	if ok && err != nil {
		r.unref()
	}
	return err
}

// fail ends the connection of the attempt because of a reply that cannot be understood, and returns the error.
func (a *attempt) fail(err error) error {
	a.ch.c.fail(protocolError(err))
	return a.ch.c.Err()
}

// simple checks the status of the reply, lets parse have it, and gives it up.
func (a *attempt) simple(r *request, parse func([]byte) error) error {
	defer r.unref()
	if st := ntstatus.Status(r.h.Status); st != ntstatus.Success {
		return st
	}
	if err := parse(r.msg); err != nil {
		return a.fail(err)
	}
	return nil
}

// opError makes the error for the caller: of a status an *Error, of anything else an *OpError.
func opError(op, path string, err error) error {
	if st, ok := err.(ntstatus.Status); ok {
		return statusError(op, path, st)
	}
	return wrap(op, path, err)
}
