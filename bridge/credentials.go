package bridge

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"strings"

	"golang.org/x/sys/unix"

	"vdbridge/smb/auth"
)

// PasswordEnv is the environment variable that may hold the password.
const PasswordEnv = "VDBRIDGE_PASSWORD"

// Credentials say who logs on. They print as the user's name only.
type Credentials struct {
	Domain    string
	User      string
	password  string
	Guest     bool // a guest session is acceptable
	Anonymous bool // log on as nobody
}

// NewCredentials makes credentials of a password that the caller already has.
func NewCredentials(domain, user, password string) Credentials {
	return Credentials{Domain: domain, User: user, password: password}
}

// String is domain\user, without the password.
func (c Credentials) String() string {
	if c.Anonymous {
		return "anonymous"
	}
	if c.Domain != "" {
		return c.Domain + `\` + c.User
	}
	return c.User
}

// GoString keeps the password out of %#v.
func (c Credentials) GoString() string { return "bridge.Credentials(" + c.String() + ")" }

// LogValue keeps the password out of logs.
func (c Credentials) LogValue() slog.Value { return slog.StringValue(c.String()) }

// CredentialSource says where credentials come from. The first that applies wins: the credentials file, the password file, the
// environment, a prompt.
type CredentialSource struct {
	User            string // overrides the URL's; may be domain;user, domain\user or user@realm
	Domain          string
	PasswordFile    string // its first line is the password; "-" is standard input
	CredentialsFile string // username=, password=, domain= lines, as mount.cifs has them
	Guest           bool
	Anonymous       bool

	Known *Credentials // found already: the rest is not asked

	Getenv func(string) string                                        // nil = os.Getenv
	Prompt func(ctx context.Context, question string) (string, error) // nil = ask on the terminal; not called without one
}

// Resolve finds the credentials for loc.
func (s CredentialSource) Resolve(ctx context.Context, loc Location) (Credentials, error) {
	if s.Known != nil {
		return *s.Known, nil
	}
	getenv := s.Getenv
	if getenv == nil {
		getenv = os.Getenv
	}
	c := Credentials{Domain: loc.Domain, User: loc.User, Guest: s.Guest}
	if s.Anonymous {
		return Credentials{Anonymous: true, Guest: s.Guest}, nil
	}
	havePassword := false
	if s.CredentialsFile != "" {
		f, err := readCredentialsFile(s.CredentialsFile)
		if err != nil {
			return c, err
		}
		if f.User != "" && c.User == "" {
			c.User = f.User
		}
		if f.Domain != "" && c.Domain == "" {
			c.Domain = f.Domain
		}
		c.password, havePassword = f.Password, f.Password != ""
	}
	if s.User != "" {
		if d, u := auth.SplitUser(s.User); d != "" {
			c.Domain, c.User = d, u
		} else {
			c.User = u
		}
	}
	if s.Domain != "" {
		c.Domain = s.Domain
	}
	if c.User == "" {
		if u := getenv("USER"); u != "" {
			c.User = u
		} else if u, err := user.Current(); err == nil {
			c.User = u.Username
		}
	}
	switch {
	case havePassword:
		return c, nil
	case s.PasswordFile != "":
		pw, err := readPasswordFile(s.PasswordFile)
		c.password = pw
		return c, err
	}
	if pw := getenv(PasswordEnv); pw != "" {
		c.password = pw
		return c, nil
	}
	prompt := s.Prompt
	if prompt == nil {
		prompt = promptTerminal
	}
	pw, err := prompt(ctx, fmt.Sprintf("Password of %s at %s: ", c, loc.Host))
	if ctx.Err() != nil {
		return c, ctx.Err()
	}
	if err != nil {
		return c, &credentialsError{fmt.Sprintf("no password for %s: use --password-file, --credentials, %s, or run it on a terminal (%v)", c, PasswordEnv, err)}
	}
	c.password = pw
	return c, nil
}

// AskPassword asks for the password of loc's user on the terminal, if Resolve would. For who hands it to another process; "" means that none is needed or that it
// comes from a file or the environment.
func (s CredentialSource) AskPassword(ctx context.Context, loc Location) (string, error) {
	if loc.Local || s.Anonymous || s.PasswordFile != "" && s.PasswordFile != "-" {
		return "", nil
	}
	if getenv := s.Getenv; getenv != nil && getenv(PasswordEnv) != "" || getenv == nil && os.Getenv(PasswordEnv) != "" {
		return "", nil
	}
	if s.CredentialsFile != "" {
		if f, err := readCredentialsFile(s.CredentialsFile); err != nil || f.Password != "" {
			return "", err
		}
	}
	c, err := s.Resolve(ctx, loc)
	return c.password, err
}

// credentialsError is ErrAuth: nobody could log on because there was nothing to log on with.
type credentialsError struct{ msg string }

func (e *credentialsError) Error() string        { return e.msg }
func (e *credentialsError) Is(target error) bool { return target == ErrAuth }

const maxSecretFile = 64 << 10

// readCredentialsFile reads the format of mount.cifs(8).
func readCredentialsFile(path string) (auth.Credentials, error) {
	f, err := os.Open(path)
	if err != nil {
		return auth.Credentials{}, fmt.Errorf("credentials file: %w", err)
	}
	defer f.Close()
	c, err := auth.ParseCredentials(io.LimitReader(f, maxSecretFile))
	if err != nil {
		return c, Usagef("%s: %v", path, err)
	}
	return c, nil
}

func readPasswordFile(path string) (string, error) {
	f := os.Stdin
	if path != "-" {
		var err error
		if f, err = os.Open(path); err != nil {
			return "", fmt.Errorf("password file: %w", err)
		}
		defer f.Close()
	}
	line, err := bufio.NewReader(io.LimitReader(f, maxSecretFile)).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("password file %s: %w", path, err)
	}
	return strings.TrimRight(line, "\r\n"), nil
}

// promptTerminal asks on the controlling terminal with the echo off. A cancelled ctx restores the terminal.
func promptTerminal(ctx context.Context, question string) (string, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("there is no terminal to ask on")
	}
	defer tty.Close()
	fd := int(tty.Fd())
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return "", fmt.Errorf("there is no terminal to ask on")
	}
	quiet := *old
	quiet.Lflag &^= unix.ECHO
	quiet.Lflag |= unix.ICANON | unix.ISIG
	if err := unix.IoctlSetTermios(fd, unix.TCSETSF, &quiet); err != nil {
		return "", fmt.Errorf("turning the terminal's echo off: %w", err)
	}
	restore := func() { _ = unix.IoctlSetTermios(fd, unix.TCSETSF, old) }
	defer restore()
	fmt.Fprint(tty, question)
	defer fmt.Fprintln(tty)

	// A read of the terminal cannot be interrupted, so it is polled for.
	var b []byte
	one := make([]byte, 1)
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 200)
		if err == unix.EINTR || n == 0 {
			continue
		}
		if err != nil {
			return "", err
		}
		k, err := unix.Read(fd, one)
		if err != nil || k == 0 {
			return "", fmt.Errorf("the terminal was closed")
		}
		if one[0] == '\n' {
			return string(b), nil
		}
		if len(b) < 1024 {
			b = append(b, one[0])
		}
	}
}
