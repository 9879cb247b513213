package faultnet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"vdbridge/test/leak"
)

// sink is a server that tells what messages it got on each connection, and answers each with itself.
type sink struct {
	addr string
	got  chan string // "connection: message"; "connection: end"
}

func newSink(t *testing.T) *sink {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{ln.Addr().String(), make(chan string, 1000)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for {
					m, err := readMessage(c)
					if err != nil {
						s.got <- fmt.Sprintf("%d: end", i)
						return
					}
					s.got <- fmt.Sprintf("%d: %s", i, m)
					_, _ = c.Write(frame(string(m)))
				}
			}()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return s
}

func frame(m string) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(m))), m...) }

func readMessage(c net.Conn) ([]byte, error) {
	var h [4]byte
	if _, err := io.ReadFull(c, h[:]); err != nil {
		return nil, err
	}
	m := make([]byte, binary.BigEndian.Uint32(h[:]))
	_, err := io.ReadFull(c, m)
	return m, err
}

func through(t *testing.T, target string, script Script) (*Switch, func(*Switch) net.Conn) {
	t.Helper()
	s, err := NewSwitch("127.0.0.1:0", target, script)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, func(s *Switch) net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
}

func send(t *testing.T, c net.Conn, msgs ...string) {
	t.Helper()
	for _, m := range msgs {
		if _, err := c.Write(frame(m)); err != nil {
			t.Fatal(err)
		}
	}
}

func (s *sink) want(t *testing.T, want ...string) {
	t.Helper()
	for _, w := range want {
		if g := <-s.got; g != w {
			t.Fatalf("the server got %q, want %q", g, w)
		}
	}
}

func (s *sink) nothing(t *testing.T) {
	t.Helper()
	select {
	case g := <-s.got:
		t.Fatalf("the server got %q", g)
	case <-time.After(30 * time.Millisecond): // it can only err to the good side
	}
}

func TestSwitchFates(t *testing.T) {
	leak.Check(t)
	srv := newSink(t)
	fates := map[int]Fate{1: {Drop: true}, 2: {Repeat: 2}, 3: {Behind: 2}, 6: {Drip: 1}, 7: {Behind: 5}}
	s, dial := through(t, srv.addr, func(link, n int, way Way, msg []byte) Fate {
		if way == Down {
			return Fate{}
		}
		return fates[n]
	})
	c := dial(s)
	send(t, c, "m0", "m1", "m2", "m3", "m4", "m5", "m6", "m7")
	srv.want(t, "0: m0", "0: m2", "0: m2", "0: m2", "0: m4", "0: m5", "0: m3", "0: m6", "0: m7")
	if m, err := readMessage(c); string(m) != "m0" || err != nil {
		t.Errorf("the answer is %q, %v", m, err)
	}
}

// What a client has sent before its connection ended arrives later, on the old connection, when a new one is in use already.
func TestSwitchOrphan(t *testing.T) {
	leak.Check(t)
	srv := newSink(t)
	s, dial := through(t, srv.addr, nil)
	a := dial(s)
	send(t, a, "first")
	srv.want(t, "0: first")
	if _, err := readMessage(a); err != nil {
		t.Fatal(err)
	}
	l := s.Links()[0]
	l.Stall(Up)
	send(t, a, "old")
	for l.Waiting(Up) == 0 {
		runtime.Gosched()
	}
	l.Orphan(100 * time.Millisecond)
	if _, err := readMessage(a); err == nil {
		t.Fatal("the client's side goes on")
	}
	b := dial(s)
	send(t, b, "new")
	srv.want(t, "1: new", "0: old", "0: end")
	if n := s.Accepted(); n != 2 {
		t.Errorf("%d connections", n)
	}
}

func TestSwitchHolesAndStalls(t *testing.T) {
	leak.Check(t)
	srv := newSink(t)
	s, dial := through(t, srv.addr, nil)
	c := dial(s)
	send(t, c, "x")
	srv.want(t, "0: x")
	if _, err := readMessage(c); err != nil {
		t.Fatal(err)
	}
	l := s.Links()[0]
	l.Stall(Up)
	send(t, c, "y")
	srv.nothing(t)
	l.Resume(Up)
	srv.want(t, "0: y")
	if _, err := readMessage(c); err != nil {
		t.Fatal(err)
	}
	l.Hole(Down) // the server executes and nobody hears of it
	send(t, c, "z")
	srv.want(t, "0: z")
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
	if _, err := readMessage(c); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read through a black hole: %v", err)
	}
	l.Hole(Up)
	send(t, c, "lost")
	srv.nothing(t)
	if n := s.CutAll(); n != 1 {
		t.Errorf("%d links", n)
	}
	srv.want(t, "0: end")
	s.SetDown(true)
	d := dial(s)
	if _, err := d.Read(make([]byte, 1)); err == nil {
		t.Error("a switch that is down serves")
	}
	s.SetDown(false)
	other := newSink(t)
	s.SetTarget(other.addr)
	send(t, dial(s), "there")
	other.want(t, "0: there")
}

// Every part that is garbled is the part that was meant, in plain and in sealed messages, and the same chance decides the same again.
func TestChaos(t *testing.T) {
	for _, protocol := range []byte{0xFE, 0xFD} {
		whole := append([]byte{0, 0, 0, 200, protocol, 'S', 'M', 'B'}, make([]byte, 196)...)
		bounds := map[Part][2]int{Length: {1, 4}, Protocol: {4, 8}, Header: {8, 52}, Signature: {52, 68}, Payload: {68, 204}}
		if protocol == 0xFD {
			bounds = map[Part][2]int{Length: {1, 4}, Protocol: {4, 8}, Header: {24, 56}, Signature: {8, 24}, Payload: {56, 204}}
		}
		for part, b := range bounds {
			for at := range 1000 {
				m := bytes.Clone(whole)
				garble(m, part, at)
				var changed []int
				for i := range m {
					if m[i] != whole[i] {
						changed = append(changed, i)
					}
				}
				if len(changed) != 1 || changed[0] < b[0] || changed[0] >= b[1] {
					t.Fatalf("%x %v at %d: bytes %v changed, want one of %v", protocol, part, at, changed, b)
				}
			}
		}
	}
	garble([]byte{0, 0, 0, 1, 0xFE}, Payload, 3) // nothing to change
	rates := Rates{From: 5, Delay: 500, Reorder: 500, Repeat: 500, Corrupt: 500, Drip: 500, Drop: 500}
	all := make(map[string]int)
	a, b := Chaos(1, rates, func(w string) { all[w]++ }), Chaos(1, rates, nil)
	for i := range 2000 {
		link, way := i%3, Way(i%2)
		f, g := a(link, i/6, way, nil), b(link, i/6, way, nil)
		if f != g {
			t.Fatalf("message %d: %+v and %+v", i, f, g)
		}
		if i/6 < 5 && f != (Fate{}) {
			t.Errorf("a fault before its time: %+v", f)
		}
	}
	if len(all) != 6 {
		t.Errorf("not all faults: %v", all)
	}
	for what, n := range all {
		if n < 40 || n > 200 {
			t.Errorf("%s: %d of 2000, want about 100", what, n)
		}
	}
}
