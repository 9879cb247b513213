package vhdx

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestQEMUAfterChanges has qemu-img check and compare images of its own that we have resized, compacted and converted.
func TestQEMUAfterChanges(t *testing.T) {
	img, qio := tool(t, "qemu-img"), tool(t, "qemu-io")
	ctx := t.Context()
	for _, kind := range []string{"dynamic", "fixed"} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			path, raw := filepath.Join(dir, "a.vhdx"), filepath.Join(dir, "a.raw")
			run(t, img, "create", "-q", "-f", "vhdx", "-o", "block_size=1M,subformat="+kind, path, "48M")
			run(t, qio, "-f", "vhdx", "-c", "write -P 1 0 20M", "-c", "write -P 2 30M 5M", path)
			d, err := OpenFile(ctx, path, Options{})
			must(t, err)
			size := int64(50*mib + 4096)
			if kind == "dynamic" {
				size = 300 << 30 // the BAT moves
			}
			must(t, d.Trim(ctx, 2*mib, 10*mib))
			must(t, d.Resize(ctx, size, ResizeOptions{}))
			must(t, d.Write(ctx, bytes.Repeat([]byte{3}, 4096), size-4096, false))
			must(t, d.Compact(ctx, CompactOptions{FindZeros: true}))
			if kind == "dynamic" {
				if i := d.Info(); i.FileSize > 32*mib {
					t.Errorf("%d bytes after compacting", i.FileSize)
				}
				must(t, d.Resize(ctx, 60*mib, ResizeOptions{Discard: true}))
			}
			toRaw(t, d, raw)
			must(t, d.Close())
			strictCheck(t, path)
			run(t, img, "compare", "-f", "raw", "-F", "vhdx", raw, path)
			run(t, qio, "-f", "vhdx", "-c", "write -P 9 40M 1M", path) // and it goes on with them
			strictCheck(t, path)
			d, err = OpenFile(ctx, path, Options{ReadOnly: true})
			must(t, err)
			p := make([]byte, mib)
			if err := d.Read(ctx, p, 40*mib); err != nil || !bytes.Equal(p, bytes.Repeat([]byte{9}, mib)) {
				t.Errorf("what qemu wrote is not there: %v", err)
			}
			for _, fixed := range []bool{false, true} {
				to := filepath.Join(dir, "to.vhdx")
				must(t, ConvertFile(ctx, to, d, ConvertOptions{Create: CreateOptions{Fixed: fixed, BlockSize: 2 * mib}}))
				strictCheck(t, to)
				run(t, img, "compare", "-f", "vhdx", "-F", "vhdx", to, path)
				must(t, os.Remove(to))
			}
			must(t, d.Close())
		})
	}
}
