package vhdx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"vdbridge/vhdx/crashfile"
)

// TestFailingStructure has one operation on the file fail, each in turn, while the structure of a disk changes. Some failures do not matter (a hole that cannot be made). The disk goes on or refuses to write; in either
// case everything that was acknowledged is there when it is opened again.
func TestFailingStructure(t *testing.T) {
	ctx := t.Context()
	errDisk := errors.New("the disk is broken")
	for name, change := range map[string]func(ctx context.Context, d *Disk) error{
		"grow":       func(ctx context.Context, d *Disk) error { return d.Resize(ctx, 200<<30, ResizeOptions{}) }, // the BAT moves
		"shrink":     func(ctx context.Context, d *Disk) error { return d.Resize(ctx, 7*mib, ResizeOptions{}) },
		"compact":    func(ctx context.Context, d *Disk) error { return d.Compact(ctx, CompactOptions{FindZeros: true}) },
		"set parent": func(ctx context.Context, d *Disk) error { return d.SetParent(ctx, *d.Locator()) },
		"flush":      func(ctx context.Context, d *Disk) error { return d.Flush(ctx) },
	} {
		for _, cancelled := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s-%v", name, cancelled), func(t *testing.T) {
				for k := 0; ; k++ {
					files := memFiles{"base": crashfile.New()}
					must(t, Create(ctx, kept{files["base"]}, CreateOptions{Size: 8 * mib, BlockSize: mib}))
					files.child(t, "top", "base", ChildOptions{BlockSize: mib})
					f := files["top"]
					d := files.open(t, "top", Options{})
					want := make([]byte, 7*mib)
					put := func(off, n int64, seed uint64) error {
						p := make([]byte, n)
						noise(p, seed)
						err := d.Write(ctx, p, off, false)
						if err == nil {
							copy(want[off:], p)
						}
						return err
					}
					for i := range int64(6) {
						must(t, put(i*mib, 4096*(i+1), uint64(i)))
					}
					must(t, errors.Join(put(6*mib, mib, 50), d.Flush(ctx), d.Trim(ctx, mib, mib)))
					clear(want[mib : 2*mib])
					must(t, d.Flush(ctx))
					must(t, put(4*mib, 8192, 60)) // not flushed
					run, cancel := context.WithCancel(ctx)
					f.Record()
					hit := false
					f.Fail = func(ops int, flush bool) error {
						if ops == k && !hit {
							hit = true
							if cancelled {
								cancel()
								return nil
							}
							return errDisk
						}
						return nil
					}
					err := change(run, d)
					f.Fail = nil
					cancel()
					werr := put(5*mib+512, 512, 70)
					if werr == nil {
						werr = put(mib, 512, 71) // needs a change of the BAT
					}
					if werr == nil {
						werr = d.Flush(ctx)
					}
					got := make([]byte, 7*mib)
					must(t, d.Read(ctx, got, 0))
					if !bytes.Equal(got, want) {
						t.Fatalf("operation %d: other data after %v", k, err)
					}
					cerr := d.Close()
					if werr == nil && cerr != nil {
						t.Fatalf("operation %d: writing goes on, but closing does not: %v", k, cerr)
					}
					files["top"] = f.Clone()
					again, rerr := Open(ctx, kept{files["top"].Clone()}, files.options("top"))
					if rerr == nil {
						rerr = errors.Join(again.Read(ctx, got, 0), again.Close())
					}
					if rerr != nil || !bytes.Equal(got, want) {
						t.Fatalf("operation %d (%v, then %v, %v): opened again: %v", k, err, werr, cerr, rerr)
					}
					if r, cerr := Check(ctx, files["top"].Clone()); cerr != nil || r.State == StateCorrupt {
						t.Fatalf("operation %d: check: %v %+v", k, cerr, r.Findings)
					}
					if !hit {
						if k < 2 {
							t.Errorf("only %d operations", k)
						}
						return
					}
				}
			})
		}
	}
}
