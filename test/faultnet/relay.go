package faultnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// relayWindow bounds the bytes that one direction of a relayed connection holds back, so that a delay never limits throughput below
// relayWindow per delay (64 MiB in 1 ms is far above what loopback carries) and memory stays bounded.
const relayWindow = 64 << 20

// relayChunk is how much is read at once.
const relayChunk = 256 << 10

// Relay passes TCP or unix connections on to a target.
type Relay struct {
	network, target string
	ln              net.Listener
	delay           atomic.Int64 // nanoseconds one way
	bytes           atomic.Int64
	wg              sync.WaitGroup
	done            chan struct{} // closed by Close

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
	down   bool
	ice    *ice // of new connections
}

// ice holds bytes back while it is not melted.
type ice struct {
	frozen atomic.Bool
	melted chan struct{}
}

// NewRelay listens on listen ("127.0.0.1:0", or a socket's path with network "unix") and passes each connection on to target on the
// same network. oneWay is added to each byte in each direction, so a round trip takes twice as much longer. The caller ends it with Close.
func NewRelay(network, listen, target string, oneWay time.Duration) (*Relay, error) {
	ln, err := net.Listen(network, listen)
	if err != nil {
		return nil, fmt.Errorf("relay: listen: %w", err)
	}
	r := &Relay{network: network, target: target, ln: ln, conns: make(map[net.Conn]struct{}), ice: newIce(), done: make(chan struct{})}
	r.SetDelay(oneWay)
	r.wg.Go(r.accept)
	return r, nil
}

// Addr is where the relay listens: "host:port", or the path of the socket.
func (r *Relay) Addr() string { return r.ln.Addr().String() }

// SetDelay changes the delay of one way for what arrives from now on.
func (r *Relay) SetDelay(oneWay time.Duration) { r.delay.Store(int64(max(0, oneWay))) }

// Bytes is how many bytes have been passed on, both ways, since the start.
func (r *Relay) Bytes() int64 { return r.bytes.Load() }

// CutAll breaks every connection now (a TCP peer sees a reset) and returns how many there were, each with its two ends counted once.
// Later connections are served as before.
func (r *Relay) CutAll() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cutLocked()
}

// Freeze lets no more bytes pass on the connections that there are, and breaks none of them: each end waits for the other, as when a host has vanished. Later
// connections are served as before. The function it returns lets everything pass that was held back, as a network that had detained it.
func (r *Relay) Freeze() (thaw func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.ice
	r.ice = newIce()
	i.frozen.Store(true)
	return sync.OnceFunc(func() { close(i.melted) })
}

func newIce() *ice { return &ice{melted: make(chan struct{})} }

// SetDown with true breaks every connection and turns new ones away until SetDown(false).
func (r *Relay) SetDown(down bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = down
	if down {
		r.cutLocked()
	}
}

func (r *Relay) cutLocked() int {
	n := len(r.conns)
	for c := range r.conns {
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0)
		}
		_ = c.Close()
		delete(r.conns, c)
	}
	return n / 2
}

// Close stops listening, breaks every connection and waits until nothing of the relay runs. It may be called more than once.
func (r *Relay) Close() error {
	r.mu.Lock()
	if !r.closed {
		close(r.done)
	}
	r.closed = true
	r.cutLocked()
	r.mu.Unlock()
	err := r.ln.Close()
	r.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (r *Relay) accept() {
	for {
		a, err := r.ln.Accept()
		if err != nil {
			return
		}
		r.wg.Go(func() { r.serve(a) })
	}
}

// add registers the two ends, or says that the relay does not want them now.
func (r *Relay) add(cs ...net.Conn) (*ice, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.down {
		return nil, false
	}
	for _, c := range cs {
		r.conns[c] = struct{}{}
	}
	return r.ice, true
}

func (r *Relay) remove(cs ...net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range cs {
		delete(r.conns, c)
		_ = c.Close()
	}
}

func (r *Relay) serve(a net.Conn) {
	d := net.Dialer{Timeout: 10 * time.Second}
	b, err := d.DialContext(context.Background(), r.network, r.target)
	if err != nil {
		_ = a.Close()
		return
	}
	cold, ok := r.add(a, b)
	if !ok {
		_, _ = a.Close(), b.Close()
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { r.pass(b, a, cold) })
	wg.Go(func() { r.pass(a, b, cold) })
	wg.Wait()
	r.remove(a, b)
}

type parcel struct {
	due time.Time
	p   []byte
}

// pass moves bytes from src to dst. One goroutine reads and stamps what arrives with the time when it is due, the other sends it then;
// so the delay holds back nothing but time.
func (r *Relay) pass(dst, src net.Conn, cold *ice) {
	var (
		queue = make(chan parcel, 4096)
		held  atomic.Int64             // bytes in queue
		less  = make(chan struct{}, 1) // a signal that held has shrunk
		done  = make(chan struct{})
	)
	shrunk := func() {
		select {
		case less <- struct{}{}:
		default:
		}
	}
	go func() {
		defer close(done)
		for q := range queue {
			sleepUntil(q.due)
			if cold.frozen.Load() {
				select {
				case <-cold.melted:
				case <-r.done:
				}
			}
			_, err := dst.Write(q.p)
			r.bytes.Add(int64(len(q.p)))
			held.Add(-int64(len(q.p)))
			shrunk()
			if err != nil { // the reader sees it by its own read failing: both ends are closed
				r.remove(dst, src)
				for q := range queue {
					held.Add(-int64(len(q.p)))
					shrunk()
				}
				return
			}
		}
		if c, ok := dst.(interface{ CloseWrite() error }); ok {
			_ = c.CloseWrite() // the end of this direction only
		}
	}()
	buf := make([]byte, relayChunk)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			for held.Load() > relayWindow {
				<-less
			}
			held.Add(int64(n))
			// A big chunk is passed on as it is; of a small one only the bytes are kept.
			p := buf[:n]
			if n < relayChunk/2 {
				p = append([]byte(nil), p...)
			} else {
				buf = make([]byte, relayChunk)
			}
			queue <- parcel{time.Now().Add(time.Duration(r.delay.Load())), p}
		}
		if err != nil {
			break
		}
	}
	close(queue)
	<-done
}

// sleepUntil sleeps on the kernel's fine clock: the Go runtime's own timers round to a millisecond when the process is otherwise idle.
func sleepUntil(due time.Time) {
	for {
		d := time.Until(due)
		if d <= 0 {
			return
		}
		ts := unix.NsecToTimespec(int64(d))
		_ = unix.Nanosleep(&ts, nil)
	}
}
