package vhdx

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"vdbridge/vhdx/crashfile"
)

// repairCases are images with one thing to repair each, and what Check calls it.
func repairCases(t *testing.T) map[string]*crashfile.File {
	t.Helper()
	damaged := func(dirty bool, fn func(f *crashfile.File)) *crashfile.File {
		f := fuzzBase(t, dirty)
		fn(f)
		return f
	}
	spoil := func(f *crashfile.File, off int64) { // without a new checksum
		if _, err := f.WriteAt(t.Context(), []byte{1}, off); err != nil {
			t.Fatal(err)
		}
	}
	const bat = 3 * mib
	return map[string]*crashfile.File{
		CodeHeaderSpare: damaged(false, func(f *crashfile.File) { spoil(f, header1Offset+100) }),
		CodeLogDirty:    damaged(true, func(*crashfile.File) {}),
		CodeRegionSpare: damaged(false, func(f *crashfile.File) { spoil(f, region1Offset+2000) }),
		CodeRegionDiffers: damaged(false, func(f *crashfile.File) {
			b := make([]byte, regionTableSize)
			must(t, readFull(t.Context(), f, b, region2Offset))
			b[16+3*32] = 1 // behind the last entry
			le.PutUint32(b[4:], checksum(b, 4))
			edit(t, f, region2Offset, b...)
		}),
		CodeReservedBits: damaged(false, func(f *crashfile.File) { edit(t, f, bat+1, 0xff) }),
		CodeStalePlace:   damaged(false, func(f *crashfile.File) { edit(t, f, bat+8, blockUnmapped, 0, 0, 0, 0, 0x40) }),
	}
}

func TestRepair(t *testing.T) {
	ctx := t.Context()
	for code, f := range repairCases(t) {
		t.Run(code, func(t *testing.T) {
			want, err := memFiles{"x": f}.content("x")
			must(t, err)
			start := f.Record()
			r, err := Repair(ctx, kept{f}, CheckOptions{})
			must(t, err)
			found := false
			for _, g := range r.Findings {
				if g.Code == code {
					found = true
					if !g.Repaired || g.Advice == "" {
						t.Errorf("%+v", g)
					}
				}
			}
			if !found || r.State != StateClean {
				t.Errorf("%+v", r)
			}
			if err := (memFiles{"x": f}).is("x", want); err != nil {
				t.Error(err)
			}
			again, err := Check(ctx, f.Clone())
			must(t, err)
			for _, g := range again.Findings {
				if repairable[g.Code] {
					t.Errorf("after the repair: %+v", g)
				}
			}
			ops := f.Ops()
			if _, err := Repair(ctx, kept{f}, CheckOptions{}); err != nil || f.Ops() != ops {
				t.Errorf("a second repair writes: %v", err)
			}
			// Crashes on the way leave the same data, and something that can be repaired.
			rng := rand.New(rand.NewPCG(1, 2))
			f.Crashes(start, func(m crashfile.Moment) bool {
				for _, chance := range []float64{0, 0.5, 0.8} {
					left := m.After(rng, chance, 512)
					got, err := memFiles{"x": left}.content("x")
					if err != nil || !bytes.Equal(got, want) {
						t.Errorf("crash after %d operations: %v", m.Ops, err)
						return false
					}
					if r, err := Repair(ctx, kept{left}, CheckOptions{}); err != nil || r.State != StateClean {
						t.Errorf("crash after %d operations, repaired again: %v %+v", m.Ops, err, r)
						return false
					}
				}
				return true
			})
		})
	}
}

// TestRepairRefuses leaves what is damaged beyond doubt as it is.
func TestRepairRefuses(t *testing.T) {
	f := fuzzBase(t, false)
	_, _ = f.WriteAt(t.Context(), []byte{1}, header1Offset+100)
	b := make([]byte, 8)
	must(t, readFull(t.Context(), f, b, 3*mib))
	edit(t, f, 3*mib+8, b...) // two blocks in one place
	f.Record()
	r, err := Repair(t.Context(), kept{f}, CheckOptions{})
	if err != nil || r.State != StateCorrupt || f.Ops() != 0 {
		t.Errorf("%v %v, %d operations", r.State, err, f.Ops())
	}
	found := false
	for _, g := range r.Findings {
		found = found || g.Code == CodeOverlap && g.Advice != "" && !g.Repaired
	}
	if !found {
		t.Errorf("%+v", r.Findings)
	}
}
