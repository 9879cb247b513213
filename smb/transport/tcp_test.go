package transport

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"
)

// stream is a net.Conn that reads from r and writes to w, without being a socket.
type stream struct {
	net.Conn
	r io.Reader
	w io.Writer
}

func (s stream) Read(p []byte) (int, error)  { return s.r.Read(p) }
func (s stream) Write(p []byte) (int, error) { return s.w.Write(p) }

func frame(n int) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(n))
	for i := range n {
		b = append(b, byte(i*7+n))
	}
	return b
}

func TestFraming(t *testing.T) {
	var out bytes.Buffer
	c := NewTCP(stream{w: &out}, Options{})
	big := bytes.Repeat([]byte{7}, 70000)
	err := c.WriteMessages([]Message{{[]byte("abc"), nil, []byte("de")}, {}, {[]byte("x"), big}})
	if err != nil {
		t.Fatal(err)
	}
	want := append([]byte{0, 0, 0, 5, 'a', 'b', 'c', 'd', 'e', 0, 0, 0, 0, 0, 0x01, 0x11, 0x71, 'x'}, big...)
	if !bytes.Equal(out.Bytes(), want) {
		t.Errorf("wrote % x …", out.Bytes()[:20])
	}
	if err := c.WriteMessages([]Message{{make([]byte, MaxFrame), []byte{1}}}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("message beyond the framing: %v", err)
	}
}

// TestRead consumes messages in all ways, from streams that give few or many bytes at a time.
func TestRead(t *testing.T) {
	sizes := []int{0, 1, 64, 4176, directRead - 1, directRead, directRead + 1, 80, 100000, 200000, 80, 65536, 0, 4}
	var wire []byte
	for i, n := range sizes {
		if i%4 == 2 {
			wire = append(wire, typeKeepAlive, 0, 0, 0)
		}
		wire = append(wire, frame(n)...)
	}
	rnd := rand.New(rand.NewPCG(5, 6))
	for name, r := range map[string]func() io.Reader{
		"whole":   func() io.Reader { return bytes.NewReader(wire) },
		"bytes":   func() io.Reader { return iotest.OneByteReader(bytes.NewReader(wire)) },
		"halves":  func() io.Reader { return iotest.HalfReader(bytes.NewReader(wire)) },
		"dataErr": func() io.Reader { return iotest.DataErrReader(bytes.NewReader(wire)) },
	} {
		for range 4 {
			tap := &tapRecorder{}
			c := NewTCP(stream{r: r()}, Options{Tap: tap})
			for i, size := range sizes {
				n, err := c.NextMessage()
				if err != nil || n != size || c.Remaining() != n {
					t.Fatalf("%s: message %d has %d bytes, %v", name, i, n, err)
				}
				want := frame(size)[4:]
				for len(want) > 0 && rnd.IntN(6) > 0 {
					m := rnd.IntN(min(len(want), maxPeek) + 1)
					p, err := c.Peek(m)
					if err != nil || !bytes.Equal(p, want[:m]) || cap(p) != m {
						t.Fatalf("%s: message %d: peek at %d: %v", name, i, m, err)
					}
					if m = rnd.IntN(len(want) + 1); rnd.IntN(4) == 0 {
						m = len(want)
					}
					p = make([]byte, m)
					if err := c.ReadFull(p); err != nil || !bytes.Equal(p, want[:m]) {
						t.Fatalf("%s: message %d: read %d: %v", name, i, m, err)
					}
					if want = want[m:]; c.Remaining() != len(want) {
						t.Fatalf("%s: %d remaining of %d", name, c.Remaining(), len(want))
					}
				}
			}
			if _, err := c.NextMessage(); err != io.EOF {
				t.Errorf("%s: in the end: %v", name, err)
			}
			if len(tap.received) != len(sizes) {
				t.Fatalf("%s: the tap saw %d messages", name, len(tap.received))
			}
			for i, p := range tap.received {
				if !bytes.Equal(p, frame(sizes[i])[4:]) {
					t.Errorf("%s: the tap saw another message %d", name, i)
				}
			}
		}
	}
}

type tapRecorder struct {
	mu             sync.Mutex
	sent, received [][]byte
	open           bool
}

func (r *tapRecorder) Sent(m Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent = append(r.sent, bytes.Join(m, nil))
}

