// Package leak finds goroutines that a test left behind.
//
// Every goroutine of vdbridge has an owner whose Close waits for it, so after a test has closed what it opened nothing that the test
// started may still run. Check at the head of a test says so:
//
//	func TestDial(t *testing.T) {
//		leak.Check(t)
//		…
//	}
//
// Main does the same for all tests of a package together. A test that uses Check cannot run in parallel with others in its package,
// as the goroutines of those would be taken for its own.
package leak

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// Patience is how long Check and Main wait for goroutines that are on their way out before they call them left behind.
const Patience = 5 * time.Second

// Check notes which goroutines run now and, when the test and its later cleanups are over, fails the test for each other one that does
// not end within Patience. Call it first, so that its own cleanup runs last.
func Check(t testing.TB) {
	t.Helper()
	before := make(map[string]bool)
	for _, g := range stacks() {
		before[g.id] = true
	}
	t.Cleanup(func() {
		if left := wait(before, Patience); len(left) > 0 {
			t.Errorf("%d goroutines left behind:\n\n%s", len(left), join(left))
		}
	})
}

// Main runs all tests of a package and returns the exit code: that of the tests, or 1 when goroutines are left behind. Use:
//
//	func TestMain(m *testing.M) { os.Exit(leak.Main(m)) }
func Main(m *testing.M) int {
	code := m.Run()
	if code != 0 {
		return code
	}
	if left := wait(nil, Patience); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "%d goroutines left behind by the tests of this package:\n\n%s\n", len(left), join(left))
		return 1
	}
	return 0
}

type goroutine struct {
	id    string // the number that the runtime gave it
	stack string
}

// wait returns the goroutines that are neither in before, nor the runtime's own, nor gone within patience.
func wait(before map[string]bool, patience time.Duration) []goroutine {
	var left []goroutine
	deadline := time.Now().Add(patience)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		left = left[:0]
		for _, g := range stacks() {
			if !before[g.id] && !harmless(g.stack) {
				left = append(left, g)
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
		time.Sleep(pause) // the runtime has no event for "a goroutine ended"
	}
}

// stacks returns all goroutines except the calling one.
func stacks() []goroutine {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	all := strings.Split(string(buf), "\n\n")
	gs := make([]goroutine, 0, len(all))
	for _, s := range all[1:] { // the first is the calling goroutine
		id, _, ok := strings.Cut(strings.TrimPrefix(s, "goroutine "), " ")
		if ok {
			gs = append(gs, goroutine{id, s})
		}
	}
	return gs
}

// harmless says that the testing package or the standard library owns the goroutine for the life of the process.
func harmless(stack string) bool {
	for _, s := range []string{
		"testing.(*M).",
		"testing.(*T).Run",
		"testing.(*F).",
		"testing.runTests",
		"testing.runFuzzing",
		"testing.tRunner.func",
		"os/signal.signal_recv",
		"os/signal.loop",
		"runtime.ensureSigM",
		"runtime.ReadTrace",
		"runtime/pprof.profileWriter",
		"net._C2func_getaddrinfo",
	} {
		if strings.Contains(stack, s) {
			return true
		}
	}
	return false
}

func join(gs []goroutine) string {
	var b strings.Builder
	for _, g := range gs {
		b.WriteString(g.stack)
		b.WriteString("\n\n")
	}
	return strings.TrimSpace(b.String())
}
