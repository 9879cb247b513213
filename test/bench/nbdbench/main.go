// Nbdbench measures our NBD server beside nbdkit's memory plugin and go-nbd's server, all over memory, with fio's nbd engine as the client.
//
//	go run ./test/bench/nbdbench [-tcp] [-seconds 1] [-rounds 5] [-cells 4k-read-1,…] [-procs N] [-base OLDER]
//
// Rounds are interleaved: every server has a short run of a cell before any has its next, so that a noisy machine is noisy for all. The table on
// standard output has the median of each cell, the ratio of ours to the better of the two others, and the processor time that
// each server used for a request, which is the steadier figure on a shared machine, the time that fio used, and how often the server's threads gave up the processor.
// Every server is a process of its own; their disks are filled before the first run. -base names an older build of this program, whose
// server is measured as "base", so that a change can be judged. On a busy machine, run the whole thing with "nice -n -20".
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	gonbdbackend "github.com/pojntfx/go-nbd/pkg/backend"
	gonbd "github.com/pojntfx/go-nbd/pkg/server"

	"vdbridge/nbd"
	"vdbridge/test/ramdisk"
)

const diskBytes = 256 << 20

type cell struct {
	name, rw, bs string
	depth        int
	bytes        float64
}

func cells() []cell {
	var cs []cell
	for _, rw := range []string{"read", "write"} {
		for _, d := range []int{1, 16, 64} {
			cs = append(cs, cell{fmt.Sprintf("4k-%s-%d", rw, d), "rand" + rw, "4k", d, 4096})
		}
		cs = append(cs, cell{"1m-" + rw + "-4", rw, "1m", 4, 1 << 20})
	}
	return cs
}

type options struct {
	tcp     bool
	seconds float64
	rounds  int
	cells   string
	procs   int
	servers string
	delay   time.Duration
	hint    bool
	profile string
	base    string
}

func main() {
	var o options
	serve := flag.String("serve", "", "internal: be this server, listening on the file descriptor 3")
	flag.BoolVar(&o.tcp, "tcp", false, "TCP on loopback instead of a unix socket")
	flag.Float64Var(&o.seconds, "seconds", 1, "length of one run")
	flag.IntVar(&o.rounds, "rounds", 5, "runs of each cell and server")
	flag.StringVar(&o.cells, "cells", "", "only these cells, separated by commas")
	flag.IntVar(&o.procs, "procs", 0, "GOMAXPROCS of the Go servers (0: as the runtime has it)")
	flag.StringVar(&o.servers, "servers", "ours,nbdkit,go-nbd", "servers to measure, separated by commas")
	flag.DurationVar(&o.delay, "delay", 0, "make each request on our disk and nbdkit's take this long; go-nbd has no such thing")
	flag.BoolVar(&o.hint, "hint", true, "let our RAM disk say that it never blocks")
	flag.StringVar(&o.base, "base", "", "an older build of this program: its server is measured as well")
	flag.StringVar(&o.profile, "profile", "", "write a processor profile of our server here")
	flag.Parse()
	var err error
	if *serve != "" {
		err = runServer(*serve, o)
	} else {
		err = run(o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "nbdbench:", err)
		os.Exit(1)
	}
}

// server is a running server process.
type server struct {
	name string
	cmd  *exec.Cmd
	uri  string
}

