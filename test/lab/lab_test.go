package lab

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func sh(t *testing.T, script string) *Proc {
	t.Helper()
	p, err := Start(exec.Command("/bin/sh", "-c", script), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

func TestOutputAndWait(t *testing.T) {
	ctx := context.Background()
	p := sh(t, "echo one; echo two >&2; read x; exit 3")
	if err := p.WaitOutput(ctx, "two"); err != nil {
		t.Fatal(err)
	}
	if rest, err := p.WaitLine(ctx, "on"); rest != "e" || err != nil {
		t.Errorf("WaitLine: %q, %v", rest, err)
	}
	err := p.Wait(ctx)
	if err == nil || !strings.Contains(err.Error(), "exit status") || !strings.Contains(err.Error(), "one") {
		t.Errorf("Wait says %v", err)
	}
	if err := p.WaitOutput(ctx, "three"); err == nil {
		t.Error("WaitOutput found what was never printed")
	}
}

func TestStop(t *testing.T) {
	ctx := context.Background()
	p := sh(t, "echo up; exec sleep 1000")
	if err := p.WaitOutput(ctx, "up"); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(time.Minute); err != nil {
		t.Error(err)
	}
	p = sh(t, "trap '' TERM; sleep 1000 & echo up $!; wait")
	if err := p.WaitOutput(ctx, "up"); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(10 * time.Millisecond); err == nil {
		t.Error("a program that had to be killed is no failure")
	}
	_, child, _ := strings.Cut(strings.TrimSpace(p.Output()), "up ")
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for alive(child) {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the program's own child still runs")
		}
	}
}

// alive says whether the process exists and is no zombie.
func alive(pid string) bool {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	return err == nil && !strings.Contains(string(b), ") Z ")
}

func TestWaitListen(t *testing.T) {
	ctx := context.Background()
	sock := filepath.Join(t.TempDir(), "s")
	p := sh(t, "read x; exit 1 <&-")
	if err := p.WaitListen(ctx, "unix", sock, nil); err == nil {
		t.Error("nobody listens, and the program ended, but WaitListen says nothing")
	}
	ln, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	p = sh(t, "exec sleep 1000")
	if err := p.WaitListen(ctx, "unix", sock, nil); err != nil {
		t.Error(err)
	}
}

func TestMissing(t *testing.T) {
	if err := Missing("sh"); err != nil {
		t.Error(err)
	}
	if err := Missing("sh", "no-such-program-here"); err == nil || !strings.Contains(err.Error(), "no-such-program-here") {
		t.Errorf("Missing says %v", err)
	}
}
