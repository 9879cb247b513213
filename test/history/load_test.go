package history

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vdbridge/client"
	"vdbridge/rsvd"
	"vdbridge/scsi"
)

const (
	cells  = 8
	region = 4 << 20 // of a cell; large requests cover two blocks at its head
)

// cellAt is where a cell lies on the disk: every second one across the border of two blocks of the image.
func cellAt(cell int) int64 {
	if cell%2 == 0 {
		return int64(cell)*region + 16*sectorSize
	}
	return int64(cell)*region + blockSize - CellSectors/2*sectorSize
}

const bigSize = 2 * blockSize

// torn is the value of a sector that holds parts of several writes, or one that belongs elsewhere.
const torn = ^Value(0)

func fill(p []byte, v Value, off int64) {
	for i := 0; i < len(p); i += 16 {
		binary.LittleEndian.PutUint32(p[i:], uint32(v))
		binary.LittleEndian.PutUint32(p[i+4:], ^uint32(v))
		binary.LittleEndian.PutUint64(p[i+8:], uint64(off+int64(i))/sectorSize)
	}
	if v == 0 {
		clear(p)
	}
}

func decode(p []byte, off int64) []Value {
	out := make([]Value, len(p)/sectorSize)
	want := make([]byte, sectorSize)
	for i := range out {
		s := p[i*sectorSize : (i+1)*sectorSize]
		out[i] = Value(binary.LittleEndian.Uint32(s))
		fill(want, out[i], off+int64(i)*sectorSize)
		if !slices.Equal(s, want) {
			out[i] = torn
		}
	}
	return out
}

// journal is the history in the making.
type journal struct {
	t0   time.Time
	next atomic.Uint32 // value of the next write

	mu     sync.Mutex
	ops    []Op
	counts map[string]int
}

func newJournal() *journal { return &journal{t0: time.Now(), counts: make(map[string]int)} }

func (j *journal) now() int64 { return int64(time.Since(j.t0)) }

func (j *journal) value() Value { return Value(j.next.Add(1)) }

func (j *journal) add(ops ...Op) {
	j.mu.Lock()
	j.ops = append(j.ops, ops...)
	j.mu.Unlock()
}

func (j *journal) count(what string) {
	j.mu.Lock()
	j.counts[what]++
	j.mu.Unlock()
}

// path is a way to the disk that a worker uses for its requests, one at a time.
type path interface {
	Read(ctx context.Context, p []byte, off int64) error
	Write(ctx context.Context, p []byte, off int64, fua bool) error
	Flush(ctx context.Context) error
	Trim(ctx context.Context, off, n int64) error
	WriteZeroes(ctx context.Context, off, n int64, unmap, fua bool) error
}

// disk is what a client has open.
type disk interface {
	Path() (path, error)     // for one worker
	Shared() *rsvd.Disk      // nil if reservations cannot be used from here
	Close(abrupt bool) error // abrupt: without a farewell
}

// guest is one client of the shared disk: an initiator with several workers.
type guest struct {
	t    *testing.T
	j    *journal
	id   int
	name string
	guid [16]byte
	open func(ctx context.Context) (disk, error)

	pr       bool // it plays with reservations
	noReopen bool // it does not close and open by itself
	holds    bool // it goes on by itself when its connection is lost
	keeps    bool // its registration outlives a lost connection

	lostAt atomic.Int64 // when something was done to it that may cost it its connection; 0 = nothing
	struck atomic.Int64 // when the last such thing was over
	hurts  atomic.Int64 // how many there were
	killed atomic.Int64 // the life whose program was killed
	fenced atomic.Bool  // it must register before it writes again
	shut   atomic.Int64 // odd: it was told that it is shut out, and has not begun to register since

	mu   sync.RWMutex // read: the disk is in use
	d    disk
	life int
}

func key(client int) uint64 { return 0xA0 + uint64(client) }

// hurt says that the connection will be lost, before it is.
func (g *guest) hurt() {
	g.struck.Store(never)
	g.hurts.Add(1)
	g.lostAt.CompareAndSwap(0, g.j.now())
}

// was says that what hurt announced has been done.
func (g *guest) was() { g.struck.Store(g.j.now()) }

// mended notes that a request succeeded that began at call: if that was after the last misfortune, the client has got over it by itself.
func (g *guest) mended(call int64) {
	lost := g.lostAt.Load()
	if !g.holds || lost == 0 || call < g.struck.Load() || !g.lostAt.CompareAndSwap(lost, 0) {
		return
	}
	g.j.add(Op{Kind: Lost, Client: g.id, Call: lost, Return: g.j.now(), Keeps: g.keeps})
	g.j.count("recovery")
}

