package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"vdbridge/bridge"
	"vdbridge/nbd/kernel"
)

// How long detach waits for what ends by itself.
const (
	passingUse = 2 * time.Second // programs such as udev's look at a device and go
	idleWait   = 10 * time.Second
	freeWait   = 10 * time.Second // until the kernel has let the device go
	flushWait  = 60 * time.Second
	forcedWait = 10 * time.Second // for the flush of who does not insist on it
)

// detach ends the device and then the disk. An error means that nothing was done: the device works as before.
func (a *attachment) detach(ctx context.Context, r *Request, was string) (warnings []string, err error) {
	_, _, index := a.get()
	sys := a.m.cfg.Sys
	if was == StateResuming && !r.Force {
		return nil, &bridge.Error{Class: bridge.ClassBusy, Sentence: fmt.Sprintf("%s waits for its disk, so what the kernel has not written yet cannot be flushed; --force gives it up", a.node()), Err: syscall.EBUSY}
	}
	if was == StateResuming {
		a.halt()
		<-a.resumed
	}
	if index >= 0 && sys.Connected(index) {
		claim, err := a.claim(ctx, r.Force)
		if err != nil {
			return nil, err
		}
		if claim != nil {
			defer claim.Close()
		}
		if claim != nil && was != StateResuming {
			wait := flushWait
			if r.Force {
				wait = forcedWait
			}
			if err := within(ctx, wait, claim.Flush); err != nil && !r.Force {
				return nil, &bridge.Error{Class: bridge.ClassIO, Sentence: fmt.Sprintf("what was written to %s could not be made durable (%v), so it stays attached; --force detaches it and loses that", a.node(), err), Err: err}
			} else if err != nil {
				warnings = append(warnings, fmt.Sprintf("what was written last is lost: %v", err))
			}
			if !r.Force {
				if err := a.idle(ctx, index); err != nil {
					return nil, err
				}
			}
		}
		if r.Release {
			if err := a.release(ctx); err != nil {
				warnings = append(warnings, fmt.Sprintf("the reservation was not released: %v", err))
			}
		}
		if claim != nil {
			if err := claim.ForgetPartitions(sys.Partitions(index)); err != nil {
				a.log.Debug("partitions", "err", err)
			}
		}
		a.halt()
		if err := a.m.cfg.Driver.Disconnect(index); err != nil && !errors.Is(err, kernel.ErrGone) {
			a.log.Error("the kernel does not disconnect the device", "device", a.node(), "err", err)
			warnings = append(warnings, err.Error())
		}
		if claim != nil {
			claim.Close()
		}
		if err := a.free(ctx, index); err != nil {
			warnings = append(warnings, err.Error())
		}
	}
	if err := a.end(); err != nil {
		warnings = append(warnings, err.Error())
	}
	return warnings, nil
}

// halt says that connections that end now have ended for good.
func (a *attachment) halt() {
	if !a.stopped.Swap(true) {
		close(a.stop)
	}
}

// claim takes the device for us, so that nobody can mount it any more. With force nil is returned when somebody has it.
func (a *attachment) claim(ctx context.Context, force bool) (*kernel.Claim, error) {
	_, _, index := a.get()
	sys := a.m.cfg.Sys
	deadline := time.Now().Add(passingUse)
	for {
		uses := sys.Users(index)
		c, err := sys.Claim(index)
		if err == nil && (len(uses) == 0 || force) {
			return c, nil
		}
		if c != nil {
			c.Close()
		}
		if force {
			return nil, nil
		}
		if err != nil && !errors.Is(err, kernel.ErrBusy) {
			return nil, fmt.Errorf("%s: %w", a.node(), err)
		}
		if time.Now().After(deadline) || anyLasting(uses) {
			return nil, a.usedBy(uses)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// anyLasting says whether a use will not pass by itself.
func anyLasting(uses []kernel.Use) bool {
	for _, u := range uses {
		if u.How != "opened" {
			return true
		}
	}
	return false
}

func (a *attachment) usedBy(uses []kernel.Use) error {
	var list []string
	for _, u := range uses {
		list = append(list, u.String())
	}
	if len(list) == 0 {
		list = []string{"somebody has claimed it (a mount in a namespace that cannot be seen from here, or a program with O_EXCL)"}
	}
	return &bridge.Error{Class: bridge.ClassBusy, Sentence: fmt.Sprintf("%s is in use: %s. End that first; --force detaches it all the same, and its users get I/O errors", a.node(), strings.Join(list, "; ")), Err: syscall.EBUSY}
}

// idle waits until no request is in flight.
func (a *attachment) idle(ctx context.Context, index int) error {
	deadline := time.After(idleWait)
	for a.m.cfg.Sys.InFlight(index) > 0 || a.settled != nil && a.settled.InProgress() > 0 {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline:
			return &bridge.Error{Class: bridge.ClassBusy, Sentence: fmt.Sprintf("requests of %s are still in flight after %v; --force makes them fail", a.node(), idleWait), Err: syscall.EBUSY}
		}
	}
	return nil
}

// free waits until the kernel has let the device go, so that whoever attaches next can have it.
func (a *attachment) free(ctx context.Context, index int) error {
	deadline := time.After(freeWait)
	for a.m.cfg.Sys.Connected(index) && a.m.cfg.Sys.Backend(index) == a.rec.Backend {
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline:
			return fmt.Errorf("%s is disconnected, but its users still hold it", a.node())
		}
	}
	return nil
}

// within runs what cannot be cancelled, and stops waiting for it when ctx or the time is over.
func within(ctx context.Context, d time.Duration, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return fmt.Errorf("not done within %v", d)
	}
}

// release gives up our registration, and with it a reservation that we hold.
func (a *attachment) release(ctx context.Context) error {
	if r, ok := a.disk.(interface {
		GiveUpReservation(ctx context.Context) error
	}); ok {
		return r.GiveUpReservation(ctx)
	}
	return nil
}
