package history

import (
	"fmt"
	"slices"
	"strings"

	"vdbridge/scsi"
)

// CellSectors is the number of sectors of a cell.
const CellSectors = 8

// Value stands for the contents of a sector: 0 for zeros, otherwise the number of the write that filled it.
type Value uint32

// Kind says what an operation does.
type Kind uint8

// The operations. From Register on they concern the reservations; Lost, Closed and Crash are events that somebody caused.
const (
	Read Kind = iota
	Write
	Zero
	Trim
	Flush
	CompareAndWrite
	Register
	Unregister
	Reserve
	Release
	Preempt
	Clear
	Status
	Lost   // the client's connection broke; it ends when the client has opened the disk again
	Closed // the client closed the disk
	Crash  // the server died; it ends when the next one runs
)

func (k Kind) String() string {
	return [...]string{"read", "write", "zero", "trim", "flush", "compare-and-write", "register", "unregister", "reserve", "release", "preempt", "clear", "status",
		"lost", "closed", "crash"}[k]
}

// Outcome says how an operation ended.
type Outcome uint8

// The outcomes.
const (
	Done     Outcome = iota
	Unknown          // it may have happened, or may still happen
	Conflict         // refused because of a reservation
	Mismatch         // of CompareAndWrite: the sectors hold something else
	Refused          // it had no effect, for a reason that has nothing to do with the state
)

func (o Outcome) String() string {
	return [...]string{"done", "unknown", "conflict", "mismatch", "refused"}[o]
}

// PR is the state of the persistent reservations. Clients are numbered from 0; each has one key.
type PR struct {
	Registered uint32 // bit per client
	Held       bool
	Type       scsi.PRType
	Holder     int8 // -1 when all registrants hold it, or nobody
	Persistent bool // APTPL
}

// Op is one operation on one cell, or on the reservations.
type Op struct {
	Kind         Kind
	Outcome      Outcome
	Client       int
	Call, Return int64

	Cell, First int     // of data operations
	Vals        []Value // read, or written
	Want        []Value // of CompareAndWrite
	FUA         bool

	Type       scsi.PRType
	Victim     int
	Persistent bool
	State      PR // of Status

	Life  int  // which attachment of the client it came by
	Final bool // of an unknown one: its client said that it failed, so it is not carried out after Return
	// Echoes is how many more times it may have been carried out before Return: SMB's WRITE has no name by which a server could know it again, so a client that lost its
	// connection and does not know whether its write was carried out can only send it again.
	Echoes int
	Holds  bool // of an unknown one: its client may carry it out when there is a server again
	Keeps  bool // of Crash: nothing that was acknowledged is lost; of Lost: registrations stay
	Stays  bool // of Crash: reservations and registrations stay

	lenient bool          // a mismatch may come of an unknown write that is not in the history
	back    map[seen]bool // what a crash can bring back
	maybe   uint32        // bit per sector: whether it was written stays open
}

func (o *Op) data() bool { return o.Kind <= CompareAndWrite && o.Kind != Flush }

// String is one line for a report.
func (o *Op) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "[%10.3f %10.3f ms] client %d %v %v", float64(o.Call)/1e6, float64(o.Return)/1e6, o.Client, o.Kind, o.Outcome)
	switch {
	case o.data():
		fmt.Fprintf(&b, " sectors %d+%d %v", o.First, len(o.Vals), o.Vals)
		if o.Want != nil {
			fmt.Fprintf(&b, " want %v", o.Want)
		}
		if o.FUA {
			b.WriteString(" FUA")
		}
	case o.Kind == Status:
		fmt.Fprintf(&b, " %+v", o.State)
	case o.Kind >= Register && o.Kind < Lost:
		fmt.Fprintf(&b, " type %d victim %d aptpl %v", o.Type, o.Victim, o.Persistent)
	case o.Kind >= Lost:
		fmt.Fprintf(&b, " keeps %v stays %v", o.Keeps, o.Stays)
	}
	return b.String()
}

// other stands for whatever was on the disk that nobody has seen after a crash.
const other = ^Value(1)

// sector is what is known of a sector: it holds one of now; a crash may bring one of old back.
type sector struct{ now, old []Value }

// state is that of a cell and the reservations. It is never changed once made.
type state struct {
	sec [CellSectors]sector
	pr  PR
}

func (s *state) equal(t *state) bool {
	if s == t {
		return true
	}
	if s.pr != t.pr {
		return false
	}
	for i := range s.sec {
		if !slices.Equal(s.sec[i].now, t.sec[i].now) || !slices.Equal(s.sec[i].old, t.sec[i].old) {
			return false
		}
	}
	return true
}

func newState() *state {
	s := &state{pr: PR{Holder: -1}}
	for i := range s.sec {
		s.sec[i].now = []Value{0}
	}
	return s
}

// join is the sorted union.
func join(a, b []Value) []Value {
	out := slices.Concat(a, b)
	slices.Sort(out)
	return slices.Compact(out)
}

func (p *PR) has(c int) bool { return p.Registered>>c&1 != 0 }

func (p *PR) isHolder(c int) bool {
	return p.Held && (p.Type.AllRegistrants() && p.has(c) || int(p.Holder) == c)
}

