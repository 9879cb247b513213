package history

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"vdbridge/bridge"
	"vdbridge/rsvd"
	"vdbridge/scsi"
	"vdbridge/test/faultnet"
	"vdbridge/test/lab"
	"vdbridge/test/leak"
)

// A write is under way when its host loses the network. Another host takes over: it preempts the first, does what it wants, and gives the disk free. Then the
// first host's old request arrives late, and the host itself comes back. The write must have failed, must not be on the disk, and nothing more may be written before the host has
// registered again.
func TestPreemptedWhileAway(t *testing.T) {
	for _, ca := range []bool{true, false} {
		for _, io := range []rsvd.IO{rsvd.IOSMB, rsvd.IOSCSI} {
			for _, late := range []bool{true, false} {
				t.Run(fmt.Sprintf("ca %v, %v, old request late %v", ca, io, late), func(t *testing.T) { preemptedWhileAway(t, ca, io, late) })
			}
		}
	}
}

func preemptedWhileAway(t *testing.T, ca bool, io rsvd.IO, late bool) {
	leak.Check(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	m := newMachine(t, ca)
	defer m.powerOff()
	s, err := faultnet.NewSwitch("127.0.0.1:0", m.addr, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	open := func(addr string, n byte) *bridge.Disk {
		t.Helper()
		d, err := openHeld(ctx, "smb://"+user+"@"+addr+"/disks/a.vhdx", password, [16]byte{15: n}, io, 1)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	a, b := open(s.Addr(), 1), open(m.addr, 2)
	defer a.Close()
	defer b.Close()
	value := func(v Value) []byte {
		p := make([]byte, sectorSize)
		fill(p, v, 0)
		return p
	}
	read := func(d *bridge.Disk) Value {
		t.Helper()
		p := make([]byte, sectorSize)
		must("read", d.Read(ctx, p, 0))
		return decode(p, 0)[0]
	}
	must("register a", a.RSVD().RegisterIgnore(ctx, 1, false))
	must("reserve a", a.RSVD().Reserve(ctx, 1, scsi.WriteExclusiveRegistrantsOnly))
	must("register b", b.RSVD().RegisterIgnore(ctx, 2, false))
	must("write", a.Write(ctx, value(1), 0, true))

	links := s.Links()
	for _, l := range links {
		l.Stall(faultnet.Up)
	}
	done := make(chan error, 1)
	go func() { done <- a.Write(ctx, value(2), 0, true) }()
	must("the write did not go out", waitFor(ctx, func() bool { return links[0].Waiting(faultnet.Up) > 0 }))

	must("preempt", b.RSVD().Preempt(ctx, 2, 1, scsi.WriteExclusiveRegistrantsOnly))
	must("write of b", b.Write(ctx, value(3), 0, true))
	must("release", b.RSVD().Release(ctx, 2, scsi.WriteExclusiveRegistrantsOnly)) // now the server would let a write
	for _, l := range links {
		if late {
			l.Orphan(0)
		} else {
			l.Cut()
		}
	}
	if err := <-done; err == nil {
		t.Error("a write that was under way succeeded after its host had been preempted")
	} else if !errors.Is(err, rsvd.ErrShutOut) && !errors.Is(err, rsvd.ErrPreempted) {
		t.Errorf("the write that was under way: %v", err)
	}
	if v := read(b); v != 3 {
		t.Errorf("after the write that was preempted the sector holds %d, want 3", v)
	}
	if err := a.Write(ctx, value(4), 0, true); err == nil {
		t.Error("a host that was preempted while it was away writes before it has registered again")
	}
	if v := read(a); v != 3 {
		t.Errorf("the host that was away reads %d, want 3", v)
	}
	must("register again", a.RSVD().RegisterIgnore(ctx, 1, false))
	// The attachment looks now and then whether it has been let in again.
	must("write again", waitFor(ctx, func() bool { return a.Write(ctx, value(5), 0, true) == nil }))
	if v := read(b); v != 5 {
		t.Errorf("the other host reads %d, want 5", v)
	}
}

// waitFor waits until something is so that nothing announces.
func waitFor(ctx context.Context, so func() bool) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !so() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// A request is on its way on one connection when that breaks for the client, which repeats it elsewhere and goes on; then the old one arrives. It must not be carried out: with several
// channels ChannelSequence keeps it out, with one the end of the old session does.
func TestLateRequest(t *testing.T) {
	for _, ca := range []bool{true, false} {
		for _, io := range []rsvd.IO{rsvd.IOSMB, rsvd.IOSCSI} {
			for _, channels := range []int{1, 2, 4} {
				t.Run(fmt.Sprintf("ca %v, %v, %d channels", ca, io, channels), func(t *testing.T) { lateRequest(t, ca, io, channels) })
			}
		}
	}
}

func lateRequest(t *testing.T, ca bool, io rsvd.IO, channels int) {
	leak.Check(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	m := newMachine(t, ca)
	defer m.powerOff()
	s, err := faultnet.NewSwitch("127.0.0.1:0", m.addr, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	d, err := openHeld(ctx, "smb://"+user+"@"+s.Addr()+"/disks/a.vhdx", password, [16]byte{15: 1}, io, channels)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := waitFor(ctx, func() bool { return len(s.Links()) == channels }); err != nil {
		t.Fatalf("%d connections, want %d", len(s.Links()), channels)
	}
	write := func(v Value) error {
		p := make([]byte, sectorSize)
		fill(p, v, 0)
		return d.Write(ctx, p, 0, false)
	}
	if err := write(1); err != nil {
		t.Fatal(err)
	}
	// Whichever channel the write takes, it does not get through.
	links := s.Links()
	for _, l := range links {
		l.Stall(faultnet.Up)
	}
	done := make(chan error, 1)
	go func() { done <- write(2) }()
	held := func() *faultnet.Link {
		for _, l := range links {
			if l.Waiting(faultnet.Up) > 0 {
				return l
			}
		}
		return nil
	}
	if err := waitFor(ctx, func() bool { return held() != nil }); err != nil {
		t.Fatal("the write did not go out")
	}
	old := held()
	old.Orphan(time.Hour)
	for _, l := range links {
		if l != old {
			l.Resume(faultnet.Up)
		}
	}
	if err := <-done; err != nil {
		t.Fatalf("the write that was repeated: %v", err)
	}
	if err := write(3); err != nil {
		t.Fatal(err)
	}
	old.Resume(faultnet.Up) // now it arrives
	if err := waitFor(ctx, func() bool { return old.Waiting(faultnet.Up) == 0 && !alive(s, old) }); err != nil {
		t.Fatal("the old connection does not end")
	}
	for range 20 {
		p := make([]byte, sectorSize)
		if err := d.Read(ctx, p, 0); err != nil {
			t.Fatal(err)
		}
		if v := decode(p, 0)[0]; v != 3 {
			t.Fatalf("the sector holds %d, want 3: a request was carried out after its repetition and the next write", v)
		}
	}
}

func alive(s *faultnet.Switch, l *faultnet.Link) bool { return slices.Contains(s.Links(), l) }

// Two servers run on one directory, and one of them has the image open. A client that loses the first and finds the second must wait until the first has ended: two that interpret one
// image would destroy it.
func TestTwoServers(t *testing.T) {
	_ = lab.StartOn(func() error { return nil }) // its thread stays
	leak.Check(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir := t.TempDir()
	disks := filepath.Join(dir, "disks")
	if err := os.Mkdir(disks, 0o755); err != nil {
		t.Fatal(err)
	}
	vd, err := lab.NewProgram(lab.Vdbridge(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(disks, "a.vhdx")
	if _, err := vd.Run(ctx, "create", file, "--size", "64M", "--block-size", "1M"); err != nil {
		t.Fatal(err)
	}
	serve := func() (*lab.Proc, string) {
		t.Helper()
		p, at, err := vd.Serve(ctx, disks, "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Kill)
		return p, at
	}
	first, at := serve()
	_, other := serve()
	var switches [2]*faultnet.Switch
	var d [2]*bridge.Disk
	for i := range d {
		if switches[i], err = faultnet.NewSwitch("127.0.0.1:0", at, nil); err != nil {
			t.Fatal(err)
		}
		defer switches[i].Close()
		if d[i], err = openHeld(ctx, lab.URL(switches[i].Addr(), "a.vhdx"), lab.Password, [16]byte{15: byte(i + 1)}, rsvd.IOSMB, 1); err != nil {
			t.Fatal(err)
		}
		defer d[i].Close()
	}
	write := func(i int, v Value) error {
		p := make([]byte, sectorSize)
		fill(p, v, 0)
		return d[i].Write(ctx, p, 0, true)
	}
	if err := write(0, 1); err != nil {
		t.Fatal(err)
	}
	switches[0].SetTarget(other)
	switches[0].CutAll()
	done := make(chan error, 1)
	go func() { done <- write(0, 2) }()
	if err := waitFor(ctx, func() bool { return switches[0].Accepted() >= 4 || len(done) > 0 }); err != nil { // it has tried more than once
		t.Fatal("the client does not look for the other server")
	}
	select {
	case err := <-done:
		t.Errorf("the image is open at two servers: a write succeeded after the client found the second (%v)", err)
		return
	default:
	}
	if err := write(1, 3); err != nil {
		t.Errorf("the client of the first server: %v", err)
	}
	switches[1].SetTarget(other)
	first.Kill()
	if err := <-done; err != nil {
		t.Errorf("the write that waited for the end of the first server: %v", err)
	}
	for i := range d {
		p := make([]byte, sectorSize)
		if err := d[i].Read(ctx, p, 0); err != nil {
			t.Errorf("client %d: %v", i, err)
		} else if v := decode(p, 0)[0]; v != 2 {
			t.Errorf("client %d reads %d, want 2", i, v)
		}
	}
}
