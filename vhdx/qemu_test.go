package vhdx

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// run runs a foreign program and fails the test if it fails.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// strictCheck lets qemu-img and our own check judge an image that should be sound and closed.
func strictCheck(t testing.TB, path string) {
	t.Helper()
	run(t, tool(t, "qemu-img"), "check", "-f", "vhdx", path)
	ownCheck(t, path)
}

// ownCheck is strictCheck for what QEMU cannot open.
func ownCheck(t testing.TB, path string) {
	t.Helper()
	f, err := OpenOSFile(path, true)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	r, err := Check(context.Background(), f)
	if err != nil {
		t.Fatal(err)
	}
	if r.State != StateClean {
		t.Fatalf("check of %s: %v %+v", path, r.State, r.Findings)
	}
	for _, g := range r.Findings {
		if g.Severity > Note {
			t.Fatalf("check of %s: %+v", path, g)
		}
	}
}

// toRaw writes what we read from a disk to a sparse raw file.
func toRaw(t testing.TB, d *Disk, path string) {
	t.Helper()
	w, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	if err := w.Truncate(d.Size()); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	off := int64(0)
	buf := make([]byte, mib)
	err = d.Extents(ctx, 0, d.Size(), func(n int64, hole, zero bool) bool {
		if !zero {
			for at := off; at < off+n; at += int64(len(buf)) {
				p := buf[:min(int64(len(buf)), off+n-at)]
				if err := d.Read(ctx, p, at); err != nil {
					t.Fatal(err)
				}
				if _, err := w.WriteAt(p, at); err != nil {
					t.Fatal(err)
				}
			}
		}
		off += n
		return true
	})
	if err != nil || off != d.Size() {
		t.Fatalf("extents ended at %d of %d: %v", off, d.Size(), err)
	}
}

// noise fills p from a seed.
func noise(p []byte, seed uint64) {
	var s [32]byte
	binary.LittleEndian.PutUint64(s[:], seed)
	c := rand.NewChaCha8(s)
	_, _ = io.ReadFull(c, p)
}

// TestQEMUImages reads images that qemu-img made and qemu-io filled, and compares all of them with what qemu reads. Then we write to the image, and qemu compares that.
func TestQEMUImages(t *testing.T) {
	img, qio := tool(t, "qemu-img"), tool(t, "qemu-io")
	for _, kind := range []string{"dynamic", "fixed"} {
		for bs := int64(1); bs <= 256; bs *= 2 {
			t.Run(fmt.Sprintf("%s-%dM", kind, bs), func(t *testing.T) {
				if kind == "fixed" && bs != 1 && bs != 32 && bs != 256 {
					t.Skip("the other block sizes are covered by the dynamic images")
				}
				dir := t.TempDir()
				path, raw := filepath.Join(dir, "a.vhdx"), filepath.Join(dir, "a.raw")
				size := bs*3*mib + bs*mib/2 + 1536 // the last block is not whole
				run(t, img, "create", "-q", "-f", "vhdx", "-o", fmt.Sprintf("subformat=%s,block_size=%dM", kind, bs), path, fmt.Sprint(size))
				at := bs*mib - 4096
				run(t, qio, "-f", "vhdx", "-c", "write -P 0x5a 0 64k", "-c", fmt.Sprintf("write -P 0xa5 %d 12k", at),
					"-c", fmt.Sprintf("write -P 0x77 %d 512", roundUp(size, mib)-mib), path)
				ctx := t.Context()
				d, err := OpenFile(ctx, path, Options{})
				if err != nil {
					t.Fatal(err)
				}
				// qemu rounds sizes up to its own unit.
				if i := d.Info(); i.Kind.String() != kind || i.BlockSize != bs*mib || i.Size < size || !strings.Contains(i.Creator, "QEMU") {
					t.Fatalf("info %+v", i)
				}
				toRaw(t, d, raw)
				run(t, img, "compare", "-U", "-f", "raw", "-F", "vhdx", raw, path)

				w, err := os.OpenFile(raw, os.O_RDWR, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = w.Close() }()
				p := make([]byte, 100*kib)
				for i, off := range []int64{0, at + 512, 2*bs*mib - 512, d.Size() - int64(len(p))} {
					noise(p, uint64(i))
					if err := d.Write(ctx, p, off, i == 1); err != nil {
						t.Fatal(err)
					}
					if _, err := w.WriteAt(p, off); err != nil {
						t.Fatal(err)
					}
				}
				if err := d.WriteZeroes(ctx, bs*mib, bs*mib, true, false); err != nil {
					t.Fatal(err)
				}
				if _, err := w.WriteAt(make([]byte, bs*mib), bs*mib); err != nil {
					t.Fatal(err)
				}
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
				run(t, img, "compare", "-f", "raw", "-F", "vhdx", raw, path)
				strictCheck(t, path)
			})
		}
	}
}

