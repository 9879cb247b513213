// Package smbd starts a private Samba server for tests: on loopback, on a port of its own, with all its state in a temporary folder, ended
// with the test. It needs Debian's package samba and, as smbd does, root.
package smbd

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Options say how the server is configured. The zero value is a server with Samba's own defaults, from SMB 2.0.2 on.
type Options struct {
	MinProtocol, MaxProtocol string   // such as "SMB3_00"; empty: SMB2_02 and SMB3_11
	Signing                  string   // "server signing": mandatory, auto, disabled
	Encrypt                  string   // "server smb encrypt": required, desired, off, for the whole server
	ShareEncrypt             string   // the same, for the share only
	Ciphers                  string   // "server smb3 encryption algorithms"
	SigningAlgorithms        string   // "server smb3 signing algorithms"
	Global, Share            []string // more lines of the two sections
}

// Server is a running smbd.
type Server struct {
	Addr     string // host:port
	Port     int
	User     string
	Password string
	Share    string // name of the share
	Dir      string // the folder behind it
	Conf     string // smb.conf

	state string
	cmd   *exec.Cmd
	done  chan struct{}
	out   *buffer
	once  sync.Once
}

// RequireEnv is the environment variable that makes missing tools an error instead of a reason to skip.
const RequireEnv = "VDBRIDGE_REQUIRE_TOOLS"

// Start starts a server and ends it with the test. When smbd is missing or may not run, the test is skipped, or fails if RequireEnv is 1.
func Start(t testing.TB, opts Options) *Server {
	t.Helper()
	if reason := Missing(); reason != "" {
		if os.Getenv(RequireEnv) == "1" {
			t.Fatal(reason)
		}
		t.Skip("SKIPPED, NOT TESTED: " + reason)
	}
	s, err := Run(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("smbd said:\n%s", s.Log())
		}
		if err := s.Stop(); err != nil {
			t.Errorf("stop smbd: %v", err)
		}
	})
	return s
}

// Missing returns why a server cannot be started here, or "".
func Missing() string {
	for _, tool := range []string{"smbd", "smbpasswd"} {
		if _, err := exec.LookPath(tool); err != nil {
			return tool + " is not installed (Debian: apt-get install samba)"
		}
	}
	if os.Geteuid() != 0 {
		return "smbd can only be started by root"
	}
	return ""
}

// Run is Start outside of a test. Stop must be called.
func Run(opts Options) (*Server, error) {
	me, err := user.Current()
	if err != nil {
		return nil, fmt.Errorf("start smbd: %w", err)
	}
	// The path must be short, as there are Unix sockets in it.
	state, err := os.MkdirTemp("", "smbd-")
	if err != nil {
		return nil, fmt.Errorf("start smbd: %w", err)
	}
	s := &Server{User: me.Username, Password: "Secret-1", Share: "share", Dir: filepath.Join(state, "share"), Conf: filepath.Join(state, "smb.conf"), state: state}
	for try := 0; ; try++ {
		err = s.start(opts)
		if err == nil {
			return s, nil
		}
		if try == 2 {
			_ = os.RemoveAll(state)
			return nil, fmt.Errorf("start smbd: %w", err)
		}
	}
}

func (s *Server) start(opts Options) error {
	// Somebody else may take the port before smbd does; then Run tries again.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.Port = l.Addr().(*net.TCPAddr).Port
	s.Addr = l.Addr().String()
	_ = l.Close()
	for _, d := range []string{"private", "lock", "state", "cache", "pid", "ncalrpc", "share"} {
		if err := os.MkdirAll(filepath.Join(s.state, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(s.Conf, []byte(s.config(opts)), 0o644); err != nil {
		return err
	}
	pw := exec.Command("smbpasswd", "-c", s.Conf, "-s", "-a", s.User)
	pw.Stdin = strings.NewReader(s.Password + "\n" + s.Password + "\n")
	if out, err := pw.CombinedOutput(); err != nil {
		return fmt.Errorf("smbpasswd: %w: %s", err, out)
	}
	s.out = &buffer{}
	s.cmd = exec.Command("smbd", "-F", "--no-process-group", "--debug-stdout", "-s", s.Conf)
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	// smbd has a process for each connection; one group ends them together.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	s.cmd.WaitDelay = 5 * time.Second
	if err := s.cmd.Start(); err != nil {
		return err
	}
	s.done = make(chan struct{})
	go func() {
		_ = s.cmd.Wait()
		close(s.done)
	}()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if c, err := net.Dial("tcp", s.Addr); err == nil {
			_ = c.Close()
			return nil
		}
		select {
		case <-s.done:
			return fmt.Errorf("smbd ended: %s", s.Log())
		case <-deadline:
			s.kill(syscall.SIGKILL)
			<-s.done
			return errors.New("smbd does not listen after 20 s")
		case <-tick.C:
		}
	}
}

func (s *Server) config(o Options) string {
	var b strings.Builder
	line := func(key, value string) {
		if value != "" {
			fmt.Fprintf(&b, "  %s = %s\n", key, value)
		}
	}
	or := func(v, d string) string {
		if v == "" {
			return d
		}
		return v
	}
	b.WriteString("[global]\n")
	line("interfaces", "127.0.0.1/8")
	line("bind interfaces only", "yes")
	line("smb ports", fmt.Sprint(s.Port))
	line("server role", "standalone server")
	line("disable netbios", "yes")
	line("load printers", "no")
	line("printcap name", "/dev/null")
	line("disable spoolss", "yes")
	line("map to guest", "never")
	line("log level", "1")
	for _, d := range []string{"private dir", "lock directory", "state directory", "cache directory", "pid directory", "ncalrpc dir"} {
		line(d, filepath.Join(s.state, strings.Fields(d)[0]))
	}
	line("log file", filepath.Join(s.state, "log"))
	line("server min protocol", or(o.MinProtocol, "SMB2_02"))
	line("server max protocol", or(o.MaxProtocol, "SMB3_11"))
	line("server signing", o.Signing)
	line("server smb encrypt", o.Encrypt)
	line("server smb3 encryption algorithms", o.Ciphers)
	line("server smb3 signing algorithms", o.SigningAlgorithms)
	for _, l := range o.Global {
		b.WriteString("  " + l + "\n")
	}
	fmt.Fprintf(&b, "[%s]\n", s.Share)
	line("path", s.Dir)
	line("read only", "no")
	line("server smb encrypt", o.ShareEncrypt)
	for _, l := range o.Share {
		b.WriteString("  " + l + "\n")
	}
	return b.String()
}

// Log returns what smbd has written so far.
func (s *Server) Log() string { return s.out.String() }

func (s *Server) kill(sig syscall.Signal) { _ = syscall.Kill(-s.cmd.Process.Pid, sig) }

// Stop ends the server and removes its state, the share included.
func (s *Server) Stop() error {
	var err error
	s.once.Do(func() {
		s.kill(syscall.SIGTERM)
		select {
		case <-s.done:
		case <-time.After(10 * time.Second):
			err = errors.New("smbd did not end on SIGTERM within 10 s")
		}
		s.kill(syscall.SIGKILL) // whoever of its group is left
		<-s.done
		err = errors.Join(err, os.RemoveAll(s.state))
	})
	return err
}

// Pid returns the process id of smbd, which is also that of its process group.
func (s *Server) Pid() int { return s.cmd.Process.Pid }

// Kill ends the server at once, as a crash would, and leaves its state.
func (s *Server) Kill() {
	s.kill(syscall.SIGKILL)
	<-s.done
}

// buffer is a bytes.Buffer for two goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
