package vhdx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"vdbridge/vhdx/crashfile"
)

// TestModel runs random operations on a disk and on a flat array, closing and opening in between.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		sector := rapid.SampledFrom([]int{512, 4096}).Draw(t, "sector")
		size := int64(rapid.IntRange(1, 6*mib/sector).Draw(t, "sectors")) * int64(sector)
		o := CreateOptions{Size: size, BlockSize: mib << rapid.IntRange(0, 2).Draw(t, "block"), LogicalSector: sector, Fixed: rapid.Bool().Draw(t, "fixed")}
		f := crashfile.New()
		f.NoPunch = rapid.Bool().Draw(t, "no-punch")
		if err := Create(ctx, f, o); err != nil {
			t.Fatal(err)
		}
		d, err := Open(ctx, f, Options{})
		if err != nil {
			t.Fatal(err)
		}
		model := make([]byte, size)
		span := func() (off, n int64) {
			off = int64(rapid.IntRange(0, int(size)/sector-1).Draw(t, "off")) * int64(sector)
			n = int64(rapid.IntRange(1, int(size-off)/sector).Draw(t, "n")) * int64(sector)
			if rapid.Bool().Draw(t, "small") {
				n = min(n, 4*int64(sector))
			}
			return off, n
		}
		var seed uint64
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				off, n := span()
				seed++
				noise(model[off:off+n], seed)
				if err := d.Write(ctx, model[off:off+n], off, rapid.Bool().Draw(t, "fua")); err != nil {
					t.Fatal(err)
				}
			},
			"zero": func(t *rapid.T) {
				off, n := span()
				clear(model[off : off+n])
				if err := d.WriteZeroes(ctx, off, n, rapid.Bool().Draw(t, "unmap"), rapid.Bool().Draw(t, "fua")); err != nil {
					t.Fatal(err)
				}
			},
			"trim": func(t *rapid.T) {
				off, n := span()
				old := bytes.Clone(model[off : off+n])
				if err := d.Trim(ctx, off, n); err != nil {
					t.Fatal(err)
				}
				if err := d.Read(ctx, model[off:off+n], off); err != nil {
					t.Fatal(err)
				}
				for i, v := range model[off : off+n] {
					if v != 0 && v != old[i] {
						t.Fatalf("after a trim byte %d is neither zero nor what it was", off+int64(i))
					}
				}
			},
			"flush": func(t *rapid.T) {
				if err := d.Flush(ctx); err != nil {
					t.Fatal(err)
				}
			},
			"reopen": func(t *rapid.T) {
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
				if err := d.Close(); err != nil {
					t.Fatal("second close:", err)
				}
				if err := d.Read(ctx, make([]byte, sector), 0); !errors.Is(err, ErrClosed) {
					t.Fatal("read of a closed disk:", err)
				}
				f = f.Clone()
				r, err := Check(ctx, f)
				if err != nil || r.State != StateClean {
					t.Fatalf("check: %v %+v", err, r)
				}
				if d, err = Open(ctx, f, Options{}); err != nil {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) {
				off, n := span()
				p := make([]byte, n)
				if err := d.Read(ctx, p, off); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(p, model[off:off+n]) {
					t.Fatalf("%d bytes at %d differ", n, off)
				}
				var total int64
				if err := d.Extents(ctx, off, n, func(k int64, hole, zero bool) bool {
					if zero && !isZero(model[off+total:off+total+k]) {
						t.Fatalf("%d bytes at %d are not zero", k, off+total)
					}
					total += k
					return true
				}); err != nil || total != n {
					t.Fatalf("extents of %d bytes cover %d: %v", n, total, err)
				}
			},
		})
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestConcurrent has many goroutines write, trim, zero, flush and read at once, each in sectors of its own that share blocks with those of the others.
func TestConcurrent(t *testing.T) {
	for _, noPunch := range []bool{false, true} {
		ctx := t.Context()
		const workers, sectors = 8, 64
		f := crashfile.New()
		f.NoPunch = noPunch
		if err := Create(ctx, f, CreateOptions{Size: 12 * mib, BlockSize: mib}); err != nil {
			t.Fatal(err)
		}
		d, err := Open(ctx, f, Options{BATCacheBytes: 1})
		if err != nil {
			t.Fatal(err)
		}
		stop := make(chan struct{})
		var side sync.WaitGroup
		side.Go(func() { // the blocks from 8 on belong to a trimmer, which makes places move around
			rng := rand.New(rand.NewPCG(1, 1))
			p := make([]byte, 4096)
			for i := range p {
				p[i] = 0xee
			}
			for {
				select {
				case <-stop:
					return
				default:
				}
				block := 8 + rng.Int64N(4)
				err := d.Write(ctx, p, block*mib+rng.Int64N(255)*4096, false)
				if err == nil {
					err = d.Trim(ctx, block*mib, mib)
				}
				if err == nil && rng.IntN(3) == 0 {
					err = d.Flush(ctx)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
		var wg sync.WaitGroup
		for w := range int64(workers) {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(2, uint64(w)))
				model := make([]uint64, sectors)
				at := func(i int) int64 { return (int64(i)*workers + w) * 512 * 29 / 512 * 512 }
				p := make([]byte, 512)
				for step := range 400 {
					i := rng.IntN(sectors)
					var err error
					switch k := rng.IntN(10); {
					case k < 5:
						model[i] = uint64(step) + 1
						stamp(p, at(i), 512, model[i])
						err = d.Write(ctx, p, at(i), rng.IntN(16) == 0)
					case k < 6:
						model[i] = 0
						err = d.WriteZeroes(ctx, at(i), 512, true, false)
					case k < 7:
						err = d.Flush(ctx)
					}
					if err == nil {
						err = d.Read(ctx, p, at(i))
					}
					if err == nil {
						var v uint64
						if v, err = readStamp(p, at(i)/512); err == nil && v != model[i] {
							err = fmt.Errorf("worker %d: sector %d is %d, not %d", w, at(i)/512, v, model[i])
						}
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		close(stop)
		side.Wait()
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if r, err := Check(ctx, f); err != nil || r.State != StateClean {
			t.Fatalf("check: %v %+v", err, r)
		}
	}
}

// TestSameBlock has writers meet on blocks that none of them has allocated: every one must find its data, and the rest zeros.
func TestSameBlock(t *testing.T) {
	ctx := t.Context()
	f := crashfile.New()
	if err := Create(ctx, f, CreateOptions{Size: 64 * mib, BlockSize: mib}); err != nil {
		t.Fatal(err)
	}
	d, err := Open(ctx, f, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for block := range int64(40) {
		var wg sync.WaitGroup
		for w := range int64(8) {
			wg.Go(func() {
				p := make([]byte, 4096)
				at := block*mib + w*100*kib
				stamp(p, at, 512, uint64(w)+1)
				if err := d.Write(ctx, p, at, w == 7); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		b := make([]byte, mib)
		if err := d.Read(ctx, b, block*mib); err != nil {
			t.Fatal(err)
		}
		for w := range int64(8) {
			for s := range int64(8) {
				at := w*100*kib + s*512
				v, err := readStamp(b[at:at+512], (block*mib+at)/512)
				if err != nil || v != uint64(w)+1 {
					t.Fatalf("block %d: writer %d: %d %v", block, w, v, err)
				}
			}
			clear(b[w*100*kib : w*100*kib+4096])
		}
		if !isZero(b) {
			t.Fatalf("block %d has data that nobody wrote", block)
		}
		if block%3 == 0 {
			if err := d.Trim(ctx, block*mib, mib); err != nil {
				t.Fatal(err)
			}
		}
	}
	if u, err := d.Usage(ctx); err != nil || u.AllocatedBlocks != 26 || u.UnmappedBlocks != 14 {
		t.Errorf("usage %+v %v", u, err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}
