package lu

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"vdbridge/scsi"
	"vdbridge/scsi/lu/lutest"
)

// Many initiators write, compare-and-write, zero and read the same few blocks of a disk that works sector by sector. Each read must see
// one writer's pattern in every range that was written as a whole. (The race detector sees what overlaps besides.)
func TestAtomicity(t *testing.T) {
	d := lutest.New(2 << 20)
	d.Torn = true
	l := newLU(t, d, Options{})
	const blocks = 8
	var wg sync.WaitGroup
	for g := range 8 {
		n := l.Attach(InitiatorID{byte(g + 1)}, false)
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 1))
			p, in := make([]byte, blocks*512), make([]byte, blocks*512)
			for i := range 300 {
				for j := 0; j < len(p); j += 8 {
					binary.LittleEndian.PutUint64(p[j:], uint64(g)<<32|uint64(i))
				}
				lba := uint64(2047 - blocks/2) // crosses a stripe of the lock table
				var r Result
				switch rnd.IntN(6) {
				case 0:
					cdb := scsi.Write16(lba, blocks, false)
					r = n.Execute(t.Context(), cdb.Bytes(), p, nil)
				case 1:
					if err := n.Write(t.Context(), p, int64(lba)*512, true); err != nil {
						t.Error(err)
					}
				case 2:
					cdb := scsi.WriteSame16(lba, blocks, false, false)
					r = n.Execute(t.Context(), cdb.Bytes(), p[:512], nil)
				case 3:
					list := scsi.AppendUnmapList(nil, scsi.UnmapRange{LBA: lba, Blocks: blocks})
					cdb := scsi.Unmap(uint16(len(list)))
					r = n.Execute(t.Context(), cdb.Bytes(), list, nil)
				case 4:
					if err := n.Read(t.Context(), in, int64(lba)*512); err != nil {
						t.Error(err)
					}
					cdb := scsi.CompareAndWrite(lba, blocks, false)
					if r = n.Execute(t.Context(), cdb.Bytes(), append(bytes.Clone(in), p...), nil); r.Sense.Key == scsi.Miscompare {
						r = Result{}
					}
				default:
					cdb := scsi.Read16(lba, blocks, false)
					r = n.Execute(t.Context(), cdb.Bytes(), nil, in)
					for j := 8; j < len(in); j += 8 {
						if !bytes.Equal(in[:8], in[j:j+8]) {
							t.Errorf("torn read: %x and %x at %d", in[:8], in[j:j+8], j)
							return
						}
					}
				}
				if r.Status != scsi.Good {
					t.Errorf("%v %v", r.Status, r.Sense)
				}
			}
		})
	}
	wg.Wait()
	if !l.locks.empty() {
		t.Error("locks are left")
	}
}

// COMPARE AND WRITE as a lock-free counter: every increment counts.
func TestCompareAndWriteCounts(t *testing.T) {
	d := lutest.New(1 << 16)
	d.Torn = true
	l := newLU(t, d, Options{})
	var wg sync.WaitGroup
	const workers, each = 6, 100
	for g := range workers {
		n := l.Attach(InitiatorID{byte(g + 1)}, false)
		wg.Go(func() {
			buf := make([]byte, 1024)
			for done := 0; done < each; {
				if err := n.Read(t.Context(), buf[:512], 0); err != nil {
					t.Error(err)
					return
				}
				copy(buf[512:], buf[:512])
				binary.LittleEndian.PutUint64(buf[512:], binary.LittleEndian.Uint64(buf)+1)
				cdb := scsi.CompareAndWrite(0, 1, false)
				if r := n.Execute(t.Context(), cdb.Bytes(), buf, nil); r.Status == scsi.Good {
					done++
				}
			}
		})
	}
	wg.Wait()
	if got := binary.LittleEndian.Uint64(d.Data); got != workers*each {
		t.Errorf("counted %d, want %d", got, workers*each)
	}
}

// gated is a disk whose writes wait until they are let go.
func gated(n int64) (d *lutest.Disk, arrived chan int64, let chan struct{}) {
	d = lutest.New(n)
	arrived, let = make(chan int64, 16), make(chan struct{})
	d.OnWrite = func(_ context.Context, off int64, _ int) error {
		arrived <- off
		<-let
		return nil
	}
	return d, arrived, let
}

