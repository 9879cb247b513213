package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"vdbridge/bridge"
	"vdbridge/nbd/kernel"
)

// Config is what a Manager works with. All but Instance, Warn, Secrets and Logger are needed.
type Config struct {
	StateDir string
	Instance string // keeps records apart from those of other managers of the state directory
	Driver   kernel.Driver
	Sys      kernel.Sys
	// Open opens the disk of a spec. env has variables of whoever asked for it, such as a password.
	Open func(ctx context.Context, s *Spec, env map[string]string) (Disk, error)
	// Warn says what the user should know of a disk that was just attached; it may be nil.
	Warn    func(ctx context.Context, d Disk) []string
	Secrets SecretStore // where passwords outlive the process; nil: nowhere
	Logger  *slog.Logger
}

// SecretEnv are the variables that are kept in memory only.
var SecretEnv = []string{bridge.PasswordEnv}

// Manager has the attachments of a host. Its methods may be called at the same time.
type Manager struct {
	cfg   Config
	log   *slog.Logger
	store *store

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	all    map[string]*attachment // by backend
	closed bool
}

// NewManager makes a manager without attachments; Resume takes back those of the last one.
func NewManager(cfg Config) (*Manager, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s, err := openStore(cfg.StateDir, cfg.Instance)
	if err != nil {
		return nil, err
	}
	m := &Manager{cfg: cfg, log: cfg.Logger, store: s, all: map[string]*attachment{}}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.wg.Go(func() {
		err := cfg.Driver.Watch(m.ctx, m.linkDead)
		if err != nil && m.ctx.Err() == nil && !errors.Is(err, kernel.ErrCannot) {
			m.log.Warn("the kernel's events cannot be watched; dead connections are found when they end here", "err", err)
		}
	})
	m.wg.Go(m.sample)
	return m, nil
}

// linkDead is told that a connection of a device died.
func (m *Manager) linkDead(index int) {
	for _, a := range m.list() {
		if _, _, i := a.get(); i == index {
			a.poke()
		}
	}
}

// list has all attachments, by device.
func (m *Manager) list() []*attachment {
	m.mu.Lock()
	list := slices.Collect(maps.Values(m.all))
	m.mu.Unlock()
	slices.SortFunc(list, func(a, b *attachment) int {
		_, _, i := a.get()
		_, _, j := b.get()
		if i != j {
			return i - j
		}
		return strings.Compare(a.rec.Spec.URL, b.rec.Spec.URL)
	})
	return list
}

func (m *Manager) newAttachment(rec *record, state string) (*attachment, error) {
	loc, err := rec.Spec.location()
	if err != nil {
		return nil, err
	}
	a := &attachment{m: m, rec: rec, loc: loc, state: state, index: -1, heal: make(chan struct{}, 1), stop: make(chan struct{}), resumed: make(chan struct{})}
	a.log = m.log.With("disk", loc.String())
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, &bridge.Error{Class: bridge.ClassBusy, Sentence: "the daemon is ending: try again", Err: syscall.EBUSY}
	}
	for _, b := range m.all {
		switch {
		case b.loc.SameDisk(loc):
			state, _, _ := b.get()
			where := b.node()
			if where == "" {
				where = "it has no device yet"
			}
			return nil, &bridge.Error{Class: bridge.ClassBusy, Sentence: fmt.Sprintf("%s is %s already (%s): one disk has one device on a host", loc, state, where), Err: syscall.EBUSY}
		case rec.Spec.Name != "" && b.rec.Spec.Name == rec.Spec.Name:
			return nil, &bridge.Error{Class: bridge.ClassBusy, Sentence: fmt.Sprintf("the name %q is that of another attachment (%s)", rec.Spec.Name, b.loc), Err: syscall.EBUSY}
		}
	}
	m.all[rec.Backend] = a
	return a, nil
}

func (m *Manager) forget(a *attachment) {
	m.mu.Lock()
	delete(m.all, a.rec.Backend)
	m.mu.Unlock()
}

// Attach opens a disk and gives it a device. It returns when the device can be used. When ctx is done before that, nothing is left.
func (m *Manager) Attach(ctx context.Context, s Spec, env map[string]string) (_ *Attached, err error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	want := kernel.Any
	if s.Device != "" {
		if want, err = kernel.ParseNode(s.Device); err != nil {
			return nil, bridge.Usagef("%v", err)
		}
	}
	rec := &record{Version: 1, Spec: s, Connections: s.Connections, Index: -1, Boot: bootID(), Created: time.Now().UTC()}
	rec.Env, rec.Forgetful = publicEnv(env)
	if a := m.waiting(&s); a != nil {
		return a.comeBack(ctx, env)
	}
	if rec.Backend, err = newBackend(); err != nil {
		return nil, err
	}
	a, err := m.newAttachment(rec, StateAttaching)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.forget(a)
		}
	}()
	// First the record: a state directory that is full must not be found out when there is a device.
	if err := m.store.save(rec); err != nil {
		return nil, errors.Join(err, m.store.remove(rec.Backend))
	}
	defer func() {
		if err != nil {
			_ = m.store.remove(rec.Backend)
		}
	}()
	if err := a.start(ctx, env); err != nil {
		return nil, err
	}
	if err := a.connect(want); err != nil {
		return nil, errors.Join(err, a.end())
	}
	_, _, index := a.get()
	undo := func(err error) error {
		return errors.Join(err, m.cfg.Driver.Disconnect(index), a.end())
	}
	a.mu.Lock()
	rec.Index = index
	saved := *rec
	a.mu.Unlock()
	if err := m.store.save(&saved); err != nil {
		return nil, undo(err)
	}
	a.wg.Go(a.keep)
	warnings := a.ready(ctx)
	if ctx.Err() != nil {
		return nil, undo(ctx.Err())
	}
	if rec.Forgetful && !m.keepSecret(rec.Backend, env) {
		warnings = append(warnings, "the password was given by hand, so the device cannot be taken back after a restart of the daemon: use --password-file, --credentials or --keytab")
	}
	if m.cfg.Warn != nil {
		warnings = append(warnings, m.cfg.Warn(ctx, a.disk)...)
	}
	for _, w := range warnings {
		a.log.Warn(w, "device", a.node())
	}
	a.set(StateAttached, "")
	size := a.disk.Size()
	a.log.Info("attached", "device", a.node(), "size", size)
	return &Attached{Device: a.node(), Size: size, Partitions: m.cfg.Sys.Partitions(index), Warnings: warnings}, nil
}

