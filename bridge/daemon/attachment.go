package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"vdbridge/bridge"
	"vdbridge/nbd"
	"vdbridge/nbd/kernel"
)

// Disk is what a device stands on: *bridge.Disk, or a test's.
type Disk interface {
	nbd.Disk
	// OnResize sets who is told that the server has changed the size.
	OnResize(f func(size int64))
	Status() bridge.DiskStatus
	Reservation(ctx context.Context) (*bridge.ReservationStatus, error)
	Close() error
}

// attachment is a disk on a device.
type attachment struct {
	m   *Manager
	log *slog.Logger
	rec *record // guarded by mu, except Backend, Spec and Connections, which do not change
	loc bridge.Location

	disk    Disk
	srv     *nbd.Server
	settled *nbd.Settled
	export  *nbd.Export
	ctx     context.Context // of the disk: ends what is in flight when it is cancelled
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	resumed chan struct{} // closed when resume has returned
	heal    chan struct{} // something may have happened to a connection, or to the size
	stop    chan struct{} // closed when connections must not be renewed any more
	stopped atomic.Bool
	links   atomic.Int32  // connections that we serve
	renewed atomic.Uint64 // connections that took the place of dead ones

	mu    sync.Mutex
	state string
	why   string // of the state, if it is a bad one
	index int
	size  int64 // that the kernel was told

	env map[string]string // of the next attempt to open the disk of a device that waits for it

	reservation reservationCache
	rates       rates
}

// States of an attachment.
const (
	StateAttaching = "attaching"
	StateAttached  = "attached"
	StateResuming  = "resuming"  // the device waits for its disk
	StateDetaching = "detaching" //
	StateLost      = "lost"      // somebody else has disconnected the device
)

func (a *attachment) set(state, why string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.state, a.why = state, why
}

func (a *attachment) get() (state, why string, index int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state, a.why, a.index
}

// node is the device's path, "" before there is one.
func (a *attachment) node() string {
	if _, _, index := a.get(); index >= 0 {
		return a.m.cfg.Sys.Node(index)
	}
	return ""
}

// start opens the disk and makes what serves it.
func (a *attachment) start(ctx context.Context, env map[string]string) error {
	disk, err := a.m.cfg.Open(ctx, &a.rec.Spec, env)
	if err != nil {
		return err
	}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	a.disk = disk
	a.settled = nbd.NewSettled(a.ctx, disk)
	a.export = &nbd.Export{Name: a.loc.Base(), Disk: a.settled, ReadOnly: a.rec.Spec.ReadOnly || disk.ReadOnly()}
	a.srv, err = nbd.NewServer(nbd.Config{Resolver: nbd.Exports{}, Logger: a.log, ServerBytes: deviceBytes})
	if err != nil {
		return errors.Join(err, a.end())
	}
	disk.OnResize(func(int64) { a.poke() })
	return nil
}

// poke has the keeper look at the device.
func (a *attachment) poke() {
	select {
	case a.heal <- struct{}{}:
	default:
	}
}

// serve serves one connection until it ends.
func (a *attachment) serve(c net.Conn) {
	a.links.Add(1)
	a.wg.Go(func() {
		err := a.srv.ServeKernel(c, a.export)
		a.links.Add(-1)
		if !a.stopped.Load() {
			a.log.Info("a connection with the kernel ended", "device", a.node(), "err", err)
		}
		a.poke()
	})
}

// blockSize is what the kernel is told; it knows one for both.
func (a *attachment) blockSize() (int, error) {
	logical, _, _, _ := a.disk.BlockSizes()
	if logical > 4096 {
		return 0, &bridge.Error{Class: bridge.ClassUnsupported, Sentence: fmt.Sprintf("%s has sectors of %d bytes, and the kernel's nbd driver takes up to 4096", a.loc, logical)}
	}
	return max(logical, 512), nil
}

