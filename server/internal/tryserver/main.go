// Command tryserver runs the file server alone, for trying it by hand with foreign clients:
//
//	go run ./server/internal/tryserver -dir DIR -listen 127.0.0.1:4450 -user me:secret
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	_ "net/http/pprof"
	"os"
	"os/signal"
	"strings"
	"time"

	"vdbridge/server"
	"vdbridge/smb/auth"
	"vdbridge/smb/wire"
)

func main() {
	dir := flag.String("dir", ".", "directory to share as \"disks\" and, read-only, as \"ro\"")
	listen := flag.String("listen", "127.0.0.1:4450", "address")
	user := flag.String("user", "me:secret", "name:password")
	encrypt := flag.Bool("encrypt", false, "insist on encryption")
	debug := flag.Bool("debug", false, "log more")
	min21 := flag.Bool("smb21", false, "allow SMB 2.1")
	prof := flag.String("pprof", "", "address of the profiler")
	flag.Parse()
	if *prof != "" {
		go func() { _ = http.ListenAndServe(*prof, nil) }()
	}
	level := slog.LevelInfo
	if *debug {
		level = slog.LevelDebug
	}
	name, password, _ := strings.Cut(*user, ":")
	cfg := server.Config{
		Shares:  []server.Share{{Name: "disks", Dir: *dir, Comment: "virtual disks"}, {Name: "ro", Dir: *dir, ReadOnly: true}, {Name: "sealed", Dir: *dir, Encrypt: true}},
		Users:   auth.NewUsers(map[string]string{name: password, "other": password}),
		Encrypt: *encrypt,
		Logger:  slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
	}
	if *min21 {
		cfg.MinDialect = wire.Dialect210
	}
	s, err := server.New(cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err = s.Serve(ctx, l)
	fmt.Fprintln(os.Stderr, err)
	end, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = s.Shutdown(end)
}
