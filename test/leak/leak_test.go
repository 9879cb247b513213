package leak

import (
	"strings"
	"testing"
	"time"
)

func TestWaitFindsWhatIsLeft(t *testing.T) {
	before := make(map[string]bool)
	for _, g := range stacks() {
		before[g.id] = true
	}
	stop, running := make(chan struct{}), make(chan struct{})
	go func() { close(running); <-stop }()
	<-running
	left := wait(before, 20*time.Millisecond)
	if len(left) != 1 || !strings.Contains(left[0].stack, "TestWaitFindsWhatIsLeft") {
		t.Errorf("found %d goroutines, want the one of this test:\n%s", len(left), join(left))
	}
	close(stop)
	if left := wait(before, Patience); len(left) != 0 {
		t.Errorf("an ended goroutine is still reported:\n%s", join(left))
	}
}

// recorder stands for a test whose cleanup is run by hand.
type recorder struct {
	testing.TB
	cleanup []func()
	failed  int
}

func (r *recorder) Helper()               {}
func (r *recorder) Cleanup(f func())      { r.cleanup = append(r.cleanup, f) }
func (r *recorder) Errorf(string, ...any) { r.failed++ }

func TestCheckIgnoresWhatRanBefore(t *testing.T) {
	stop, running := make(chan struct{}), make(chan struct{})
	go func() { close(running); <-stop }()
	<-running
	defer close(stop)
	r := &recorder{TB: t}
	Check(r)
	done := make(chan struct{})
	go func() { <-done }() // ends while Check waits
	go close(done)
	for _, f := range r.cleanup {
		f()
	}
	if r.failed != 0 {
		t.Error("Check took an earlier or an ending goroutine for a leak")
	}
}
