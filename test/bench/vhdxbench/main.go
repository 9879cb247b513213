// Command vhdxbench measures our VHDX code beside qemu-nbd's on the same image, each behind its own NBD server with fio's nbd engine as the client,
// filling a new image, reading through a chain of differencing disks, and the memory that opening a disk of 64 TiB takes. It prints Markdown.
//
//	go run ./test/bench/vhdxbench [-bin bin/vdbridge] [-seconds 2] [-rounds 5]
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
	"time"

	"vdbridge/test/bench/load"
	"vdbridge/test/lab"
)

const imageBytes = 512 << 20

func main() {
	bin := flag.String("bin", "bin/vdbridge", "the vdbridge program")
	seconds := flag.Float64("seconds", 2, "length of one run")
	rounds := flag.Int("rounds", 5, "runs of each cell and server")
	flag.Parse()
	if err := run(context.Background(), *bin, *seconds, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "vhdxbench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bin string, seconds float64, rounds int) error {
	if err := lab.Missing("qemu-img", "qemu-nbd", "fio"); err != nil {
		return err
	}
	dir, err := load.MemoryDir("vdbridge-vhdxbench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	bin, err = filepath.Abs(bin)
	if err != nil {
		return err
	}
	vd, err := lab.NewProgram(bin, dir)
	if err != nil {
		return err
	}

	// One image with every block allocated; each server gets a copy.
	raw := filepath.Join(dir, "raw")
	if err := random(raw, imageBytes); err != nil {
		return err
	}
	image := func(name string) string { return filepath.Join(dir, name+".vhdx") }
	for _, name := range []string{"ours", "qemu"} {
		if _, err := lab.Run(ctx, "qemu-img", "convert", "-f", "raw", "-O", "vhdx", "-o", "subformat=dynamic", raw, image(name)); err != nil {
			return err
		}
	}
	if err := os.Remove(raw); err != nil {
		return err
	}
	sock := func(name string) string { return filepath.Join(dir, name+".sock") }
	ours, _, err := vd.NBD(ctx, image("ours"), sock("ours"))
	if err != nil {
		return err
	}
	defer ours.Kill()
	qemu, err := lab.Look("qemu-nbd")
	if err != nil {
		return err
	}
	theirs, err := lab.Start(exec.Command(qemu, "-f", "vhdx", "-t", "-e", "4", "-k", sock("qemu"), image("qemu")), nil)
	if err != nil {
		return err
	}
	defer theirs.Kill()
	if err := theirs.WaitListen(ctx, "unix", sock("qemu"), nil); err != nil {
		return err
	}

	fmt.Printf("A dynamic image of %d MiB, made by qemu-img, all blocks allocated, in memory; medians of %d runs of %.1f s. µs is processor time of the server for one request.\n\n", imageBytes>>20, rounds, seconds)
	load.Head("cell", "ours IOPS", "µs", "qemu-nbd IOPS", "µs", "ratio", "to reach")
	for _, c := range []struct {
		name string
		job  load.Job
		goal string
	}{
		{"1 MiB read, QD 4", load.Job{RW: "read", Block: 1 << 20, Depth: 4}, "2"},
		{"1 MiB write, QD 4", load.Job{RW: "write", Block: 1 << 20, Depth: 4}, "2"},
		{"4 KiB random read, QD 1", load.Job{RW: "randread", Block: 4096, Depth: 1}, ""},
		{"4 KiB random read, QD 32", load.Job{RW: "randread", Block: 4096, Depth: 32}, "2"},
		{"4 KiB random write, QD 32", load.Job{RW: "randwrite", Block: 4096, Depth: 32}, "2"},
	} {
		c.job.Size, c.job.Seconds = imageBytes, seconds
		cost := map[string][]float64{}
		subject := func(name string, p *lab.Proc) load.Subject {
			return load.Subject{Name: name, Measure: func() (float64, error) {
				before := load.CPUTime(p.Pid())
				r, err := load.FIO(ctx, "nbd+unix:///?socket="+sock(name), c.job)
				if err == nil && r.IOPS > 0 {
					cost[name] = append(cost[name], (load.CPUTime(p.Pid())-before).Seconds()*1e6/(r.IOPS*seconds))
				}
				return r.IOPS, err
			}}
		}
		m, err := load.Rounds(rounds, []load.Subject{subject("ours", ours), subject("qemu", theirs)})
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		load.Row(c.name, m[0], load.Median(cost["ours"]), m[1], load.Median(cost["qemu"]), m[0]/m[1], c.goal)
	}
	if err := errors.Join(ours.Stop(20*time.Second), theirs.Stop(20*time.Second)); err != nil {
		return err
	}
	for _, name := range []string{"ours", "qemu"} {
		if _, err := lab.Run(ctx, "qemu-img", "check", "-f", "vhdx", image(name)); err != nil {
			return err
		}
	}
	if err := fill(ctx, vd, qemu, dir, rounds); err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	if err := chain(ctx, vd, dir, seconds, rounds); err != nil {
		return fmt.Errorf("chain: %w", err)
	}
	return memory(ctx, vd, dir, seconds)
}

// memory measures the resident memory of a server with a disk of 64 TiB, after reads and writes all over it.
func memory(ctx context.Context, vd *lab.Program, dir string, seconds float64) error {
	const size = 64 << 40
	image, sock := filepath.Join(dir, "big.vhdx"), filepath.Join(dir, "big.sock")
	if _, err := vd.Run(ctx, "create", image, "--size", "64T"); err != nil {
		return err
	}
	start := time.Now()
	p, uri, err := vd.NBD(ctx, image, sock)
	if err != nil {
		return err
	}
	defer p.Kill()
	opened := time.Since(start)
	idle, err := load.PeakMemory(p.Pid())
	if err != nil {
		return err
	}
	if _, err := load.FIO(ctx, uri, load.Job{RW: "randread", Block: 4096, Depth: 32, Size: size, Seconds: seconds}); err != nil {
		return err
	}
	read, err := load.PeakMemory(p.Pid())
	if err != nil {
		return err
	}
	fmt.Printf("\nA disk of 64 TiB (dynamic, empty), peak resident memory of `vdbridge nbd`; to reach: below 64 MiB.\n\n")
	load.Head("when", "MiB")
	load.Row(fmt.Sprintf("opened, after %d ms", opened.Milliseconds()), float64(idle)/(1<<20))
	load.Row(fmt.Sprintf("after %.0f s of 4 KiB random reads all over it, QD 32", seconds), float64(read)/(1<<20))
	return p.Stop(20 * time.Second)
}

// random writes a file of random bytes.
func random(path string, n int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.NewChaCha8([32]byte{2}), n)
	return errors.Join(err, f.Close())
}
