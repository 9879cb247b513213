package history

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// Violation says that no order of the operations explains what was seen of a cell.
type Violation struct {
	Cell   int
	Report string // the operations around the first impossible one
}

func (v *Violation) Error() string {
	return fmt.Sprintf("cell %d: no order of the operations explains the results. The history up to the first impossible one:\n%s", v.Cell, v.Report)
}

// Undecided says for which cells the search took too long. It found nothing wrong with the others.
type Undecided struct {
	Cells  []int
	Ops    int    // of the first of them
	Report string // where the search became slow there
}

func (u *Undecided) Error() string {
	return fmt.Sprintf("cells %v: %d operations could not be judged in time. The history up to where it becomes hard:\n%s", u.Cells, u.Ops, u.Report)
}

// ghosts finds values on the disk whose write said that it had no effect, or that nobody has written. It needs no search.
func ghosts(ops []Op) error {
	by := make(map[Value]*Op)
	for i := range ops {
		if o := &ops[i]; o.data() && o.Kind != Read && len(o.Vals) > 0 && o.Vals[0] != 0 {
			by[o.Vals[0]] = o
		}
	}
	for i := range ops {
		o := &ops[i]
		if o.Kind != Read || o.Outcome != Done {
			continue
		}
		for _, v := range o.Vals {
			switch w := by[v]; {
			case v == 0 || w != nil && (w.Outcome == Done || w.Outcome == Unknown):
			case w == nil:
				return &Violation{o.Cell, o.String() + "\n  saw a value that nobody wrote"}
			default:
				return &Violation{o.Cell, o.String() + "\n  saw what this wrote:\n" + w.String()}
			}
		}
	}
	return nil
}

const never = math.MaxInt64

// rivals counts the changes that a repetition of o can have undone so that somebody saw it.
func rivals(ops []Op, o *Op, last map[seen]int64) (n int) {
	for i := range ops {
		r := &ops[i]
		if !r.data() || r.Kind == Read || r.Cell != o.Cell || r.Outcome == Refused || r.Outcome == Conflict || r.Outcome == Mismatch || r.Call > o.Return ||
			r.Outcome == Done && r.Return < o.Call {
			continue
		}
		for j, v := range o.Vals {
			at := o.First + j
			if at >= r.First && at < r.First+len(r.Vals) && r.Vals[at-r.First] != v && last[seen{at, v}] > r.Call {
				n++
				break
			}
		}
	}
	return n
}

// Check judges a history over the given number of cells. patience bounds the search for each.
func Check(ops []Op, cells int, patience time.Duration) error {
	if err := ghosts(ops); err != nil {
		return err
	}
	var u *Undecided
	for c := range cells {
		h := prepare(ops, c)
		switch judge(h, patience) {
		case porcupine.Unknown:
			if u == nil {
				u = &Undecided{Ops: len(h), Report: explain(h, patience/20, porcupine.Unknown)}
			}
			u.Cells = append(u.Cells, c)
		case porcupine.Illegal:
			return &Violation{c, explain(h, patience, porcupine.Illegal)}
		}
	}
	if u != nil {
		return u
	}
	return nil
}

var model = (&porcupine.NondeterministicModel{
	Init: func() []any { return []any{newState()} },
	Step: func(s, in, _ any) []any {
		next := s.(*state).step(in.(*Op))
		out := make([]any, len(next))
		for i, n := range next {
			out[i] = n
		}
		return out
	},
	Equal: func(a, b any) bool { return a.(*state).equal(b.(*state)) },
}).ToModel()

func judge(h []*Op, patience time.Duration) porcupine.CheckResult {
	p := make([]porcupine.Operation, 0, len(h))
	for _, o := range h {
		if o.Outcome != Refused { // that is there for the report
			p = append(p, porcupine.Operation{ClientId: o.Client, Input: o, Call: o.Call, Return: o.Return})
		}
	}
	return porcupine.CheckOperationsTimeout(model, p, patience)
}

