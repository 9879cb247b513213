package fusefs

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"vdbridge/test/ramdisk"
)

func parts(list ...Part) func(context.Context) ([]Part, error) {
	return func(context.Context) ([]Part, error) { return list, nil }
}

// TestPartitionsAreWindows writes through every file at random, at any alignment, and compares all of them with one model: what is written under one name is there under
// all others at once, whatever the kernel has cached. Partition 2 begins and ends within blocks of the disk.
func TestPartitionsAreWindows(t *testing.T) {
	for _, shared := range []bool{false, true} {
		t.Run(map[bool]string{false: "of one host", true: "shared"}[shared], func(t *testing.T) { windows(t, shared) })
	}
}

func windows(t *testing.T, shared bool) {
	const size = 4 << 20
	d := ramdisk.New(size, 4096)
	disk := Disk(d)
	unit := 1
	list := []Part{{"1", 0, 1 << 20}, {"2", 1<<20 + 512, 2<<20 + 1536}, {"3", size - 4096, 4096}}
	if shared {
		// Parts of blocks cannot be written then.
		disk, unit, list[1] = sharedDisk{d}, 4096, Part{"2", 1<<20 + 4096, 2 << 20}
	}
	v := show(t, disk, Options{Parts: parts(list...)})
	type window struct {
		f          *os.File
		base, size int
	}
	files := []window{{open(t, v.raw, os.O_RDWR), 0, size}}
	for _, p := range list {
		files = append(files, window{open(t, filepath.Join(v.dir, "partitions", p.Name), os.O_RDWR), int(p.Start), int(p.Size)})
	}
	want := make([]byte, size)
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 400 {
		w := files[r.IntN(len(files))]
		n := (1 + r.IntN(min(w.size, 20000)/unit)) * unit
		n = min(n, w.size)
		off := r.IntN(w.size-n+1) / unit * unit
		part := want[w.base+off : w.base+off+n]
		if r.IntN(4) == 0 {
			clear(part)
			if err := unix.Fallocate(int(w.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n)); err != nil {
				t.Fatal(err)
			}
		} else {
			for j := range part {
				part[j] = byte(r.Uint32())
			}
			if _, err := w.f.WriteAt(part, int64(off)); err != nil {
				t.Fatal(err)
			}
		}
		o := files[r.IntN(len(files))]
		got := make([]byte, o.size)
		if _, err := o.f.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want[o.base:o.base+o.size]) {
			t.Fatalf("shared %v: after %d writes the file at %d is not what was written through the one at %d", shared, i+1, o.base, w.base)
		}
	}
	if n, err := files[2].f.WriteAt(make([]byte, 2*unit), int64(files[2].size-unit)); n > unit || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write over the end of a partition: %d, %v", n, err)
	}
}

// TestPartitionTableChanges has somebody partition the disk while it is mounted.
func TestPartitionTableChanges(t *testing.T) {
	d := ramdisk.New(1<<20, 512)
	var asked atomic.Int64
	v := show(t, d, Options{Parts: func(ctx context.Context) ([]Part, error) {
		asked.Add(1)
		b := make([]byte, 512)
		if err := d.Read(ctx, b, 0); err != nil {
			return nil, err
		}
		list := []Part{{"1", 4096, 8192}, {"2", 1 << 19, 1 << 19}, {"9", 1 << 19, 1 << 20}} // the last is not on the disk
		return list[:b[0]], nil
	}})
	names := func() []string {
		t.Helper()
		list, err := os.ReadDir(filepath.Join(v.dir, "partitions"))
		if err != nil {
			t.Fatal(err)
		}
		var s []string
		for _, e := range list {
			s = append(s, e.Name())
		}
		return s
	}
	f := open(t, v.raw, os.O_RDWR)
	for n := range 3 {
		if _, err := f.WriteAt([]byte{byte(n)}, 0); err != nil {
			t.Fatal(err)
		}
		if got := names(); !slices.Equal(got, []string{"1", "2"}[:n]) && len(got)+n > 0 {
			t.Errorf("with %d partitions: %q", n, got)
		}
	}
	before := asked.Load()
	if names(); asked.Load() != before {
		t.Error("the table was read again although nothing has changed")
	}
	if _, err := f.WriteAt([]byte{3}, 0); err != nil {
		t.Fatal(err)
	}
	if got := names(); !slices.Equal(got, []string{"1", "2"}) {
		t.Errorf("with a partition that leaves the disk: %q", got)
	}
	if err := os.Remove(filepath.Join(v.dir, "partitions", "1")); !errors.Is(err, syscall.EPERM) {
		t.Errorf("a partition was removed: %v", err)
	}
	if err := os.Remove(v.raw); !errors.Is(err, syscall.EPERM) {
		t.Errorf("the disk was removed: %v", err)
	}
}

func TestHolesOfPartitions(t *testing.T) {
	d := ramdisk.New(16<<20, 512)
	v := show(t, d, Options{Parts: parts(Part{"1", 1<<20 + 256, 8 << 20})})
	f := open(t, filepath.Join(v.dir, "partitions", "1"), os.O_RDWR)
	if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 1<<20), 2<<20); err != nil {
		t.Fatal(err)
	}
	data, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	hole, err2 := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
	// The memory disk knows holes in pieces of 64 KiB.
	if err != nil || err2 != nil || data < 2<<20-64<<10 || data > 2<<20 || hole < 3<<20 || hole > 3<<20+64<<10 {
		t.Errorf("data from %d to %d (%v, %v), want 2 MiB to 3 MiB", data, hole, err, err2)
	}
	if _, err := unix.Seek(int(f.Fd()), 5<<20, unix.SEEK_DATA); err != unix.ENXIO {
		t.Errorf("data behind the last: %v", err)
	}
	if at, err := unix.Seek(int(f.Fd()), 5<<20, unix.SEEK_HOLE); at != 5<<20 || err != nil {
		t.Errorf("hole: %d, %v", at, err)
	}
	if at, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_END); at != 8<<20 || err != nil {
		t.Errorf("size: %d, %v", at, err)
	}
}
