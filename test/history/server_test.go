package history

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"vdbridge/server"
	"vdbridge/server/svhdx"
	"vdbridge/smb/auth"
	"vdbridge/smb/wire"
	"vdbridge/vhdx"
	"vdbridge/vhdx/crashfile"
)

const (
	diskSize   = 64 << 20
	blockSize  = 1 << 20
	sectorSize = 512

	user, password = "me", "secret"
)

var errDead = errors.New("the power is off")

// platter is the file of the image during one life of the server. Once dead nothing reaches the file any more.
type platter struct {
	mu   sync.RWMutex
	dead bool
	f    *crashfile.File
}

func (p *platter) do(fn func() error) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.dead {
		return errDead
	}
	return fn()
}

func (p *platter) kill() {
	p.mu.Lock()
	p.dead = true
	p.mu.Unlock()
}

func (p *platter) ReadAt(ctx context.Context, b []byte, off int64) (n int, err error) {
	err = p.do(func() error { n, err = p.f.ReadAt(ctx, b, off); return err })
	return n, err
}

func (p *platter) WriteAt(ctx context.Context, b []byte, off int64) (n int, err error) {
	err = p.do(func() error { n, err = p.f.WriteAt(ctx, b, off); return err })
	return n, err
}

func (p *platter) PunchHole(ctx context.Context, off, n int64) error {
	return p.do(func() error { return p.f.PunchHole(ctx, off, n) })
}

func (p *platter) Flush(ctx context.Context) error {
	return p.do(func() error { return p.f.Flush(ctx) })
}

func (p *platter) Truncate(ctx context.Context, size int64) error {
	return p.do(func() error { return p.f.Truncate(ctx, size) })
}

func (p *platter) Size(ctx context.Context) (n int64, err error) {
	err = p.do(func() error { n, err = p.f.Size(ctx); return err })
	return n, err
}

func (p *platter) Close() error { return nil } // it is opened again by the next who opens the disk

// machine is a server in this process whose disk forgets what was not flushed when the power fails.
type machine struct {
	t    *testing.T
	dir  string
	addr string
	ca   bool // the share is continuously available

	disk  *platter
	start *crashfile.File
	srv   *server.Server
	state *server.State
	done  chan error
}

type image struct{ *vhdx.Disk }

func (d image) Properties() svhdx.Properties {
	i := d.Info()
	p := svhdx.Properties{Fixed: i.Kind == vhdx.KindFixed, ID: wire.GUID(i.VirtualDiskID), FileSize: func() (int64, error) { return d.Info().FileSize, nil }}
	if !p.Fixed {
		p.BlockSize = uint32(i.BlockSize)
	}
	return p
}

func (d image) TrimGranularity() int64 { return d.Info().BlockSize }

func newMachine(t *testing.T, ca bool) *machine {
	t.Helper()
	m := &machine{t: t, dir: t.TempDir(), addr: "127.0.0.1:0", ca: ca}
	// What is in the file does not matter, as the image is in memory.
	if err := os.WriteFile(filepath.Join(m.dir, "a.vhdx"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f := crashfile.New()
	if err := vhdx.Create(t.Context(), f, vhdx.CreateOptions{Size: diskSize, BlockSize: blockSize}); err != nil {
		t.Fatal(err)
	}
	m.boot(f)
	t.Cleanup(func() { m.powerOff() })
	return m
}

// boot starts a server on the file.
func (m *machine) boot(f *crashfile.File) {
	m.t.Helper()
	m.start = f.Record()
	disk := &platter{f: f}
	m.disk = disk
	disks, err := svhdx.New(svhdx.Config{OpenFile: func(ctx context.Context, _ string, readOnly bool) (svhdx.Disk, error) {
		d, err := vhdx.Open(ctx, disk, vhdx.Options{ReadOnly: readOnly})
		if err != nil {
			return nil, err
		}
		return image{d}, nil
	}})
	if err != nil {
		m.t.Fatal(err)
	}
	if m.state, err = server.OpenState(filepath.Join(m.dir, server.StateDirName)); err != nil {
		m.t.Fatal(err)
	}
	cfg := server.Config{
		Shares: []server.Share{{Name: "disks", Dir: m.dir, CA: m.ca}}, Users: auth.NewUsers(map[string]string{user: password}), Disks: disks,
		GUID: m.state.GUID(),
	}
	if m.ca {
		if err := m.state.Own(m.t.Context(), server.OwnOptions{}); err != nil {
			m.t.Fatal(err)
		}
		cfg.State = m.state
	}
	if m.srv, err = server.New(cfg); err != nil {
		m.t.Fatal(err)
	}
	l, err := net.Listen("tcp", m.addr)
	if err != nil {
		m.t.Fatal(err)
	}
	m.addr = l.Addr().String()
	srv, done := m.srv, make(chan error, 1)
	m.done = done
	go func() { done <- srv.Serve(context.Background(), l) }()
}

// powerOff ends the server; nothing that it does on its way out reaches the disk.
func (m *machine) powerOff() {
	if m.srv == nil {
		return
	}
	m.disk.kill()
	_ = m.srv.Close()
	<-m.done
	_ = m.state.Close()
	m.srv = nil
}

// powerCut is powerOff, and a new server on what a disk could have kept: all that was flushed, and any part of the rest.
func (m *machine) powerCut(rng *rand.Rand) {
	m.powerOff()
	var last crashfile.Moment
	m.disk.f.Crashes(m.start, func(at crashfile.Moment) bool { last = at; return true })
	m.boot(last.After(rng, []float64{0, 0.5, 0.9, 1}[rng.IntN(4)], sectorSize))
}