// explain finds the shortest beginning of the history that has the verdict, and prints its end.
func explain(h []*Op, patience time.Duration, verdict porcupine.CheckResult) string {
	ends := make([]int64, 0, len(h))
	for _, o := range h {
		if o.Return != never {
			ends = append(ends, o.Return)
		}
	}
	slices.Sort(ends)
	cut := func(t int64) (out []*Op) {
		for _, o := range h {
			switch {
			case o.Return <= t:
				out = append(out, o)
			case o.Call <= t && o.Kind != Read && o.Kind != Status:
				c := *o
				c.Return = never
				out = append(out, &c)
			}
		}
		return out
	}
	i, _ := slices.BinarySearchFunc(ends, true, func(t int64, _ bool) int {
		if judge(cut(t), patience) == verdict {
			return 0
		}
		return -1
	})
	if i == len(ends) {
		i--
	}
	part := cut(ends[i])
	slices.SortFunc(part, func(a, b *Op) int { return int(min(1, max(-1, a.Call-b.Call))) })
	var b strings.Builder
	if len(part) > 60 {
		part = part[len(part)-60:]
	}
	b.WriteString("  long or open:\n")
	for _, o := range h {
		if o.Outcome != Refused && o.Call <= ends[i] && o.Return > ends[i] || o.Return-o.Call > int64(time.Second) {
			b.WriteString("  " + o.String() + "\n")
		}
	}
	b.WriteString("  what was seen comes from:\n")
	for _, o := range h {
		if o.Return != ends[i] || o.Kind != Read {
			continue
		}
		for _, w := range h {
			if w.Kind != Read && w.data() && w.maybe == 0 && len(w.Vals) > 0 && w.Vals[0] != 0 && slices.Contains(o.Vals, w.Vals[0]) {
				b.WriteString("  " + w.String() + "\n")
			}
		}
	}
	b.WriteString("  the last:\n")
	for _, o := range part {
		mark := "  "
		if o.Return == ends[i] {
			mark = "* "
		}
		b.WriteString(mark + o.String() + "\n")
	}
	return b.String()
}

// seen is a value in a sector.
type seen struct {
	sector int
	v      Value
}

