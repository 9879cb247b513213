package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// The user that a Program serves and logs on as.
const (
	User     = "demo"
	Password = "correct horse battery staple"
	Share    = "disks"
)

// ReadyTimeout is how long a program may take until it serves.
const ReadyTimeout = 30 * time.Second

// Program is vdbridge with a private folder for its state, its users and its password.
type Program struct {
	Bin string // the vdbridge program
	Dir string // a folder of the caller's, for state, user and password files

	// Start and Dial make it run in another network; nil is this one. See vm.Net.
	Start func(*exec.Cmd) error
	Dial  func(network, addr string) (net.Conn, error)
}

// NewProgram prepares the folder dir, which must exist.
func NewProgram(bin, dir string) (*Program, error) {
	p := &Program{Bin: bin, Dir: dir}
	return p, errors.Join(
		os.WriteFile(p.file("users"), []byte(User+":"+Password+"\n"), 0o600),
		os.WriteFile(p.file("password"), []byte(Password+"\n"), 0o600),
	)
}

func (p *Program) file(name string) string { return filepath.Join(p.Dir, name) }

// URL is where Serve at addr offers the file.
func URL(addr, file string) string { return "smb://" + User + "@" + addr + "/" + Share + "/" + file }

// ClientArgs are the arguments by which a command logs on as User and keeps its state in the program's folder.
func (p *Program) ClientArgs() []string {
	return []string{"--password-file", p.file("password"), "--state-dir", p.file("state")}
}

// Run runs a command to its end and returns its standard output and error together. Of a failure the error has the output too.
func (p *Program) Run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.Command(p.Bin, args...)
	proc, err := Start(cmd, p.Start)
	if err != nil {
		return "", err
	}
	if err := proc.Wait(ctx); err != nil {
		proc.Kill()
		return proc.Output(), fmt.Errorf("vdbridge %s: %w", strings.Join(args, " "), err)
	}
	return proc.Output(), nil
}

// Serve starts `vdbridge serve` for the disks in dir at addr ("127.0.0.1:4450") and waits until it accepts connections.
func (p *Program) Serve(ctx context.Context, dir, addr string, more ...string) (*Proc, error) {
	args := append([]string{"serve", "--listen", addr, "--share", Share, "--users", p.file("users")}, more...)
	proc, err := Start(exec.Command(p.Bin, append(args, dir)...), p.Start)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, ReadyTimeout)
	defer cancel()
	if err := proc.WaitListen(ctx, "tcp", addr, p.Dial); err != nil {
		proc.Kill()
		return nil, err
	}
	return proc, nil
}

// NBD starts `vdbridge nbd` for the disk at url and waits until it accepts connections at listen, which is a socket's path, or host:port.
func (p *Program) NBD(ctx context.Context, url, listen string, more ...string) (*Proc, error) {
	network, where := "tcp", "tcp:"+listen
	if strings.HasPrefix(listen, "/") {
		network, where = "unix", "unix:"+listen
	}
	args := append([]string{"nbd", "--listen", where}, p.ClientArgs()...)
	args = append(args, more...)
	proc, err := Start(exec.Command(p.Bin, append(args, url)...), p.Start)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, ReadyTimeout)
	defer cancel()
	if err := proc.WaitListen(ctx, network, listen, p.Dial); err != nil {
		proc.Kill()
		return nil, err
	}
	return proc, nil
}

// FreeAddr returns a loopback address with a port that nobody uses right now.
func FreeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return ln.Addr().String(), ln.Close()
}

// Run runs another program to its end and returns its standard output and error together.
func Run(ctx context.Context, name string, args ...string) (string, error) {
	path, err := Look(name)
	if err != nil {
		return "", err
	}
	proc, err := Start(exec.Command(path, args...), nil)
	if err != nil {
		return "", err
	}
	if err := proc.Wait(ctx); err != nil {
		proc.Kill()
		return proc.Output(), fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return proc.Output(), nil
}

// Mount starts `vdbridge mount` for the disk at url and waits until disk.raw is there.
func (p *Program) Mount(ctx context.Context, url, dir string, more ...string) (*Proc, error) {
	args := append([]string{"mount"}, p.ClientArgs()...)
	args = append(args, more...)
	proc, err := Start(exec.Command(p.Bin, append(args, url, dir)...), p.Start)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, ReadyTimeout)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(filepath.Join(dir, "disk.raw")); err == nil {
			return proc, nil
		}
		select {
		case <-tick.C:
		case <-proc.Done():
			return nil, fmt.Errorf("vdbridge mount ended before it showed the disk:\n%s", proc.Output())
		case <-ctx.Done():
			proc.Kill()
			return nil, fmt.Errorf("vdbridge mount does not show the disk: %w\n%s", ctx.Err(), proc.Output())
		}
	}
}
