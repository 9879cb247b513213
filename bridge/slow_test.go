package bridge

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vdbridge/rsvd"
	"vdbridge/server"
	"vdbridge/server/svhdx"
	"vdbridge/smb/auth"
	"vdbridge/test/faultnet"
	"vdbridge/test/leak"
	"vdbridge/test/ramdisk"
)

// memory is a disk in memory for the server.
type memory struct{ *ramdisk.Disk }

func (memory) Properties() svhdx.Properties {
	return svhdx.Properties{Fixed: true, ID: [16]byte{1}, FileSize: func() (int64, error) { return testDiskSize, nil }}
}

// A write that the server is still carrying out when its connection is lost comes before everything that the next connection brings, however long it takes.
func TestSlowWriteComesFirst(t *testing.T) {
	for _, ca := range []bool{false, true} {
		for _, io := range []rsvd.IO{rsvd.IOSMB, rsvd.IOSCSI} {
			t.Run(fmt.Sprintf("ca=%v/%v", ca, io), func(t *testing.T) { slowWrite(t, ca, io) })
		}
	}
}

func slowWrite(t *testing.T, ca bool, io rsvd.IO) {
	leak.Check(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.vhdx"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mem := ramdisk.New(testDiskSize, 512)
	disks, err := svhdx.New(svhdx.Config{OpenFile: func(context.Context, string, bool) (svhdx.Disk, error) { return memory{mem}, nil }})
	if err != nil {
		t.Fatal(err)
	}
	srv, err := server.New(server.Config{Shares: []server.Share{{Name: "disks", Dir: dir, CA: ca}}, Users: auth.NewUsers(map[string]string{"me": "secret"}), Disks: disks})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(context.Background(), l) })
	t.Cleanup(func() { srv.Close(); wg.Wait() })
	relay, err := faultnet.NewRelay("tcp", "127.0.0.1:0", l.Addr().String(), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { relay.Close() })
	a := &away{&embedded{dir: dir, addr: l.Addr().String()}, relay}
	d := a.hold(t, func(o *Options) { o.Mode, o.IO, o.Timeout = ModeRSVD, io, 300*time.Millisecond })
	ctx := t.Context()

	gate, stuck := make(chan struct{}), make(chan struct{})
	var writes, early atomic.Int64
	mem.SetHook(func(_ context.Context, op ramdisk.Op, _, _ int64) error {
		if op == ramdisk.Write && writes.Add(1) == 1 {
			close(stuck)
			<-gate
		} else if op == ramdisk.Write {
			select {
			case <-gate:
			default:
				early.Add(1)
			}
		}
		return nil
	})
	first := make(chan error, 1)
	go func() { first <- d.Write(ctx, pattern(1, 4096), 0, false) }()
	<-stuck
	relay.CutAll()
	when(t, "some attempts", func() bool { s := d.Status(); return s.State == StateReconnecting && s.Attempt >= 3 })
	second := make(chan error, 1)
	go func() { second <- d.Write(ctx, pattern(2, 4096), 8192, false) }()
	when(t, "both wait", func() bool { return d.Status().InFlight == 2 })
	close(gate)
	for _, c := range []chan error{first, second} {
		if err := <-c; err != nil {
			t.Fatal(err)
		}
	}
	if early.Load() != 0 {
		t.Errorf("%d writes were carried out while the old one was", early.Load())
	}
	if err := d.Write(ctx, pattern(3, 4096), 0, false); err != nil {
		t.Fatal(err)
	}
	q := make([]byte, 4096)
	if err := d.Read(ctx, q, 0); err != nil || !bytes.Equal(q, pattern(3, 4096)) {
		t.Errorf("the newest write is not there (%v)", err)
	}
}