// attach opens the disk, as often as it takes. g.mu is held for writing.
func (g *guest) attach(ctx context.Context) error {
	for {
		hurt := g.lostAt.Swap(0)
		call := g.j.now()
		if hurt != 0 {
			call = hurt
		}
		d, err := g.open(ctx)
		if err == nil {
			if g.life > 0 {
				g.j.add(Op{Kind: Lost, Client: g.id, Call: call, Return: g.j.now()})
			}
			g.d = d
			g.life++
			return nil
		}
		if hurt != 0 {
			g.lostAt.Store(hurt) // it is the earlier one that counts
		}
		g.j.count("open failed")
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(20 * time.Millisecond): // the server may be down
		}
	}
}

// renew opens the disk anew after the life that somebody found dead, or after a farewell.
func (g *guest) renew(ctx context.Context, life int, graceful bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.life != life || ctx.Err() != nil {
		return nil
	}
	call := g.j.now()
	err := g.d.Close(!graceful)
	g.d = nil
	if graceful && err == nil && g.lostAt.Load() == 0 {
		g.j.add(Op{Kind: Closed, Client: g.id, Call: call, Return: g.j.now()})
	} else {
		g.lostAt.CompareAndSwap(0, call)
	}
	return g.attach(ctx)
}

// worker does operations until the context ends.
func (g *guest) worker(ctx context.Context, rng *rand.Rand, chief bool) {
	var p path
	mine := 0
	w := &worker{g: g, rng: rng}
	for ctx.Err() == nil {
		g.mu.RLock()
		life := g.life
		if g.d == nil { // all is over
			g.mu.RUnlock()
			return
		}
		var err error
		if mine != life || p == nil {
			p, err = g.d.Path()
			mine = life
		}
		if err == nil {
			w.p, w.life, w.hurts, w.lost, w.shut = p, life, g.hurts.Load(), g.lostAt.Load() != 0, g.shut.Load()
			switch {
			case g.pr && chief && (w.isShutOut() || rng.IntN(4) == 0 && !(g.holds && w.lost)): // what is unknown about reservations is hard to judge
				err = w.reservation(ctx, g.d.Shared())
			default:
				err = w.request(ctx, g.d.Shared())
			}
		}
		g.mu.RUnlock()
		lost := isLost(err)
		if lost && g.holds && ctx.Err() == nil && g.killed.Load() != int64(life) {
			g.t.Errorf("client %d (%s) gave up although it was told to hold: %v", g.id, g.name, err)
			return
		}
		switch {
		case errors.Is(err, errNBDGone):
			p = nil
			if c, ok := w.p.(interface{ Close() error }); ok && w.p != nil {
				_ = c.Close()
			}
		case lost && g.lostAt.Load() == 0 && ctx.Err() == nil && g.current() == life:
			g.t.Errorf("client %d (%s) lost its connection though nobody cut it: %v", g.id, g.name, err)
		}
		if lost || chief && !g.noReopen && rng.IntN(600) == 0 {
			if err := g.renew(ctx, life, !lost); err != nil && ctx.Err() == nil {
				g.t.Errorf("client %d (%s): open: %v", g.id, g.name, err)
				return
			}
		}
	}
	if c, ok := p.(interface{ Close() error }); ok {
		_ = c.Close()
	}
}

func (g *guest) current() int {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.life
}

// errDetached: the export behind an NBD connection has lost its disk.
var errDetached = errors.New("the export has lost its disk")

func isLost(err error) bool {
	return !errors.Is(err, rsvd.ErrUndecided) && (errors.Is(err, client.ErrConnectionLost) || errors.Is(err, client.ErrClosed) || errors.Is(err, rsvd.ErrClosed) || errors.Is(err, errDetached))
}

type worker struct {
	g   *guest
	p   path
	rng *rand.Rand
	buf []byte

	shutOut bool // it must register
	life    int
	hurts   int64 // when the operation began
	lost    bool  // then
	shut    int64 // then
}

// isShutOut takes the news that the client must register.
func (w *worker) isShutOut() bool {
	w.shutOut = w.shutOut || w.g.fenced.Swap(false)
	return w.shutOut
}

// calm says that nothing was done to the client since the operation began, and that it had got over what was done before.
func (w *worker) calm() bool { return !w.lost && w.g.hurts.Load() == w.hurts }