// connect gives the disk a device. index is the one wanted, or kernel.Any.
func (a *attachment) connect(index int) error {
	block, err := a.blockSize()
	if err != nil {
		return err
	}
	size := a.disk.Size() / int64(block) * int64(block)
	if size == 0 {
		return &bridge.Error{Class: bridge.ClassUnsupported, Sentence: fmt.Sprintf("%s is empty (0 bytes), which no device can be", a.loc)}
	}
	flags, err := nbd.KernelFlags(a.export)
	if err != nil {
		return err
	}
	wait, err := a.rec.Spec.deadline()
	if err != nil {
		return err
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for range a.rec.Connections {
		f, ours, err := pair()
		if err != nil {
			return err
		}
		files = append(files, f)
		a.serve(ours)
	}
	got, err := a.m.cfg.Driver.Connect(kernel.Config{
		Index: index, Size: size, BlockSize: block, Flags: flags, Timeout: a.rec.Spec.IOTimeout, DeadConnTimeout: wait,
		Backend: a.rec.Backend, Sockets: files,
	})
	if err != nil {
		return a.explainConnect(index, err)
	}
	a.mu.Lock()
	a.index, a.size = got, size
	a.mu.Unlock()
	return nil
}

func (a *attachment) explainConnect(index int, err error) error {
	switch {
	case errors.Is(err, kernel.ErrBusy) && index != kernel.Any:
		return &bridge.Error{Class: bridge.ClassBusy, Sentence: fmt.Sprintf("%s is in use by another disk: leave --device out to get a free one, or detach that first", a.m.cfg.Sys.Node(index)), Err: err}
	case errors.Is(err, kernel.ErrBusy):
		return &bridge.Error{Class: bridge.ClassBusy, Sentence: "no nbd device is free: detach one, or load the module with a larger nbds_max", Err: err}
	case errors.Is(err, kernel.ErrNotAllowed):
		return &bridge.Error{Class: bridge.ClassPermission, Sentence: "the kernel does not let us connect a device: run it as root (in a container, with CAP_SYS_ADMIN)", Err: err}
	}
	return err
}

// keep renews connections and follows the size until stop. Only it does so, so there is one change of the device at a time.
func (a *attachment) keep() {
	for {
		select {
		case <-a.stop:
			return
		case <-a.heal:
		}
		if !a.patient() {
			return
		}
		if err := a.follow(); err != nil {
			a.log.Error("the kernel did not take the new size", "device", a.node(), "err", err)
		}
		switch err := a.renew(); {
		case err == nil:
		case errors.Is(err, kernel.ErrGone), errors.Is(err, kernel.ErrForeign):
			a.m.lost(a, err)
			return
		case errors.Is(err, kernel.ErrCannot):
			if a.links.Load() == 0 {
				a.m.lost(a, err)
				return
			}
		default:
			a.log.Error("a connection with the kernel cannot be renewed; it is tried again", "device", a.node(), "err", err)
			time.AfterFunc(time.Second, a.poke)
		}
	}
}

// patient waits while the disk is on its way back to the server: what the kernel sent again meanwhile would only wait behind itself. It reports
// false when the attachment ends.
func (a *attachment) patient() bool {
	t := time.NewTicker(patience)
	defer t.Stop()
	for a.disk.Status().State == bridge.StateReconnecting {
		select {
		case <-t.C:
		case <-a.stop:
			return false
		}
	}
	return true
}

const patience = 100 * time.Millisecond

// How long the kernel may take to see that a connection is dead that we know of.
const (
	renewTries = 8
	renewPause = 5 * time.Millisecond // doubles
)

// renew gives the kernel a fresh connection for each dead one.
func (a *attachment) renew() error {
	pause := renewPause
	for tries := 0; ; {
		_, _, index := a.get()
		f, ours, err := pair()
		if err != nil {
			return err
		}
		err = a.m.cfg.Driver.Reconnect(index, kernel.Change{Backend: a.rec.Backend, Sockets: []*os.File{f}})
		f.Close()
		if err == nil && !hungUp(ours) {
			a.renewed.Add(1)
			a.serve(ours)
			continue
		}
		ours.Close()
		if err != nil {
			return err
		}
		if int(a.links.Load()) >= a.rec.Connections || tries == renewTries {
			return nil
		}
		// We know of fewer than there should be, so the kernel will find out.
		tries++
		select {
		case <-time.After(pause):
			pause *= 2
		case <-a.stop:
			return nil
		}
	}
}

// follow tells the kernel when the disk has another size.
func (a *attachment) follow() error {
	block, err := a.blockSize()
	if err != nil {
		return err
	}
	size := a.disk.Size() / int64(block) * int64(block)
	a.mu.Lock()
	old, index := a.size, a.index
	a.mu.Unlock()
	if size == old || size <= 0 {
		return nil
	}
	if err := a.m.cfg.Driver.Reconnect(index, kernel.Change{Backend: a.rec.Backend, Size: size}); err != nil {
		return err
	}
	a.mu.Lock()
	a.size = size
	a.mu.Unlock()
	if size > old {
		a.log.Info("the device has grown with its disk", "device", a.node(), "old", old, "new", size)
		return nil
	}
	var uses []string
	for _, u := range a.m.cfg.Sys.Users(index) {
		uses = append(uses, u.String())
	}
	a.log.Error("the server has made the disk smaller: what was beyond its new end is gone, and whatever uses the device may be damaged; check it before you go on",
		"device", a.node(), "old", old, "new", size, "used by", strings.Join(uses, ", "))
	return nil
}

// quiet ends the service: no connection is renewed, and what is in flight may finish until ctx is done; then it is cancelled.
func (a *attachment) quiet(ctx context.Context) error {
	if !a.stopped.Swap(true) {
		close(a.stop)
	}
	if a.disk != nil {
		a.disk.OnResize(nil)
	}
	if a.srv == nil {
		return nil
	}
	stop := context.AfterFunc(ctx, a.cancel) // a Settled goes on though its connections are cancelled
	defer stop()
	err := a.srv.Shutdown(ctx)
	a.wg.Wait()
	return err
}

// end closes what start made. The device, if there is one, has been dealt with.
func (a *attachment) end() error {
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	err := a.quiet(ctx)
	if a.disk != nil {
		err = errors.Join(err, a.disk.Close())
	}
	if a.cancel != nil {
		a.cancel()
	}
	return err
}

// deviceBytes is how much memory the requests of one device may hold. It stays locked.
const deviceBytes = 128 << 20

// drainTimeout is how long requests in flight may take after the end was asked for.
const drainTimeout = 30 * time.Second