// TestOursInQEMU has other programs read and write what we create.
func TestOursInQEMU(t *testing.T) {
	img, qio, vhdi := tool(t, "qemu-img"), tool(t, "qemu-io"), tool(t, "vhdiinfo")
	for _, o := range []CreateOptions{
		{Size: 100 * mib, BlockSize: mib},
		{Size: 100*mib + 512, BlockSize: 2 * mib, PhysicalSector: 512},
		{Size: 100 * mib},
		{Size: 1 << 30, BlockSize: 256 * mib, LogSize: 4 * mib},
		{Size: 40*mib + 4096, BlockSize: 8 * mib, LogicalSector: 4096},
		{Size: 40*mib + 512, BlockSize: 8 * mib, Fixed: true},
		{Size: 40 * mib, BlockSize: 4 * mib, Fixed: true, Sparse: true},
	} {
		t.Run(fmt.Sprintf("%d-%d-%d-%v", o.Size, o.BlockSize, o.LogicalSector, o.Fixed), func(t *testing.T) {
			ctx := t.Context()
			dir := t.TempDir()
			path, raw := filepath.Join(dir, "a.vhdx"), filepath.Join(dir, "a.raw")
			if err := CreateFile(ctx, path, o); err != nil {
				t.Fatal(err)
			}
			judge := strictCheck
			if o.LogicalSector == 4096 { // QEMU opens no image with such sectors; libvhdi does
				judge = ownCheck
			}
			judge(t, path)
			d, err := OpenFile(ctx, path, Options{})
			if err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 5*mib)
			noise(p, 1)
			for _, off := range []int64{3 * mib, d.Size() - int64(len(p))} {
				if err := d.Write(ctx, p, off, false); err != nil {
					t.Fatal(err)
				}
			}
			toRaw(t, d, raw)
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			judge(t, path)
			out := run(t, vhdi, path)
			want := "Dynamic"
			if o.Fixed {
				want = "Fixed"
			}
			if !strings.Contains(out, want) || !strings.Contains(out, fmt.Sprintf("(%d bytes)", o.Size)) || !strings.Contains(out, d.Info().DataWriteGUID.String()) {
				t.Errorf("vhdiinfo does not see what we made:\n%s", out)
			}
			if o.LogicalSector == 4096 {
				return
			}
			run(t, img, "compare", "-f", "raw", "-F", "vhdx", raw, path)
			run(t, qio, "-f", "vhdx", "-c", "write -P 0x42 30M 3M", "-c", "write -P 0x43 1M 4k", path)
			if d, err = OpenFile(ctx, path, Options{ReadOnly: true}); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 3*mib)
			if err := d.Read(ctx, b, 30*mib); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b, bytes.Repeat([]byte{0x42}, len(b))) {
				t.Error("what qemu-io wrote is not there")
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestQEMUKilled makes dirty logs: qemu-io is killed in the middle of its work, and we replay what it left, read-only and for writing.
func TestQEMUKilled(t *testing.T) {
	img, qio, stdbuf := tool(t, "qemu-img"), tool(t, "qemu-io"), tool(t, "stdbuf")
	dirty := 0
	for i := range 4 {
		dir := t.TempDir()
		path, raw := filepath.Join(dir, "a.vhdx"), filepath.Join(dir, "a.raw")
		run(t, img, "create", "-q", "-f", "vhdx", "-o", "block_size=1M", path, "4G")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, stdbuf, "-i0", "-o0", qio, "-f", "vhdx", path)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		const writes = 20
		for k := range writes {
			if _, err := fmt.Fprintf(in, "write -P %d %dM 64k\n", k+1, k*130); err != nil {
				t.Fatal(err)
			}
		}
		if i%2 == 0 {
			_, _ = fmt.Fprintf(in, "flush\n")
		}
		_, _ = fmt.Fprintf(in, "write -P 99 4000M 4k\n")
		// The answer to the last command comes after everything before it was done.
		var seen []byte
		buf := make([]byte, 4096)
		for bytes.Count(seen, []byte("wrote ")) < writes+1 {
			n, err := out.Read(buf)
			if err != nil {
				break
			}
			seen = append(seen, buf[:n]...)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()

		ro, err := OpenFile(ctx, path, Options{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		if ro.Info().LogState == LogReplayed {
			dirty++
		}
		see := func(d *Disk) {
			t.Helper()
			b := make([]byte, 64*kib)
			for k := range writes {
				if err := d.Read(ctx, b, int64(k)*130*mib); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(b, bytes.Repeat([]byte{byte(k + 1)}, len(b))) {
					t.Fatalf("write %d of qemu-io is lost", k)
				}
			}
		}
		see(ro)
		toRaw(t, ro, raw)
		if err := ro.Close(); err != nil {
			t.Fatal(err)
		}
		if i >= 2 { // qemu replays one half, we the other
			run(t, img, "check", "-q", "-r", "all", path)
			run(t, img, "compare", "-f", "raw", "-F", "vhdx", raw, path)
			continue
		}
		d, err := OpenFile(ctx, path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		see(d)
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		strictCheck(t, path)
		run(t, img, "compare", "-f", "raw", "-F", "vhdx", raw, path)
	}
	if dirty == 0 {
		t.Error("no image had a log to replay: the test proves nothing")
	}
}

// TestHuge opens an image of 64 TiB, ours and qemu's, with the smallest and the largest BAT.
func TestHuge(t *testing.T) {
	img := tool(t, "qemu-img")
	ctx := t.Context()
	for _, bs := range []int64{1, 32} {
		for _, by := range []string{"qemu", "us"} {
			path := filepath.Join(t.TempDir(), "huge.vhdx")
			if by == "us" {
				if err := CreateFile(ctx, path, CreateOptions{Size: 64 << 40, BlockSize: bs * mib}); err != nil {
					t.Fatal(err)
				}
			} else {
				run(t, img, "create", "-q", "-f", "vhdx", "-o", fmt.Sprintf("block_size=%dM", bs), path, "64T")
			}
			d, err := OpenFile(ctx, path, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if n := d.bat.reads.Load(); n > 1 {
				t.Errorf("%s, %d MiB: opening read %d pages of the BAT", by, bs, n)
			}
			p, q := make([]byte, 4096), make([]byte, 4096)
			noise(p, 3)
			for _, off := range []int64{0, 1 << 40, 33 << 40, d.Size() - 4096} {
				if err := d.Write(ctx, p, off, false); err != nil {
					t.Fatal(err)
				}
				if err := d.Read(ctx, q, off); err != nil || !bytes.Equal(p, q) {
					t.Fatalf("read back at %d: %v", off, err)
				}
			}
			var data, runs int64
			if err := d.Extents(ctx, 0, d.Size(), func(n int64, hole, zero bool) bool {
				runs++
				if !hole {
					data += n
				}
				return true
			}); err != nil {
				t.Fatal(err)
			}
			if data < 4*4096 || data > 4*bs*mib || runs > 12 {
				t.Errorf("%d bytes of data in %d runs", data, runs)
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			if bs == 32 {
				strictCheck(t, path)
			}
		}
	}
}
