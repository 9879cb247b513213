// Command mutate shows that the history checker can fail. It breaks the code in ways that lose, double or reorder writes, one after the other, and runs the histories against each broken
// program until they find it. The source is never touched: the changed files are given to the compiler in place of the real ones (go build -overlay). A mutation that no longer fits
// the source, or that nothing finds, is a failure.
//
//	go run ./test/history/mutate [-run REGEXP] [-rounds 15]
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

func main() {
	which := flag.String("run", ".", "regular expression of the names of mutations")
	rounds := flag.Int("rounds", 15, "how many seeds each may take")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, regexp.MustCompile(*which), *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, which *regexp.Regexp, rounds int) error {
	dir, err := os.MkdirTemp("", "vdbridge-mutate-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	missed := 0
	for _, m := range mutations {
		if !which.MatchString(m.name) {
			continue
		}
		fmt.Printf("%-34s ", m.name)
		found, err := m.try(ctx, dir, rounds)
		if err != nil {
			fmt.Println()
			return fmt.Errorf("%s: %w", m.name, err)
		}
		if found == "" {
			missed++
			found = fmt.Sprintf("NOT FOUND by %s in %d rounds", m.tests, rounds)
		}
		fmt.Println(found)
	}
	if missed > 0 {
		return fmt.Errorf("%d mutations were not found", missed)
	}
	return nil
}

// overlay writes the changed file and the list that the compiler wants.
func (m *mutation) overlay(dir string) (string, error) {
	b, err := os.ReadFile(m.file)
	if err != nil {
		return "", err
	}
	if n := strings.Count(string(b), m.old); n != 1 {
		return "", fmt.Errorf("%s has %d places that read %q: the mutation must be brought up to date", m.file, n, m.old)
	}
	abs, err := filepath.Abs(m.file)
	if err != nil {
		return "", err
	}
	changed, list := filepath.Join(dir, "changed.go"), filepath.Join(dir, "overlay.json")
	j, err := json.Marshal(map[string]map[string]string{"Replace": {abs: changed}})
	if err != nil {
		return "", err
	}
	return list, errors.Join(os.WriteFile(changed, []byte(strings.Replace(string(b), m.old, m.new, 1)), 0o600), os.WriteFile(list, j, 0o600))
}

// try returns what found the mutation, or nothing.
func (m *mutation) try(ctx context.Context, dir string, rounds int) (string, error) {
	list, err := m.overlay(dir)
	if err != nil {
		return "", err
	}
	program, test := filepath.Join(dir, "vdbridge"), filepath.Join(dir, "history.test")
	for _, args := range [][]string{{"build", "-overlay", list, "-o", program, "./cmd/vdbridge"}, {"test", "-c", "-overlay", list, "-o", test, "./test/history"}} {
		if out, err := exec.CommandContext(ctx, "go", args...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("go %s: %w\n%s", args[0], err, out)
		}
	}
	start := time.Now()
	for seed := 1; seed <= rounds; seed++ {
		cmd := exec.CommandContext(ctx, test, "-test.failfast", "-test.run", "^("+m.tests+")$", "-test.v", "-test.timeout", "5m")
		cmd.Dir = "test/history"
		cmd.Env = append(os.Environ(), "VDBRIDGE_BIN="+program, fmt.Sprintf("VDBRIDGE_SEED=%d", seed), "VDBRIDGE_SOAK=1s")
		out, err := cmd.CombinedOutput()
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		if err != nil {
			return fmt.Sprintf("found after %v, seed %d: %s", time.Since(start).Round(100*time.Millisecond), seed, verdict(string(out))), nil
		}
	}
	return "", nil
}

var (
	failed  = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)
	message = regexp.MustCompile(`(?m)^\s*\w+_test\.go:\d+: (.*(?:no order|nobody wrote|saw what|hold parts|gave up|succeeded after|sector holds|image|lost its|registration with|open in the end|in the end:).*)$`)
)

// verdict is the name of the test and the first thing that it said.
func verdict(out string) string {
	name := "?"
	if m := failed.FindAllStringSubmatch(out, -1); m != nil {
		name = m[0][1]
	}
	if m := message.FindStringSubmatch(out); m != nil {
		return name + ": " + m[1][:min(400, len(m[1]))]
	}
	return name + ": failed otherwise:\n" + out[max(0, len(out)-600):]
}
