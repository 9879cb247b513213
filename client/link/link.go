package link

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"vdbridge/client"
)

// Config says how a server is reached, and what is done when it is lost.
type Config struct {
	// Addresses are tried in turn, each "host:port". At least one.
	Addresses []string
	// Dial connects, logs on and connects to the share. previous is the session that was lost, 0 for none; the server must have ended it, with
	// everything it was doing, when Dial returns.
	Dial   func(ctx context.Context, addr string, previous uint64) (Way, error)
	Policy Policy
	// AttemptTimeout bounds one attempt to get the server back by one address. 0 means 15 seconds.
	AttemptTimeout time.Duration
	// Pulse is how often Hooks.Alive is called. 0 means 10 seconds.
	Pulse time.Duration
	// Logger is told once of a loss and once of its end. nil means silence.
	Logger *slog.Logger
}

// How long to wait between attempts: from firstWait, doubling, to lastWait once the loss is older than patience, and to soonWait until then. All with jitter.
const (
	firstWait = 50 * time.Millisecond
	soonWait  = time.Second
	lastWait  = 5 * time.Second
	patience  = 30 * time.Second
	// authWait is the least wait after the server has refused to log us on: an account must not be locked because of us.
	authWait = time.Minute
	// short is how long a connection may have lasted for its loss to count as another failed attempt, unless something got done.
	short = 5 * time.Second

	defaultAttempt = 15 * time.Second
	defaultPulse   = 10 * time.Second
)

// State of a Link.
type State int

// The states.
const (
	Connected State = iota
	Reconnecting
	Failed
	Closed
)

// Link keeps the way to one server and one share, and the opens there. Its methods may be called from any goroutine.
type Link struct {
	cfg    Config
	log    *slog.Logger
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	kick   chan struct{} // capacity 1: the current way was found lost

	mu        sync.Mutex
	changed   chan struct{} // closed, and replaced, when something that requests wait for changes
	files     []*File       // protected, and not closed
	state     State
	since     time.Time
	refuse    error // what requests that find no way get at once; nil: they wait
	hasty     bool  // GiveUp was called
	runs      bool  // the goroutines were started
	way       Way   // the current one, or the last
	lost      Way   // the last one that was lost
	first     Server
	session   uint64
	turn      int // index of the address that is tried next
	attempts  int
	nextTry   time.Time
	lastErr   error
	losses    uint64
	back      uint64
	forged    uint64
	deadline  *time.Timer // of fail-after
	flaps     int         // losses without anything done in between
	closeOnce sync.Once
	closeErr  error
}

// New prepares a Link. It connects to nothing yet; Close ends it.
func New(cfg Config) (*Link, error) {
	if len(cfg.Addresses) == 0 {
		return nil, errors.New("a link needs an address")
	}
	if cfg.AttemptTimeout <= 0 {
		cfg.AttemptTimeout = defaultAttempt
	}
	if cfg.Pulse <= 0 {
		cfg.Pulse = defaultPulse
	}
	l := &Link{cfg: cfg, log: cfg.Logger, kick: make(chan struct{}, 1), changed: make(chan struct{}), since: time.Now()}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l, nil
}

// Connect makes the first connection, by the first address that answers. The error is that of the first address.
func (l *Link) Connect(ctx context.Context) error {
	var first error
	for i, addr := range l.cfg.Addresses {
		w, err := l.cfg.Dial(ctx, addr, 0)
		if err == nil {
			l.mu.Lock()
			l.way, l.first, l.session, l.turn, l.since = w, w.Server(), w.SessionID(), i, time.Now()
			l.mu.Unlock()
			return nil
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil {
			break
		}
		if i+1 < len(l.cfg.Addresses) {
			l.log.Warn("the server does not answer; the next address is tried", "address", addr, "next", l.cfg.Addresses[i+1], "err", err)
		}
	}
	return first
}

// Way is the current way, or the last one; nil before Connect.
func (l *Link) Way() Way {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.way
}

// Open opens a file on the present connection. It does not outlive that before Protect.
func (l *Link) Open(ctx context.Context, name string, opts client.OpenOptions) (*File, error) {
	w := l.Way()
	h, err := w.Open(ctx, name, opts)
	if err != nil {
		return nil, err
	}
	f := &File{l: l, name: name, opts: opts}
	f.last = h
	f.cur.Store(&incarnation{h: h, w: w})
	return f, nil
}

// notify wakes everybody who waits for a change. mu is held.
func (l *Link) notify() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// lose ends the use of a way, because of err. The first one who finds out does it.
func (l *Link) lose(w Way, err error) {
	l.mu.Lock()
	if l.state != Connected || l.way != w {
		l.mu.Unlock()
		return
	}
	useful := false
	for _, f := range l.files {
		if in := f.cur.Swap(nil); in != nil {
			useful = useful || in.useful.Load()
		}
	}
	if time.Since(l.since) < short && !useful {
		l.flaps++
	} else {
		l.flaps = 0
	}
	l.state, l.since, l.lastErr, l.attempts, l.lost = Reconnecting, time.Now(), err, 0, w
	l.losses++
	if errors.Is(err, client.ErrSecurity) {
		l.forged++
	}
	if l.hasty {
		l.refuse = &LostError{err}
	}
	if after := l.cfg.Policy.after; after > 0 {
		l.deadline = time.AfterFunc(after, func() { l.tooLong(w) })
	}
	l.notify()
	l.mu.Unlock()
	l.log.Warn("the server is lost; requests wait for it as --on-loss has it", "server", w.Server().Address, "on_loss", l.cfg.Policy.String(), "cause", err)
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// tooLong is called when the server has been lost for as long as the policy allows. lost is what was lost then.
func (l *Link) tooLong(lost Way) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state != Reconnecting || l.lost != lost {
		return
	}
	l.log.Error("the server has not come back; requests fail until it does", "after", l.cfg.Policy.after, "cause", l.lastErr)
	l.refuse = &LostError{l.lastErr}
	l.notify()
}

// GiveUp makes requests fail at once that wait for the server, now and from now on. It is for the end, when nobody has time to wait.
func (l *Link) GiveUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hasty = true
	if l.state == Reconnecting && l.refuse == nil {
		l.refuse = &LostError{l.lastErr}
		l.notify()
	}
}

