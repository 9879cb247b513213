package transport

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

type countRelease struct{ n atomic.Int64 }

func (c *countRelease) Release() { c.n.Add(1) }

// pairs gives two connected Conns over each kind of stream.
func pairs(t testing.TB, opts Options, f func(t testing.TB, name string, a, b Conn)) {
	t.Helper()
	for _, kind := range []string{"tcp", "unix", "pipe"} {
		a, b := pair(t, kind)
		ca, cb := NewTCP(a, opts), NewTCP(b, opts)
		f(t, kind, ca, cb)
		ca.Close()
		cb.Close()
	}
}

func pair(t testing.TB, kind string) (a, b net.Conn) {
	t.Helper()
	var ln net.Listener
	var err error
	switch kind {
	case "pipe":
		return net.Pipe()
	case "tcp":
		ln, err = net.Listen("tcp", "127.0.0.1:0")
	case "unix":
		ln, err = net.Listen("unix", t.TempDir()+"/s")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err = net.Dial(ln.Addr().Network(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err = ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

// TestSenderOrder sends from many goroutines and sees that each goroutine's messages arrive whole and in its order.
func TestSenderOrder(t *testing.T) {
	const senders, each = 8, 120
	pairs(t, Options{}, func(t testing.TB, kind string, a, b Conn) {
		s := NewSender(a, SenderOptions{MaxQueued: 64 << 10, OnError: func(err error) { t.Errorf("%s: %v", kind, err) }})
		var released countRelease
		var wg sync.WaitGroup
		for g := range senders {
			wg.Go(func() {
				for i := range each {
					head := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, uint32(g)), uint32(i))
					body := make([]byte, (i*977)%30000)
					for j := range body {
						body[j] = byte(g + i)
					}
					if err := s.Send(context.Background(), Message{head, body}, &released); err != nil {
						t.Errorf("%s: %v", kind, err)
						return
					}
				}
			})
		}
		var next [senders]int
		for range senders * each {
			n, err := b.NextMessage()
			if err != nil {
				t.Fatalf("%s: %v", kind, err)
			}
			p := make([]byte, n)
			if err := b.ReadFull(p); err != nil {
				t.Fatalf("%s: %v", kind, err)
			}
			g, i := binary.BigEndian.Uint32(p), int(binary.BigEndian.Uint32(p[4:]))
			if i != next[g] || n != 8+(i*977)%30000 {
				t.Fatalf("%s: message %d of sender %d, %d bytes; expected message %d", kind, i, g, n, next[g])
			}
			next[g]++
			for _, c := range p[8:] {
				if c != byte(int(g)+i) {
					t.Fatalf("%s: message %d of %d is damaged", kind, i, g)
				}
			}
		}
		wg.Wait()
		if err := s.Drain(context.Background()); err != nil {
			t.Fatal(err)
		}
		if n := released.n.Load(); n != senders*each {
			t.Errorf("%s: released %d of %d", kind, n, senders*each)
		}
		s.Close()
		s.Close()
		if err := s.Send(context.Background(), Message{{1}}, &released); !errors.Is(err, ErrClosed) {
			t.Errorf("%s: after Close: %v", kind, err)
		}
	})
}

// TestSenderFull fills a connection that nobody reads: Send blocks no longer than its context, and Close gives everything back.
func TestSenderFull(t *testing.T) {
	pairs(t, Options{}, func(t testing.TB, kind string, a, b Conn) {
		s := NewSender(a, SenderOptions{MaxQueued: 1 << 20, OnError: func(err error) { t.Errorf("%s: OnError after Close: %v", kind, err) }})
		ctx, cancel := context.WithCancel(context.Background())
		var released countRelease
		var sent, failed atomic.Int64
		blocked := make(chan struct{})
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					err := s.Send(ctx, Message{make([]byte, 200<<10)}, &released)
					sent.Add(1)
					if err != nil {
						failed.Add(1)
						if !errors.Is(err, context.Canceled) {
							t.Errorf("%s: %v", kind, err)
						}
						return
					}
				}
			})
		}
		go func() {
			// All four wait in Send at some time, as nobody reads.
			for {
				s.mu.Lock()
				n := len(s.waiters)
				s.mu.Unlock()
				if n == 4 {
					close(blocked)
					return
				}
				runtime.Gosched()
			}
		}()
		<-blocked
		cancel()
		wg.Wait()
		s.Close()
		if released.n.Load() != sent.Load() || failed.Load() != 4 {
			t.Errorf("%s: %d sent, %d failed, %d released", kind, sent.Load(), failed.Load(), released.n.Load())
		}
	})
}

