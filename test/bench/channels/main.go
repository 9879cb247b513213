// Command channels measures one session of the SMB client on 1, 2 and 4 connections to vdbridge serve, and to Samba's smbd if it is installed: sealed and
// signed reads of 1 MiB and 4 KiB. It prints Markdown.
//
//	go run ./test/bench/channels [-bin bin/vdbridge] [-seconds 2] [-rounds 5]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"vdbridge/client"
	"vdbridge/smb/auth"
	"vdbridge/smb/wire"
	"vdbridge/test/bench/load"
	"vdbridge/test/lab"
	"vdbridge/test/smbd"
)

const fileBytes = 256 << 20

var counts = []int{1, 2, 4}

func main() {
	bin := flag.String("bin", "bin/vdbridge", "the vdbridge program")
	seconds := flag.Float64("seconds", 2, "length of one run")
	rounds := flag.Int("rounds", 5, "runs of each cell")
	flag.Parse()
	if err := run(context.Background(), *bin, *seconds, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "channels:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bin string, seconds float64, rounds int) (err error) {
	dir, err := load.MemoryDir("vdbridge-channels-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	vd, err := lab.NewProgram(bin, dir)
	if err != nil {
		return err
	}
	disks := filepath.Join(dir, "disks")
	if err := os.Mkdir(disks, 0o755); err != nil {
		return err
	}
	content := random(fileBytes)
	if err := os.WriteFile(filepath.Join(disks, fileName), content, 0o644); err != nil {
		return err
	}
	server, addr, err := vd.Serve(ctx, disks, "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop(20*time.Second)) }()
	fmt.Printf("Server and client on this machine with %d cores, SMB 3.1.1, AES-128-GCM or AES-GMAC, a file of %d MiB in memory; medians of %d runs of %.1f s in turns. The ratios are to one channel. Cores is how many the server and the client used, of the processors' time.\n\n",
		runtime.NumCPU(), fileBytes>>20, rounds, seconds)
	if err := table(ctx, target{addr, lab.Share, lab.User, lab.Password, func() time.Duration { return load.CPUTime(server.Pid()) }}, seconds, rounds); err != nil {
		return err
	}
	if why := smbd.Missing(); why != "" {
		fmt.Fprintln(os.Stderr, "channels: without smbd:", why)
		return nil
	}
	s, err := smbd.Run(smbd.Options{Global: []string{"server multi channel support = yes"}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	if err := os.WriteFile(filepath.Join(s.Dir, fileName), content, 0o644); err != nil {
		return err
	}
	fmt.Printf("\nThe same from smbd, which serves all channels of a client in one process. Cores is the client's part alone.\n\n")
	return table(ctx, target{s.Addr, s.Share, s.User, s.Password, func() time.Duration { return 0 }}, seconds, rounds)
}

const fileName = "flat.raw"

// target is a server.
type target struct {
	addr, share, user, password string
	used                        func() time.Duration // processor time
}

// table prints the figures of one server.
func table(ctx context.Context, t target, seconds float64, rounds int) error {
	load.Head("random read, per second", "1 channel", "cores", "2 channels", "cores", "ratio", "4 channels", "cores", "ratio", "to reach")
	for _, c := range []struct {
		name         string
		seal         bool
		block, depth int
		goal         string
	}{
		{"1 MiB sealed, QD 1", true, 1 << 20, 1, ""},
		{"1 MiB sealed, QD 16", true, 1 << 20, 16, "1.6 where one core was the limit"},
		{"1 MiB signed, QD 16", false, 1 << 20, 16, ""},
		{"4 KiB sealed, QD 64", true, 4096, 64, ""},
		{"4 KiB signed, QD 64", false, 4096, 64, ""},
	} {
		var subjects []load.Subject
		cores := map[string][]float64{}
		var files []*file
		for _, n := range counts {
			f, err := open(ctx, t, n, c.seal)
			if err != nil {
				return err
			}
			files = append(files, f)
			name := fmt.Sprint(n)
			subjects = append(subjects, load.Subject{Name: name, Measure: func() (float64, error) {
				used := func() time.Duration { return load.CPUTime(os.Getpid()) + t.used() }
				before, began := used(), time.Now()
				m, err := f.read(ctx, c.block, c.depth, seconds)
				cores[name] = append(cores[name], (used()-before).Seconds()/time.Since(began).Seconds())
				return m, err
			}})
		}
		m, err := load.Rounds(rounds, subjects)
		for _, f := range files {
			err = errors.Join(err, f.close())
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		use := func(n string) string { return fmt.Sprintf("%.2f", load.Median(cores[n])) }
		load.Row(c.name, m[0], use("1"), m[1], use("2"), m[1]/m[0], m[2], use("4"), m[2]/m[0], c.goal)
	}
	return nil
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// file is the file on a session with some channels.
type file struct {
	session *client.Session
	f       *client.File
}

func open(ctx context.Context, at target, channels int, seal bool) (*file, error) {
	c, err := client.Dial(ctx, at.addr, client.Config{Seal: seal})
	if err != nil {
		return nil, err
	}
	user := auth.Credentials{User: at.user, Password: at.password}
	s, err := c.Session(ctx, user, client.SessionOptions{})
	if err != nil {
		return nil, err
	}
	for range channels - 1 {
		o, err := c.DialSibling(ctx, at.addr)
		if err != nil {
			return nil, err
		}
		if err := s.Bind(ctx, o, auth.NTLM(user, "")); err != nil {
			return nil, err
		}
	}
	t, err := s.Tree(ctx, at.share)
	if err != nil {
		return nil, err
	}
	f, err := t.Open(ctx, fileName, client.OpenOptions{Access: wire.AccessGenericRead, Share: client.ShareAll, Disposition: wire.FileOpen})
	return &file{s, f}, err
}

func (f *file) close() error {
	return errors.Join(f.f.Close(), f.session.Close(), f.session.Conn().Close())
}

// read reads at random places with depth requests in flight and returns how many a second.
func (f *file) read(ctx context.Context, block, depth int, seconds float64) (float64, error) {
	var (
		wg    sync.WaitGroup
		count atomic.Int64
		errs  = make(chan error, depth)
		start = time.Now()
		end   = start.Add(time.Duration(seconds * float64(time.Second)))
	)
	for range depth {
		wg.Go(func() {
			buf := make([]byte, block)
			for time.Now().Before(end) {
				if _, err := f.f.ReadAt(ctx, buf, rand.Int64N(fileBytes/int64(block))*int64(block)); err != nil {
					errs <- err
					return
				}
				count.Add(1)
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return 0, err
	default:
		return float64(count.Load()) / time.Since(start).Seconds(), nil
	}
}
