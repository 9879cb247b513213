package vhdx

import (
	"math/rand/v2"
	"testing"

	"vdbridge/vhdx/crashfile"
)

// TestLogRing drives the log writer as commits do, with batches of every size, and looks before each write that it touches nothing that a replay could need
// if that write were torn: the entries from the tail of the newest durable one on. After it the log must be found with that entry as its head.
func TestLogRing(t *testing.T) {
	ctx := t.Context()
	rng := rand.New(rand.NewPCG(3, 4))
	f := crashfile.New()
	if err := f.Truncate(ctx, 8*mib); err != nil {
		t.Fatal(err)
	}
	h := header{sequence: 1, version: 1, logOffset: mib, logLength: mib}
	w := &logWriter{b: f, log: extent{mib, mib}, s: newSession(f, h, 0)}
	if err := w.start(ctx, 8*mib, 8*mib); err != nil {
		t.Fatal(err)
	}
	ups := make([]logUpdate, 300)
	for i := range ups {
		ups[i] = logUpdate{off: 3*mib + int64(i)*logSector, data: new([logSector]byte)}
	}
	keepFrom, keepLen := int64(0), int64(logSector)
	write := func(n int) {
		t.Helper()
		size := entryLen(n)
		if w.head+size > w.log.n {
			t.Fatalf("an entry of %d bytes at %d crosses the end of the log", size, w.head)
		}
		for at := w.head; at < w.head+size; at += logSector {
			if d := (at - keepFrom + w.log.n) % w.log.n; d < keepLen {
				t.Fatalf("the entry at %d (%d bytes) overwrites the one at %d, which is needed (%d bytes from %d)", w.head, size, at, keepLen, keepFrom)
			}
		}
		if err := w.append(ctx, ups[:n], 8*mib, 8*mib); err != nil {
			t.Fatal(err)
		}
		tail := (w.head - w.pending + w.log.n) % w.log.n
		keepLen = (w.head-tail+w.log.n)%w.log.n + size
		keepFrom = tail
		w.advance(size)
	}
	for step := range 3000 {
		left := 1 + rng.IntN(1+rng.IntN(len(ups)))
		if rng.IntN(2) == 0 {
			w.checkpointed()
		}
		for left > 0 {
			k, ok := w.room(left)
			if !ok {
				w.checkpointed()
				write(0)
				w.checkpointed()
				if k, ok = w.room(left); !ok {
					t.Fatal("no room after a checkpoint")
				}
			}
			write(k)
			left -= k
		}
		if step%40 == 0 {
			s, err := scanLog(ctx, &ring{f, w.log}, w.guid)
			if err != nil || len(s.active) == 0 || s.head.sequence != w.seq-1 {
				t.Fatalf("step %d: the head found is %d, want %d: %v", step, s.head.sequence, w.seq-1, err)
			}
		}
	}
	if w.laps < 100 {
		t.Errorf("the log went round only %d times", w.laps)
	}
}