// keepSecret keeps the password of an attachment for the next daemon, if there is a place for it.
func (m *Manager) keepSecret(backend string, env map[string]string) bool {
	if m.cfg.Secrets == nil {
		return false
	}
	if err := m.cfg.Secrets.Keep(backend, env); err != nil {
		m.log.Warn("the service manager does not keep the password", "err", err)
		return false
	}
	return true
}

// erase removes what is kept of an attachment that has ended.
func (m *Manager) erase(r *record) error {
	if m.cfg.Secrets != nil && r.Forgetful {
		m.cfg.Secrets.Drop(r.Backend)
	}
	return m.store.remove(r.Backend)
}

// publicEnv leaves secrets out.
func publicEnv(env map[string]string) (public map[string]string, secret bool) {
	public = maps.Clone(env)
	for _, k := range SecretEnv {
		secret = secret || public[k] != ""
		delete(public, k)
	}
	return public, secret
}

// Detach ends an attachment. target is a device, a URL or a name.
func (m *Manager) Detach(ctx context.Context, r *Request) (*Attached, error) {
	a, err := m.find(r.Target)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	was := a.state
	if was != StateAttached && was != StateResuming {
		a.mu.Unlock()
		return nil, &bridge.Error{Class: bridge.ClassBusy, Sentence: fmt.Sprintf("%s is %s just now: try again in a moment", a.loc, was), Err: syscall.EBUSY}
	}
	a.state = StateDetaching
	a.mu.Unlock()
	out := &Attached{Device: a.node()}
	warnings, err := a.detach(ctx, r, was)
	if err != nil {
		a.set(was, "")
		return nil, err
	}
	out.Warnings = warnings
	m.forget(a)
	if err := m.erase(a.rec); err != nil {
		out.Warnings = append(out.Warnings, fmt.Sprintf("the record of the attachment cannot be removed: %v", err))
	}
	a.log.Info("detached", "device", out.Device)
	return out, nil
}

// find finds an attachment by device, URL or name.
func (m *Manager) find(target string) (*attachment, error) {
	loc, locErr := bridge.ParseLocation(target)
	index, indexErr := kernel.ParseNode(target)
	for _, a := range m.list() {
		_, _, i := a.get()
		if indexErr == nil && i == index || target != "" && a.rec.Spec.Name == target || locErr == nil && a.loc.SameDisk(loc) {
			return a, nil
		}
	}
	return nil, &bridge.Error{Class: bridge.ClassNotFound, Sentence: fmt.Sprintf("nothing of this daemon is attached as %q: 'vdbridge status' lists what is", target), Err: syscall.ENOENT}
}

// lost is told that a device is not ours any more: somebody has disconnected it.
func (m *Manager) lost(a *attachment, err error) {
	a.mu.Lock()
	if a.state == StateDetaching || a.state == StateAttaching || a.stopped.Load() {
		a.mu.Unlock()
		return
	}
	a.state, a.why = StateLost, err.Error()
	a.mu.Unlock()
	a.log.Error("the device was disconnected by somebody else, so the disk is closed", "device", a.node(), "err", err)
	m.mu.Lock()
	closed := m.closed
	if !closed {
		m.wg.Add(1)
	}
	m.mu.Unlock()
	if closed {
		return
	}
	go func() { // not on the keeper's goroutine, which end waits for
		defer m.wg.Done()
		if err := a.end(); err != nil {
			a.log.Error("closing the disk", "err", err)
		}
		m.forget(a)
		if err := m.erase(a.rec); err != nil {
			a.log.Warn("the record of the attachment cannot be removed", "err", err)
		}
	}()
}

// Close finishes what is in flight, flushes and closes the disks, and leaves the devices to the next daemon: their requests wait. Devices that cannot wait are
// disconnected.
func (m *Manager) Close() error {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.cancel()
	m.wg.Wait() // also for those who just open a disk
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	for _, a := range m.list() {
		wg.Go(func() {
			err := a.leave()
			mu.Lock()
			errs = append(errs, err)
			mu.Unlock()
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// leave ends the service of a device and leaves the device.
func (a *attachment) leave() error {
	if a.disk == nil {
		return nil
	}
	if state, _, index := a.get(); index >= 0 && state == StateAttached && !a.m.cfg.Driver.Survives() {
		if uses := a.m.cfg.Sys.Users(index); len(uses) > 0 {
			a.log.Error("the device ends with this process, though it is in use", "device", a.node(), "use", uses[0].String())
		}
		_, err := a.detach(context.Background(), &Request{Force: true}, StateAttached)
		return errors.Join(err, a.m.erase(a.rec))
	}
	if err := a.end(); err != nil {
		return fmt.Errorf("%s: %w", a.loc, err)
	}
	a.log.Info("the device waits for the next daemon", "device", a.node())
	return nil
}

// Attachments is how many there are.
func (m *Manager) Attachments() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.all)
}