// RESERVE, PREEMPT and PREEMPT AND ABORT do not return while a write is under way that they forbid.
func TestReserveOutWaitsForWrites(t *testing.T) {
	for _, action := range []scsi.PROutAction{scsi.PRReserve, scsi.PRPreempt, scsi.PRPreemptAndAbort} {
		t.Run(action.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, arrived, let := gated(1 << 20)
				l := newLU(t, d, Options{})
				a, b := l.Attach(idA, false), l.Attach(idB, false)
				reserveOK(t, a, scsi.PRRegister, 0, 0, 0xA)
				reserveOK(t, b, scsi.PRRegister, 0, 0, 0xB)
				if action != scsi.PRReserve {
					reserveOK(t, a, scsi.PRReserve, scsi.WriteExclusive, 0xA, 0)
				}
				results := make(chan Result, 3)
				write := func() {
					cdb := scsi.Write16(0, 8, false)
					results <- a.Execute(context.Background(), cdb.Bytes(), make([]byte, 4096), nil)
				}
				go write()
				<-arrived
				go write() // waits for the first one's blocks
				synctest.Wait()
				var returned atomic.Bool
				go func() {
					cdb, list := prOut(action, scsi.WriteExclusive, 0xB, 0xA)
					if r := b.Execute(context.Background(), cdb.Bytes(), list, nil); r.Status != scsi.Good {
						t.Errorf("%v: %v", action, r.Status)
					}
					returned.Store(true)
				}()
				synctest.Wait()
				if returned.Load() {
					t.Error("returned before a write that was under way")
				}
				// New writes are refused meanwhile, with the unit attention first if there is one.
				cdb := scsi.Write16(100, 1, false)
				r := a.Execute(context.Background(), cdb.Bytes(), make([]byte, 512), nil)
				if r.Status == scsi.CheckCondition && r.Sense.Code() == scsi.CodeRegistrationsPreempted {
					r = a.Execute(context.Background(), cdb.Bytes(), make([]byte, 512), nil)
				}
				if r.Status != scsi.ReservationConflict {
					t.Errorf("a new write: %v %v", r.Status, r.Sense)
				}
				close(let)
				synctest.Wait()
				if !returned.Load() {
					t.Error("does not return")
				}
				first, second := (<-results).Status, (<-results).Status
				want := scsi.Good
				if action == scsi.PRPreemptAndAbort {
					want = scsi.TaskAborted
				}
				if first != scsi.Good || second != want {
					t.Errorf("the writes end with %v and %v, want %v and %v", first, second, scsi.Good, want)
				}
			})
		})
	}
}

// A PERSISTENT RESERVE OUT whose caller goes away still waits. Until it is done nobody sees its result: not in the reservation that is reported, not in new
// rights, not even an initiator that comes in the midst of it.
func TestReserveOutAbandoned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, arrived, let := gated(1 << 20)
		l := newLU(t, d, Options{})
		a, b := l.Attach(idA, false), l.Attach(idB, false)
		reserveOK(t, a, scsi.PRRegister, 0, 0, 0xA)
		reserveOK(t, b, scsi.PRRegister, 0, 0, 0xB)
		reserveOK(t, a, scsi.PRReserve, scsi.ExclusiveAccess, 0xA, 0)
		done := make(chan error, 1)
		go func() { done <- a.Write(context.Background(), make([]byte, 512), 0, false) }()
		<-arrived
		ctx, cancel := context.WithCancel(context.Background())
		cdb, list := prOut(scsi.PRPreempt, scsi.WriteExclusive, 0xB, 0xA)
		var returned atomic.Bool
		go func() {
			if r := b.Execute(ctx, cdb.Bytes(), list, nil); r.Status != scsi.Good {
				t.Errorf("%v %v", r.Status, r.Sense)
			}
			returned.Store(true)
		}()
		synctest.Wait()
		cancel()
		synctest.Wait()
		b2, c := l.Attach(idB, false), l.Attach(idC, false)
		r, err := scsi.ParsePRReservation(mustGood(t, b2, scsi.PersistentReserveIn(scsi.PRReadReservation, 64)))
		if err != nil || returned.Load() || r.Key != 0xA || r.Type != scsi.ExclusiveAccess {
			t.Errorf("while a write of the old holder is under way: %+v, returned %v", r, returned.Load())
		}
		for _, n := range []*Nexus{b, b2, c} {
			mustFail(t, n, scsi.ReservationConflict, 0, 0, scsi.Read16(0, 1, false))
			mustFail(t, n, scsi.ReservationConflict, 0, 0, scsi.Write16(8, 1, false), make([]byte, 512)...)
		}
		// The next change waits for its turn, and may give up.
		short, stop := context.WithCancel(context.Background())
		stop()
		if r := b2.Execute(short, cdb.Bytes(), list, nil); r.Sense.Key != scsi.AbortedCommand {
			t.Errorf("a second change: %v %v", r.Status, r.Sense)
		}
		close(let)
		synctest.Wait()
		if !returned.Load() || <-done != nil {
			t.Error("does not end")
		}
		mustGood(t, c, scsi.Read16(0, 1, false)) // came in the midst of it, and has its rights now
		mustGood(t, b2, scsi.Write16(8, 1, false), make([]byte, 512)...)
		wantAttention(t, a, scsi.CodeRegistrationsPreempted)
		mustFail(t, a, scsi.ReservationConflict, 0, 0, scsi.Write16(8, 1, false), make([]byte, 512)...)
	})
}

