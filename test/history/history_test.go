package history

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"vdbridge/rsvd"
	"vdbridge/test/faultnet"
	"vdbridge/test/leak"
)

const (
	soak     = "VDBRIDGE_SOAK"
	seedName = "VDBRIDGE_SEED"

	round    = 5 * time.Second  // of load; then the history is judged
	workers  = 3                // of each client
	patience = 10 * time.Second // for judging one cell
)

// length is how long a test runs.
func length(t *testing.T) time.Duration {
	v := os.Getenv(soak)
	if v == "" {
		return round
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		t.Fatalf("%s: %v", soak, err)
	}
	return d
}

// usual is the seed of a short run, so that what fails there can be repeated. It is even, for an available share.
const usual = 2

// seed is the one asked for; otherwise that of a short run is always the same, and a long one draws its own. It is printed.
func seed(t *testing.T) uint64 {
	s := uint64(usual)
	if os.Getenv(soak) != "" {
		s = rand.Uint64() >> 32
	}
	if v := os.Getenv(seedName); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", seedName, err)
		}
		s = n
	}
	t.Logf("%s=%d", seedName, s)
	return s
}

// run lets the guests work for d while trouble makes trouble, then reads everything once more, and judges.
func run(t *testing.T, j *journal, guests []*guest, seed uint64, d time.Duration, trouble func(ctx context.Context, rng *rand.Rand)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	var wg, calm sync.WaitGroup
	for _, g := range guests {
		g.mu.Lock()
		if err := g.attach(ctx); err != nil {
			g.mu.Unlock()
			t.Fatalf("client %d: %v", g.id, err)
		}
		g.mu.Unlock()
		for w := range workers {
			rng := rand.New(rand.NewPCG(seed, uint64(100*g.id+w)))
			wg.Go(func() { g.worker(ctx, rng, w == 0) })
		}
	}
	calm.Go(func() { trouble(ctx, rand.New(rand.NewPCG(seed, 1<<32))) })
	calm.Wait()
	wg.Wait()
	sweep(t, j, guests)
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, g := range guests {
		t.Logf("client %d (%s): %d attachments", g.id, g.name, g.life)
	}
	names := make([]string, 0, len(j.counts))
	for k, n := range j.counts {
		names = append(names, fmt.Sprintf("%s %d", k, n))
	}
	slices.Sort(names)
	for _, n := range names {
		t.Log(n)
	}
	if n := j.counts["read"]; n < 50 || j.counts["write"] < 50 {
		t.Errorf("only %d reads and %d writes: nothing was tested", n, j.counts["write"])
	}
	start := time.Now()
	err := Check(j.ops, cells, patience)
	var u *Undecided
	switch {
	case errors.As(err, &u) && len(u.Cells) <= cells/2:
		t.Logf("NOT ALL JUDGED, seed %d: cells %v of %d took too long", seed, u.Cells, cells)
	case err != nil:
		t.Errorf("seed %d: %v", seed, err)
	}
	t.Logf("%d operations judged in %v", len(j.ops), time.Since(start).Round(time.Millisecond))
}

// sweep reads every cell when all is over.
func sweep(t *testing.T, j *journal, guests []*guest) {
	for _, g := range guests {
		g.mu.Lock()
		if g.d != nil {
			g.hurt()
			_ = g.d.Close(true)
			g.d = nil
			j.add(Op{Kind: Lost, Client: g.id, Call: g.lostAt.Load(), Return: j.now()})
		}
		g.mu.Unlock()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // an export may take as long to end
	defer cancel()
	g := guests[0]
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.attach(ctx); err != nil {
		t.Errorf("open in the end: %v", err)
		return
	}
	defer g.d.Close(false)
	w := &worker{g: g, rng: rand.New(rand.NewPCG(1, 1))}
	for c := range cells {
		p := make([]byte, CellSectors*sectorSize)
		op := Op{Kind: Read, Client: g.id, Cell: c, Call: j.now()}
		err := g.d.Shared().Read(ctx, p, cellAt(c))
		op.Return = j.now()
		if op.Outcome = w.outcome(err); err != nil && op.Outcome != Conflict && op.Outcome != Refused {
			t.Errorf("read in the end: %v", err)
			continue
		}
		op.Vals = decode(p, cellAt(c))
		j.add(op)
	}
}

// Clients of every kind on one disk; the power fails and connections are cut.
func TestPowerCuts(t *testing.T) {
	leak.Check(t)
	s := seed(t)
	end := time.Now().Add(length(t))
	for n := uint64(0); n == 0 || time.Now().Before(end); n++ {
		powerCuts(t, s+n)
		if t.Failed() {
			return
		}
	}
}

func powerCuts(t *testing.T, seed uint64) {
	m := newMachine(t, false)
	defer m.powerOff()
	j := newJournal()
	socks := t.TempDir()
	var guests []*guest
	var relays []*faultnet.Relay
	for i, io := range []rsvd.IO{rsvd.IOSMB, rsvd.IOSCSI, rsvd.IOSMB, rsvd.IOSCSI} {
		r, err := faultnet.NewRelay("tcp", "127.0.0.1:0", m.addr, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		relays = append(relays, r)
		url := "smb://" + user + "@" + r.Addr() + "/disks/a.vhdx"
		g := &guest{t: t, j: j, id: i, name: "library, " + io.String(), guid: [16]byte{15: byte(i + 1)}, pr: true}
		nbd := i >= 2
		if nbd {
			g.name = "NBD, " + io.String()
		}
		g.open = func(ctx context.Context) (disk, error) {
			d, err := openBridge(ctx, url, password, g.guid, io)
			if err != nil {
				return nil, err
			}
			if !nbd {
				return library{d}, nil
			}
			e, err := export(d, socks)
			if err != nil {
				return nil, errors.Join(err, d.Close())
			}
			return e, nil
		}
		guests = append(guests, g)
	}
	run(t, j, guests, seed, round, func(ctx context.Context, rng *rand.Rand) {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Duration(100+rng.IntN(500)) * time.Millisecond):
			}
			i := rng.IntN(len(relays))
			switch rng.IntN(6) {
			case 0:
				relays[i].SetDelay(time.Duration(rng.IntN(2000)) * time.Microsecond)
			case 1, 2:
				j.count("cut")
				guests[i].hurt()
				relays[i].CutAll()
			case 3, 4:
				j.count("power cut")
				for _, g := range guests {
					g.hurt()
				}
				op := Op{Kind: Crash, Client: -1, Call: j.now()}
				m.powerCut(rng)
				op.Return = j.now()
				j.add(op)
			}
		}
	})
	if !t.Failed() {
		return
	}
	// The image is kept for whoever looks into it.
	if dir := os.Getenv("VDBRIDGE_KEEP"); dir != "" {
		f, err := os.Create(filepath.Join(dir, "failed.vhdx"))
		if err != nil {
			return
		}
		defer f.Close()
		_ = m.disk.f.Pages(func(off int64, b []byte) error { _, err := f.WriteAt(b, off); return err })
	}
}
