package nbd

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"vdbridge/test/ramdisk"
)

func TestDisconnectInTheMiddleOfAPayload(t *testing.T) {
	variants(t, func(t *testing.T, d *ramdisk.Disk, style replyStyle) {
		var g *gate
		if !d.NonBlocking() {
			g = newGate(d, ramdisk.Read)
		}
		ts := startServer(t, oneDisk(d))
		for _, n := range []int{1, 511, 60 << 10, 1 << 20} {
			r := enter(t, ts, style)
			if g != nil {
				for i := range 50 {
					r.request(wireRequest{cmd: cmdRead, cookie: uint64(i), length: 4096}, nil)
				}
				for range 50 {
					<-g.entered // cancelled by the disconnection
				}
			}
			b := r.requestBytes(wireRequest{cmd: cmdWrite, length: 2 << 20}, bytes.Repeat([]byte{0xff}, 2<<20))
			r.send(b[:extRequestSize+n])
			r.c.Close()
		}
		if err := ts.shut(); err != nil { // waits for the connections
			t.Error(err)
		}
		if g != nil {
			if d.Allocated() > 0 {
				t.Error("half a write was executed")
			}
			return
		}
		// A disk in memory gets large writes in pieces, each of whole physical blocks and nothing but what the client sent.
		got := make([]byte, 4<<20)
		if err := d.Read(t.Context(), got, 0); err != nil {
			t.Fatal(err)
		}
		done := len(got) - len(bytes.TrimLeft(got, "\xff"))
		if done%4096 != 0 || done > 1<<20 || !bytes.Equal(got[done:], make([]byte, len(got)-done)) {
			t.Errorf("%d bytes at the start were written, and perhaps others", done)
		}
	})
}

// TestHalfClose sends everything, closes the sending half, and still gets all replies.
func TestHalfClose(t *testing.T) {
	variants(t, func(t *testing.T, d *ramdisk.Disk, style replyStyle) {
		ts := startServer(t, oneDisk(d), "tcp")
		r := enter(t, ts, style)
		for i := range 64 {
			r.request(wireRequest{cmd: cmdWrite, cookie: uint64(i), offset: uint64(i) * 8192, length: 8192}, make([]byte, 8192))
		}
		r.c.(interface{ CloseWrite() error }).CloseWrite()
		for range 64 {
			if a := r.answer(nil); a.errno != 0 {
				t.Errorf("%+v", a)
			}
		}
		r.gone()
	})
}

func TestDiscWaitsForRequestsInFlight(t *testing.T) {
	d := ramdisk.New(1<<20, 512)
	g := newGate(d, ramdisk.Write)
	ts := startServer(t, oneDisk(d))
	r := enter(t, ts, styleSimple)
	r.request(wireRequest{cmd: cmdWrite, cookie: 5, length: 512}, make([]byte, 512))
	r.request(wireRequest{cmd: cmdDisc}, nil)
	<-g.entered
	g.release <- nil
	if a := r.answer(nil); a.cookie != 5 || a.errno != 0 {
		t.Errorf("%+v", a)
	}
	r.gone()
}

func TestCloseAnswersESHUTDOWNAndDrains(t *testing.T) {
	for _, style := range []replyStyle{styleSimple, styleStructured} {
		d := ramdisk.New(1<<20, 512)
		entered, release := make(chan bool), make(chan bool)
		d.SetHook(func(_ context.Context, op ramdisk.Op, off, _ int64) error {
			if op == ramdisk.Write && off == 0 {
				entered <- true
				<-release
			}
			return nil
		})
		ts := startServer(t, oneDisk(d))
		idle := enter(t, ts, style)
		idle.alive()
		shaking := hello(t, ts)
		r := enter(t, ts, style)
		r.request(wireRequest{cmd: cmdWrite, cookie: 5, length: 4096}, pattern(4096, 9))
		<-entered
		half := r.requestBytes(wireRequest{cmd: cmdWrite, cookie: 6, offset: 8192, length: 4096}, pattern(4096, 8))
		r.send(half[:2000]) // Close comes in the middle of a payload
		closed := make(chan error)
		go func() { closed <- ts.shut() }()
		idle.gone()
		shaking.gone()
		r.send(half[2000:])
		first := r.answer(nil)
		if first.cookie != 6 || first.errno != nbdESHUTDOWN && first.errno != 0 {
			t.Errorf("%+v", first)
		}
		r.expect(nbdESHUTDOWN, wireRequest{cmd: cmdRead, cookie: 7, length: 512}, nil)
		r.expect(nbdESHUTDOWN, wireRequest{cmd: cmdWrite, cookie: 8, length: 512}, make([]byte, 512))
		release <- true
		if a := r.answer(nil); a.cookie != 5 || a.errno != 0 {
			t.Errorf("%+v", a)
		}
		r.gone()
		if err := <-closed; err != nil {
			t.Error(err)
		}
		p := make([]byte, 4096)
		d.SetHook(nil)
		if err := d.Read(t.Context(), p, 0); err != nil || !bytes.Equal(p, pattern(4096, 9)) {
			t.Error("an acknowledged write is lost")
		}
	}
}

func TestShutdownCancelsWhatTakesTooLong(t *testing.T) {
	d := ramdisk.New(1<<20, 512)
	g := newGate(d, ramdisk.Read)
	ts := startServer(t, oneDisk(d))
	r := enter(t, ts, styleSimple)
	for i := range 10 {
		r.request(wireRequest{cmd: cmdRead, cookie: uint64(i), length: 512}, nil)
	}
	for range 10 {
		<-g.entered
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ts.closed = true
	if err := ts.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Shutdown: %v", err)
	}
	<-ts.served
	for range 10 {
		if a := r.answer(nil); a.errno != nbdESHUTDOWN {
			t.Errorf("%+v", a)
		}
	}
	r.gone()
}

// TestCloseWithAClientThatDoesNotRead ends though a reply cannot be sent.
func TestCloseWithAClientThatDoesNotRead(t *testing.T) {
	for _, hook := range []ramdisk.Hook{nil, busyHook} {
		d := ramdisk.New(64<<20, 512)
		d.SetHook(hook)
		if err := d.Write(t.Context(), pattern(64<<20, 1), 0, false); err != nil {
			t.Fatal(err)
		}
		cfg := oneDisk(d)
		cfg.DrainTimeout = 1
		ts := startServer(t, cfg)
		r := enter(t, ts, styleSimple)
		for range 4 {
			r.request(wireRequest{cmd: cmdRead, length: 32 << 20}, nil)
		}
		r.recv(1) // it is sending
		if err := ts.shut(); err == nil {
			t.Error("Close says that everything was delivered")
		}
	}
}
