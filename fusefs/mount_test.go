package fusefs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"vdbridge/test/leak"
	"vdbridge/test/ramdisk"
)

// need finds a program, or skips (in CI: fails) the test.
func need(t *testing.T, name, pkg string) string {
	t.Helper()
	exe, err := exec.LookPath(name)
	if err != nil {
		missing(t, name+" is missing: apt-get install "+pkg)
	}
	return exe
}

func missing(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("VDBRIDGE_REQUIRE_TOOLS") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = t.TempDir() // fio leaves a file behind
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// view is a mounted disk.
type view struct {
	dir, raw string
	stop     context.CancelFunc
	done     chan error
	once     sync.Once
	err      error
}

// end unmounts and returns what Serve returned.
func (v *view) end() error {
	v.once.Do(func() {
		v.stop()
		v.err = <-v.done
	})
	return v.err
}

func show(t *testing.T, d Disk, o Options) *view {
	t.Helper()
	if os.Getuid() != 0 {
		missing(t, "only root may mount")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		missing(t, "there is no /dev/fuse")
	}
	leak.Check(t)
	dir := t.TempDir()
	ctx, stop := context.WithCancel(context.Background())
	v := &view{dir: dir, raw: filepath.Join(dir, "disk.raw"), stop: stop, done: make(chan error, 1)}
	ready := make(chan struct{})
	o.Ready = func() { close(ready) }
	go func() { v.done <- Serve(ctx, dir, d, o) }()
	select {
	case <-ready:
	case err := <-v.done:
		stop()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.end(); err != nil && !t.Failed() {
			t.Errorf("Serve: %v", err)
		}
	})
	return v
}

// sharedDisk says that others may write to it.
type sharedDisk struct{ *ramdisk.Disk }

func (sharedDisk) Shared() bool { return true }

func open(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestReadAndWriteOfAnyAlignment(t *testing.T) {
	const size = 8 << 20
	d := ramdisk.New(size, 4096)
	v := show(t, d, Options{})
	f := open(t, v.raw, os.O_RDWR)
	want := make([]byte, size)
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		n := 1 + r.IntN(20000)
		off := r.IntN(size - n)
		for i := range n {
			want[off+i] = byte(r.Uint32())
		}
		if _, err := f.WriteAt(want[off:off+n], int64(off)); err != nil {
			t.Fatal(err)
		}
		if r.IntN(4) == 0 {
			mode := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
			if r.IntN(2) == 0 {
				mode = unix.FALLOC_FL_ZERO_RANGE
			}
			n, off := 1+r.IntN(30000), r.IntN(size-30000)
			clear(want[off : off+n])
			if err := unix.Fallocate(int(f.Fd()), mode, int64(off), int64(n)); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := make([]byte, size)
	if _, err := f.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the file does not read back as it was written")
	}
	if err := d.Read(context.Background(), got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the disk has not got what was written")
	}
	if n, err := f.ReadAt(got[:10], size-4); n != 4 || err != io.EOF {
		t.Errorf("read over the end: %d, %v", n, err)
	}
	// How much of it is written is the kernel's affair: a cached write is split at pages.
	if n, err := f.WriteAt(got[:10], size-4); n > 4 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write over the end: %d, %v", n, err)
	}
}

