package fusefs

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vdbridge/test/lab"
	"vdbridge/test/ramdisk"
)

// fsx does what the program of that name does, on a file whose size stays: reads, writes, punches, zeroes and reopens at random, and compares every byte that it reads with what it must
// be. It does not map the file: who waits for a page of a mount that he serves himself waits for ever.
func fsx(t *testing.T, path string, size int64, seed uint64, steps int) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 77))
	want := make([]byte, size)
	f := open(t, path, os.O_RDWR)
	if _, err := f.ReadAt(want, 0); err != nil {
		t.Fatal(err)
	}
	var log []string
	fail := func(what string, err error) {
		t.Helper()
		t.Fatalf("seed %d: %s: %v\n%s", seed, what, err, strings.Join(log[max(0, len(log)-20):], "\n"))
	}
	for range steps {
		n := 1 + r.Int64N(min(size, 200000))
		off := r.Int64N(size - n + 1)
		part := want[off : off+n]
		kind := r.IntN(7)
		log = append(log, fmt.Sprintf("%d: %d bytes at %d", kind, n, off))
		switch kind {
		case 0, 1:
			for i := range part {
				part[i] = byte(r.Uint32())
			}
			if _, err := f.WriteAt(part, off); err != nil {
				fail("write", err)
			}
		case 2, 3:
			got := make([]byte, n)
			if _, err := f.ReadAt(got, off); err != nil || !bytes.Equal(got, part) {
				fail("read", err)
			}
		case 4:
			clear(part)
			if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n); err != nil {
				fail("punch", err)
			}
		case 5:
			clear(part)
			if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_ZERO_RANGE, off, n); err != nil {
				fail("zero", err)
			}
		case 6:
			if err := f.Close(); err != nil {
				fail("close", err)
			}
			f = open(t, path, os.O_RDWR)
		}
	}
	got := make([]byte, size)
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		fail("the whole file at the end", err)
	}
}

func TestFsx(t *testing.T) {
	d := ramdisk.New(4<<20, 4096)
	v := show(t, d, Options{Parts: parts(Part{"1", 1<<20 + 1536, 2 << 20})})
	for seed := range uint64(3) {
		fsx(t, v.raw, 4<<20, seed, 400)
		fsx(t, filepath.Join(v.dir, "partitions", "1"), 2<<20, seed, 400)
	}
}

// TestFioOnAPartition is TestFioVerifies on a partition that begins within a block.
func TestFioOnAPartition(t *testing.T) {
	fio := need(t, "fio", "fio")
	d := ramdisk.New(34<<20, 4096)
	v := show(t, d, Options{Parts: parts(Part{"1", 1<<20 + 512, 32 << 20})})
	run(t, fio, "--name=v", "--filename="+filepath.Join(v.dir, "partitions", "1"), "--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned=0", "--size=32m", "--io_size=32m",
		"--ioengine=libaio", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--randseed=1")
}

// TestFileSystemsInPartitions makes file systems in a partition, works on them through a loop device with the workload of test/fsx, and lets their own checkers judge.
func TestFileSystemsInPartitions(t *testing.T) {
	for name, tc := range map[string]struct {
		size        int64
		make, check []string
	}{
		"ext4":  {96 << 20, []string{"mkfs.ext4", "-q", "-F"}, []string{"e2fsck", "-fn"}},
		"xfs":   {320 << 20, []string{"mkfs.xfs", "-q"}, []string{"xfs_repair", "-n", "-f"}},
		"btrfs": {160 << 20, []string{"mkfs.btrfs", "-q"}, []string{"btrfs", "check", "--readonly"}},
	} {
		t.Run(name, func(t *testing.T) {
			lab.Need(t, tc.make[0], tc.check[0], "losetup", "mount")
			v := show(t, ramdisk.New(tc.size+2<<20, 512), Options{Parts: parts(Part{"1", 1 << 20, tc.size})})
			part := filepath.Join(v.dir, "partitions", "1")
			tool := func(args ...string) string {
				t.Helper()
				p, err := lab.Look(args[0])
				if err != nil {
					t.Fatal(err)
				}
				return run(t, p, args[1:]...)
			}
			tool(append(tc.make, part)...)
			loop := strings.TrimSpace(tool("losetup", "--find", "--show", part))
			inside := t.TempDir()
			if err := unix.Mount(loop, inside, name, 0, ""); err != nil {
				exec.Command("losetup", "-d", loop).Run()
				t.Fatal(err)
			}
			out, err := exec.Command("go", "run", "vdbridge/test/fsx", "-dir", inside, "-duration", "2s", "-seed", "5").CombinedOutput()
			uerr := unix.Unmount(inside, 0)
			tool("losetup", "-d", loop)
			if err != nil || uerr != nil {
				t.Fatalf("%v, %v\n%s", err, uerr, out)
			}
			tool(append(tc.check, part)...)
		})
	}
}
