// Command vdbridge makes virtual disks on SMB 3 file servers usable on Linux, and serves them. Run "vdbridge --help"; docs/cli.md
// has every verb, flag and exit code.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() { os.Exit(mainCode()) }

func mainCode() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	// The second signal ends the program at once.
	context.AfterFunc(ctx, stop)
	return run(ctx, os.Args, os.Stdout, os.Stderr)
}
