package history

import (
	"strings"
	"testing"
	"time"

	"vdbridge/scsi"
)

// Small histories by hand, with the verdict in the name.
func TestCheck(t *testing.T) {
	all := func(v Value) []Value { return []Value{v, v, v, v, v, v, v, v} }
	at := func(o Op, call, ret int64) Op { o.Call, o.Return = call, ret; return o }
	w := func(c int, v Value) Op { return Op{Kind: Write, Client: c, Vals: all(v)} }
	r := func(c int, v ...Value) Op { return Op{Kind: Read, Client: c, Vals: v} }
	unknown := func(o Op) Op { o.Outcome = Unknown; return o }
	conflict := func(o Op) Op { o.Outcome = Conflict; return o }
	fua := func(o Op) Op { o.FUA = true; return o }
	final := func(o Op) Op { o.Outcome, o.Final = Unknown, true; return o }
	twice := func(o Op) Op { o.Echoes = 1; return o }
	flush, crash := Op{Kind: Flush}, Op{Kind: Crash}
	kill := Op{Kind: Crash, Keeps: true, Stays: true}
	back := Op{Kind: Lost, Keeps: true}
	register := Op{Kind: Register, Client: 0}
	reserve := Op{Kind: Reserve, Client: 0, Type: scsi.WriteExclusive}
	for name, ops := range map[string][]Op{
		"good sequence":                      {at(w(0, 1), 0, 1), at(r(1, 1, 1), 2, 3)},
		"fail lost write":                    {at(w(0, 1), 0, 1), at(w(1, 2), 2, 3), at(r(1, 1, 1), 4, 5)},
		"fail half a write":                  {at(w(0, 1), 0, 9), at(r(1, 1, 0), 4, 5)},
		"fail a value goes back":             {at(w(0, 1), 0, 1), at(w(0, 2), 2, 9), at(r(1, 2), 3, 4), at(r(1, 1), 5, 6)},
		"good unknown write seen late":       {at(unknown(w(0, 1)), 0, 1), at(r(1, 0), 2, 3), at(r(1, 1), 4, 5)},
		"fail unknown write comes and goes":  {at(unknown(w(0, 1)), 0, 1), at(r(1, 1), 2, 3), at(r(1, 0), 4, 5)},
		"good unflushed write lost":          {at(w(0, 1), 0, 1), at(crash, 2, 3), at(r(1, 0), 4, 5)},
		"good unflushed write torn":          {at(w(0, 1), 0, 1), at(crash, 2, 3), at(r(1, 0, 1, 0), 4, 5)},
		"fail flushed write lost":            {at(w(0, 1), 0, 1), at(flush, 2, 3), at(crash, 4, 5), at(r(1, 0), 6, 7)},
		"fail FUA write lost":                {at(fua(w(0, 1)), 0, 1), at(crash, 4, 5), at(r(1, 0), 6, 7)},
		"fail crash seen twice differently":  {at(w(0, 1), 0, 1), at(crash, 2, 3), at(r(1, 0), 4, 5), at(r(1, 1), 6, 7)},
		"good trim":                          {at(w(0, 1), 0, 1), at(Op{Kind: Trim, Vals: all(0)}, 2, 3), at(r(1, 0, 1), 4, 5)},
		"fail trim is not stable":            {at(w(0, 1), 0, 1), at(Op{Kind: Trim, Vals: all(0)}, 2, 3), at(r(1, 0), 4, 5), at(r(1, 1), 6, 7)},
		"good compare and write":             {at(Op{Kind: CompareAndWrite, Want: []Value{0}, Vals: []Value{5}}, 0, 1), at(r(1, 5), 2, 3)},
		"fail two compare and write succeed": {at(Op{Kind: CompareAndWrite, Want: []Value{0}, Vals: []Value{5}}, 0, 9), at(Op{Kind: CompareAndWrite, Want: []Value{0}, Vals: []Value{6}}, 0, 9)},
		"fail write against a reservation":   {at(register, 0, 1), at(reserve, 2, 3), at(w(1, 1), 4, 5)},
		"good conflict":                      {at(register, 0, 1), at(reserve, 2, 3), at(conflict(w(1, 1)), 4, 5)},
		"fail conflict without a reason":     {at(conflict(w(1, 1)), 4, 5)},
		"fail conflict but written":          {at(register, 0, 1), at(reserve, 2, 3), at(conflict(w(1, 1)), 4, 5), at(r(0, 1), 6, 7)},
		"fail preempted write is late": {at(register, 0, 1), at(Op{Kind: Register, Client: 1}, 2, 3), at(Op{Kind: Reserve, Client: 1, Type: scsi.WriteExclusive}, 4, 5),
			at(unknown(w(1, 1)), 6, 7), at(Op{Kind: Preempt, Client: 0, Victim: 1, Type: scsi.WriteExclusive}, 8, 9), at(r(0, 0), 10, 11), at(r(0, 1), 12, 13)},
		"good registration ends with the connection":    {at(register, 0, 1), at(Op{Kind: Lost, Client: 0}, 2, 3), at(Op{Kind: Status, State: PR{Holder: -1}}, 4, 5)},
		"fail registration survives the farewell":       {at(register, 0, 1), at(Op{Kind: Closed, Client: 0}, 2, 3), at(Op{Kind: Status, State: PR{Registered: 1, Holder: -1}}, 4, 5)},
		"fail flush of what a crash took":               {at(w(0, 1), 0, 1), at(crash, 2, 3), at(flush, 4, 5), at(r(1, 0), 6, 7)},
		"good flush after one that told of the loss":    {at(w(0, 1), 0, 1), at(crash, 2, 3), at(unknown(flush), 4, 5), at(flush, 6, 7), at(r(1, 0), 8, 9)},
		"good flush by another of what a crash took":    {at(w(1, 1), 0, 1), at(crash, 2, 3), at(flush, 4, 5), at(r(1, 0), 6, 7)},
		"good flush of a later attachment":              {at(w(0, 1), 0, 1), at(crash, 2, 3), at(Op{Kind: Flush, Life: 1}, 4, 5), at(r(1, 0), 6, 7)},
		"fail killed server loses a write":              {at(w(0, 1), 0, 1), at(kill, 2, 3), at(r(1, 0), 4, 5)},
		"good killed server keeps a registration":       {at(register, 0, 1), at(kill, 2, 3), at(Op{Kind: Status, State: PR{Registered: 1, Holder: -1}}, 4, 5)},
		"fail killed server loses a registration":       {at(register, 0, 1), at(kill, 2, 3), at(Op{Kind: Status, State: PR{Holder: -1}}, 4, 5)},
		"fail reconnect loses a registration":           {at(register, 0, 1), at(back, 2, 3), at(Op{Kind: Status, State: PR{Holder: -1}}, 4, 5)},
		"good failed write was there":                   {at(final(w(0, 1)), 0, 3), at(r(1, 1), 4, 5)},
		"fail failed write is late":                     {at(final(w(0, 1)), 0, 1), at(w(1, 2), 2, 3), at(r(1, 1), 4, 5)},
		"fail failed write comes after it was missing":  {at(final(w(0, 1)), 0, 1), at(r(1, 0), 2, 3), at(r(1, 1), 4, 5)},
		"good repeated write":                           {at(twice(w(0, 1)), 0, 9), at(r(1, 1), 1, 2), at(w(1, 2), 3, 4), at(r(1, 2), 5, 6), at(r(1, 1), 7, 8)},
		"fail repeated write is late":                   {at(twice(w(0, 1)), 0, 5), at(w(1, 2), 6, 7), at(r(1, 1), 8, 9)},
		"fail repeated write that nobody had to repeat": {at(w(0, 1), 0, 9), at(r(1, 1), 1, 2), at(w(1, 2), 3, 4), at(r(1, 2), 5, 6), at(r(1, 1), 7, 8)},
		"fail old write after a new one":                {at(w(0, 1), 0, 5), at(w(0, 2), 6, 7), at(r(1, 2), 8, 9), at(r(1, 1), 10, 11)},
		"fail registration kept lost in a crash": {at(Op{Kind: Register, Persistent: true}, 0, 1), at(crash, 2, 3),
			at(Op{Kind: Status, State: PR{Holder: -1}}, 4, 5)},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			err := Check(ops, 1, time.Minute)
			if good := strings.HasPrefix(name, "good"); good != (err == nil) {
				t.Errorf("verdict: %v", err)
			}
		})
	}
}
