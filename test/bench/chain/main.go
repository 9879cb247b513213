// Command chain measures the whole chain, NBD client → vdbridge nbd → MS-RSVD → vdbridge serve → VHDX, beside what it stands on: plain SMB READs of the same
// client package from the same server. It also puts a round trip of one more millisecond on the wire, which must not cost
// throughput when enough requests are in flight. It prints Markdown.
//
//	go run ./test/bench/chain [-bin bin/vdbridge] [-seconds 2] [-rounds 5]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"vdbridge/client"
	"vdbridge/smb/auth"
	"vdbridge/smb/wire"
	"vdbridge/test/bench/load"
	"vdbridge/test/faultnet"
	"vdbridge/test/lab"
)

const (
	diskBytes = 512 << 20
	oneWay    = 500 * time.Microsecond // a round trip is twice that
)

func main() {
	bin := flag.String("bin", "bin/vdbridge", "the vdbridge program")
	seconds := flag.Float64("seconds", 2, "length of one run")
	rounds := flag.Int("rounds", 5, "runs of each cell")
	flag.Parse()
	if err := run(context.Background(), *bin, *seconds, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "chain:", err)
		os.Exit(1)
	}
}

// bench is one run: a server with a disk and a flat file, both full of random bytes.
type bench struct {
	ctx     context.Context
	seconds float64
	rounds  int
	dir     string
	vd      *lab.Program
	server  *lab.Proc
	addr    string
}

