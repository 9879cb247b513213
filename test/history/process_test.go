package history

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vdbridge/rsvd"
	"vdbridge/test/faultnet"
	"vdbridge/test/lab"
	"vdbridge/test/leak"
)

// program is a disk behind a `vdbridge nbd` of its own.
type program struct {
	p    *lab.Proc
	sock string
	hurt func() bool // something was done that may have cost it its disk
}

func (d *program) Shared() *rsvd.Disk { return nil }

func (d *program) Close(abrupt bool) error {
	if abrupt {
		d.p.Kill()
		return nil
	}
	return d.p.Stop(20 * time.Second)
}

func (d *program) Path() (path, error) {
	n, err := dialNBD(d.sock)
	if err == nil {
		return &nbdPath{n: n, alive: func() bool { return !d.hurt() }}, nil
	}
	select {
	case <-d.p.Done():
		return nil, fmt.Errorf("%w: the program has ended: %s", errDetached, d.p.Output())
	default:
		return nil, fmt.Errorf("%w: %w", errNBDGone, err)
	}
}

// Real programs, killed without warning.
func TestKilledPrograms(t *testing.T) {
	_ = lab.StartOn(func() error { return nil }) // its thread stays
	leak.Check(t)
	lab.Need(t, "qemu-img")
	s := seed(t)
	bin := lab.Vdbridge(t)
	end := time.Now().Add(length(t))
	for n := uint64(0); n == 0 || time.Now().Before(end); n++ {
		killedPrograms(t, bin, s+n)
		if t.Failed() {
			return
		}
	}
}

func killedPrograms(t *testing.T, bin string, seed uint64) {
	dir := t.TempDir()
	disks := filepath.Join(dir, "disks")
	if err := os.Mkdir(disks, 0o755); err != nil {
		t.Fatal(err)
	}
	vd, err := lab.NewProgram(bin, dir)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(disks, "a.vhdx")
	if _, err := vd.Run(t.Context(), "create", file, "--size", "64M", "--block-size", "1M"); err != nil {
		t.Fatal(err)
	}
	server, addr, err := vd.Serve(t.Context(), disks, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { server.Kill() }()
	j := newJournal()
	var guests []*guest
	var relays []*faultnet.Relay
	for i, io := range []rsvd.IO{rsvd.IOSMB, rsvd.IOSCSI, rsvd.IOSMB, rsvd.IOSCSI} {
		r, err := faultnet.NewRelay("tcp", "127.0.0.1:0", addr, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		relays = append(relays, r)
		url := lab.URL(r.Addr(), "a.vhdx")
		g := &guest{t: t, j: j, id: i, name: "library, " + io.String(), guid: [16]byte{15: byte(i + 1)}, pr: i < 2}
		g.open = func(ctx context.Context) (disk, error) {
			d, err := openBridge(ctx, url, lab.Password, g.guid, io)
			if err != nil {
				return nil, err
			}
			return library{d}, nil
		}
		if i >= 2 {
			g.name = "vdbridge nbd, " + io.String()
			g.open = func(ctx context.Context) (disk, error) {
				at, err := os.MkdirTemp(dir, "")
				if err != nil {
					return nil, err
				}
				sock := filepath.Join(at, "s")
				p, _, err := vd.NBD(ctx, url, sock, "--mode", "rsvd", "--io", io.String(), "--initiator", fmt.Sprint("node", i), "--on-loss", "fail")
				if err != nil {
					return nil, err
				}
				return &program{p, sock, func() bool { return g.lostAt.Load() != 0 }}, nil
			}
		}
		guests = append(guests, g)
	}
	run(t, j, guests, seed, round+time.Second, func(ctx context.Context, rng *rand.Rand) {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Duration(300+rng.IntN(700)) * time.Millisecond):
			}
			i := rng.IntN(len(relays))
			switch rng.IntN(4) {
			case 0:
				j.count("cut")
				guests[i].hurt()
				relays[i].CutAll()
			case 1:
				g := guests[2+i%2]
				g.mu.RLock()
				if d, ok := g.d.(*program); ok {
					j.count("nbd killed")
					g.hurt()
					d.p.Kill()
				}
				g.mu.RUnlock()
			default:
				j.count("serve killed")
				for _, g := range guests {
					g.hurt()
				}
				op := Op{Kind: Crash, Client: -1, Call: j.now()}
				server.Kill()
				next, _, err := vd.Serve(context.Background(), disks, addr)
				if err != nil {
					t.Errorf("restart of the server: %v", err)
					return
				}
				server = next
				op.Return = j.now()
				j.add(op)
			}
		}
	})
	if err := server.Stop(20 * time.Second); err != nil {
		t.Errorf("end of the server: %v", err)
	}
	if strings.Contains(server.Output(), "panic") {
		t.Error(server.Output())
	}
	out, qerr := lab.Run(t.Context(), "qemu-img", "check", "-f", "vhdx", file)
	check, cerr := vd.Run(t.Context(), "check", file)
	if err := errors.Join(qerr, cerr); err != nil {
		t.Errorf("the image: %v\n%s%s", err, out, check)
	}
}