// TestEnqueue: what is only enqueued goes out with Flush, with the next Send, or when the room is used up; Drain waits for all of it.
func TestEnqueue(t *testing.T) {
	pairs(t, Options{}, func(t testing.TB, kind string, a, b Conn) {
		s := NewSender(a, SenderOptions{MaxQueued: 1000})
		defer s.Close()
		ctx := context.Background()
		var released countRelease
		var got []int
		var wg sync.WaitGroup
		wg.Go(func() {
			for len(got) < 112 {
				n, err := b.NextMessage()
				if err == nil {
					err = b.ReadFull(make([]byte, n))
				}
				if err != nil {
					t.Errorf("%s: %v", kind, err)
					return
				}
				got = append(got, n)
			}
		})
		send := func(f func(context.Context, Message, Releaser) error, n int) {
			if err := f(ctx, Message{make([]byte, n)}, &released); err != nil {
				t.Errorf("%s: %v", kind, err)
			}
		}
		for i := range 10 {
			send(s.Enqueue, i)
		}
		if n := released.n.Load(); n != 0 {
			t.Errorf("%s: %d written without Flush", kind, n)
		}
		s.Flush()
		s.Flush()
		for range 100 {
			send(s.Enqueue, 150) // room for six
		}
		send(s.Enqueue, 5000) // more than there is ever room for
		send(s.Send, 7)
		if err := s.Drain(ctx); err != nil || released.n.Load() != 112 {
			t.Errorf("%s: after Drain %d released, %v", kind, released.n.Load(), err)
		}
		wg.Wait()
		for i, n := range got {
			want := 150
			switch {
			case i < 10:
				want = i
			case i == 110:
				want = 5000
			case i == 111:
				want = 7
			}
			if n != want {
				t.Fatalf("%s: message %d has %d bytes, want %d", kind, i, n, want)
			}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.queued != 0 || len(s.waiters) != 0 {
			t.Errorf("%s: %d bytes and %d waiters left", kind, s.queued, len(s.waiters))
		}
	})
}

// TestManySmall writes far more small messages in one go than are copied together.
func TestManySmall(t *testing.T) {
	pairs(t, Options{}, func(t testing.TB, kind string, a, b Conn) {
		var msgs []Message
		for i := range 6000 {
			msgs = append(msgs, Message{binary.BigEndian.AppendUint32(make([]byte, 60), uint32(i)), make([]byte, i%100)})
		}
		done := make(chan error, 1)
		go func() { done <- a.WriteMessages(msgs) }()
		for i := range msgs {
			n, err := b.NextMessage()
			if err != nil || n != 64+i%100 {
				t.Fatalf("%s: message %d: %d, %v", kind, i, n, err)
			}
			p, err := b.Peek(64)
			if err != nil || binary.BigEndian.Uint32(p[60:]) != uint32(i) {
				t.Fatalf("%s: message %d: % x, %v", kind, i, p, err)
			}
			if err := b.ReadFull(make([]byte, n)); err != nil {
				t.Fatalf("%s: message %d: %v", kind, i, err)
			}
		}
		if err := <-done; err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if c, ok := a.(interface{ kept() int }); ok && c.kept() > 2*maxCopied {
			t.Errorf("%s: %d bytes are kept", kind, c.kept())
		}
	})
}

func (c *tcpConn) kept() int { return cap(c.scratch) }

// TestSenderError breaks the connection: OnError is called once, all buffers come back, later sends fail with the first error.
func TestSenderError(t *testing.T) {
	pairs(t, Options{}, func(t testing.TB, kind string, a, b Conn) {
		var errs atomic.Int64
		failed := make(chan struct{})
		s := NewSender(a, SenderOptions{OnError: func(error) {
			if errs.Add(1) == 1 {
				close(failed)
			}
		}})
		b.Close()
		var released countRelease
		sent := int64(0)
		for {
			sent++
			if err := s.Send(context.Background(), Message{make([]byte, 100<<10)}, &released); err != nil {
				break
			}
		}
		<-failed
		s.Close()
		if errs.Load() != 1 || released.n.Load() != sent {
			t.Errorf("%s: OnError %d times, %d released of %d", kind, errs.Load(), released.n.Load(), sent)
		}
	})
}

// BenchmarkRoundTrips measures request and reply with many in flight over loopback: 100 bytes there, 4 KiB back.
func BenchmarkRoundTrips(b *testing.B) {
	for _, depth := range []int{1, 4, 16, 64} {
		b.Run(fmt.Sprintf("qd%d", depth), func(b *testing.B) {
			x, y := pair(b, "tcp")
			cc, sc := NewTCP(x, Options{}), NewTCP(y, Options{})
			client, server := NewSender(cc, SenderOptions{}), NewSender(sc, SenderOptions{})
			var wg sync.WaitGroup
			wg.Go(func() {
				reply := Message{make([]byte, 80), make([]byte, 4096)}
				req := make([]byte, 100)
				for {
					if _, err := sc.NextMessage(); err != nil {
						return
					}
					if sc.ReadFull(req) != nil {
						return
					}
					reply[0][0] = req[0]
					if server.Enqueue(context.Background(), reply, nil) != nil {
						return
					}
					if sc.Buffered() == 0 {
						server.Flush()
					}
				}
			})
			tokens := make(chan struct{}, depth)
			wg.Go(func() {
				h, p := make([]byte, 80), make([]byte, 4096)
				for {
					if _, err := cc.NextMessage(); err != nil {
						if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
							b.Error(err)
						}
						return
					}
					if _, err := cc.Peek(80); err != nil {
						return
					}
					if cc.ReadFull(h) != nil || cc.ReadFull(p) != nil {
						return
					}
					tokens <- struct{}{}
				}
			})
			b.ReportAllocs()
			var users sync.WaitGroup
			var left atomic.Int64
			left.Store(int64(b.N))
			for range depth {
				users.Go(func() {
					req := Message{make([]byte, 100)}
					for left.Add(-1) >= 0 {
						if err := client.Send(context.Background(), req, nil); err != nil {
							b.Error(err)
							return
						}
						<-tokens
					}
				})
			}
			users.Wait()
			b.StopTimer()
			cc.Close()
			sc.Close()
			client.Close()
			server.Close()
			wg.Wait()
		})
	}
}