// allows is the table of SPC-4 for reads and writes.
func (p *PR) allows(c int, write bool) bool {
	if !p.Held || p.isHolder(c) || p.Type.Registrants() && p.has(c) {
		return true
	}
	exclusive := p.Type == scsi.ExclusiveAccess || p.Type == scsi.ExclusiveAccessRegistrantsOnly || p.Type == scsi.ExclusiveAccessAllRegistrants
	return !write && !exclusive
}

func (p *PR) end() { p.Held, p.Type, p.Holder = false, 0, -1 }

func (p *PR) unregister(c int) {
	holder := p.isHolder(c)
	p.Registered &^= 1 << c
	if holder && (!p.Type.AllRegistrants() || p.Registered == 0) {
		p.end()
	}
}

func (p *PR) take(c int, t scsi.PRType) {
	p.Held, p.Type, p.Holder = true, t, int8(c)
	if t.AllRegistrants() {
		p.Holder = -1
	}
}

// change carries out a reservation command. It returns false when the unit must answer with a conflict.
func (p *PR) change(o *Op) bool {
	c := o.Client
	switch o.Kind {
	case Register:
		p.Registered |= 1 << c
		p.Persistent = o.Persistent
		return true
	case Unregister:
		if p.has(c) {
			p.unregister(c)
			p.Persistent = false
		}
		return true
	}
	if !p.has(c) {
		return false
	}
	switch o.Kind {
	case Reserve:
		if p.Held {
			return p.isHolder(c) && p.Type == o.Type
		}
		p.take(c, o.Type)
	case Release:
		if p.isHolder(c) && p.Type == o.Type {
			p.end()
		}
	case Clear:
		p.Registered = 0
		p.end()
	case Preempt:
		all := p.Held && p.Type.AllRegistrants()
		if p.Held && !all && p.isHolder(o.Victim) {
			p.Registered &^= 1 << o.Victim
			p.take(c, o.Type)
			return true
		}
		if !p.has(o.Victim) {
			return false
		}
		p.Registered &^= 1 << o.Victim
	}
	return true
}

// step returns every state that the operation can lead to with the outcome that it had; none if that outcome is impossible.
func (s *state) step(o *Op) []*state {
	if o.Outcome == Refused {
		return []*state{s}
	}
	if o.data() {
		return s.stepData(o)
	}
	n := *s
	switch o.Kind {
	case Flush:
		for i := range n.sec {
			n.sec[i].old = nil
		}
	case Crash:
		for i := range n.sec {
			if !o.Keeps {
				n.sec[i].now, n.sec[i].old = join(join(s.sec[i].now, s.sec[i].old), []Value{other}), nil
			}
		}
		if !s.pr.Persistent && !o.Stays {
			n.pr = PR{Holder: -1}
		}
	case Lost, Closed:
		if !s.pr.Persistent && s.pr.has(o.Client) && !o.Keeps {
			n.pr.unregister(o.Client)
			if o.Kind == Lost { // the server may never have noticed
				return []*state{s, &n}
			}
		}
	case Status:
		have := s.pr
		have.Persistent = o.State.Persistent
		if have != o.State {
			return nil
		}
		return []*state{s}
	default:
		good := n.pr.change(o)
		switch {
		case o.Outcome == Conflict && good, o.Outcome == Done && !good:
			return nil
		case o.Outcome == Conflict, !good:
			return []*state{s}
		case o.Outcome == Unknown:
			return []*state{s, &n}
		}
	}
	return []*state{&n}
}

// remember is what a crash can bring back after the sector has been overwritten.
func (o *Op) remember(i int, at *sector) []Value {
	old := at.old
	for _, v := range at.now {
		if o.back[seen{i, v}] {
			old = join(old, []Value{v})
		}
	}
	return old
}

func (s *state) stepData(o *Op) []*state {
	allowed := s.pr.allows(o.Client, o.Kind != Read)
	if o.Outcome == Conflict {
		if allowed {
			return nil
		}
		return []*state{s}
	}
	if !allowed {
		if o.Outcome == Unknown {
			return []*state{s} // it was refused
		}
		return nil
	}
	n := *s
	switch o.Kind {
	case Read:
		same := true
		for i, v := range o.Vals {
			at := &n.sec[o.First+i]
			if !slices.Contains(at.now, v) {
				return nil
			}
			if len(at.now) > 1 {
				at.now, same = []Value{v}, false
			}
		}
		if same {
			return []*state{s}
		}
		return []*state{&n}
	case Trim:
		for i := range o.Vals {
			at := &n.sec[o.First+i]
			at.now, at.old = join(at.now, []Value{0}), o.remember(o.First+i, at)
		}
		return []*state{&n}
	case CompareAndWrite:
		could, must := true, true
		for i, v := range o.Want {
			at := &s.sec[o.First+i]
			could = could && slices.Contains(at.now, v)
			must = must && len(at.now) == 1 && at.now[0] == v
		}
		if o.Outcome == Mismatch {
			if must && !o.lenient {
				return nil
			}
			return []*state{s}
		}
		if !could {
			return nil
		}
		for i, v := range o.Want {
			n.sec[o.First+i].now = []Value{v}
		}
	}
	for i, v := range o.Vals {
		at := &n.sec[o.First+i]
		switch {
		case o.maybe>>i&1 != 0:
			at.now, at.old = join(at.now, []Value{v}), o.remember(o.First+i, at)
		case o.FUA:
			at.now, at.old = []Value{v}, nil
		default:
			at.now, at.old = []Value{v}, o.remember(o.First+i, at)
		}
	}
	return []*state{&n}
}
