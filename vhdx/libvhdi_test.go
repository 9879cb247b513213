package vhdx

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestLibvhdiChain has libvhdi read chains that we wrote: what vhdimount shows of the topmost must be what we show.
func TestLibvhdiChain(t *testing.T) {
	info, mount := tool(t, "vhdiinfo"), tool(t, "vhdimount")
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		if os.Getenv("VDBRIDGE_REQUIRE_TOOLS") == "1" {
			t.Fatalf("FUSE is needed (VDBRIDGE_REQUIRE_TOOLS=1): %v", err)
		}
		t.Skipf("SKIPPED: no FUSE (%v), so nothing was proved here", err)
	} else {
		_ = f.Close()
	}
	ctx := t.Context()
	for _, bs := range []int64{mib, 2 * mib, 32 * mib} {
		dir := t.TempDir()
		path := func(i int) string { return filepath.Join(dir, fmt.Sprintf("%d.vhdx", i)) }
		const levels = 3
		rng := rand.New(rand.NewPCG(1, uint64(bs)))
		var want []byte
		for i := range levels {
			if i == 0 {
				must(t, CreateFile(ctx, path(0), CreateOptions{Size: 40 * mib, BlockSize: bs}))
				want = make([]byte, 40*mib)
			} else {
				l := ParentLocator{RelativePath: `.\` + filepath.Base(path(i-1)), AbsolutePath: `\\?\c:\disks\` + filepath.Base(path(i-1))}
				must(t, CreateChildFile(ctx, path(i), path(i-1), ChildOptions{BlockSize: bs, Parent: l}))
			}
			d, err := OpenFile(ctx, path(i), Options{})
			must(t, err)
			for range 60 {
				off := rng.Int64N(40*mib/512) * 512
				n := min(512*(1+rng.Int64N(40)), 40*mib-off)
				if rng.IntN(10) == 0 {
					n = min(3*mib, 40*mib-off)
				}
				noise(want[off:off+n], rng.Uint64())
				must(t, d.Write(ctx, want[off:off+n], off, false))
			}
			must(t, d.Close())
		}
		out := run(t, info, path(levels-1))
		if !strings.Contains(out, "Differential") || !strings.Contains(out, "1.vhdx") {
			t.Errorf("vhdiinfo:\n%s", out)
		}
		at := filepath.Join(dir, "mnt")
		must(t, os.Mkdir(at, 0o700))
		run(t, mount, path(levels-1), at)
		// It shows every image of the chain, the topmost last.
		f, err := os.Open(filepath.Join(at, fmt.Sprintf("vhdi%d", levels)))
		if err == nil {
			var got []byte
			if got, err = io.ReadAll(f); err == nil && !bytes.Equal(got, want) {
				i := 0
				for i < min(len(got), len(want)) && got[i] == want[i] {
					i++
				}
				t.Errorf("block size %d: libvhdi shows other data from %d on (of %d and %d bytes)", bs, i, len(got), len(want))
			}
			_ = f.Close()
		}
		if err != nil {
			t.Errorf("block size %d: %v\n%s", bs, err, out)
		}
		if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
			t.Errorf("umount: %v %s", err, out)
		}
	}
}