func (r *tapRecorder) Received(piece []byte, remaining int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.open {
		r.received = append(r.received, nil)
	}
	last := len(r.received) - 1
	r.received[last] = append(r.received[last], piece...)
	r.open = remaining > 0
}

// TestSockets sends messages of all sizes in batches over real sockets, where reads and writes are vectored.
func TestSockets(t *testing.T) {
	pairs(t, Options{}, func(t testing.TB, kind string, a, b Conn) {
		sizes := []int{80, 4176, 80, 1 << 20, 1<<20 + 3, 65616, 65616, 12, 200000, 80, 80, 5 << 20, 1}
		done := make(chan error, 1)
		go func() {
			var msgs []Message
			for i, n := range sizes {
				f := frame(n)[4:]
				cut := min(n, 80)
				msgs = append(msgs, Message{f[:cut/2], f[cut/2 : cut], f[cut:]})
				if i%3 == 2 || i == len(sizes)-1 {
					if err := a.WriteMessages(msgs); err != nil {
						done <- err
						return
					}
					msgs = nil
				}
			}
			done <- nil
		}()
		for i, size := range sizes {
			n, err := b.NextMessage()
			if err != nil || n != size {
				t.Fatalf("%s: message %d: %d, %v", kind, i, n, err)
			}
			head := make([]byte, min(n, 80))
			rest := make([]byte, n-len(head))
			if b.ReadFull(head) != nil || b.ReadFull(rest) != nil || !bytes.Equal(append(head, rest...), frame(n)[4:]) {
				t.Fatalf("%s: message %d is damaged", kind, i)
			}
		}
		if err := <-done; err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	})
}

func TestHostileFraming(t *testing.T) {
	read := func(b []byte, limit int) error {
		c := NewTCP(stream{r: bytes.NewReader(b)}, Options{MaxMessage: limit})
		for {
			n, err := c.NextMessage()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			if err := c.ReadFull(make([]byte, n)); err != nil {
				return err
			}
		}
	}
	good := frame(100)
	if err := read(good, 100); err != nil {
		t.Error(err)
	}
	if err := read(good, 99); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	for n := 1; n < len(good); n++ {
		if err := read(good[:n], 0); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	for _, b := range [][]byte{{0x81, 0, 0, 4, 1, 2, 3, 4}, {0x85, 0, 0, 1, 0}, {0x82, 0, 0, 0}, []byte("GET / HTTP/1.1\r\n")} {
		if err := read(b, 0); !errors.Is(err, ErrFraming) {
			t.Errorf("% x: %v", b, err)
		}
	}
	c := NewTCP(stream{r: bytes.NewReader(good)}, Options{})
	c.NextMessage()
	if err := c.ReadFull(make([]byte, 101)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read beyond the message: %v", err)
	}
	if _, err := c.Peek(101); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("peek beyond the message: %v", err)
	}
	if _, err := c.Peek(-1); err == nil {
		t.Error("peek at -1")
	}
}

// TestDeadline: a deadline that passes between messages does no harm, also when half of a prefix is there.
func TestDeadline(t *testing.T) {
	pairs(t, Options{}, func(t testing.TB, kind string, a, b Conn) {
		raw := a.(interface{ raw() net.Conn }).raw()
		go raw.Write([]byte{0, 0})
		past := func() {
			b.SetReadDeadline(time.Now().Add(time.Millisecond))
			if _, err := b.NextMessage(); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("%s: %v", kind, err)
			}
			b.SetReadDeadline(time.Time{})
		}
		past()
		past()
		go raw.Write([]byte{0, 3, 'a', 'b', 'c'})
		n, err := b.NextMessage()
		p := make([]byte, n)
		if err != nil || b.ReadFull(p) != nil || string(p) != "abc" {
			t.Fatalf("%s: %d, %v", kind, n, err)
		}
		// A write that nobody reads ends at its deadline.
		a.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
		for err == nil {
			err = a.WriteMessages([]Message{{make([]byte, 1<<20)}})
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v", kind, err)
		}
		b.Close()
		if err := b.Close(); err != nil {
			t.Errorf("%s: closed twice: %v", kind, err)
		}
		if _, err := b.NextMessage(); err == nil {
			t.Errorf("%s: read after Close", kind)
		}
	})
}

