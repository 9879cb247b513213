// Command fusebench measures mounted disks and copies of sparse images beside qemu-nbd with nbdfuse, nbdcopy and qemu-img, in rounds that take turns, and prints
// medians and ratios as Markdown. As root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"vdbridge/test/lab"
)

const (
	diskMiB   = 1024 // of the disk that is read
	sparseGiB = 100  // of the image that is copied
	pieces    = 64   // of data in it
	pieceMiB  = 16
)

type bench struct {
	dir, bin string
	seconds  int
	figures  map[string][]float64
}

func main() {
	bin := flag.String("bin", "bin/vdbridge", "the program")
	seconds := flag.Int("seconds", 2, "length of a run of random reads")
	rounds := flag.Int("rounds", 5, "how many runs the medians are of")
	flag.Parse()
	if err := run(*bin, *seconds, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "fusebench:", err)
		os.Exit(1)
	}
}

func run(bin string, seconds, rounds int) (err error) {
	if err := lab.Missing("qemu-nbd", "nbdfuse", "nbdcopy", "qemu-img", "fio", "dd", "fusermount3"); err != nil {
		return err
	}
	if bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "fusebench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{dir: dir, bin: bin, seconds: seconds, figures: map[string][]float64{}}
	if err := errors.Join(os.Mkdir(b.path("m"), 0o755), os.Mkdir(b.path("n"), 0o755), b.images()); err != nil {
		return err
	}
	for range rounds {
		if err := errors.Join(b.mounted(), b.exported(), b.nbdfuse(), b.copies()); err != nil {
			return err
		}
	}
	b.print()
	return nil
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

func (b *bench) note(name string, v float64) { b.figures[name] = append(b.figures[name], v) }

func command(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return string(out), nil
}

// images makes a full disk and a sparse one.
func (b *bench) images() error {
	raw, err := os.Create(b.path("full.raw"))
	if err != nil {
		return err
	}
	defer raw.Close()
	random := rand.NewChaCha8([32]byte{1})
	if _, err := io.CopyN(raw, random, diskMiB<<20); err != nil {
		return err
	}
	sparse, err := os.Create(b.path("sparse.raw"))
	if err != nil {
		return err
	}
	defer sparse.Close()
	buf := make([]byte, pieceMiB<<20)
	for i := range int64(pieces) {
		random.Read(buf)
		if _, err := sparse.WriteAt(buf, i*(sparseGiB<<30/pieces)+7<<20); err != nil {
			return err
		}
	}
	if err := sparse.Truncate(sparseGiB << 30); err != nil {
		return err
	}
	for _, n := range []string{"full", "sparse"} {
		if _, err := command(b.bin, "copy", b.path(n+".raw"), b.path(n+".vhdx"), "--progress", "none"); err != nil {
			return err
		}
	}
	// What waits to be written would be written during the first run.
	_, err = command("sync", "-f", b.dir)
	return err
}

// started runs a program until stop, once it has made the file.
func (b *bench) started(file string, args ...string) (stop func(), err error) {
	p, err := lab.Start(exec.Command(args[0], args[1:]...), nil)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), lab.ReadyTimeout)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(b.path(file)); err == nil {
			return func() { _ = p.Stop(lab.ReadyTimeout) }, nil
		}
		select {
		case <-tick.C:
		case <-p.Done():
			return nil, fmt.Errorf("%s ended: %s", args[0], p.Output())
		case <-ctx.Done():
			p.Kill()
			return nil, fmt.Errorf("%s is not ready: %s", args[0], p.Output())
		}
	}
}

// timed says how many seconds a command takes; made is the file whose data are to be on the disk by then, "" for none.
func timed(made string, args ...string) (float64, error) {
	start := time.Now()
	if _, err := command(args[0], args[1:]...); err != nil {
		return 0, err
	}
	if made != "" {
		if _, err := command("sync", "-d", made); err != nil {
			return 0, err
		}
	}
	return time.Since(start).Seconds(), nil
}

// read measures a file: from its beginning to its end, and at random.
func (b *bench) read(file, name string) error {
	s, err := timed("", "dd", "if="+b.path(file), "of=/dev/null", "bs=1M", "status=none")
	if err != nil {
		return err
	}
	b.note("dd "+name, diskMiB/s)
	out, err := command("fio", "--name=r", "--filename="+b.path(file), "--rw=randread", "--bs=4k", "--iodepth=32", "--ioengine=libaio", "--direct=1", "--readonly",
		"--time_based", "--runtime="+strconv.Itoa(b.seconds), "--output-format=terse")
	if err != nil {
		return err
	}
	f := strings.Split(out, ";")
	if len(f) < 8 {
		return fmt.Errorf("fio says %q", out)
	}
	iops, err := strconv.ParseFloat(f[7], 64)
	b.note("random "+name, iops)
	return err
}

