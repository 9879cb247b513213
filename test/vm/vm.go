package vm

import (
	"bytes"
	"context"
	_ "embed" // the guest's init
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vdbridge/test/lab"
)

const (
	kernel     = "/usr/bin/linux.uml"
	modulesDir = "/usr/lib/uml/modules"
)

//go:embed init.sh
var initScript []byte

// Options says what guest to boot and what to run in it.
type Options struct {
	Script  string        // run by /bin/sh as root; its exit status is the result's
	Modules []string      // kernel modules to load before, for instance "nbd", "cifs"
	Memory  string        // of the guest, as the kernel has it; "" is 512M
	Network *Net          // nil is no network
	Guest   int           // which guest of the network it is, counted from 0
	Name    string        // the guest's host name; "" is guest
	Share   []string      // folders of the host that the guest may write, under the same path
	Timeout time.Duration // until the guest is killed; 0 is 2 minutes
	Output  io.Writer     // gets the script's output as it comes, besides the result; may be nil
}

// Result is what the script printed, standard output and error together, and its exit status.
type Result struct {
	Output string
	Status int
}

// ErrDied is when a guest ended without an exit status: its kernel crashed, or it ran out of time.
var ErrDied = errors.New("the guest died")

// Check says why guests cannot run here, or nil.
func Check() error {
	if err := lab.Missing("busybox", "modprobe"); err != nil {
		return err
	}
	for _, f := range []string{kernel, modulesDir} {
		if _, err := os.Stat(f); err != nil {
			return fmt.Errorf("%s is missing: it is in Debian's package user-mode-linux (scripts/setup.sh installs it)", f)
		}
	}
	return nil
}

// Need skips the test when guests cannot run here, or fails it when tools are required. tools are programs that the test runs.
func Need(t testing.TB, tools ...string) {
	t.Helper()
	lab.NeedNil(t, Check())
	lab.Need(t, tools...)
}

// MustRun runs a guest for a test and fails the test unless the script's status is 0. It returns the output.
func MustRun(t testing.TB, o Options) string {
	t.Helper()
	res, err := Run(t.Context(), o)
	if err != nil {
		t.Fatalf("guest: %v\n%s", err, res.Output)
	}
	if res.Status != 0 {
		t.Fatalf("the script in the guest ended with status %d:\n%s", res.Status, res.Output)
	}
	return res.Output
}

// Run boots a guest, runs the script, and waits until all of the guest is gone. The error is nil when the script ran to its end, whatever
// its status. Guests may run at the same time, each with a Net of its own.
func Run(ctx context.Context, o Options) (res Result, err error) {
	if err := Check(); err != nil {
		return res, err
	}
	if o.Timeout == 0 {
		o.Timeout = 2 * time.Minute
	}
	if o.Memory == "" {
		o.Memory = "512M"
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	work, err := os.MkdirTemp("", "vdbridge-guest-")
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	defer sweep(work)
	if err := os.WriteFile(filepath.Join(work, "init"), initScript, 0o755); err != nil {
		return res, err
	}
	if err := os.WriteFile(filepath.Join(work, "script"), []byte(o.Script+"\n"), 0o644); err != nil {
		return res, err
	}
	args := []string{
		"mem=" + o.Memory, "rootfstype=hostfs", "root=/dev/root", "rootflags=/", "ro", "init=" + filepath.Join(work, "init"),
		"con=null", "con0=null,fd:1", "console=tty0", "quiet", "loglevel=3", "selinux=0", "panic=-1",
		"vm.work=" + work, "vm.modules=" + strings.Join(o.Modules, ","), "vm.share=" + strings.Join(o.Share, ","),
	}
	if o.Name != "" {
		args = append(args, "vm.name="+o.Name)
	}
	var start func(*exec.Cmd) error
	if o.Network != nil {
		// gro=1: without it the driver drops the large frames that the host's TCP makes, and bulk transfers stall.
		args = append(args, fmt.Sprintf("vec0:transport=raw,ifname=%s,depth=64,gro=1,mac=02:00:00:00:00:%02x", guestVeth(o.Guest), o.Guest+1), "vm.addr="+AddrOf(o.Guest)+"/24")
		start = o.Network.StartCommand
	}
	cmd := exec.Command(kernel, args...)
	cmd.Dir = work
	cmd.Env = append(os.Environ(), "HOME="+work) // keeps its ~/.uml private
	if fi, err := os.Stat("/dev/shm"); err == nil && fi.IsDir() {
		cmd.Env = append(cmd.Env, "TMPDIR=/dev/shm") // the guest's memory is a file
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID // all of the guest's processes end with its first
	}
	out := &console{w: o.Output}
	cmd.Stdout = out
	started := time.Now()
	p, err := lab.Start(cmd, start)
	if err != nil {
		return res, err
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
	}
	p.Kill()
	out.flush()
	res.Output = out.all.String()
	status, rerr := os.ReadFile(filepath.Join(work, "status"))
	if ctx.Err() != nil && rerr != nil {
		return res, fmt.Errorf("%w: killed after %v (%w)", ErrDied, time.Since(started).Round(time.Second), ctx.Err())
	}
	if rerr != nil {
		return res, fmt.Errorf("%w: it left no exit status; the console had:\n%s", ErrDied, tail(p.Output(), 2000))
	}
	res.Status, err = strconv.Atoi(strings.TrimSpace(string(status)))
	if err != nil {
		return res, fmt.Errorf("%w: its exit status is %q", ErrDied, status)
	}
	return res, nil
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// sweep ends what is left of a guest: UML's helpers are processes of their own, with the folder on their command line.
func sweep(work string) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		line, err := os.ReadFile(d + "/cmdline")
		if err != nil || !bytes.Contains(line, []byte("vm.work="+work+"\x00")) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(d)); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// noise is what the kernel says at start and end, whatever the guest did.
var noise = regexp.MustCompile(`^(\[ *[0-9.]+\] )?(reboot: |mmapper_init|SELinux:|Failed to initialize ubd|Unable to handle|Core dump limits|Checking |\s*(soft|hard) - )`)

// console turns what the guest prints into lines without carriage returns and noise. Only the program's output goroutine writes.
type console struct {
	w       io.Writer
	all     bytes.Buffer
	partial []byte
}

func (c *console) Write(p []byte) (int, error) {
	c.partial = append(c.partial, p...)
	for {
		i := bytes.IndexByte(c.partial, '\n')
		if i < 0 {
			return len(p), nil
		}
		c.line(c.partial[:i+1])
		c.partial = c.partial[i+1:]
	}
}

func (c *console) line(l []byte) {
	l = bytes.ReplaceAll(l, []byte{'\r'}, nil)
	if noise.Match(l) {
		return
	}
	c.all.Write(l)
	if c.w != nil {
		_, _ = c.w.Write(l)
	}
}

func (c *console) flush() {
	if len(c.partial) > 0 {
		c.line(c.partial)
		c.partial = nil
	}
}
