package vhdx

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"vdbridge/vhdx/crashfile"
)

// TestConvert makes every kind from every kind.
func TestConvert(t *testing.T) {
	ctx := t.Context()
	files, want := family(t, 8*mib, 8*mib, mib, 2*mib)
	for name, o := range map[string]ConvertOptions{
		"dynamic": {Create: CreateOptions{BlockSize: mib}}, "fixed": {Create: CreateOptions{BlockSize: 2 * mib, Fixed: true}}, "raw": {Raw: true},
		"larger": {Create: CreateOptions{BlockSize: mib, Size: 9 * mib}}, "4k": {Create: CreateOptions{BlockSize: mib, LogicalSector: 4096}},
	} {
		src := files.open(t, "child", Options{ReadOnly: true})
		calls, last := 0, int64(0)
		o.Progress = func(done, total int64) {
			if done < last || done > total {
				t.Errorf("%s: progress %d of %d after %d", name, done, total, last)
			}
			calls, last = calls+1, done
		}
		f := crashfile.New()
		must(t, Convert(ctx, f, src, o))
		must(t, src.Close())
		if calls == 0 {
			t.Errorf("%s: no progress", name)
		}
		got := make([]byte, 8*mib)
		if o.Raw {
			r, err := OpenRaw(ctx, kept{f}, 0, false)
			must(t, err)
			if r.Size() != int64(len(got)) {
				t.Errorf("the raw image has %d bytes", r.Size())
			}
			must(t, r.Read(ctx, got, 0))
			must(t, errors.Join(r.Write(ctx, want[:512], 512, true), r.WriteZeroes(ctx, 0, 512, true, true), r.Trim(ctx, 0, 512), r.Flush(ctx)))
			if err := r.Write(ctx, got, 1, false); !errors.Is(err, ErrRange) {
				t.Errorf("raw: %v", err)
			}
		} else {
			d, err := Open(ctx, kept{f}, Options{})
			must(t, err)
			must(t, d.Read(ctx, got, 0))
			if i := d.Info(); (i.Kind == KindFixed) != o.Create.Fixed || i.Size != max(o.Create.Size, 8*mib) {
				t.Errorf("%s: %+v", name, i)
			}
			if u, _ := d.Usage(ctx); !o.Create.Fixed && u.AllocatedBlocks > 5 {
				t.Errorf("%s: %+v", name, u)
			}
			must(t, d.Close())
			if r, err := Check(ctx, f.Clone()); err != nil || r.State != StateClean {
				t.Errorf("%s: %v %+v", name, err, r)
			}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: other data", name)
		}
	}
	// As a differencing disk over the base again: only what differs is stored.
	src, base := files.open(t, "child", Options{ReadOnly: true}), files.open(t, "base", Options{ReadOnly: true})
	files["again"] = crashfile.New()
	must(t, Convert(ctx, files["again"], src, ConvertOptions{Parent: base, Child: ChildOptions{BlockSize: mib, Parent: ParentLocator{RelativePath: "base"}}}))
	must(t, errors.Join(src.Close(), base.Close()))
	if err := files.is("again", want); err != nil {
		t.Error(err)
	}
	d := files.open(t, "again", Options{ReadOnly: true})
	own := int64(0)
	must(t, d.Map(ctx, 0, d.Size(), func(e Extent) bool {
		if e.Level == 0 {
			own += e.Length
		}
		return true
	}))
	if own > 4*mib {
		t.Errorf("the differencing disk has %d bytes of its own", own)
	}
	must(t, d.Close())
}

// TestConvertFile leaves nothing behind when it ends early, and replaces nothing.
func TestConvertFile(t *testing.T) {
	files, want := family(t, 8*mib, 8*mib, mib, mib)
	src := files.open(t, "child", Options{ReadOnly: true})
	dir := t.TempDir()
	path := filepath.Join(dir, "a.vhdx")
	ctx, cancel := context.WithCancel(t.Context())
	err := ConvertFile(ctx, path, src, ConvertOptions{Progress: func(int64, int64) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if list, _ := os.ReadDir(dir); len(list) != 0 {
		t.Errorf("left behind: %v", list)
	}
	must(t, ConvertFile(t.Context(), path, src, ConvertOptions{}))
	if err := ConvertFile(t.Context(), path, src, ConvertOptions{}); !errors.Is(err, os.ErrExist) {
		t.Errorf("over a file: %v", err)
	}
	if list, _ := os.ReadDir(dir); len(list) != 1 {
		t.Errorf("in the folder: %v", list)
	}
	d, err := OpenFile(t.Context(), path, Options{ReadOnly: true})
	must(t, err)
	got := make([]byte, d.Size())
	must(t, errors.Join(d.Read(t.Context(), got, 0), d.Close(), src.Close()))
	if !bytes.Equal(got, want) {
		t.Error("other data")
	}
}
