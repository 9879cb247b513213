package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
)

// What is typed in the wrong order, or half, is understood or refused in words.
func TestFlagsFirst(t *testing.T) {
	app := newApp(os.Stdout, os.Stderr)
	for _, c := range app.Commands {
		prepare(c)
	}
	for in, want := range map[string]string{
		"create x 10G --sector 4096":                   "create --sector 4096 x 10G",
		"nbd URL --listen unix:/a --read-only":         "nbd --listen unix:/a --read-only URL",
		"nbd --listen=unix:/a URL --encrypt":           "nbd --listen=unix:/a --encrypt URL",
		"pr register URL --key 0xa1 --log-level debug": "pr register --key 0xa1 --log-level debug URL",
		"--log-level debug pr status --json URL":       "--log-level debug pr status --json URL",
		"info -- --odd":                                "info -- --odd",
		"mount URL nbd":                                "mount URL nbd",
		"pr show URL":                                  "pr show URL",
	} {
		got, err := flagsFirst(app, append([]string{"vdbridge"}, strings.Fields(in)...))
		if err != nil || strings.Join(got[1:], " ") != want {
			t.Errorf("%s:\n got %s (%v)\nwant %s", in, strings.Join(got[1:], " "), err, want)
		}
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "512": 512, "512B": 512, "4K": 4096, "4k": 4096, "4KiB": 4096, "1M": 1 << 20, "10G": 10 << 30, "1.5T": 3 << 39, "64T": 64 << 40, "10GB": 10e9, "0.5K": 512,
	} {
		if got, err := parseSize(in); err != nil || got != want {
			t.Errorf("%s: %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "G", "-1", "10Q", "1.3", "x", "9999999999T", "1.0000001K", "10 10"} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("%q is taken for %d", in, got)
		}
	}
}

// Signals end the program as documented.
func TestInterrupt(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(syscall.EINTR)
	if got := exitCode(fmt.Errorf("x: %w", ctx.Err())); got != ExitInterrupted {
		t.Errorf("exit code %d", got)
	}
}
