// Command demo does vdbridge's main job on real disks and tells what it does: a virtual disk that qemu-img made is served over SMB 3,
// opened as a shared disk with MS-RSVD, used through NBD, FUSE and a real kernel's block driver, by one host and by two, and judged
// in the end by programs that are not ours. `make demo` runs it.
//
// It needs root (it mounts file systems and boots a guest), works in a folder of its own, and leaves nothing behind.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"vdbridge/test/lab"
	"vdbridge/test/vm"
)

func main() {
	var (
		size  = flag.String("size", "full", "full, or small for a quick run")
		bin   = flag.String("bin", "bin/vdbridge", "the vdbridge program")
		parts = flag.String("parts", "12345", "which of the five parts to run; 1 is always run")
	)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *size, *bin, *parts); err != nil {
		fmt.Fprintln(os.Stderr, "\nThe demonstration FAILED:", err)
		os.Exit(1)
	}
}

// scale is how much is done.
type scale struct {
	disk  string   // size of the disk with files, as mkfs and qemu-img take it
	trees []string // below the Go source tree
	fio   string   // bytes that each fio job writes and reads back
}

var scales = map[string]scale{
	"full":  {disk: "1G", trees: []string{"."}, fio: "192M"},
	"small": {disk: "256M", trees: []string{"net", "crypto", "encoding", "os", "io"}, fio: "24M"},
}

// demo is one run.
type demo struct {
	ctx context.Context
	scale
	dir   string // everything of this run
	disks string // what the server offers
	vd    *lab.Program

	files   map[string]string // path inside the disk's file system → sha256, what must be there
	started time.Time
	results []result
	cleanup []func() error
}

type result struct {
	what, detail string
	took         time.Duration
}

func run(ctx context.Context, size, bin, parts string) (err error) {
	sc, ok := scales[size]
	if !ok {
		return fmt.Errorf("-size is full or small, not %q", size)
	}
	if os.Geteuid() != 0 {
		return errors.New("it mounts file systems and boots a guest, so it needs root: sudo make demo")
	}
	if err := errors.Join(vm.Check(), lab.Missing("qemu-img", "qemu-io", "mkfs.ext4", "e2fsck", "nbdcopy", "fio", "mount", "umount", "losetup", "smbd", "nbd-client", "ip")); err != nil {
		return err
	}
	bin, err = filepath.Abs(bin)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "vdbridge-demo-")
	if err != nil {
		return err
	}
	d := &demo{ctx: ctx, scale: sc, dir: dir, disks: filepath.Join(dir, "disks"), started: time.Now()}
	defer func() { err = errors.Join(err, d.clean(), os.RemoveAll(dir)) }()
	state := filepath.Join(dir, "private")
	if err := errors.Join(os.Mkdir(d.disks, 0o755), os.Mkdir(state, 0o700)); err != nil {
		return err
	}
	if d.vd, err = lab.NewProgram(bin, state); err != nil {
		return err
	}

	fmt.Printf("vdbridge demonstration (%s), in %s, on %d cores\n", size, dir, runtime.NumCPU())
	for i, part := range []struct {
		title string
		do    func() error
	}{
		{"Part 1: a virtual disk full of files, made by tools that are not ours", d.makeDisk},
		{"Part 2: served over SMB 3, opened as a shared disk (MS-RSVD), used over NBD", d.shared},
		{"Part 3: the same disk as a file (FUSE), and the file system inside it mounted", d.fuse},
		{"Part 4: the same disk on Debian's Samba server, which knows no shared disks", d.samba},
		{"Part 5: a real Linux kernel uses the disk through its own nbd driver", d.kernel},
	} {
		n := fmt.Sprint(i + 1)
		if i > 0 && !strings.Contains(parts, n) {
			continue
		}
		fmt.Printf("\n%s\n", part.title)
		if err := part.do(); err != nil {
			return fmt.Errorf("part %s: %w", n, err)
		}
		if err := d.clean(); err != nil {
			return fmt.Errorf("part %s: ending what it had started: %w", n, err)
		}
	}
	if strings.Contains(parts, "2345") {
		d.summary()
	} else {
		fmt.Printf("\nOnly a part was run (-parts %s): %d steps in %.0f seconds, all of them as expected.\n", parts, len(d.results), time.Since(d.started).Seconds())
	}
	return nil
}

// step does one thing, tells what it is and how long it took, and stops the demonstration if it fails.
func (d *demo) step(what string, do func() (detail string, err error)) error {
	fmt.Printf("  [%6.1fs] %s", time.Since(d.started).Seconds(), what)
	start := time.Now()
	detail, err := do()
	took := time.Since(start)
	if err != nil {
		fmt.Printf(" … FAILED\n")
		return fmt.Errorf("%s: %w", what, err)
	}
	fmt.Printf(" … done in %.1fs\n", took.Seconds())
	for _, l := range strings.Split(strings.TrimSpace(detail), "\n") {
		if l != "" {
			fmt.Printf("             %s\n", l)
		}
	}
	d.results = append(d.results, result{what: what, detail: detail, took: took})
	return nil
}

// steps does several steps until one fails.
func (d *demo) steps(ss ...step) error {
	for _, s := range ss {
		if err := d.ctx.Err(); err != nil {
			return err
		}
		if err := d.step(s.what, s.do); err != nil {
			return err
		}
	}
	return nil
}

type step struct {
	what string
	do   func() (detail string, err error)
}

// later adds something to undo at the end of the part. The last is undone first.
func (d *demo) later(f func() error) { d.cleanup = append(d.cleanup, f) }

func (d *demo) clean() error {
	var errs []error
	for len(d.cleanup) > 0 {
		f := d.cleanup[len(d.cleanup)-1]
		d.cleanup = d.cleanup[:len(d.cleanup)-1]
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

func (d *demo) path(name string) string { return filepath.Join(d.dir, name) }

// run runs a foreign program and returns what it printed.
func (d *demo) run(name string, args ...string) (string, error) { return lab.Run(d.ctx, name, args...) }

func (d *demo) summary() {
	fmt.Printf(`
Summary: %d steps in %.0f seconds, all of them as expected.

  What happened: qemu-img made a disk image (dynamic VHDX) with %d files on an ext4 file system.
  `+"`vdbridge serve`"+` offered it on the network as an SMB 3 file server does, and vdbridge opened it there in the way that
  Hyper-V hosts share a disk (MS-RSVD). Linux then used the disk in three ways: as an NBD export, as a file, and as a block device of
  a real kernel. Two hosts used one disk at the same time; when one reserved it, the other's writes were refused, as a cluster
  needs it. The same worked with Debian's Samba as the server, where vdbridge itself interprets the image.

  Who judged: qemu-img compared and checked the image, e2fsck the file system, fio the checksum of every block that it wrote,
  and every file was compared with its original by its SHA-256. Those programs are not part of vdbridge.

  Next: README.md has the same by hand, `+"`vdbridge --help`"+` the commands.
`, len(d.results), time.Since(d.started).Seconds(), len(d.files))
}
