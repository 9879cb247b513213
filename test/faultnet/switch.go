package faultnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// Way is a direction of a connection.
type Way int

// The directions.
const (
	Up   Way = iota // from the client to the server
	Down            // from the server to the client
)

func (w Way) String() string { return [...]string{"up", "down"}[w] }

// Fate is what happens to one message. The zero value lets it pass.
type Fate struct {
	Drop   bool          // it is lost
	Garble Part          // a byte of this part is changed
	At     int           // which one, counted from the part's first byte, modulo its length
	Repeat int           // that many copies follow it
	Behind int           // that many later messages of this direction overtake it, or fewer if no more come for overtakeWait
	Delay  time.Duration // it and those behind it are held up
	Drip   int           // it passes in pieces of that many bytes, a millisecond apart (at most dripPieces of them)
}

const (
	overtakeWait = 20 * time.Millisecond
	dripPieces   = 200
)

// Script decides about each message: the number of the connection since the start of the switch, the number of the message in its direction, both from 0.
// It may read msg, which begins behind the length. It is called by one goroutine for each connection and direction at a time.
type Script func(link, n int, way Way, msg []byte) Fate

// maxMessage is the longest that the framing of SMB over TCP can say. [MS-SMB2] 2.1
const maxMessage = 1<<24 - 1

// queueMessages and queueBytes bound what one direction of a link keeps while it is stalled.
const (
	queueMessages = 1 << 14
	queueBytes    = 64 << 20
)

// Switch passes SMB connections over TCP on to a server, message by message, and does with each what a script says. Links can be cut, stalled, turned into
// black holes, or orphaned: the client sees its connection end, and what it has sent arrives at the server later.
type Switch struct {
	ln     net.Listener
	script Script
	wg     sync.WaitGroup

	mu     sync.Mutex
	target string
	links  []*Link
	next   int
	down   bool
	closed bool
}

// NewSwitch listens on listen ("127.0.0.1:0") and passes each connection on to target. script may be nil. The caller ends it with Close.
func NewSwitch(listen, target string, script Script) (*Switch, error) {
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, fmt.Errorf("switch: listen: %w", err)
	}
	if script == nil {
		script = func(int, int, Way, []byte) Fate { return Fate{} }
	}
	s := &Switch{ln: ln, target: target, script: script}
	s.wg.Go(s.accept)
	return s, nil
}

// Addr is where the switch listens: "host:port".
func (s *Switch) Addr() string { return s.ln.Addr().String() }

// SetTarget sends later connections to another server.
func (s *Switch) SetTarget(addr string) {
	s.mu.Lock()
	s.target = addr
	s.mu.Unlock()
}

// SetDown with true cuts every link and turns new connections away until SetDown(false).
func (s *Switch) SetDown(down bool) {
	s.mu.Lock()
	s.down = down
	s.mu.Unlock()
	if down {
		s.CutAll()
	}
}

// Links are those that live, the oldest first.
func (s *Switch) Links() []*Link {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.links)
}

// Accepted is how many connections there have been.
func (s *Switch) Accepted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.next
}

// CutAll cuts every link and returns how many there were.
func (s *Switch) CutAll() int {
	all := s.Links()
	for _, l := range all {
		l.Cut()
	}
	return len(all)
}

// Close stops listening, cuts every link, also the orphaned ones, and waits until nothing of the switch runs. It may be called more than once.
func (s *Switch) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	err := s.ln.Close()
	s.CutAll()
	s.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (s *Switch) accept() {
	for {
		c, err := s.ln.Accept()
		if err != nil {
			return
		}
		s.wg.Go(func() { s.serve(c) })
	}
}

// Link is one connection through a switch. All methods may be called at any time.
type Link struct {
	s      *Switch
	id     int
	client net.Conn
	server net.Conn
	lanes  [2]lane
	gone   chan struct{} // closed by Cut
	once   sync.Once
}

// lane is one direction.
type lane struct {
	mu      sync.Mutex
	more    *sync.Cond
	queue   []message
	bytes   int
	behind  []overtaken
	ended   bool // no more comes in
	stalled bool
	hole    bool
	dead    bool
}

type message struct {
	msg  []byte
	fate Fate
}

// overtaken is a message that lets others pass.
type overtaken struct {
	message
	left int
}

func (s *Switch) serve(c net.Conn) {
	s.mu.Lock()
	target, turned := s.target, s.down || s.closed
	s.mu.Unlock()
	if turned {
		reset(c)
		return
	}
	d := net.Dialer{Timeout: 10 * time.Second}
	srv, err := d.DialContext(context.Background(), "tcp", target)
	if err != nil {
		reset(c)
		return
	}
	l := &Link{s: s, client: c, server: srv, gone: make(chan struct{})}
	for i := range l.lanes {
		l.lanes[i].more = sync.NewCond(&l.lanes[i].mu)
	}
	s.mu.Lock()
	if s.down || s.closed {
		s.mu.Unlock()
		reset(c)
		reset(srv)
		return
	}
	l.id = s.next
	s.next++
	s.links = append(s.links, l)
	s.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { l.take(Up, c) })
	wg.Go(func() { l.give(Up, srv) })
	wg.Go(func() { l.take(Down, srv) })
	wg.Go(func() { l.give(Down, c) })
	wg.Wait()
	l.Cut()
	s.mu.Lock()
	s.links = slices.DeleteFunc(s.links, func(x *Link) bool { return x == l })
	s.mu.Unlock()
}

func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

// ID is the number of the connection since the start of the switch.
func (l *Link) ID() int { return l.id }

// Cut resets both sides now. What is on the way is lost.
func (l *Link) Cut() {
	l.once.Do(func() { close(l.gone) })
	reset(l.client)
	reset(l.server)
	for i := range l.lanes {
		l.lanes[i].set(func(n *lane) { n.dead = true })
	}
}