// Random initiators preempt each other while all of them write as fast as they can. From the return of a command that shuts an initiator out
// until it is sent one that lets it in again, none of its writes may be at the disk.
func TestPreemptUnderLoad(t *testing.T) {
	for _, typ := range []scsi.PRType{scsi.WriteExclusive, scsi.ExclusiveAccess, scsi.WriteExclusiveRegistrantsOnly} {
		t.Run(fmt.Sprint(typ), func(t *testing.T) { preemptUnderLoad(t, typ) })
	}
}

func preemptUnderLoad(t *testing.T, typ scsi.PRType) {
	const people, writers, rounds = 5, 3, 80
	const area = 64 << 10 // of one initiator
	d := lutest.New(people * area)
	var out [people]atomic.Bool // shut out
	var late, landed, refused atomic.Int64
	d.OnWrite = func(_ context.Context, off int64, _ int) error {
		for range 3 {
			if out[off/area].Load() {
				late.Add(1)
			}
			runtime.Gosched()
		}
		return nil
	}
	l := newLU(t, d, Options{})
	nexus := make([]*Nexus, people)
	for i := range nexus {
		nexus[i] = l.Attach(InitiatorID{byte(i + 1)}, false)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range people {
		for k := range writers {
			wg.Go(func() {
				p := make([]byte, 4096)
				for {
					select {
					case <-stop:
						return
					default:
					}
					err := nexus[i].Write(context.Background(), p, int64(i*area+k%2*4096), false) // two share their blocks
					var e *scsi.Error
					switch {
					case err == nil:
						landed.Add(1)
					case errors.As(err, &e) && (e.Status != scsi.CheckCondition || e.Sense.Key == scsi.UnitAttention):
						refused.Add(1)
						runtime.Gosched()
					default:
						t.Errorf("write: %v", err)
						return
					}
				}
			})
		}
	}
	key := func(i int) uint64 { return uint64(i) + 0x100 }
	do := func(i int, action scsi.PROutAction, own, other uint64) {
		cdb, list := prOut(action, typ, own, other)
		for {
			r := nexus[i].Execute(context.Background(), cdb.Bytes(), list, nil)
			if r.Status == scsi.Good {
				return
			}
			if r.Sense.Key != scsi.UnitAttention {
				t.Errorf("%v by %d: %v %v", action, i, r.Status, r.Sense)
				return
			}
		}
	}
	holder := -1
	rnd := rand.New(rand.NewPCG(1, uint64(typ)))
	for range rounds {
		i := rnd.IntN(people)
		if i == holder {
			continue
		}
		out[i].Store(false)
		do(i, scsi.PRRegisterAndIgnore, 0, key(i))
		if holder < 0 {
			do(i, scsi.PRReserve, key(i), 0)
			for j := range people {
				out[j].Store(j != i)
			}
		} else {
			action := scsi.PRPreempt
			if rnd.IntN(2) == 0 {
				action = scsi.PRPreemptAndAbort
			}
			do(i, action, key(i), key(holder))
			out[holder].Store(true)
		}
		holder = i
		for have := landed.Load(); landed.Load() < have+10 && !t.Failed(); { // the new holder gets to work
			runtime.Gosched()
		}
	}
	close(stop)
	wg.Wait()
	if late.Load() != 0 {
		t.Errorf("%d writes were at the disk after their initiator had been shut out", late.Load())
	}
	if landed.Load() == 0 || refused.Load() == 0 {
		t.Error("the test has tested nothing")
	}
	t.Logf("%d writes landed, %d were refused", landed.Load(), refused.Load())
}
