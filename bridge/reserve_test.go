package bridge

import (
	"context"
	"errors"
	"testing"

	"vdbridge/rsvd"
	"vdbridge/scsi"
	"vdbridge/test/leak"
)

// Every service action of PERSISTENT RESERVE OUT, from our client to our server.
func TestReservationActions(t *testing.T) {
	leak.Check(t)
	e := embed(t, ServeOptions{RSVDVersion: 1})
	a, b := e.open(t, nil), e.open(t, nil)
	pa, pb := a.RSVD(), b.RSVD()
	ctx := context.Background()
	const ka, kb = 0xA1, 0xB2
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	conflict := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, rsvd.ErrReservationConflict) {
			t.Fatalf("%s: %v, want a reservation conflict", what, err)
		}
	}
	write := func(d *Disk) error { return d.Write(ctx, make([]byte, 512), 0, false) }
	// told takes away what unit attentions wait for d.
	told := func(d *Disk) { _ = d.Read(ctx, make([]byte, 512), 0) }
	keys := func(want ...uint64) {
		t.Helper()
		k, err := pa.ReadKeys(ctx)
		if err != nil || len(k.Keys) != len(want) {
			t.Fatalf("keys %x, %v, want %x", k.Keys, err, want)
		}
	}

	conflict("RESERVE without registration", pa.Reserve(ctx, ka, scsi.WriteExclusive))
	must("REGISTER", pa.Register(ctx, 0, ka, false))
	conflict("REGISTER with a wrong key", pa.Register(ctx, kb, ka, false))
	must("REGISTER again", pa.Register(ctx, ka, ka+1, false))
	must("REGISTER AND IGNORE", pa.RegisterIgnore(ctx, ka, false))
	must("REGISTER", pb.Register(ctx, 0, kb, false))
	keys(ka, kb)
	for _, typ := range []scsi.PRType{scsi.WriteExclusive, scsi.ExclusiveAccess, scsi.WriteExclusiveRegistrantsOnly, scsi.ExclusiveAccessRegistrantsOnly,
		scsi.WriteExclusiveAllRegistrants, scsi.ExclusiveAccessAllRegistrants} {
		must("RESERVE", pa.Reserve(ctx, ka, typ))
		r, err := pb.ReadReservation(ctx)
		if err != nil || !r.Held || r.Type != typ || !typ.AllRegistrants() && r.Key != ka {
			t.Fatalf("%v: %+v, %v", typ, r, err)
		}
		if typ.Registrants() {
			must("write of a registrant", write(b))
		} else {
			conflict("write of a registrant", write(b))
		}
		must("write of the holder", write(a))
		must("RELEASE", pa.Release(ctx, ka, typ))
		told(b)
	}

	// MOVE: the other one has it now.
	must("RESERVE", pa.Reserve(ctx, ka, scsi.WriteExclusive))
	must("REGISTER AND MOVE", pa.Move(ctx, ka, kb, b.Initiator().ID, false, false))
	told(a)
	told(b)
	must("write of the new holder", write(b))
	conflict("write of the old holder", write(a))
	must("RELEASE", pb.Release(ctx, kb, scsi.WriteExclusive))
	told(a)

	// PREEMPT AND ABORT, then CLEAR.
	must("RESERVE", pb.Reserve(ctx, kb, scsi.ExclusiveAccessRegistrantsOnly))
	must("PREEMPT AND ABORT", pa.PreemptAbort(ctx, ka, kb, scsi.WriteExclusive))
	if err := write(b); !errors.Is(err, rsvd.ErrPreempted) {
		t.Fatalf("the victim: %v", err)
	}
	conflict("the victim again", write(b))
	keys(ka)
	must("CLEAR", pa.Clear(ctx, ka))
	keys()
	must("write of anybody", write(b))
	c, err := pa.Capabilities(ctx)
	if err != nil || !c.TypesValid || len(c.Types) != 6 {
		t.Errorf("%+v, %v", c, err)
	}
	closeDisk(t, a)
	closeDisk(t, b)
	e.judge(t)
}

// COMPARE AND WRITE from two initiators: of any number of attempts on one block exactly as many succeed as it counts.
func TestCompareAndWrite(t *testing.T) {
	leak.Check(t)
	e := embed(t, ServeOptions{RSVDVersion: 1})
	disks := []*Disk{e.open(t, nil), e.open(t, nil)}
	ctx := context.Background()
	const each = 40
	done := make(chan error, len(disks))
	for _, d := range disks {
		go func() {
			for n := 0; n < each; {
				old, next := make([]byte, 512), make([]byte, 512)
				if err := d.Read(ctx, old, 0); err != nil {
					done <- err
					return
				}
				copy(next, old)
				for i := range next { // a counter of 512 bytes
					if next[i]++; next[i] != 0 {
						break
					}
				}
				err := d.RSVD().CompareAndWrite(ctx, 0, old, next, false)
				var se *scsi.Error
				switch {
				case err == nil:
					n++
				case errors.As(err, &se) && se.Sense.Key == scsi.Miscompare:
				default:
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range disks {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	p := make([]byte, 512)
	if err := disks[0].Read(ctx, p, 0); err != nil || p[0] != each*2 {
		t.Errorf("the counter is %d, want %d (%v)", p[0], each*2, err)
	}
	for _, d := range disks {
		closeDisk(t, d)
	}
}