// record adds an operation that ended with err.
func (w *worker) record(ctx context.Context, op *Op, err error) {
	op.Outcome = w.outcome(err)
	op.Life = w.life
	if errors.Is(err, rsvd.ErrShutOut) {
		if w.shut%2 == 1 && w.g.shut.Load() == w.shut {
			op.Outcome = Refused // it was never sent
		}
		w.g.fenced.Store(true)
		if n := w.g.shut.Load(); n%2 == 0 {
			w.g.shut.CompareAndSwap(n, n+1)
		}
	}
	if w.g.holds && !w.calm() && op.Kind >= Register && op.Kind < Status && (op.Outcome != Done || op.Kind == Release || op.Kind == Clear) {
		op.Outcome = Unknown // it may have been carried out twice, or found out to be the case
	}
	if w.g.holds && !w.calm() && op.data() && op.Kind != Read && (op.Outcome == Conflict || op.Outcome == Refused) {
		op.Outcome = Unknown // refused when it was sent again; it may have been carried out before
	}
	op.Holds = w.g.holds
	op.Final = w.g.holds && op.Outcome == Unknown && ctx.Err() == nil && !isLost(err) && !errors.Is(err, errNBDGone)
	if n := w.g.hurts.Load(); w.g.holds && n > 0 && (op.Kind == Write || op.Kind == Zero || op.Kind == Trim) {
		// A message that was lost earlier, on another channel, may be what ends a connection only now.
		op.Echoes = 1 + int(min(1, n-w.hurts))
	}
	if w.g.holds && errors.Is(err, errNBDGone) && (op.Kind == Write || op.Kind == Zero) {
		op.Echoes = 3 // the export goes on with it, also through what is done to it from now on
	}
	w.g.j.count(op.Kind.String())
	w.g.j.add(*op)
	if op.Outcome == Done {
		w.g.mended(op.Call)
	}
}

// outcome classifies the error of a request.
func (w *worker) outcome(err error) Outcome {
	var se *scsi.Error
	switch {
	case err == nil:
		return Done
	case errors.Is(err, rsvd.ErrNotDurable):
		w.g.j.count("not durable")
		return Unknown
	case errors.Is(err, rsvd.ErrReservationConflict):
		w.g.j.count("conflict")
		return Conflict
	case errors.Is(err, rsvd.ErrPreempted):
		w.g.j.count("preempted")
		return Refused
	case errors.As(err, &se) && se.Sense.Key == scsi.Miscompare:
		w.g.j.count("miscompare")
		return Mismatch
	case errors.As(err, new(nbdError)) && w.calm():
		// The export has its disk, and nobody has done anything to it: a reservation forbade it, or it was preempted. NBD cannot say so.
		w.g.j.count("refused")
		return Refused
	}
	w.g.j.count("unknown")
	return Unknown
}

// request does one request on the data.
func (w *worker) request(ctx context.Context, shared *rsvd.Disk) error {
	g, j, rng := w.g, w.g.j, w.rng
	r := rng.IntN(1000)
	if r < 940 && rng.IntN(25) == 0 { // cancelled early
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(rng.IntN(1500))*time.Microsecond)
		defer cancel()
	}
	op := Op{Client: g.id, Cell: rng.IntN(cells), First: rng.IntN(CellSectors), FUA: rng.IntN(5) == 0}
	n := 1 + rng.IntN(CellSectors-op.First)
	if rng.IntN(4) == 0 {
		op.First, n = 0, CellSectors
	}
	if g.holds && w.lost && r >= 940 {
		r = 500 // what has no value of its own is hard to judge when its outcome is unknown
	}
	off := cellAt(op.Cell) + int64(op.First)*sectorSize
	size := n * sectorSize
	if len(w.buf) < bigSize {
		w.buf = make([]byte, bigSize)
	}
	p := w.buf[:size]
	op.Vals = make([]Value, n)
	whole := func() { // the head of the region instead
		op.First, op.Vals = 0, make([]Value, CellSectors)
		off, size = int64(op.Cell)*region, bigSize
		p = w.buf
	}
	stamp := func(v Value) {
		for i := range op.Vals {
			op.Vals[i] = v
		}
	}
	var err error
	op.Call = j.now()
	switch {
	case r < 430:
		op.Kind, op.FUA = Read, false
		err = w.p.Read(ctx, p, off)
		op.Return = j.now()
		if err == nil {
			op.Vals = decode(p, off)
			if slices.Contains(op.Vals, torn) {
				g.t.Errorf("client %d (%s): sectors %d+%d of cell %d hold parts of several writes: %x", g.id, g.name, op.First, n, op.Cell, p[:min(64, len(p))])
			}
		}
	case r < 800:
		op.Kind = Write
		v := j.value()
		if r < 435 {
			whole()
		}
		stamp(v)
		fill(p, v, off)
		op.Call = j.now()
		err = w.p.Write(ctx, p, off, op.FUA)
		if errors.As(err, new(nbdError)) && !isLost(err) && op.FUA { // only the flush at the end may have failed, which NBD cannot tell
			err = errors.New("written perhaps")
		}
	case r < 860:
		op.Kind, op.Vals, op.FUA = Flush, nil, false
		err = w.p.Flush(ctx)
	case r < 940:
		if shared == nil {
			return nil
		}
		// Read, then replace what was read.
		op.Kind = Read
		fua := op.FUA
		op.FUA = false
		err = shared.Read(ctx, p, off)
		op.Return = j.now()
		if err == nil {
			op.Vals = decode(p, off)
		}
		w.record(ctx, &op, err)
		if err != nil {
			return err
		}
		op.Want, op.Vals, op.FUA = op.Vals, make([]Value, n), fua
		op.Kind = CompareAndWrite
		v := j.value()
		stamp(v)
		q := make([]byte, size)
		fill(q, v, off)
		op.Call, op.Return = j.now(), 0
		err = shared.CompareAndWrite(ctx, off, p, q, fua)
	case r < 965:
		op.Kind = Zero
		if _, ok := w.p.(*nbdPath); ok {
			op.FUA = false // a zero whose outcome is unknown is hard to judge, as it has no value of its own
		}
		if r < 955 {
			whole()
		}
		err = w.p.WriteZeroes(ctx, off, int64(size), rng.IntN(2) == 0, op.FUA)
	default:
		op.Kind, op.FUA = Trim, false
		if r < 975 {
			whole()
		}
		err = w.p.Trim(ctx, off, int64(size))
	}
	if op.Return == 0 {
		op.Return = j.now()
	}
	w.record(ctx, &op, err)
	if err != nil && !isLost(err) && ctx.Err() == nil && op.Outcome == Unknown {
		text, _, _ := strings.Cut(err.Error(), " (info")
		if errors.Is(err, rsvd.ErrShutOut) {
			text = "fenced"
		}
		j.count(fmt.Sprintf("%v: %v", op.Kind, text))
	}
	return err
}