func TestPartsOfOneBlockFromManyWriters(t *testing.T) {
	const bs, block, rounds = 4096, 8, 40
	d := ramdisk.New(1<<20, bs)
	v := show(t, d, Options{})
	var wg sync.WaitGroup
	for w := range block {
		f := open(t, v.raw, os.O_RDWR)
		wg.Add(1)
		go func() {
			defer wg.Done()
			p := make([]byte, bs/block)
			for i := range rounds {
				for j := range p {
					p[j] = byte(w*rounds + i)
				}
				if _, err := f.WriteAt(p, int64(w*len(p))); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	got := make([]byte, bs)
	if err := d.Read(context.Background(), got, 0); err != nil {
		t.Fatal(err)
	}
	for i, b := range got {
		if want := byte(i/(bs/block)*rounds + rounds - 1); b != want {
			t.Fatalf("byte %d is %d, want %d: a write was undone by its neighbour", i, b, want)
		}
	}
}

func TestSharedDiskIsNeitherCachedNorChangedInPart(t *testing.T) {
	d := ramdisk.New(1<<20, 512)
	v := show(t, sharedDisk{d}, Options{})
	f := open(t, v.raw, os.O_RDWR)
	p := make([]byte, 4096)
	read := func() byte {
		t.Helper()
		if _, err := f.ReadAt(p[:100], 1000); err != nil {
			t.Fatal(err)
		}
		return p[0]
	}
	for i := byte(1); i < 5; i++ {
		// Another host writes.
		if err := d.Write(context.Background(), bytes.Repeat([]byte{i}, 4096), 0, false); err != nil {
			t.Fatal(err)
		}
		if got := read(); got != i {
			t.Fatalf("read %d after another host wrote %d", got, i)
		}
	}
	if _, err := f.WriteAt(p[:100], 0); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("a write of a part of a block: %v, want EINVAL", err)
	}
	if _, err := f.WriteAt(p[:512], 512); err != nil {
		t.Errorf("a write of a block: %v", err)
	}
}

func TestHolesAreFound(t *testing.T) {
	d := ramdisk.New(16<<20, 512)
	v := show(t, d, Options{})
	f := open(t, v.raw, os.O_RDWR)
	for _, off := range []int64{4 << 20, 9 << 20} {
		if _, err := f.WriteAt(bytes.Repeat([]byte{7}, 1<<20), off); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct{ off, data, hole int64 }{
		{0, 4 << 20, 0}, {100, 4 << 20, 100}, {4<<20 + 5, 4<<20 + 5, 5 << 20}, {5 << 20, 9 << 20, 5 << 20}, {10 << 20, -1, 10 << 20},
	} {
		data, err := unix.Seek(int(f.Fd()), tc.off, unix.SEEK_DATA)
		if err != nil && !(tc.data < 0 && err == syscall.ENXIO) || err == nil && data != tc.data {
			t.Errorf("SEEK_DATA from %d: %d, %v, want %d", tc.off, data, err, tc.data)
		}
		hole, err := unix.Seek(int(f.Fd()), tc.off, unix.SEEK_HOLE)
		if err != nil || hole != tc.hole {
			t.Errorf("SEEK_HOLE from %d: %d, %v, want %d", tc.off, hole, err, tc.hole)
		}
	}
}

func TestErrorsAndFlushes(t *testing.T) {
	d := ramdisk.New(1<<20, 512)
	v := show(t, sharedDisk{d}, Options{})
	f := open(t, v.raw, os.O_RDWR)
	p := make([]byte, 4096)
	for _, tc := range []struct {
		err  error
		want syscall.Errno
	}{{syscall.ENOSPC, syscall.ENOSPC}, {errors.New("something"), syscall.EIO}, {&os.PathError{Err: syscall.EBADE}, syscall.EBADE}} {
		d.SetHook(func(context.Context, ramdisk.Op, int64, int64) error { return tc.err })
		if _, err := f.WriteAt(p, 0); !errors.Is(err, tc.want) {
			t.Errorf("write: %v, want %v", err, tc.want)
		}
		if _, err := f.ReadAt(p, 0); !errors.Is(err, tc.want) {
			t.Errorf("read: %v, want %v", err, tc.want)
		}
		if err := f.Sync(); !errors.Is(err, tc.want) {
			t.Errorf("fsync: %v, want %v", err, tc.want)
		}
	}
	d.SetHook(nil)
	before := d.Flushes()
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if d.Flushes() != before+1 {
		t.Errorf("fsync flushed the disk %d times", d.Flushes()-before)
	}
	before = d.Flushes()
	if _, err := f.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if d.Flushes() != before+1 {
		t.Errorf("closing a file that was written flushed the disk %d times", d.Flushes()-before)
	}
	before = d.Flushes()
	if err := v.end(); err != nil {
		t.Fatal(err)
	}
	if d.Flushes() == before {
		t.Error("the disk was not flushed at the end")
	}
}

func TestReadOnly(t *testing.T) {
	d := ramdisk.New(1<<20, 512)
	d.SetReadOnly(true)
	v := show(t, d, Options{Info: func(context.Context) []byte { return []byte("{}\n") }})
	if f, err := os.OpenFile(v.raw, os.O_RDWR, 0); !errors.Is(err, syscall.EROFS) {
		t.Errorf("open for writing: %v, want EROFS", err)
		f.Close()
	}
	b, err := os.ReadFile(filepath.Join(v.dir, "info.json"))
	if err != nil || string(b) != "{}\n" {
		t.Errorf("info.json: %q, %v", b, err)
	}
	if b, err = os.ReadFile(v.raw); err != nil || len(b) != 1<<20 {
		t.Errorf("disk.raw: %d bytes, %v", len(b), err)
	}
}

func TestEndsWhenSomebodyElseUnmounts(t *testing.T) {
	v := show(t, ramdisk.New(1<<20, 512), Options{})
	if err := unix.Unmount(v.dir, 0); err != nil {
		t.Fatal(err)
	}
	if err := <-v.done; err != nil {
		t.Error(err)
	}
	v.done <- nil // for the clean-up
}

func TestRefusesWhatCannotBeMountedOn(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d := ramdisk.New(1<<20, 512)
	if err := Serve(context.Background(), file, d, Options{}); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("a file: %v", err)
	}
	if err := Serve(context.Background(), file+"x", d, Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
}

// TestFileSystemInside puts ext4 on disk.raw through a loop device, shared and not, works on it, and lets e2fsck judge.
func TestFileSystemInside(t *testing.T) {
	mkfs, fsck, losetup := need(t, "mkfs.ext4", "e2fsprogs"), need(t, "e2fsck", "e2fsprogs"), need(t, "losetup", "mount")
	for _, shared := range []bool{false, true} {
		name := "of one host"
		if shared {
			name = "shared"
		}
		t.Run(name, func(t *testing.T) {
			ram := ramdisk.New(128<<20, 512)
			var d Disk = ram
			if shared {
				d = sharedDisk{ram}
			}
			v := show(t, d, Options{})
			run(t, mkfs, "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", v.raw)
			loop := strings.TrimSpace(run(t, losetup, "--find", "--show", v.raw))
			inside := t.TempDir()
			mounted, attached := false, true
			t.Cleanup(func() { // reached with something left only when the test has failed
				if mounted {
					unix.Unmount(inside, unix.MNT_DETACH)
				}
				if attached {
					exec.Command(losetup, "-d", loop).Run()
				}
			})
			mount := func() {
				t.Helper()
				if err := unix.Mount(loop, inside, "ext4", 0, "discard"); err != nil {
					t.Fatal(err)
				}
				mounted = true
			}
			umount := func() {
				t.Helper()
				if err := unix.Unmount(inside, 0); err != nil {
					t.Fatal(err)
				}
				mounted = false
			}
			mount()
			data := make([]byte, 20<<20)
			rand.NewChaCha8([32]byte{1}).Read(data)
			for _, n := range []string{"a", "b", "c"} {
				if err := os.WriteFile(filepath.Join(inside, n), data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Remove(filepath.Join(inside, "b")); err != nil { // discards
				t.Fatal(err)
			}
			umount()
			mount()
			got, err := os.ReadFile(filepath.Join(inside, "c"))
			if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
				t.Errorf("the file does not read back: %v", err)
			}
			umount()
			run(t, losetup, "-d", loop)
			attached = false
			run(t, fsck, "-fn", v.raw)
			if err := v.end(); err != nil {
				t.Error(err)
			}
			image := filepath.Join(t.TempDir(), "image")
			all := make([]byte, ram.Size())
			if err := ram.Read(context.Background(), all, 0); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(image, all, 0o600); err != nil {
				t.Fatal(err)
			}
			run(t, fsck, "-fn", image)
		})
	}
}

func TestFioVerifies(t *testing.T) {
	fio := need(t, "fio", "fio")
	for _, direct := range []string{"0", "1"} {
		d := sharedDisk{ramdisk.New(32<<20, 512)}
		v := show(t, d, Options{})
		run(t, fio, "--name=v", "--filename="+v.raw, "--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned=0", "--size=32m", "--io_size=32m",
			"--ioengine=libaio", "--iodepth=16", "--direct="+direct, "--verify=crc32c", "--verify_fatal=1", "--randseed=1")
		if err := v.end(); err != nil {
			t.Error(err)
		}
	}
}
