package history

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"vdbridge/bridge"
	"vdbridge/rsvd"
)

// library is the disk as `bridge` opens it.
type library struct{ d *bridge.Disk }

func (l library) Path() (path, error) { return l.d, nil }
func (l library) Shared() *rsvd.Disk  { return l.d.RSVD() }

func (l library) Close(abrupt bool) error { return l.d.Close() }

func openBridge(ctx context.Context, url, secret string, guid [16]byte, io rsvd.IO) (*bridge.Disk, error) {
	loc, err := bridge.ParseLocation(url)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return bridge.Open(ctx, loc, bridge.Options{
		Credentials: bridge.CredentialSource{Getenv: func(string) string { return secret }},
		Mode:        bridge.ModeRSVD, IO: io, InitiatorID: &guid, Timeout: 5 * time.Second,
	})
}

// exported is a disk in this process behind an NBD export of ours.
type exported struct {
	library
	sock   string
	cancel context.CancelFunc
	done   chan error
}

func export(d *bridge.Disk, dir string) (*exported, error) {
	f, err := os.MkdirTemp(dir, "")
	if err != nil {
		return nil, err
	}
	e := &exported{library: library{d}, sock: filepath.Join(f, "s"), done: make(chan error, 1)}
	l, err := bridge.Listen("unix:" + e.sock)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	e.cancel = cancel
	go func() { e.done <- bridge.ServeNBD(ctx, d, bridge.NBDOptions{}, l) }()
	return e, nil
}

func (e *exported) Close(abrupt bool) error {
	e.cancel()
	err := <-e.done
	return errors.Join(err, e.d.Close())
}

func (e *exported) Path() (path, error) {
	n, err := dialNBD(e.sock)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNBDGone, err)
	}
	return &nbdPath{n: n, alive: func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second) // a message that was dropped is not answered by anybody
		defer cancel()
		err := e.d.Read(ctx, make([]byte, sectorSize), 0)
		return !isLost(err)
	}}, nil
}

// nbdPath is one connection to an export.
type nbdPath struct {
	n     *rawNBD
	alive func() bool // asks whether the export still has its disk
}

func (p *nbdPath) Close() error { return p.n.c.Close() }

func (p *nbdPath) do(ctx context.Context, typ, flags uint16, off int64, n int, data, in []byte) error {
	stop := context.AfterFunc(ctx, func() { _ = p.n.c.SetDeadline(time.Now()) })
	err := p.n.do(typ, flags, off, n, data, in)
	if !stop() && err == nil { // the deadline stays; the next request would meet it
		_ = p.n.c.SetDeadline(time.Time{})
	}
	var e nbdError
	if errors.As(err, &e) && !p.alive() {
		return fmt.Errorf("%w (%w)", errDetached, err)
	}
	return err
}

func (p *nbdPath) Read(ctx context.Context, b []byte, off int64) error {
	return p.do(ctx, nbdRead, 0, off, len(b), nil, b)
}

func flag(on bool, f uint16) uint16 {
	if on {
		return f
	}
	return 0
}

func (p *nbdPath) Write(ctx context.Context, b []byte, off int64, fua bool) error {
	return p.do(ctx, nbdWrite, flag(fua, nbdFUA), off, len(b), b, nil)
}

func (p *nbdPath) Flush(ctx context.Context) error { return p.do(ctx, nbdFlush, 0, 0, 0, nil, nil) }

func (p *nbdPath) Trim(ctx context.Context, off, n int64) error {
	return p.do(ctx, nbdTrim, 0, off, int(n), nil, nil)
}

func (p *nbdPath) WriteZeroes(ctx context.Context, off, n int64, unmap, fua bool) error {
	return p.do(ctx, nbdZero, flag(fua, nbdFUA)|flag(!unmap, nbdNoHole), off, int(n), nil, nil)
}