var prTypes = []scsi.PRType{scsi.WriteExclusive, scsi.ExclusiveAccess, scsi.WriteExclusiveRegistrantsOnly, scsi.ExclusiveAccessRegistrantsOnly,
	scsi.WriteExclusiveAllRegistrants, scsi.ExclusiveAccessAllRegistrants}

// reservation does one command on the reservations.
func (w *worker) reservation(ctx context.Context, d *rsvd.Disk) error {
	g, j, rng := w.g, w.g.j, w.rng
	if d == nil {
		return nil
	}
	op := Op{Client: g.id, Call: j.now(), Type: prTypes[rng.IntN(len(prTypes))]}
	me := key(g.id)
	var err error
	r := rng.IntN(100)
	if w.shutOut {
		r, w.shutOut = 0, false
	}
	if n := g.shut.Load(); r < 25 && n%2 == 1 {
		g.shut.CompareAndSwap(n, n+1)
	}
	switch {
	case r < 25:
		op.Kind, op.Persistent = Register, rng.IntN(3) == 0
		err = d.RegisterIgnore(ctx, me, op.Persistent)
	case r < 40:
		op.Kind = Reserve
		err = d.Reserve(ctx, me, op.Type)
	case r < 60:
		op.Kind = Release
		// Of the type that it is, mostly.
		if st, err := d.ReadReservation(ctx); err == nil && st.Held && rng.IntN(8) != 0 {
			op.Type = st.Type
		}
		op.Call = j.now()
		err = d.Release(ctx, me, op.Type)
	case r < 72:
		op.Kind, op.Victim = Preempt, (g.id+1+rng.IntN(3))%4
		if op.Victim == g.id {
			return nil
		}
		if r < 66 {
			err = d.Preempt(ctx, me, key(op.Victim), op.Type)
		} else {
			err = d.PreemptAbort(ctx, me, key(op.Victim), op.Type)
		}
	case r < 76:
		op.Kind = Clear
		err = d.Clear(ctx, me)
	case r < 82:
		op.Kind = Unregister
		err = d.RegisterIgnore(ctx, 0, false)
	default:
		op.Kind = Status
		var f scsi.PRFullStatus
		if f, err = d.ReadFullStatus(ctx); err == nil {
			op.State = w.state(&f)
		}
	}
	op.Return = j.now()
	if op.Kind == Release && errors.As(err, new(*scsi.Error)) && !errors.Is(err, rsvd.ErrReservationConflict) && !errors.Is(err, rsvd.ErrPreempted) {
		return nil // INVALID RELEASE: nothing happened
	}
	w.record(ctx, &op, err)
	return err
}

// state reads READ FULL STATUS.
func (w *worker) state(f *scsi.PRFullStatus) PR {
	s := PR{Holder: -1}
	for _, r := range f.Registrations {
		c := int(r.Key - key(0))
		if c < 0 || c > 31 {
			w.g.t.Errorf("a registration with a key that nobody has: %#x", r.Key)
			continue
		}
		s.Registered |= 1 << c
		if r.Holder {
			s.Held, s.Type = true, r.Type
			if !r.Type.AllRegistrants() {
				s.Holder = int8(c)
			}
		}
	}
	return s
}