func run(o options) error {
	fio, err := exec.LookPath("fio")
	if err != nil {
		return fmt.Errorf("fio is needed (apt install fio): %w", err)
	}
	dir, err := os.MkdirTemp("", "nbdbench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	var servers []*server
	defer func() {
		for _, s := range servers {
			s.cmd.Process.Signal(syscall.SIGTERM)
			s.cmd.Wait()
		}
	}()
	names := strings.Split(o.servers, ",")
	if o.base != "" {
		names = append(names, "base")
	}
	for _, name := range names {
		s, err := start(name, dir, o)
		if errors.Is(err, exec.ErrNotFound) {
			fmt.Fprintf(os.Stderr, "nbdbench: %s left out: %v\n", name, err)
			continue
		}
		if err != nil {
			return fmt.Errorf("start %s: %w", name, err)
		}
		servers = append(servers, s)
		if _, err := runFIO(fio, s, cell{"fill", "write", "1m", 4, 1 << 20}, 0); err != nil {
			return fmt.Errorf("fill %s: %w", name, err)
		}
	}

	fmt.Printf("%s, %d processors, %s, medians of %d runs of %.1f s\n\n", transportName(o), runtime.NumCPU(), runtime.Version(), o.rounds, o.seconds)
	fmt.Print("| cell |")
	for _, s := range servers {
		fmt.Printf(" %s IOPS | µs CPU | µs fio | switches |", s.name)
	}
	fmt.Print(" ours / best other |\n| --- |")
	for range servers {
		fmt.Print(" ---: | ---: | ---: | ---: |")
	}
	fmt.Println(" ---: |")
	for _, c := range cells() {
		if o.cells != "" && !slices.Contains(strings.Split(o.cells, ","), c.name) {
			continue
		}
		iops := make([][]float64, len(servers))
		cpu := make([][]float64, len(servers))
		client := make([][]float64, len(servers))
		switches := make([][]float64, len(servers))
		for round := range o.rounds {
			for k := range servers {
				i := (k + round) % len(servers)
				m, err := runFIO(fio, servers[i], c, o.seconds)
				if err != nil {
					return fmt.Errorf("%s on %s: %w", c.name, servers[i].name, err)
				}
				iops[i] = append(iops[i], m.iops)
				cpu[i] = append(cpu[i], m.cpu)
				client[i] = append(client[i], m.client)
				switches[i] = append(switches[i], m.switches)
			}
		}
		fmt.Printf("| %s |", c.name)
		ours, best := 0.0, 0.0
		for i, s := range servers {
			m := median(iops[i])
			if s.name == "ours" {
				ours = m
			} else if s.name != "base" {
				best = max(best, m)
			}
			fmt.Printf(" %.0f | %.2f | %.2f | %.2f |", m, median(cpu[i]), median(client[i]), median(switches[i]))
		}
		if ours > 0 && best > 0 {
			fmt.Printf(" %.2f |\n", ours/best)
		} else {
			fmt.Println(" |")
		}
	}
	return nil
}

func transportName(o options) string {
	if o.tcp {
		return "TCP loopback"
	}
	return "unix socket"
}

func median(v []float64) float64 {
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}

// start starts a server process that listens before start returns.
func start(name, dir string, o options) (*server, error) {
	s := &server{name: name}
	path := filepath.Join(dir, name+".sock")
	var l net.Listener
	var err error
	if o.tcp {
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return nil, err
		}
		s.uri = "nbd://" + l.Addr().String() + "/"
	} else {
		if l, err = net.Listen("unix", path); err != nil {
			return nil, err
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		s.uri = "nbd+unix:///?socket=" + path
	}
	defer l.Close()
	f, err := l.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if name == "nbdkit" {
		if _, err := exec.LookPath("nbdkit"); err != nil {
			return nil, err
		}
		args := []string{"-f", "--exit-with-parent"}
		if o.delay > 0 {
			args = append(args, "--filter=delay")
		}
		args = append(args, "memory", strconv.Itoa(diskBytes))
		if o.delay > 0 {
			args = append(args, fmt.Sprintf("rdelay=%dms", o.delay.Milliseconds()), fmt.Sprintf("wdelay=%dms", o.delay.Milliseconds()))
		}
		// Socket activation: nbdkit takes the listening socket as file descriptor 3, and wants its own process number, which the shell knows.
		s.cmd = exec.Command("/bin/sh", append([]string{"-c", `LISTEN_FDS=1 LISTEN_PID=$$ exec nbdkit "$@"`, "sh"}, args...)...)
	} else {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		if name == "base" {
			self, name = o.base, "ours"
		}
		s.cmd = exec.Command(self, "-serve", name, "-delay", o.delay.String(), "-profile", o.profile, fmt.Sprintf("-hint=%v", o.hint))
		s.cmd.Env = os.Environ()
		if o.procs > 0 {
			s.cmd.Env = append(s.cmd.Env, "GOMAXPROCS="+strconv.Itoa(o.procs))
		}
	}
	s.cmd.ExtraFiles = []*os.File{f}
	s.cmd.Stderr = os.Stderr
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	return s, s.cmd.Start()
}

// runServer is the body of a server process.
func runServer(name string, o options) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return err
	}
	switch name {
	case "ours":
		if o.profile != "" {
			done, err := startProfile(o.profile)
			if err != nil {
				return err
			}
			defer done()
		}
		d := ramdisk.New(diskBytes, 512)
		if o.delay > 0 {
			d.SetHook(func(context.Context, ramdisk.Op, int64, int64) error {
				time.Sleep(o.delay)
				return nil
			})
		} else if !o.hint {
			d.SetHook(func(context.Context, ramdisk.Op, int64, int64) error { return nil })
		}
		srv, err := nbd.NewServer(nbd.Config{Resolver: nbd.Exports{{Disk: d}}})
		if err != nil {
			return err
		}
		return srv.Serve(ctx, l)
	case "go-nbd":
		context.AfterFunc(ctx, func() { l.Close() })
		b := gonbdbackend.NewMemoryBackend(make([]byte, diskBytes))
		for {
			c, err := l.Accept()
			if err != nil {
				return nil
			}
			go func() {
				defer c.Close()
				gonbd.Handle(c, []*gonbd.Export{{Name: "", Backend: b}}, nil)
			}()
		}
	}
	return fmt.Errorf("no server %q", name)
}

