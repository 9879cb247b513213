package faultnet

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"testing"
	"time"

	"vdbridge/test/leak"
)

// pair returns two ends of one TCP connection over loopback.
func pair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, _ := ln.Accept()
		accepted <- c
	}()
	a, err = net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b = <-accepted
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func random(n int) []byte {
	p := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(p)
	return p
}

func TestSplitKeepsEveryByte(t *testing.T) {
	leak.Check(t)
	a, b := pair(t)
	w := Wrap(a, Faults{}, Faults{Split: 7})
	r := Wrap(b, Faults{Split: 3}, Faults{})
	want := random(10_000)
	go func() {
		_, _ = w.Write(want)
		_ = w.Close()
	}()
	var got []byte
	buf := make([]byte, 100)
	for {
		n, err := r.Read(buf)
		if n > 3 {
			t.Fatalf("a read gave %d bytes, want at most 3", n)
		}
		got = append(got, buf[:n]...)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, want) {
		t.Error("the bytes changed")
	}
}

func TestCutAfterPassesWhatWasBefore(t *testing.T) {
	leak.Check(t)
	for _, n := range []int64{1, 99, 100} {
		a, b := pair(t)
		w := Wrap(a, Faults{}, Faults{CutAfter: n})
		got := make(chan int, 1)
		go func() {
			p, _ := io.ReadAll(b)
			got <- len(p)
		}()
		_, err := w.Write(make([]byte, 100))
		if n < 100 && !errors.Is(err, ErrCut) {
			t.Errorf("cut after %d: Write says %v, want ErrCut", n, err)
		}
		if _, err := w.Write([]byte{0}); !errors.Is(err, ErrCut) {
			t.Errorf("cut after %d: a later Write says %v, want ErrCut", n, err)
		}
		// A reset may overtake data that is still in the peer's buffer, so at most n arrive.
		if g := <-got; int64(g) > n {
			t.Errorf("cut after %d: the peer got %d bytes", n, g)
		}
	}
}

func TestCutOfReads(t *testing.T) {
	leak.Check(t)
	a, b := pair(t)
	r := Wrap(b, Faults{CutAfter: 5}, Faults{})
	if _, err := a.Write([]byte("0123456789")); err != nil {
		t.Fatal(err)
	}
	p, err := io.ReadAll(r)
	if string(p) != "01234" || !errors.Is(err, ErrCut) {
		t.Errorf("read %q, %v; want 01234 and ErrCut", p, err)
	}
	if _, err := r.Write([]byte{1}); !errors.Is(err, ErrCut) {
		t.Errorf("Write after the cut says %v", err)
	}
}

func TestFlipBit(t *testing.T) {
	leak.Check(t)
	a, b := pair(t)
	w := Wrap(a, Faults{}, Faults{Split: 4, Garble: FlipBit(6, 7)})
	sent := []byte("abcdefghij")
	if _, err := w.Write(sent); err != nil {
		t.Fatal(err)
	}
	if string(sent) != "abcdefghij" {
		t.Error("the caller's buffer was changed")
	}
	_ = w.Close()
	got, _ := io.ReadAll(b)
	if want := "abcdef\xe7hij"; string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestStallAndResume(t *testing.T) {
	leak.Check(t)
	a, b := pair(t)
	r := Wrap(b, Faults{StallAfter: 2}, Faults{})
	if _, err := a.Write([]byte("abcd")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4)
	if n, err := r.Read(buf); n != 2 || err != nil {
		t.Fatalf("first read: %d, %v", n, err)
	}
	type result struct {
		n   int
		err error
	}
	res := make(chan result, 1)
	go func() {
		n, err := r.Read(buf)
		res <- result{n, err}
	}()
	select {
	case x := <-res:
		t.Fatalf("a read passed the stall: %v", x)
	case <-time.After(20 * time.Millisecond):
	}
	r.Resume()
	if x := <-res; x.n != 2 || x.err != nil {
		t.Errorf("after Resume: %v", x)
	}
	r.Stall()
	go func() {
		n, err := r.Read(buf)
		res <- result{n, err}
	}()
	_ = r.Close()
	if x := <-res; x.err == nil {
		t.Error("Close did not end a stalled read")
	}
}

// echo serves connections that send back what they get.
func echo(t *testing.T, network, addr string) string {
	t.Helper()
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return ln.Addr().String()
}

func TestRelayDelaysWithoutLoss(t *testing.T) {
	leak.Check(t)
	const oneWay = 10 * time.Millisecond
	r, err := NewRelay("tcp", "127.0.0.1:0", echo(t, "tcp", "127.0.0.1:0"), oneWay)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c, err := net.Dial("tcp", r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	start := time.Now()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d < 2*oneWay {
		t.Errorf("a round trip took %v, want at least %v", d, 2*oneWay)
	}
	// 8 MiB would take minutes if each buffer waited for the one before.
	want := random(8 << 20)
	go func() {
		_, _ = c.Write(want)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the relay changed the stream")
	}
	if n := r.Bytes(); n != 2*(int64(len(want))+1) {
		t.Errorf("Bytes says %d", n)
	}
}

func TestRelayCutsAndComesBack(t *testing.T) {
	leak.Check(t)
	dir := t.TempDir()
	target := echo(t, "unix", filepath.Join(dir, "target"))
	r, err := NewRelay("unix", filepath.Join(dir, "relay"), target, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	try := func() error {
		c, err := net.Dial("unix", r.Addr())
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err = io.ReadFull(c, make([]byte, 1))
		return err
	}
	if err := try(); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if n := r.CutAll(); n < 1 {
		t.Errorf("CutAll found %d connections", n)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection survived CutAll")
	}
	if err := try(); err != nil {
		t.Errorf("a new connection after CutAll: %v", err)
	}
	r.SetDown(true)
	if err := try(); err == nil {
		t.Error("a relay that is down served a connection")
	}
	r.SetDown(false)
	if err := try(); err != nil {
		t.Errorf("after SetDown(false): %v", err)
	}
}
