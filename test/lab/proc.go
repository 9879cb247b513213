package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// keep is how many bytes of a program's output are kept, the first and the last half each.
const keep = 256 << 10

// Proc is a program that runs beside the test.
type Proc struct {
	name string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // valid once done is closed

	mu   sync.Mutex
	out  bytes.Buffer
	more chan struct{} // closed and renewed whenever output arrives
}

// starter owns the thread that starts programs: Pdeathsig is sent when the thread that started the child ends, so it must be one that lives
// as long as the process.
var starter = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// StartOn runs f on a thread that lives as long as this process, which is what Pdeathsig needs.
func StartOn(f func() error) error {
	err := make(chan error, 1)
	starter() <- func() { err <- f() }
	return <-err
}

// Start starts cmd in a process group of its own that dies with this process. Its standard output and error are collected.
// start is how to start it; nil is cmd.Start on a lasting thread. The caller ends it with Stop.
func Start(cmd *exec.Cmd, start func(*exec.Cmd) error) (*Proc, error) {
	p := &Proc{name: filepath.Base(cmd.Path), cmd: cmd, done: make(chan struct{}), more: make(chan struct{})}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	w := (*procWriter)(p)
	if cmd.Stdout == nil {
		cmd.Stdout = w
	} else {
		cmd.Stdout = io.MultiWriter(cmd.Stdout, w)
	}
	cmd.Stderr = w
	cmd.WaitDelay = 5 * time.Second // a grandchild that keeps the pipe does not keep us
	if start == nil {
		start = func(cmd *exec.Cmd) error { return StartOn(cmd.Start) }
	}
	if err := start(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// procWriter collects output.
type procWriter Proc

func (w *procWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.out.Write(b)
	if w.out.Len() > keep {
		all := w.out.Bytes()
		cut := append(append([]byte(nil), all[:keep/4]...), "\n… output left out …\n"...)
		cut = append(cut, all[len(all)-keep/2:]...)
		w.out.Reset()
		w.out.Write(cut)
	}
	close(w.more)
	w.more = make(chan struct{})
	return len(b), nil
}

// Pid is the program's process id.
func (p *Proc) Pid() int { return p.cmd.Process.Pid }

// Output is what the program has printed so far, standard output and error together. Of much output the middle is left out.
func (p *Proc) Output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// Done is closed when the program has ended.
func (p *Proc) Done() <-chan struct{} { return p.done }

// Wait waits until the program has ended by itself, and returns why it failed, with its output, or nil.
func (p *Proc) Wait(ctx context.Context) error {
	select {
	case <-p.done:
	case <-ctx.Done():
		return fmt.Errorf("%s still runs: %w\n%s", p.name, ctx.Err(), p.Output())
	}
	if p.err != nil {
		return fmt.Errorf("%s: %w\n%s", p.name, p.err, p.Output())
	}
	return nil
}

// WaitOutput waits until the program has printed text.
func (p *Proc) WaitOutput(ctx context.Context, text string) error {
	return p.wait(ctx, strconv.Quote(text), func(out string) bool { return strings.Contains(out, text) })
}

// WaitLine waits until the program has printed a whole line that begins with prefix, and returns the rest of it.
func (p *Proc) WaitLine(ctx context.Context, prefix string) (rest string, err error) {
	err = p.wait(ctx, "a line "+strconv.Quote(prefix), func(out string) bool {
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, prefix) && strings.HasSuffix(line, "\n") {
				rest = strings.TrimSpace(line[len(prefix):])
				return true
			}
		}
		return false
	})
	return rest, err
}

func (p *Proc) wait(ctx context.Context, what string, found func(output string) bool) error {
	for {
		p.mu.Lock()
		out, more := p.out.String(), p.more
		p.mu.Unlock()
		if found(out) {
			return nil
		}
		select {
		case <-more:
		case <-p.done:
			if found(p.Output()) {
				return nil
			}
			return fmt.Errorf("%s ended (%v) before it printed %s:\n%s", p.name, p.err, what, p.Output())
		case <-ctx.Done():
			return fmt.Errorf("%s has not printed %s: %w\n%s", p.name, what, ctx.Err(), p.Output())
		}
	}
}

// WaitListen waits until something accepts connections at addr while the program runs. dial is how to connect; nil is net.Dial.
func (p *Proc) WaitListen(ctx context.Context, network, addr string, dial func(network, addr string) (net.Conn, error)) error {
	if dial == nil {
		dial = net.Dial
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := dial(network, addr)
		if err == nil {
			return c.Close()
		}
		select {
		case <-tick.C:
		case <-p.done:
			return fmt.Errorf("%s ended (%v) before it listened at %s:\n%s", p.name, p.err, addr, p.Output())
		case <-ctx.Done():
			return fmt.Errorf("%s does not listen at %s: %w\n%s", p.name, addr, err, p.Output())
		}
	}
}

// Stop asks the program to end (SIGTERM), kills it and what it started after grace, and waits. It returns an error when the program
// had to be killed or said that it failed; being ended by the SIGTERM is no failure. It may be called more than once.
func (p *Proc) Stop(grace time.Duration) error {
	select {
	case <-p.done:
	default:
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-p.done:
		case <-t.C:
			p.Kill()
			return fmt.Errorf("%s did not end within %v of SIGTERM and was killed:\n%s", p.name, grace, p.Output())
		}
	}
	var exit *exec.ExitError
	if errors.As(p.err, &exit) {
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() && ws.Signal() == syscall.SIGTERM {
			return nil
		}
	}
	if p.err != nil {
		return fmt.Errorf("%s: %w\n%s", p.name, p.err, p.Output())
	}
	return nil
}

// Kill ends the program and its process group at once (SIGKILL) and waits.
func (p *Proc) Kill() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	_ = p.cmd.Process.Kill()
	<-p.done
}