// measurement has the processor time of the server and of fio for a request in microseconds.
type measurement struct{ iops, cpu, client, switches float64 }

// runFIO runs one cell; seconds 0 goes once over the disk.
func runFIO(fio string, s *server, c cell, seconds float64) (m measurement, err error) {
	args := []string{"--name=x", "--ioengine=nbd", "--uri=" + s.uri, "--rw=" + c.rw, "--bs=" + c.bs, "--output-format=json", "--randrepeat=0",
		"--norandommap", "--iodepth=" + strconv.Itoa(c.depth), "--size=" + strconv.Itoa(diskBytes)}
	if seconds > 0 {
		args = append(args, "--time_based", fmt.Sprintf("--runtime=%dms", int(seconds*1000)))
	}
	before, switchesBefore := cpuTime(s.cmd.Process.Pid), switches(s.cmd.Process.Pid)
	out, err := exec.Command(fio, args...).Output()
	if err != nil {
		var ee *exec.ExitError
		if errors.As(err, &ee) {
			err = fmt.Errorf("%w: %s%s", err, out, ee.Stderr)
		}
		return m, err
	}
	after, switchesAfter := cpuTime(s.cmd.Process.Pid), switches(s.cmd.Process.Pid)
	if i := strings.IndexByte(string(out), '{'); i > 0 {
		out = out[i:] // fio says something about the connection first
	}
	var r struct {
		Jobs []struct {
			Error       int
			Usr         float64 `json:"usr_cpu"`
			Sys         float64 `json:"sys_cpu"`
			Runtime     float64 `json:"job_runtime"` // ms
			Read, Write struct {
				IOPS     float64
				TotalIOs float64 `json:"total_ios"`
			}
		}
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return m, fmt.Errorf("fio's report: %w", err)
	}
	if len(r.Jobs) != 1 || r.Jobs[0].Error != 0 {
		return m, fmt.Errorf("fio failed: %s", out)
	}
	j := r.Jobs[0]
	m.iops = j.Read.IOPS + j.Write.IOPS
	if n := j.Read.TotalIOs + j.Write.TotalIOs; n > 0 {
		m.cpu = (after - before).Seconds() * 1e6 / n
		m.client = (j.Usr + j.Sys) / 100 * j.Runtime * 1000 / n
		m.switches = max(0, (switchesAfter-switchesBefore)/n) // threads that ended meanwhile take theirs with them
	}
	return m, nil
}

// cpuTime is the user and system time of a process so far, with the resolution of the kernel's clock tick.
func cpuTime(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 13 {
		return 0
	}
	u, _ := strconv.ParseInt(f[11], 10, 64)
	k, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(u+k) * (time.Second / 100) // USER_HZ is 100 on every Linux
}

// switches is how often the threads of a process have given up the processor of their own accord.
func switches(pid int) float64 {
	sum := 0.0
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		if _, v, ok := strings.Cut(string(b), "\nvoluntary_ctxt_switches:"); ok {
			v, _, _ = strings.Cut(v, "\n")
			n, _ := strconv.ParseFloat(strings.TrimSpace(v), 64)
			sum += n
		}
	}
	return sum
}
