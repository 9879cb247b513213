package auth

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// Credentials are what a client authenticates with.
type Credentials struct {
	User   string
	Domain string
	// Password, or its NT hash of 16 bytes, which is used instead when it is there.
	Password    string `json:"-"`
	NTHash      []byte `json:"-"`
	Workstation string
	// Anonymous asks for a session without a user. The other fields are then ignored.
	Anonymous bool
}

// String names the user and keeps the secret out.
func (c Credentials) String() string {
	if c.Anonymous {
		return "anonymous"
	}
	return Identity{User: c.User, Domain: c.Domain}.String()
}

// GoString keeps the secret out of %#v.
func (c Credentials) GoString() string { return fmt.Sprintf("auth.Credentials{%q}", c.String()) }

// LogValue keeps the secret out of logs.
func (c Credentials) LogValue() slog.Value { return slog.StringValue(c.String()) }

// SplitUser splits DOMAIN\user or DOMAIN;user (the form in URLs). A user principal name, user@domain, is a user name as it stands, with which no domain
// is sent.
func SplitUser(name string) (domain, user string) {
	if i := strings.IndexAny(name, `\;`); i >= 0 {
		return name[:i], name[i+1:]
	}
	return "", name
}

// SplitUPN splits user@domain at its last @. Without one, domain is empty.
func SplitUPN(name string) (user, domain string) {
	if i := strings.LastIndexByte(name, '@'); i >= 0 {
		return name[:i], name[i+1:]
	}
	return name, ""
}

const maxLine = 4096

// ParseCredentials reads a credentials file as mount.cifs has it: lines of username=, password= and domain=, in any order, also under the other
// names that mount.cifs knows. Empty lines and lines that begin with # are skipped. Everything after the = is the value; of
// a password nothing is trimmed. The user may be DOMAIN\user or DOMAIN/user. Errors carry the line's number, and nothing of what is in it.
func ParseCredentials(r io.Reader) (Credentials, error) {
	var c Credentials
	var domain string
	err := lines(r, func(line string) error {
		key, value, ok := strings.Cut(strings.TrimLeft(line, " \t"), "=")
		if !ok {
			return fmt.Errorf("expected key=value")
		}
		switch strings.ToLower(strings.TrimSpace(key)) {
		case "username", "user":
			value = strings.TrimSpace(value)
			if i := strings.IndexAny(value, `\/`); i >= 0 {
				c.Domain, value = value[:i], value[i+1:]
			}
			c.User = value
		case "password", "pass":
			c.Password = value
		case "domain", "dom", "workgroup":
			domain = strings.TrimSpace(value)
		case "password2":
			// The kernel's second password, for rotation. It has no meaning here.
		default:
			return fmt.Errorf("unknown key; known are username, password and domain")
		}
		return nil
	})
	if err != nil {
		return Credentials{}, fmt.Errorf("read credentials: %w", err)
	}
	if domain != "" {
		c.Domain = domain
	}
	if c.User == "" {
		return Credentials{}, fmt.Errorf("read credentials: there is no line username=…")
	}
	return c, nil
}

// lines calls f for every line that is neither empty nor a comment. An error gets the line's number.
func lines(r io.Reader, f func(line string) error) error {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, maxLine), maxLine)
	n := 0
	for s.Scan() {
		n++
		line := s.Text()
		if n == 1 {
			line = strings.TrimPrefix(line, "\ufeff")
		}
		if t := strings.TrimSpace(line); t == "" || t[0] == '#' {
			continue
		}
		if err := f(line); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("line %d: %w", n+1, err)
	}
	return nil
}