func run(ctx context.Context, bin string, seconds float64, rounds int) (err error) {
	if err := lab.Missing("qemu-img", "fio"); err != nil {
		return err
	}
	dir, err := load.MemoryDir("vdbridge-chain-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	b := &bench{ctx: ctx, seconds: seconds, rounds: rounds, dir: dir}
	if b.vd, err = lab.NewProgram(bin, dir); err != nil {
		return err
	}
	disks := filepath.Join(dir, "disks")
	if err := errors.Join(os.Mkdir(disks, 0o755), random(filepath.Join(disks, "flat.raw"), diskBytes)); err != nil {
		return err
	}
	if _, err := lab.Run(ctx, "qemu-img", "convert", "-f", "raw", "-O", "vhdx", "-o", "subformat=dynamic", filepath.Join(disks, "flat.raw"), filepath.Join(disks, "disk.vhdx")); err != nil {
		return err
	}
	server, addr, err := b.vd.Serve(ctx, disks, "127.0.0.1:0")
	if err != nil {
		return err
	}
	b.server, b.addr = server, addr
	defer func() { err = errors.Join(err, server.Stop(20*time.Second)) }()
	fmt.Printf("Server, chain and client on this machine, one connection each, signed (SMB 3.1.1), a dynamic VHDX of %d MiB made by qemu-img, all blocks allocated, in memory; medians of %d runs of %.1f s. fio's nbd engine is the client of the chain. µs is the processor time of one request, in server and vdbridge's client together.\n", diskBytes>>20, rounds, seconds)
	if err := b.against(); err != nil {
		return err
	}
	return b.delayed()
}

// export is a running `vdbridge nbd`.
type export struct {
	*lab.Proc
	uri string
}

// export starts an export of the disk through addr.
func (b *bench) export(name, addr string, more ...string) (export, error) {
	p, uri, err := b.vd.NBD(b.ctx, lab.URL(addr, "disk.vhdx"), filepath.Join(b.dir, name), append(more, "--mode", "rsvd", "--initiator", name)...)
	return export{p, uri}, err
}

// fio makes a subject of an export. The processor time of a request, of export and server together, goes into cost by the subject's name.
func (b *bench) fio(name string, e export, job load.Job, cost map[string][]float64) load.Subject {
	return load.Subject{Name: name, Measure: func() (float64, error) {
		before := load.CPUTime(e.Pid()) + load.CPUTime(b.server.Pid())
		r, err := load.FIO(b.ctx, e.uri, job)
		if err == nil && r.IOPS > 0 {
			used := load.CPUTime(e.Pid()) + load.CPUTime(b.server.Pid()) - before
			cost[name] = append(cost[name], used.Seconds()*1e6/(r.IOPS*job.Seconds))
		}
		return r.IOPS, err
	}}
}

// against compares the chain with plain SMB READs.
func (b *bench) against() (err error) {
	plain, err := dial(b.ctx, b.addr)
	if err != nil {
		return err
	}
	defer plain.close()
	var exports []export
	defer func() { err = errors.Join(err, stop(exports)) }()
	for _, io := range []string{"smb", "scsi"} {
		e, err := b.export(io, b.addr, "--io", io)
		if err != nil {
			return err
		}
		exports = append(exports, e)
	}
	fmt.Println()
	load.Head("random read", "plain SMB READ", "µs", "chain, `--io smb`", "µs", "ratio", "chain, `--io scsi`", "µs", "ratio", "to reach")
	for _, c := range []struct {
		name  string
		block int
		depth int
		goal  string
	}{
		{"4 KiB, QD 1", 4096, 1, ""},
		{"4 KiB, QD 32", 4096, 32, "0.5"},
		{"4 KiB, QD 64", 4096, 64, ""},
		{"1 MiB, QD 4", 1 << 20, 4, ""},
	} {
		job := load.Job{RW: "randread", Block: c.block, Depth: c.depth, Size: diskBytes, Seconds: b.seconds}
		cost := make(map[string][]float64)
		m, err := load.Rounds(b.rounds, []load.Subject{
			{Name: "plain", Measure: func() (float64, error) {
				before := load.CPUTime(os.Getpid()) + load.CPUTime(b.server.Pid())
				n, err := plain.read(b.ctx, c.block, c.depth, b.seconds)
				used := load.CPUTime(os.Getpid()) + load.CPUTime(b.server.Pid()) - before
				cost["plain"] = append(cost["plain"], used.Seconds()*1e6/(n*b.seconds))
				return n, err
			}},
			b.fio("smb", exports[0], job, cost), b.fio("scsi", exports[1], job, cost),
		})
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		µs := func(name string) float64 { return load.Median(cost[name]) }
		load.Row(c.name, m[0], µs("plain"), m[1], µs("smb"), m[1]/m[0], m[2], µs("scsi"), m[2]/m[0], c.goal)
	}
	return nil
}

// delayed compares the chain with and without a longer wire. Both go through a relay, which costs the same.
func (b *bench) delayed() (err error) {
	near, err := faultnet.NewRelay("tcp", "127.0.0.1:0", b.addr, 0)
	if err != nil {
		return err
	}
	defer near.Close()
	far, err := faultnet.NewRelay("tcp", "127.0.0.1:0", b.addr, oneWay)
	if err != nil {
		return err
	}
	defer far.Close()
	var exports []export
	defer func() { err = errors.Join(err, stop(exports)) }() // before the relays close
	for _, way := range []struct{ name, addr string }{{"direct", b.addr}, {"near", near.Addr()}, {"far", far.Addr()}} {
		e, err := b.export(way.name, way.addr)
		if err != nil {
			return err
		}
		exports = append(exports, e)
	}
	fmt.Printf("\nWith %v added to each round trip between chain and server by a relay in between (which delays bytes without limiting how many are under way), 4 KiB random read; the same chain without it goes through the same relay at no delay. To reach at QD 64: 50,000, or 0.8.\n\n", 2*oneWay)
	load.Head("QD", "no relay", "relay, +0 ms", "relay, +1 ms", "+1 ms / +0 ms")
	for _, depth := range []int{1, 64, 256} {
		job := load.Job{RW: "randread", Block: 4096, Depth: depth, Size: diskBytes, Seconds: b.seconds}
		cost := make(map[string][]float64)
		m, err := load.Rounds(b.rounds, []load.Subject{b.fio("direct", exports[0], job, cost), b.fio("near", exports[1], job, cost), b.fio("far", exports[2], job, cost)})
		if err != nil {
			return fmt.Errorf("QD %d: %w", depth, err)
		}
		load.Row(depth, m[0], m[1], m[2], m[2]/m[1])
	}
	return nil
}

// stop ends exports.
func stop(exports []export) error {
	var errs []error
	for _, e := range exports {
		errs = append(errs, e.Stop(20*time.Second))
	}
	return errors.Join(errs...)
}

// plain is our client on the flat file.
type plain struct {
	conn *client.Conn
	file *client.File
}

func dial(ctx context.Context, addr string) (*plain, error) {
	conn, err := client.Dial(ctx, addr, client.Config{})
	if err != nil {
		return nil, err
	}
	p := &plain{conn: conn}
	session, err := conn.Session(ctx, auth.Credentials{User: lab.User, Password: lab.Password}, client.SessionOptions{})
	if err != nil {
		return nil, err
	}
	tree, err := session.Tree(ctx, lab.Share)
	if err != nil {
		return nil, err
	}
	p.file, err = tree.Open(ctx, "flat.raw", client.OpenOptions{Access: wire.AccessGenericRead, Share: client.ShareAll, Disposition: wire.FileOpen})
	return p, err
}

func (p *plain) close() { _, _ = p.file.Close(), p.conn.Close() }

// read reads at random places with depth requests in flight and returns how many a second.
func (p *plain) read(ctx context.Context, block, depth int, seconds float64) (float64, error) {
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
				off := rand.Int64N(int64(diskBytes/block)) * int64(block)
				if _, err := p.file.ReadAt(ctx, buf, off); err != nil {
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

// random writes a file of random bytes.
func random(path string, n int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.NewChaCha8([32]byte{3}), n)
	return errors.Join(err, f.Close())
}