// run looks after the way until Close.
func (l *Link) run() {
	for {
		w := l.Way()
		select {
		case <-l.ctx.Done():
			return
		case <-w.Done():
			if !l.cfg.Policy.hold {
				l.fail(w.Err())
				return
			}
			l.lose(w, w.Err())
		case <-l.kick:
		}
		l.mu.Lock()
		lost := l.state == Reconnecting
		l.mu.Unlock()
		if lost && !l.recover() {
			return
		}
	}
}

// pulse asks for a sign of life now and then, so that a connection that is dead without a word is noticed although nobody uses it.
func (l *Link) pulse(alive func(context.Context) error) {
	if alive == nil {
		alive = func(ctx context.Context) error { return l.Way().Echo(ctx) }
	}
	t := time.NewTicker(l.cfg.Pulse)
	defer t.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-t.C:
		}
		if err := alive(l.ctx); err != nil && l.ctx.Err() == nil {
			l.log.Debug("sign of life", "err", err)
		}
	}
}

// fail ends all attempts.
func (l *Link) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == Closed {
		return
	}
	l.state, l.since, l.lastErr = Failed, time.Now(), err
	l.refuse = &LostError{err}
	l.stopDeadline()
	l.notify()
}

func (l *Link) stopDeadline() {
	if l.deadline != nil {
		l.deadline.Stop()
		l.deadline = nil
	}
}

// shut makes every request fail that finds no way, and ends the attempts to find one. It returns when they have ended.
func (l *Link) shut() {
	l.mu.Lock()
	if l.state != Closed {
		l.state, l.since = Closed, time.Now()
		l.refuse = ErrClosed
		l.stopDeadline()
		l.notify()
	}
	l.mu.Unlock()
	l.cancel()
	l.wg.Wait()
}

// Close ends everything, the session properly if there is one. It waits for all goroutines of the Link and may be called more than once.
func (l *Link) Close() error {
	l.closeOnce.Do(func() {
		l.shut()
		if w := l.Way(); w != nil {
			l.closeErr = w.Close()
		}
	})
	return l.closeErr
}

// Status is how a Link is now.
type Status struct {
	State      State
	Since      time.Time
	Attempt    int
	NextTry    time.Time
	LastError  error
	Server     Server
	Lasting    Lasting // the most lasting open
	Channels   []Channel
	Losses     uint64
	Reconnects uint64
	Repeated   uint64
	Forged     uint64 // losses because a message was not authentic
	Fence      error
}

// Status says how the link is.
func (l *Link) Status() Status {
	l.mu.Lock()
	s := Status{State: l.state, Since: l.since, Losses: l.losses, Reconnects: l.back, Forged: l.forged}
	if l.state != Connected {
		s.LastError = l.lastErr
	}
	if l.state == Reconnecting {
		s.Attempt, s.NextTry = l.attempts, l.nextTry
	}
	w, files := l.way, l.files
	l.mu.Unlock()
	if w != nil {
		s.Server = w.Server()
		if s.State == Connected || s.State == Failed {
			s.Channels = w.Channels()
		}
	}
	for _, f := range files {
		s.Repeated += f.repeated.Load()
		if v := f.lasting(); v.Kind >= s.Lasting.Kind {
			s.Lasting = v
		}
		if e := f.fence.Load(); e != nil {
			s.Fence = e
		}
	}
	return s
}
