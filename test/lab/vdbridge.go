package lab

import (
	"context"
	"errors"
	"fmt"
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

	// Start makes it run in another network; nil is this one. See vm.Net.
	Start func(*exec.Cmd) error
}

// NewProgram prepares the folder dir, which must exist, for User.
func NewProgram(bin, dir string) (*Program, error) { return NewProgramFor(bin, dir, User, Password) }

// NewProgramFor prepares the folder dir, which must exist, for another user.
func NewProgramFor(bin, dir, user, password string) (*Program, error) {
	p := &Program{Bin: bin, Dir: dir}
	return p, errors.Join(
		os.WriteFile(p.file("users"), []byte(user+":"+password+"\n"), 0o600),
		os.WriteFile(p.file("password"), []byte(password+"\n"), 0o600),
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

// start starts a command that goes on until it is ended, and waits for the line by which it says that it is ready.
func (p *Program) start(ctx context.Context, args ...string) (proc *Proc, what string, err error) {
	proc, err = Start(exec.Command(p.Bin, args...), p.Start)
	if err != nil {
		return nil, "", err
	}
	ctx, cancel := context.WithTimeout(ctx, ReadyTimeout)
	defer cancel()
	what, err = proc.WaitLine(ctx, "ready ")
	if err != nil {
		proc.Kill()
		return nil, "", fmt.Errorf("vdbridge %s: %w", strings.Join(args, " "), err)
	}
	return proc, what, nil
}

// Serve starts `vdbridge serve` for the disks in dir at addr ("127.0.0.1:0" for any free port) and returns where it listens.
func (p *Program) Serve(ctx context.Context, dir, addr string, more ...string) (proc *Proc, at string, err error) {
	args := append([]string{"serve", "--listen", addr, "--share", Share, "--users", p.file("users")}, more...)
	proc, url, err := p.start(ctx, append(args, dir)...)
	if err != nil {
		return nil, "", err
	}
	at, _, ok := strings.Cut(strings.TrimPrefix(url, "smb://"), "/")
	if !ok {
		proc.Kill()
		return nil, "", fmt.Errorf("vdbridge serve says that it is ready at %q, which is no URL", url)
	}
	return proc, at, nil
}

// NBD starts `vdbridge nbd` for the disk at url, a URL or a local image. listen is a socket's path, or host:port. It returns the URI
// that NBD clients take.
func (p *Program) NBD(ctx context.Context, url, listen string, more ...string) (proc *Proc, uri string, err error) {
	where := "tcp:" + listen
	if strings.HasPrefix(listen, "/") {
		where = "unix:" + listen
	}
	args := append([]string{"nbd", "--listen", where}, p.ClientArgs()...)
	return p.start(ctx, append(append(args, more...), url)...)
}

// Mount starts `vdbridge mount` for the disk at url, shown as disk.raw in dir.
func (p *Program) Mount(ctx context.Context, url, dir string, more ...string) (*Proc, error) {
	args := append([]string{"mount"}, p.ClientArgs()...)
	proc, _, err := p.start(ctx, append(append(args, more...), url, dir)...)
	return proc, err
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
