package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"vdbridge/test/bench/load"
	"vdbridge/test/lab"
	"vdbridge/vhdx"
)

// fill measures how fast an empty dynamic image is filled from beginning to end, flush included, each time a new one.
func fill(ctx context.Context, vd *lab.Program, qemu, dir string, rounds int) error {
	const size = imageBytes
	job := load.Job{RW: "write", Block: 1 << 20, Depth: 4, Size: size, Once: true}
	subject := func(name string, start func(image, sock string) (*lab.Proc, error)) load.Subject {
		return load.Subject{Name: name, Measure: func() (float64, error) {
			image, sock := filepath.Join(dir, "fill-"+name+".vhdx"), filepath.Join(dir, "fill-"+name+".sock")
			defer os.Remove(image)
			if _, err := lab.Run(ctx, "qemu-img", "create", "-q", "-f", "vhdx", "-o", "subformat=dynamic,block_size=1M", image, fmt.Sprint(size)); err != nil {
				return 0, err
			}
			p, err := start(image, sock)
			if err != nil {
				return 0, err
			}
			defer p.Kill()
			began := time.Now()
			if _, err := load.FIO(ctx, "nbd+unix:///?socket="+sock, job); err != nil {
				return 0, err
			}
			if err := p.Stop(60 * time.Second); err != nil { // it flushes
				return 0, err
			}
			took := time.Since(began)
			if _, err := lab.Run(ctx, "qemu-img", "check", "-f", "vhdx", image); err != nil {
				return 0, err
			}
			return float64(size>>20) / took.Seconds(), nil
		}}
	}
	m, err := load.Rounds(rounds, []load.Subject{
		subject("ours", func(image, sock string) (*lab.Proc, error) {
			p, _, err := vd.NBD(ctx, image, sock)
			return p, err
		}),
		subject("qemu", func(image, sock string) (*lab.Proc, error) {
			p, err := lab.Start(exec.Command(qemu, "-f", "vhdx", "-t", "-k", sock, image), nil)
			if err == nil {
				err = p.WaitListen(ctx, "unix", sock, nil)
			}
			return p, err
		}),
	})
	if err != nil {
		return err
	}
	fmt.Printf("\nAn empty dynamic image of %d MiB with blocks of 1 MiB, filled once in requests of 1 MiB at depth 4, until the server has ended; MiB/s.\n\n", size>>20)
	load.Head("cell", "ours", "qemu-nbd", "ratio", "to reach")
	load.Row("sequential fill", m[0], m[1], m[0]/m[1], "2")
	return nil
}

// chain measures reads through a chain of eight images beside the same disk in one image.
func chain(ctx context.Context, vd *lab.Program, dir string, seconds float64, rounds int) error {
	const size, levels, piece = 256 << 20, 8, 64 << 10
	path := func(i int) string { return filepath.Join(dir, fmt.Sprintf("chain%d.vhdx", i)) }
	rng := rand.New(rand.NewPCG(3, 3))
	src := rand.NewChaCha8([32]byte{4})
	p := make([]byte, size)
	for i := range levels {
		var err error
		if i == 0 {
			err = vhdx.CreateFile(ctx, path(0), vhdx.CreateOptions{Size: size})
		} else {
			err = vhdx.CreateChildFile(ctx, path(i), path(i-1), vhdx.ChildOptions{})
		}
		if err != nil {
			return err
		}
		d, err := vhdx.OpenFile(ctx, path(i), vhdx.Options{})
		if err != nil {
			return err
		}
		if i == 0 {
			_, _ = src.Read(p)
			err = d.Write(ctx, p, 0, false)
		}
		for range size / piece / 16 { // each generation has changed a sixteenth of the disk
			if i > 0 && err == nil {
				_, _ = src.Read(p[:piece])
				err = d.Write(ctx, p[:piece], rng.Int64N(size/piece)*piece, false)
			}
		}
		if err = errors.Join(err, d.Close()); err != nil {
			return err
		}
	}
	flat := filepath.Join(dir, "flat.vhdx")
	top, err := vhdx.OpenFile(ctx, path(levels-1), vhdx.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	if err := errors.Join(vhdx.ConvertFile(ctx, flat, top, vhdx.ConvertOptions{}), top.Close()); err != nil {
		return err
	}
	var procs []*lab.Proc
	sock := func(name string) string { return filepath.Join(dir, name+".sock") }
	for name, image := range map[string]string{"flat": flat, "chain": path(levels - 1)} {
		q, _, err := vd.NBD(ctx, image, sock(name))
		if err != nil {
			return err
		}
		defer q.Kill()
		procs = append(procs, q)
	}
	fmt.Printf("\nA disk of %d MiB in a chain of %d images, of which each has changed a sixteenth in pieces of 64 KiB, beside the same disk in one image.\n\n", size>>20, levels)
	load.Head("cell", "chain IOPS", "flat IOPS", "ratio", "to reach")
	for _, c := range []struct {
		name string
		job  load.Job
	}{
		{"1 MiB read, QD 4", load.Job{RW: "read", Block: 1 << 20, Depth: 4}},
		{"4 KiB random read, QD 1", load.Job{RW: "randread", Block: 4096, Depth: 1}},
		{"4 KiB random read, QD 32", load.Job{RW: "randread", Block: 4096, Depth: 32}},
	} {
		c.job.Size, c.job.Seconds = size, seconds
		subject := func(name string) load.Subject {
			return load.Subject{Name: name, Measure: func() (float64, error) {
				r, err := load.FIO(ctx, "nbd+unix:///?socket="+sock(name), c.job)
				return r.IOPS, err
			}}
		}
		m, err := load.Rounds(rounds, []load.Subject{subject("chain"), subject("flat")})
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		load.Row(c.name, m[0], m[1], m[0]/m[1], "0.5")
	}
	for _, q := range procs {
		err = errors.Join(err, q.Stop(20*time.Second))
	}
	return err
}