func (b *bench) mounted() error {
	stop, err := b.started("m/disk.raw", b.bin, "mount", b.path("full.vhdx"), b.path("m"), "--read-only")
	if err != nil {
		return err
	}
	defer stop()
	return b.read("m/disk.raw", "mount")
}

func (b *bench) exported() error {
	stop, err := b.started("s", b.bin, "nbd", b.path("full.vhdx"), "--read-only", "--listen", "unix:"+b.path("s"))
	if err != nil {
		return err
	}
	defer stop()
	s, err := timed("", "nbdcopy", "nbd+unix:///?socket="+b.path("s"), "null:")
	b.note("nbdcopy", diskMiB/s)
	return err
}

func (b *bench) nbdfuse() error {
	qemu, err := b.started("q", "qemu-nbd", "-r", "-f", "vhdx", "-t", "-k", b.path("q"), "-e", "32", b.path("full.vhdx"))
	if err != nil {
		return err
	}
	defer os.Remove(b.path("q"))
	defer qemu()
	fuse, err := b.started("n/nbd", "nbdfuse", b.path("n"), "nbd+unix:///?socket="+b.path("q"))
	if err != nil {
		return err
	}
	defer fuse()
	defer command("fusermount3", "-u", b.path("n"))
	return b.read("n/nbd", "nbdfuse")
}

func (b *bench) copies() error {
	for _, c := range []struct {
		name, made string
		args       []string
	}{
		{"raw to raw, vdbridge", "o.raw", []string{b.bin, "copy", b.path("sparse.raw"), b.path("o.raw"), "--progress", "none"}},
		{"raw to raw, qemu-img", "o.raw", []string{"qemu-img", "convert", "-f", "raw", "-O", "raw", b.path("sparse.raw"), b.path("o.raw")}},
		{"raw to raw, nbdcopy", "o.raw", []string{"nbdcopy", b.path("sparse.raw"), b.path("o.raw")}},
		{"vhdx to raw, vdbridge", "o.raw", []string{b.bin, "copy", b.path("sparse.vhdx"), b.path("o.raw"), "--progress", "none"}},
		{"vhdx to raw, qemu-img", "o.raw", []string{"qemu-img", "convert", "-f", "vhdx", "-O", "raw", b.path("sparse.vhdx"), b.path("o.raw")}},
		{"raw to vhdx, vdbridge", "o.vhdx", []string{b.bin, "copy", b.path("sparse.raw"), b.path("o.vhdx"), "--progress", "none"}},
		{"raw to vhdx, qemu-img", "o.vhdx", []string{"qemu-img", "convert", "-f", "raw", "-O", "vhdx", b.path("sparse.raw"), b.path("o.vhdx")}},
	} {
		made := b.path(c.made)
		s, err := timed(made, c.args...)
		if err := errors.Join(err, os.Remove(made)); err != nil {
			return err
		}
		b.note(c.name, s)
	}
	return nil
}

func (b *bench) median(name string) float64 {
	f := slices.Sorted(slices.Values(b.figures[name]))
	if len(f) == 0 {
		return 0
	}
	return f[len(f)/2]
}

func (b *bench) print() {
	fmt.Printf("A dynamic image of 1 GiB in the page cache. `dd bs=1M`, and fio with 4 KiB at random, 32 in flight, `direct=1`.\n\n")
	fmt.Printf("| | `vdbridge mount` | beside | ratio |\n| --- | ---: | ---: | ---: |\n")
	m, n := b.median("dd mount"), b.median("nbdcopy")
	fmt.Printf("| sequential, MiB/s; nbdcopy from `vdbridge nbd` | %.0f | %.0f | %.2f |\n", m, n, m/n)
	n = b.median("dd nbdfuse")
	fmt.Printf("| sequential, MiB/s; dd from qemu-nbd + nbdfuse | %.0f | %.0f | %.2f |\n", m, n, m/n)
	m, n = b.median("random mount"), b.median("random nbdfuse")
	fmt.Printf("| random, IOPS; qemu-nbd + nbdfuse | %.0f | %.0f | %.2f |\n", m, n, m/n)
	fmt.Printf("\nCopies of a sparse image of %d GiB with %d MiB of data, in seconds, until the data are on the disk (`sync -d` behind each).\n\n", sparseGiB, pieces*pieceMiB)
	fmt.Printf("| | `vdbridge copy` | beside | ratio |\n| --- | ---: | ---: | ---: |\n")
	for _, c := range [][2]string{{"raw to raw", "qemu-img"}, {"raw to raw", "nbdcopy"}, {"vhdx to raw", "qemu-img"}, {"raw to vhdx", "qemu-img"}} {
		m, n := b.median(c[0]+", vdbridge"), b.median(c[0]+", "+c[1])
		fmt.Printf("| %s; %s | %.2f | %.2f | %.2f |\n", c[0], c[1], m, n, n/m)
	}
}