func (c *tcpConn) raw() net.Conn { return c.nc }

func TestDial(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	go func() {
		if nc, err := ln.Accept(); err == nil {
			NewTCP(nc, Options{SendBuffer: 1 << 20, ReceiveBuffer: 1 << 20}).WriteMessages([]Message{{[]byte("hello")}})
			nc.Close()
		}
	}()
	c, err := DialTCP(context.Background(), addr, Options{UserTimeout: time.Minute, KeepAlive: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if n, err := c.NextMessage(); n != 5 || err != nil {
		t.Error(n, err)
	}
	if c.RemoteAddr().String() != addr {
		t.Error(c.RemoteAddr())
	}
	ln.Close()
	if _, err := DialTCP(context.Background(), addr, Options{}); err == nil || !strings.Contains(err.Error(), addr) {
		t.Errorf("closed port: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := DialTCP(ctx, addr, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestWarmAllocations: neither reading nor writing allocates once warm.
func TestWarmAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	x, y := pair(t, "tcp")
	a, b := NewTCP(x, Options{}), NewTCP(y, Options{})
	defer a.Close()
	defer b.Close()
	s := NewSender(a, SenderOptions{})
	defer s.Close()
	for _, n := range []int{100, 4096, 60000} {
		msg := Message{make([]byte, 80), make([]byte, n)}
		p := make([]byte, n)
		var r countRelease
		ctx := context.Background()
		if avg := testing.AllocsPerRun(300, func() {
			if err := s.Send(ctx, msg, &r); err != nil {
				t.Error(err)
			}
			if _, err := b.NextMessage(); err != nil {
				t.Error(err)
			}
			if _, err := b.Peek(80); err != nil {
				t.Error(err)
			}
			if err := b.ReadFull(p[:80]); err != nil {
				t.Error(err)
			}
			if err := b.ReadFull(p); err != nil {
				t.Error(err)
			}
		}); avg >= 1 {
			t.Errorf("%d bytes: %v allocations", n, avg)
		}
	}
}

func FuzzFraming(f *testing.F) {
	f.Add(frame(10), uint8(3))
	f.Add(append(frame(3), frame(100)...), uint8(200))
	f.Add([]byte{0x85, 0, 0, 0, 0, 0, 0, 1, 9}, uint8(0))
	f.Fuzz(func(t *testing.T, b []byte, step uint8) {
		c := NewTCP(stream{r: iotest.HalfReader(bytes.NewReader(b))}, Options{MaxMessage: 1 << 16})
		total := 0
		for {
			n, err := c.NextMessage()
			if err != nil {
				break
			}
			for c.Remaining() > 0 {
				m := min(int(step), c.Remaining())
				if _, err := c.Peek(m); err != nil {
					return
				}
				if err := c.ReadFull(make([]byte, m)); err != nil {
					return
				}
				if step == 0 {
					break
				}
			}
			if total += n + prefixSize; total > len(b) && c.Remaining() == 0 {
				t.Fatalf("%d bytes made of %d", total, len(b))
			}
		}
	})
}

// BenchmarkStream measures large messages over loopback, straight into the reader's buffer.
func BenchmarkStream(b *testing.B) {
	for _, n := range []int{4 << 10, 64 << 10, 1 << 20} {
		for _, kind := range []string{"tcp", "pipe"} {
			b.Run(fmt.Sprintf("%s/%d", kind, n), func(b *testing.B) {
				x, y := pair(b, kind)
				w, r := NewTCP(x, Options{}), NewTCP(y, Options{})
				s := NewSender(w, SenderOptions{})
				b.SetBytes(int64(n))
				b.ReportAllocs()
				go func() {
					msg := Message{make([]byte, 80), make([]byte, n)}
					for range b.N {
						if s.Send(context.Background(), msg, nil) != nil {
							return
						}
					}
				}()
				head, p := make([]byte, 80), make([]byte, n)
				for range b.N {
					if _, err := r.NextMessage(); err != nil {
						b.Fatal(err)
					}
					if err := errors.Join(r.ReadFull(head), r.ReadFull(p)); err != nil {
						b.Fatal(err)
					}
				}
				b.StopTimer()
				w.Close()
				r.Close()
				s.Close()
			})
		}
	}
}
