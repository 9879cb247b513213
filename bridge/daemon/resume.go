package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"syscall"
	"time"

	"vdbridge/bridge"
	"vdbridge/nbd/kernel"
)

// Pauses between attempts to open the disk of a device that waits for it.
const (
	firstPause  = 250 * time.Millisecond
	longestWait = 10 * time.Second
)

// Resume takes back the devices that the last daemon has left, each on a goroutine of its own, as a server may be away. It returns how many there are.
// Records whose device is gone are removed.
func (m *Manager) Resume() (int, error) {
	recs, err := m.store.load(m.log)
	if err != nil {
		return 0, err
	}
	var secrets map[string]map[string]string
	if m.cfg.Secrets != nil {
		secrets = m.cfg.Secrets.Take()
	}
	n := 0
	for _, rec := range recs {
		index := m.deviceOf(rec)
		if index < 0 {
			m.log.Warn("a device is gone that was attached when the last daemon ended; it is forgotten", "disk", rec.Spec.URL, "device", rec.Index)
			if err := m.erase(rec); err != nil {
				m.log.Warn("the record of an attachment cannot be removed", "err", err)
			}
			continue
		}
		a, err := m.newAttachment(rec, StateResuming)
		if err != nil {
			m.log.Error("a device cannot be taken back", "disk", rec.Spec.URL, "device", m.cfg.Sys.Node(index), "err", err)
			continue
		}
		env := maps.Clone(rec.Env)
		if env == nil {
			env = map[string]string{}
		}
		maps.Copy(env, secrets[rec.Backend])
		a.mu.Lock()
		a.index, a.env = index, env
		a.mu.Unlock()
		n++
		m.wg.Go(a.resume)
	}
	return n, nil
}

// deviceOf finds the device of a record, -1 if it is not connected any more. Kernels before 5.14 do not keep identifiers; there it is the device of that number.
func (m *Manager) deviceOf(rec *record) int {
	for _, i := range m.cfg.Sys.List() {
		if m.cfg.Sys.Connected(i) && m.cfg.Sys.Backend(i) == rec.Backend {
			return i
		}
	}
	if i := rec.Index; i >= 0 && m.cfg.Sys.Connected(i) && !m.cfg.Sys.KeepsBackends() {
		return i
	}
	return -1
}

// resume opens the disk, however often it takes, and gives the device fresh connections. It returns when that is done, or when the daemon or the attachment ends.
func (a *attachment) resume() {
	defer close(a.resumed)
	ctx, cancel := context.WithCancel(a.m.ctx)
	defer cancel()
	go func() {
		select {
		case <-a.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	for pause := firstPause; ; pause = min(2*pause, longestWait) {
		a.mu.Lock()
		env := a.env
		a.mu.Unlock()
		err := a.takeBack(ctx, env)
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, kernel.ErrGone) || errors.Is(err, kernel.ErrForeign) {
			a.m.lost(a, err)
			return
		}
		why := err.Error()
		if a.rec.Forgetful && bridge.Classify(err) == bridge.ClassAuth {
			why = "the password was given by hand and is forgotten: attach the disk again, which takes its device back"
		}
		if _, old, _ := a.get(); old != why {
			a.log.Error("a device waits for its disk, which cannot be opened; it is tried again", "device", a.node(), "err", why)
		}
		a.set(StateResuming, why)
		select {
		case <-time.After(pause):
		case <-a.heal: // somebody has brought the password
			pause = firstPause
		case <-ctx.Done():
			return
		}
	}
}

// waiting finds an attachment of the spec's disk that waits for being opened.
func (m *Manager) waiting(s *Spec) *attachment {
	loc, err := s.location()
	if err != nil {
		return nil
	}
	for _, a := range m.list() {
		if state, _, _ := a.get(); state == StateResuming && a.loc.SameDisk(loc) {
			return a
		}
	}
	return nil
}

// comeBack has the disk of a device that waits for it opened with what the caller brings, and waits until that has worked.
func (a *attachment) comeBack(ctx context.Context, env map[string]string) (*Attached, error) {
	a.mu.Lock()
	if a.env = maps.Clone(a.env); a.env == nil {
		a.env = map[string]string{}
	}
	maps.Copy(a.env, env)
	a.mu.Unlock()
	a.poke()
	select {
	case <-a.resumed:
	case <-ctx.Done():
		_, why, _ := a.get()
		return nil, &bridge.Error{Class: bridge.ClassBusy, Sentence: fmt.Sprintf("%s waits for its disk, and it could not be opened so far: %s", a.node(), why), Err: ctx.Err()}
	}
	state, why, index := a.get()
	if state != StateAttached {
		return nil, &bridge.Error{Class: bridge.ClassBusy, Sentence: fmt.Sprintf("%s could not be taken back: it is %s %s", a.node(), state, why), Err: syscall.EBUSY}
	}
	return &Attached{Device: a.node(), Size: a.disk.Size(), Partitions: a.m.cfg.Sys.Partitions(index), Warnings: []string{"the device was there already, and has been taken back"}}, nil
}

// takeBack opens the disk and connects it with the device that waits for it.
func (a *attachment) takeBack(ctx context.Context, env map[string]string) error {
	_, _, index := a.get()
	if a.m.deviceOf(a.rec) != index {
		return kernel.ErrGone
	}
	if err := a.start(ctx, env); err != nil {
		return err
	}
	size, err := a.m.cfg.Sys.Size(index)
	if err == nil {
		a.mu.Lock()
		a.size = size
		a.mu.Unlock()
		if err = a.follow(); err == nil {
			err = a.renew()
		}
	}
	if err == nil && a.links.Load() == 0 {
		err = fmt.Errorf("the kernel takes no connection for %s: another process may serve it", a.node())
	}
	if err == nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		// Only what this attempt made ends; the attachment goes on.
		drain, cancel := context.WithTimeout(context.Background(), drainTimeout)
		defer cancel()
		stop := context.AfterFunc(drain, a.cancel)
		defer stop()
		err = errors.Join(err, a.srv.Shutdown(drain))
		a.wg.Wait()
		return errors.Join(err, a.disk.Close())
	}
	a.mu.Lock()
	if a.state == StateResuming {
		a.state, a.why = StateAttached, ""
	}
	a.mu.Unlock()
	a.wg.Go(a.keep)
	a.log.Info("the device is back", "device", a.node(), "connections", a.links.Load())
	return nil
}
