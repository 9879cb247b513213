package vhdx

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
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
			if kind == "fixed" && bs != 1 && bs != 32 {
				continue // the block size makes no difference beyond what the dynamic images show
			}
			t.Run(fmt.Sprintf("%s-%dM", kind, bs), func(t *testing.T) {
				dir := t.TempDir()
				path, raw := filepath.Join(dir, "a.vhdx"), filepath.Join(dir, "a.raw")
				size := bs*2*mib + bs*mib/2 + 1536 // the last block is not whole
				if bs > 16 {
					size = bs*mib + 2*mib + 1536
				}
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
				for i, off := range []int64{0, at + 512, bs*mib + mib - 512, d.Size() - int64(len(p))} {
					noise(p, uint64(i))
					if err := d.Write(ctx, p, off, i == 1); err != nil {
						t.Fatal(err)
					}
					if _, err := w.WriteAt(p, off); err != nil {
						t.Fatal(err)
					}
				}
				if err := d.WriteZeroes(ctx, bs*mib, mib, true, false); err != nil {
					t.Fatal(err)
				}
				if _, err := w.WriteAt(make([]byte, mib), bs*mib); err != nil {
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
		{Size: 260 * mib, BlockSize: 256 * mib, LogSize: 4 * mib},
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

// TestQEMUDirtyLog makes a dirty log: the file under QEMU refuses the write of the BAT, which QEMU does after the log, so that the log
// keeps what the BAT lacks. We replay it read-only and for writing, and QEMU replays a copy; all must agree.
func TestQEMUDirtyLog(t *testing.T) {
	img, qio := tool(t, "qemu-img"), tool(t, "qemu-io")
	dir := t.TempDir()
	ctx := t.Context()
	path, raw, other := filepath.Join(dir, "a.vhdx"), filepath.Join(dir, "a.raw"), filepath.Join(dir, "b.vhdx")
	run(t, img, "create", "-q", "-f", "vhdx", "-o", "block_size=1M", path, "320M")
	run(t, qio, "-f", "vhdx", "-c", "write -P 5 1M 64k", path)
	d, err := OpenFile(ctx, path, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	bat := d.Info().BATOffset / 512
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	opts := fmt.Sprintf("driver=vhdx,file.driver=blkdebug,file.image.driver=file,file.image.filename=%s,file.inject-error.0.event=none,"+
		"file.inject-error.0.iotype=write,file.inject-error.0.once=off,file.inject-error.0.sector=%d", path, bat)
	out, err := exec.Command(qio, "--image-opts", opts, "-c", "write -P 7 40M 64k").CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("Input/output error")) {
		t.Fatalf("qemu-io did not fail as planned: %v\n%s", err, out)
	}
	run(t, "cp", "--sparse=always", path, other)
	for _, ro := range []bool{true, false} {
		d, err := OpenFile(ctx, path, Options{ReadOnly: ro})
		if err != nil {
			t.Fatal(err)
		}
		if i := d.Info(); i.LogState != LogReplayed || i.LogEntriesReplayed == 0 {
			t.Fatalf("read-only %v: the log was not replayed: %+v", ro, i)
		}
		b := make([]byte, 64*kib)
		for off, v := range map[int64]byte{mib: 5, 40 * mib: 7} {
			if err := d.Read(ctx, b, off); err != nil || !bytes.Equal(b, bytes.Repeat([]byte{v}, len(b))) {
				t.Fatalf("read-only %v: at %d: %v %x", ro, off, err, b[:16])
			}
		}
		if ro {
			toRaw(t, d, raw)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	strictCheck(t, path)
	run(t, img, "check", "-q", "-r", "all", other)
	run(t, img, "compare", "-f", "raw", "-F", "vhdx", raw, other)
	run(t, img, "compare", "-f", "raw", "-F", "vhdx", raw, path)
}

// TestQEMUKilled has qemu-io killed in the middle of its work, and opens what it left, read-only and for writing.
func TestQEMUKilled(t *testing.T) {
	img, qio, stdbuf := tool(t, "qemu-img"), tool(t, "qemu-io"), tool(t, "stdbuf")
	const writes, tries = 12, 4
	for try := range tries {
		dir := t.TempDir()
		path, raw := filepath.Join(dir, "a.vhdx"), filepath.Join(dir, "a.raw")
		run(t, img, "create", "-q", "-f", "vhdx", "-o", "block_size=1M", path, "320M")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		// qemu-io runs a command when its input becomes readable, so nothing may stay in a buffer.
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
		for k := range writes {
			if _, err := fmt.Fprintf(in, "write -P %d %dM 64k\n", k+1, k*14); err != nil {
				t.Fatal(err)
			}
		}
		var seen []byte
		buf := make([]byte, 4096)
		for bytes.Count(seen, []byte("wrote ")) < 4 {
			n, err := out.Read(buf)
			if err != nil {
				t.Fatalf("qemu-io: %v\n%s", err, seen)
			}
			seen = append(seen, buf[:n]...)
		}
		if err := cmd.Process.Kill(); err != nil { // while it works on the next one
			t.Fatal(err)
		}
		_ = cmd.Wait()
		acked := bytes.Count(seen, []byte("wrote "))

		ro, err := OpenFile(ctx, path, Options{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		see := func(d *Disk) {
			t.Helper()
			b := make([]byte, 64*kib)
			for k := range acked {
				if err := d.Read(ctx, b, int64(k)*14*mib); err != nil {
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
		if try%2 == 0 { // qemu replays one half, we the other
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
}

// TestLocks checks who may open an image beside whom.
func TestLocks(t *testing.T) {
	img := tool(t, "qemu-img")
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "a.vhdx")
	if err := CreateFile(ctx, path, CreateOptions{Size: 8 * mib, BlockSize: mib}); err != nil {
		t.Fatal(err)
	}
	open := func(ro bool) (*Disk, error) { return OpenFile(ctx, path, Options{ReadOnly: ro}) }
	d, err := open(false)
	if err != nil {
		t.Fatal(err)
	}
	for _, ro := range []bool{false, true} {
		if _, err := open(ro); !errors.Is(err, ErrInUse) {
			t.Errorf("a second open, read-only %v: %v", ro, err)
		}
	}
	if out, err := exec.Command(img, "info", path).CombinedOutput(); err == nil {
		t.Errorf("qemu-img info beside a writer: %s", out)
	}
	run(t, img, "info", "-U", path)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if d, err = open(true); err != nil {
		t.Fatal(err)
	}
	d2, err := open(true)
	if err != nil {
		t.Fatal(err)
	}
	run(t, img, "info", path)
	if _, err := open(false); !errors.Is(err, ErrInUse) {
		t.Errorf("a writer beside a reader: %v", err)
	}
	if out, err := exec.Command(tool(t, "qemu-io"), "-f", "vhdx", "-c", "write 0 4k", path).CombinedOutput(); err == nil {
		t.Errorf("qemu-io writes beside our reader: %s", out)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d2.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestHuge opens an image of 64 TiB, ours and qemu's, with the smallest and the largest BAT.
func TestHuge(t *testing.T) {
	img := tool(t, "qemu-img")
	ctx := t.Context()
	sizes := []int64{1, 32}
	if raceEnabled {
		sizes = sizes[1:] // the BAT of the other has 512 MiB
	}
	for _, bs := range sizes {
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