// prepare selects what concerns a cell, and settles what is unknown: such a write took effect before somebody first saw it, or may as
// well not have happened, as every write has a value of its own. That keeps the search short.
func prepare(ops []Op, cell int) []*Op {
	first := make(map[seen]int64) // when a value was seen first: the end of that operation
	var zeros [CellSectors]int64  // when zeros were seen last
	last := make(map[seen]int64)  // and last
	var crashes, changes, losses []Op
	registers := false   // somebody plays with reservations
	forgets := int64(-1) // end of the last crash that can have lost something
	type attachment struct{ client, life int }
	good, bad := make(map[attachment][]*Op), make(map[attachment][]*Op) // flushes that succeeded; flushes, and writes with FUA, that did not
	type flush struct{ call, end int64 }                                // end: the earliest of this one and those that began later
	var flushes []flush
	for i := range ops {
		o := &ops[i]
		switch {
		case o.Kind == Crash:
			crashes = append(crashes, *o)
			if !o.Keeps {
				forgets = max(forgets, o.Return)
			}
		case o.Kind == Flush && o.Outcome == Done:
			flushes = append(flushes, flush{o.Call, o.Return})
			good[attachment{o.Client, o.Life}] = append(good[attachment{o.Client, o.Life}], o)
		case o.Kind == Read && o.Outcome == Done && o.Cell == cell:
			for j, v := range o.Vals {
				k := seen{o.First + j, v}
				if t, ok := first[k]; !ok || o.Return < t {
					first[k] = o.Return
				}
				last[k] = max(last[k], o.Return)
				if v == 0 {
					zeros[o.First+j] = max(zeros[o.First+j], o.Return)
				}
			}
		}
		if o.Outcome != Done && (o.Kind == Flush || o.FUA) { // over NBD the reason is not known
			bad[attachment{o.Client, o.Life}] = append(bad[attachment{o.Client, o.Life}], o)
		}
		registers = registers || o.Kind == Register
		if o.Kind == Lost {
			losses = append(losses, *o)
		}
		if o.Kind >= Register && o.Kind != Status && o.Outcome != Conflict && !(o.Kind == Lost && o.Keeps) && !(o.Kind == Crash && o.Stays) {
			changes = append(changes, *o)
		}
	}
	// died is when the server that got a request had died for sure, or its client had said that it will not be carried out any more.
	died := func(o *Op) int64 {
		until := int64(never)
		if o.Final {
			until = o.Return
		}
		for i := range crashes {
			if crashes[i].Call > o.Call && !o.Holds {
				return min(until, crashes[i].Return)
			}
		}
		return until
	}
	// A crash can only bring back what is seen after one. To remember nothing else lets many orders lead to the same state.
	back := make(map[seen]bool)
	for k, t := range last {
		for i := range crashes {
			back[k] = back[k] || crashes[i].Call < t && !crashes[i].Keeps
		}
	}
	slices.SortFunc(flushes, func(a, b flush) int { return cmp.Compare(a.call, b.call) })
	for i := len(flushes) - 2; i >= 0; i-- {
		flushes[i].end = min(flushes[i].end, flushes[i+1].end)
	}
	// overtaken says that a later flush covers all that this one did, before the next crash.
	overtaken := func(o *Op) bool {
		until := int64(never)
		for i := range crashes {
			if crashes[i].Return > o.Call && !crashes[i].Keeps {
				until = min(until, crashes[i].Call)
			}
		}
		i, _ := slices.BinarySearchFunc(flushes, o.Return, func(f flush, t int64) int { return cmp.Compare(f.call, t) })
		return i < len(flushes) && flushes[i].end < until
	}
	// A command on the reservations must not be carried out late, when its sender has opened the disk again since. (A late write may be.)
	settled := func(o *Op) int64 {
		t := died(o)
		if o.Final {
			return t
		}
		for i := range losses {
			if c := &losses[i]; c.Client == o.Client && c.Return > o.Call {
				t = min(t, c.Return)
			}
		}
		return t
	}
	for i := range changes {
		if changes[i].Outcome == Unknown {
			changes[i].Return = settled(&changes[i])
		}
	}
	var out, dropped []*Op
	for i := range ops {
		o := ops[i]
		if o.data() && o.Cell != cell || o.Outcome == Refused && (!o.data() || o.Kind == Read) {
			continue
		}
		if o.Outcome != Refused && o.Outcome != Conflict {
			for range min(o.Echoes, rivals(ops, &o, last)) {
				e := Op{Kind: Write, Outcome: Unknown, Client: o.Client, Call: o.Call, Return: o.Return, Cell: cell, First: o.First, Vals: o.Vals, maybe: 1<<len(o.Vals) - 1}
				if o.Outcome == Unknown {
					e.Return = died(&o)
				}
				out = append(out, &e)
			}
		}
		switch {
		case o.Outcome == Conflict && (o.data() || o.Kind == Flush):
			// While a change of the reservations is under way, rights are withdrawn first and given last.
			if o.Kind == Flush {
				continue
			}
			if slices.ContainsFunc(changes, func(c Op) bool { return c.Call <= o.Return && c.Return >= o.Call }) {
				o.Outcome = Refused
			}
		case o.Outcome != Unknown:
		case o.Kind == Read || o.Kind == Flush || o.Kind == Status:
			continue
		case !o.data():
			o.Return = settled(&o)
		default:
			// Every request of these is one command, which happens at one moment; but the power may fail in the middle.
			p := Op{Kind: Write, Outcome: Unknown, Client: o.Client, Call: o.Call, Return: died(&o), Cell: cell, First: o.First, Vals: o.Vals}
			keep := false
			for j, v := range o.Vals {
				p.maybe |= 1 << j
				if v == 0 {
					keep = keep || zeros[p.First+j] > p.Call
				} else if t, ok := first[seen{p.First + j, v}]; ok {
					p.maybe &^= 1 << j
					p.Outcome, p.Return, keep = Done, min(t, p.Return), true
				}
			}
			if keep {
				out = append(out, &p)
			} else {
				dropped = append(dropped, &p)
			}
			continue
		}
		// A flush covers everything before it of the same attachment, also what came before the server died: had that been lost, the flush must have failed, or another one
		// before it, as a loss is told once.
		if o.Outcome == Done && (o.Kind == Write || o.Kind == Zero || o.Kind == CompareAndWrite) && forgets > o.Call {
			a := attachment{o.Client, o.Life}
			o.FUA = o.FUA || slices.ContainsFunc(good[a], func(f *Op) bool {
				return f.Call > o.Return && !slices.ContainsFunc(bad[a], func(g *Op) bool { return g.Return > o.Call && g.Call < f.Return })
			})
		}
		switch {
		case o.Kind == Flush && (forgets < o.Call || overtaken(&o)):
		case (o.Kind == Lost || o.Kind == Closed) && (o.Keeps || !registers), o.Kind == Crash && o.Keeps && o.Stays: // nothing happens to the disk
			o.Outcome = Refused
			out = append(out, &o)
		default:
			out = append(out, &o)
		}
	}
	for _, o := range out {
		o.back = back
		if o.Kind == CompareAndWrite && o.Outcome == Mismatch {
			o.lenient = slices.ContainsFunc(dropped, func(d *Op) bool {
				return d.Call < o.Return && d.First < o.First+len(o.Want) && o.First < d.First+len(d.Vals)
			})
		}
	}
	return out
}
