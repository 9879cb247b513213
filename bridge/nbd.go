package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"vdbridge/nbd"
)

// NBDOptions say how a disk is exported.
type NBDOptions struct {
	Name     string // of the export; clients that ask for none get it too
	ReadOnly bool   // although the disk could be written
	TLS      NBDTLS
	Logger   *slog.Logger
	Ready    func() // called once when clients may connect; may be nil
}

// drainTimeout is how long requests in flight may take after the end was asked for.
const drainTimeout = 30 * time.Second

// ServeNBD offers d on the listeners until ctx is done, and then ends when it has answered what is in flight. d stays open; its Close flushes it.
// It returns nil after an end that ctx asked for.
//
// A client that gives up its connection and sends again on another one what was in flight (Linux's driver, QEMU) finds that done before what it sends afterwards, however long
// the server below is away: no change overtakes another one of the same place.
func ServeNBD(ctx context.Context, d *Disk, o NBDOptions, listeners ...net.Listener) error {
	changes, giveUp := context.WithCancel(context.Background())
	defer giveUp()
	srv, err := nbd.NewServer(nbd.Config{
		Resolver: nbd.Exports{{
			Name:        o.Name,
			Description: d.loc.Base(),
			Disk:        nbd.NewSettled(changes, d),
			ReadOnly:    o.ReadOnly || d.ReadOnly(),
		}},
		TLS:        o.TLS.config,
		PSK:        o.TLS.keys,
		RequireTLS: o.TLS.require,
		Logger:     o.Logger,
	})
	if err != nil {
		return fmt.Errorf("NBD server: %w", err)
	}
	serving, stop := context.WithCancel(context.Background())
	defer stop()
	var wg sync.WaitGroup
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		wg.Go(func() {
			if err := srv.Serve(serving, l); err != nil && !errors.Is(err, nbd.ErrServerClosed) {
				failed <- err
			}
		})
	}
	if o.Ready != nil {
		o.Ready()
	}
	var errs []error
	select {
	case <-ctx.Done():
		d.GiveUp() // what waits for a lost server would hold up the end
	case err := <-failed:
		errs = append(errs, fmt.Errorf("NBD server: %w", err))
	}
	drain, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	defer context.AfterFunc(drain, giveUp)()
	if err := srv.Shutdown(drain); err != nil && !errors.Is(err, nbd.ErrServerClosed) {
		errs = append(errs, fmt.Errorf("NBD server: %w", err))
	}
	stop()
	wg.Wait()
	return errors.Join(errs...)
}
