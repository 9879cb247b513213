// Command cluster shows what vdbridge is for in a cluster: two real Linux kernels attach one shared disk of `vdbridge serve`, OCFS2 is mounted on both, each reads
// what the other has written, one is fenced in the middle of its writing, the other goes on, and the file system is in order in the end.
// `make demo-cluster` runs it. It needs root, works in a folder of its own, and leaves nothing behind.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"vdbridge/test/cluster"
	"vdbridge/test/lab"
	"vdbridge/test/vm"
)

func main() {
	bin := flag.String("bin", "bin/vdbridge", "the vdbridge program")
	fs := flag.String("fs", "ocfs2", "ocfs2 or gfs2")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *bin, *fs); err != nil {
		fmt.Fprintln(os.Stderr, "\nThe demonstration FAILED:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bin, fs string) (err error) {
	if fs != "ocfs2" && fs != "gfs2" {
		return fmt.Errorf("-fs is ocfs2 or gfs2, not %q", fs)
	}
	if os.Geteuid() != 0 {
		return errors.New("it boots guests with a network, so it needs root: sudo make demo-cluster")
	}
	if err := errors.Join(vm.Check(), lab.Missing(append(cluster.Tools(fs), "ip")...)); err != nil {
		return err
	}
	if bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "vdbridge-cluster-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	fmt.Println("Two Linux kernels of their own (User-Mode Linux), one shared disk, and one server on this host. About a minute.")
	fmt.Println()
	var mu sync.Mutex
	start := time.Now()
	c, err := cluster.New(ctx, bin, dir, "256M", func(who, what string) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Printf("  [%5.1fs] %-6s %s\n", time.Since(start).Seconds(), who, what)
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := cluster.Fence(ctx, c, fs, dir); err != nil {
		return err
	}
	fmt.Print(`
Summary: both nodes used the same file system at the same time. node0 fenced node1 by taking its registration
away on the disk itself (PERSISTENT RESERVE OUT, PREEMPT AND ABORT), as Pacemaker would through
scripts/fence_vdbridge. From that moment nothing of node1 could reach the disk, and what it had been told
was durable is there. docs/clusters.md has the steps by hand.
`)
	return nil
}