func (n *lane) set(f func(n *lane)) {
	n.mu.Lock()
	f(n)
	n.more.Broadcast()
	n.mu.Unlock()
}

// Stall lets nothing pass in the direction, and keeps what comes, until Resume.
func (l *Link) Stall(w Way) { l.lanes[w].set(func(n *lane) { n.stalled = true }) }

// Resume ends a stall.
func (l *Link) Resume(w Way) { l.lanes[w].set(func(n *lane) { n.stalled = false }) }

// Waiting is how many messages are on the way in the direction.
func (l *Link) Waiting(w Way) int {
	n := &l.lanes[w]
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.queue) + len(n.behind)
}

// Hole makes the direction a black hole: what comes, and what is on the way, is lost from now on, and nobody is told. Down alone is a server that executes and does not answer.
func (l *Link) Hole(w Way) {
	l.lanes[w].set(func(n *lane) { n.hole, n.queue, n.behind, n.bytes = true, nil, nil, 0 })
}

// Orphan ends the connection for the client at once. What it has sent and is still on the way arrives at the server after late; then the server's side is closed.
// A Stall(Up) some time before makes sure that something is on the way.
func (l *Link) Orphan(late time.Duration) {
	l.Stall(Up)
	l.Hole(Down)
	reset(l.client)
	l.s.mu.Lock()
	closed := l.s.closed
	if !closed {
		l.s.wg.Add(1)
	}
	l.s.mu.Unlock()
	if closed {
		l.Cut()
		return
	}
	go func() {
		defer l.s.wg.Done()
		t := time.NewTimer(late)
		defer t.Stop()
		select {
		case <-t.C:
			l.Resume(Up) // its end closes the server's side
		case <-l.gone:
		}
	}()
}

// take reads messages until the sender ends.
func (l *Link) take(w Way, src net.Conn) {
	n := &l.lanes[w]
	var head [4]byte
	for i := 0; ; i++ {
		if _, err := io.ReadFull(src, head[:]); err != nil {
			break
		}
		size := binary.BigEndian.Uint32(head[:])
		if size > maxMessage {
			break
		}
		msg := make([]byte, 4+size)
		copy(msg, head[:])
		if _, err := io.ReadFull(src, msg[4:]); err != nil {
			break
		}
		n.add(message{msg, l.s.script(l.id, i, w, msg[4:])})
	}
	n.set(func(n *lane) {
		for _, o := range n.behind {
			n.queue = append(n.queue, o.message)
		}
		n.behind, n.ended = nil, true
	})
}

// add puts a message in the queue, and those that it overtakes behind it.
func (n *lane) add(p message) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for (len(n.queue) >= queueMessages || n.bytes > queueBytes) && !n.dead && !n.hole {
		n.more.Wait()
	}
	if n.dead || n.hole || p.fate.Drop {
		return
	}
	n.bytes += len(p.msg)
	if p.fate.Behind > 0 {
		n.behind = append(n.behind, overtaken{p, p.fate.Behind})
		time.AfterFunc(overtakeWait, func() { n.set(func(n *lane) { n.pass(1 << 30) }) })
		return
	}
	n.queue = append(n.queue, p)
	n.pass(1)
	n.more.Broadcast()
}

// pass counts messages that have overtaken, and puts those in the queue that have waited enough. n.mu is held.
func (n *lane) pass(by int) {
	keep := n.behind[:0]
	for _, o := range n.behind {
		if o.left -= by; o.left > 0 {
			keep = append(keep, o)
		} else {
			n.queue = append(n.queue, o.message)
		}
	}
	n.behind = keep
}

// give writes messages until there are no more.
func (l *Link) give(w Way, dst net.Conn) {
	n := &l.lanes[w]
	for {
		n.mu.Lock()
		for !n.dead && (n.stalled || len(n.queue) == 0 && !n.ended) {
			n.more.Wait()
		}
		if n.dead || len(n.queue) == 0 {
			hole := n.hole
			n.mu.Unlock()
			// The end of a direction is passed on; that of a black hole is not, unless the other one has ended too.
			if c, ok := dst.(*net.TCPConn); ok && !hole {
				_ = c.CloseWrite()
				if w == Up {
					l.lanes[Down].endOfHole()
				}
			}
			return
		}
		p := n.queue[0]
		n.queue = n.queue[1:]
		n.bytes -= len(p.msg)
		n.more.Broadcast()
		n.mu.Unlock()
		for range 1 + p.fate.Repeat {
			if l.write(dst, p) != nil {
				n.set(func(n *lane) { n.dead = true })
				l.Cut() // the peer of a connection that is broken on one side sees it broken too
				return
			}
		}
	}
}

// endOfHole ends a black hole once the other direction is over.
func (n *lane) endOfHole() {
	n.set(func(n *lane) {
		if n.hole {
			n.dead = true
		}
	})
}

func (l *Link) write(dst net.Conn, p message) error {
	if d := p.fate.Delay; d > 0 {
		t := time.NewTimer(d)
		select {
		case <-t.C:
		case <-l.gone:
		}
		t.Stop()
	}
	msg := p.msg
	if p.fate.Garble != Intact {
		msg = slices.Clone(msg)
		garble(msg, p.fate.Garble, p.fate.At)
	}
	size := len(msg)
	if p.fate.Drip > 0 {
		size = max(p.fate.Drip, (len(msg)+dripPieces-1)/dripPieces)
	}
	for len(msg) > 0 {
		k := min(size, len(msg))
		if _, err := dst.Write(msg[:k]); err != nil {
			return err
		}
		if msg = msg[k:]; len(msg) > 0 {
			sleepUntil(time.Now().Add(time.Millisecond))
		}
	}
	return nil
}
