package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"unicode"
)

// DefaultPort is the TCP port of SMB.
const DefaultPort = 445

// ErrUsage is wrapped by errors that come from what the caller typed: a URL, a size, an option. Nothing was tried yet.
var ErrUsage = errors.New("usage")

// usageError is an ErrUsage whose text is only its own sentence.
type usageError struct{ msg string }

func (e *usageError) Error() string        { return e.msg }
func (e *usageError) Is(target error) bool { return target == ErrUsage }

// Usagef makes an error that is ErrUsage and reads as the sentence alone.
func Usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// Location says where an image is: on an SMB share or on this machine.
type Location struct {
	Local  bool   // Path is a path of this machine, the rest is empty
	Domain string // NetBIOS or DNS domain of the user, may be empty
	User   string // may be empty: then it comes from the credentials
	Host   string // name or address, IPv6 without brackets
	Port   int    // DefaultPort unless the URL names another
	Share  string // empty only in a URL that names just the server
	Path   string // inside the share, separated by backslashes, no leading or trailing one; empty for the share itself
}

// Addr is the TCP address to connect to.
func (l Location) Addr() string { return net.JoinHostPort(l.Host, strconv.Itoa(l.Port)) }

// UNC is \\host\share, as TREE_CONNECT wants it.
func (l Location) UNC() string { return `\\` + l.Host + `\` + l.Share }

// Base is the last element of the path.
func (l Location) Base() string {
	s := l.Path
	if l.Local {
		s = strings.TrimRight(s, "/")
		return s[strings.LastIndexByte(s, '/')+1:]
	}
	return s[strings.LastIndexByte(s, '\\')+1:]
}

// String renders the location as a URL, or the plain path of a local one. It never holds a password.
func (l Location) String() string {
	if l.Local {
		return l.Path
	}
	var b strings.Builder
	b.WriteString("smb://")
	if l.User != "" {
		if l.Domain != "" {
			b.WriteString(url.PathEscape(l.Domain) + ";")
		}
		b.WriteString(url.PathEscape(l.User) + "@")
	}
	host := l.Host
	if strings.Contains(host, ":") {
		host = "[" + strings.ReplaceAll(host, "%", "%25") + "]"
	}
	b.WriteString(host)
	if l.Port != DefaultPort {
		b.WriteString(":" + strconv.Itoa(l.Port))
	}
	b.WriteString("/")
	if l.Share != "" {
		b.WriteString(url.PathEscape(l.Share))
	}
	if l.Path != "" {
		for _, part := range strings.Split(l.Path, `\`) {
			b.WriteString("/" + url.PathEscape(part))
		}
	}
	return b.String()
}

// key identifies the disk regardless of who opens it and of the letter case, in which SMB names do not differ.
func (l Location) key() string {
	if l.Local {
		return l.Path
	}
	return strings.ToLower(fmt.Sprintf("%s:%d/%s/%s", l.Host, l.Port, l.Share, l.Path))
}

// SameDisk says whether both name the same disk, whoever the user is. Two names of one host count as two.
func (l Location) SameDisk(o Location) bool { return l.Local == o.Local && l.key() == o.key() }

// ParseLocation understands
//
//	smb://[domain;]user@host[:port]/share/dir/disk.vhdx   with %-escapes
//	//host[:port]/share/dir/disk.vhdx
//	\\host[:port]\share\dir\disk.vhdx
//	file:///dir/disk.vhdx and any other path              a file of this machine
//
// A password in a URL is refused: it would be seen in the process list. Errors are ErrUsage.
func ParseLocation(s string) (Location, error) {
	switch {
	case s == "":
		return Location{}, Usagef("the URL is empty; give smb://user@host/share/disk.vhdx or the path of a local file")
	case strings.HasPrefix(strings.ToLower(s), "smb://"):
		return parseSMBURL(s)
	case strings.HasPrefix(s, "//"), strings.HasPrefix(s, `\\`):
		return parseUNC(s)
	case strings.HasPrefix(strings.ToLower(s), "file://"):
		u, err := url.Parse(s)
		if err != nil || u.Host != "" && u.Host != "localhost" || u.Path == "" {
			return Location{}, Usagef("%q is not a file URL of this machine; give file:///dir/disk.vhdx", s)
		}
		return Location{Local: true, Path: u.Path}, nil
	}
	if scheme, _, ok := strings.Cut(s, "://"); ok && !strings.Contains(scheme, "/") {
		return Location{}, Usagef("the scheme %q is not known; use smb:// or a local path", scheme)
	}
	return Location{Local: true, Path: s}, nil
}

func parseSMBURL(s string) (Location, error) {
	rest := s[len("smb://"):]
	auth, path, _ := strings.Cut(rest, "/")
	var l Location
	if i := strings.LastIndexByte(auth, '@'); i >= 0 {
		who := auth[:i]
		auth = auth[i+1:]
		if strings.Contains(who, ":") {
			return l, Usagef("the URL holds a password, which other users could read in the process list; use --password-file, --credentials or VDBRIDGE_PASSWORD")
		}
		domain, user, ok := strings.Cut(who, ";")
		if !ok {
			domain, user = "", who
		}
		var err1, err2 error
		l.Domain, err1 = url.PathUnescape(domain)
		l.User, err2 = url.PathUnescape(user)
		if err1 != nil || err2 != nil {
			return l, Usagef("the user in %q has a wrong %%-escape", s)
		}
	}
	if err := l.setHost(auth); err != nil {
		return l, err
	}
	var parts []string
	for _, p := range strings.Split(path, "/") {
		q, err := url.PathUnescape(p)
		if err != nil {
			return l, Usagef("%q has a wrong %%-escape; write a percent sign as %%25", s)
		}
		parts = append(parts, q)
	}
	return l, l.setPath(parts)
}

func parseUNC(s string) (Location, error) {
	parts := strings.Split(strings.ReplaceAll(s[2:], `\`, "/"), "/")
	var l Location
	if strings.Contains(parts[0], "@") {
		return l, Usagef("write the user as smb://user@host/… or with --user, not in %q", s)
	}
	if err := l.setHost(parts[0]); err != nil {
		return l, err
	}
	return l, l.setPath(parts[1:])
}

func (l *Location) setHost(hp string) error {
	host, port := hp, ""
	switch {
	case strings.HasPrefix(hp, "["):
		end := strings.IndexByte(hp, ']')
		if end < 0 {
			return Usagef("the address %q lacks its closing bracket", hp)
		}
		host, port = hp[1:end], hp[end+1:]
		if port != "" {
			if port[0] != ':' {
				return Usagef("%q: a port follows the bracket after a colon", hp)
			}
			port = port[1:]
		}
		host = strings.ReplaceAll(host, "%25", "%")
	case strings.Count(hp, ":") == 1:
		host, port, _ = strings.Cut(hp, ":")
	case strings.Count(hp, ":") > 1:
		return Usagef("write the IPv6 address in brackets: [%s]", hp)
	}
	l.Host, l.Port = host, DefaultPort
	if host == "" || strings.ContainsFunc(host, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || strings.ContainsRune(`/\"`, r) }) {
		return Usagef("the URL names no usable host (%q); write smb://user@host/share/disk.vhdx", host)
	}
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return Usagef("the port %q is not a number from 1 to 65535", port)
		}
		l.Port = int(n)
	}
	return nil
}

// Longest names that NTFS and SMB servers take, in UTF-16 units: a component, and a path.
const (
	maxComponent = 255
	maxPath      = 32760
)

func (l *Location) setPath(parts []string) error {
	var clean []string
	for _, p := range parts {
		switch {
		case p == "" || p == ".":
			continue
		case p == "..":
			return Usagef("the path goes up with \"..\"; give the whole path below the share")
		case strings.ContainsAny(p, `/\`):
			return Usagef("the name %q holds a slash", p)
		case strings.ContainsRune(p, ':') && len(clean) > 0:
			return Usagef("the name %q holds a colon, which SMB uses for streams", p)
		case strings.ContainsFunc(p, unicode.IsControl):
			return Usagef("the name %q holds a control character", p)
		}
		clean = append(clean, p)
	}
	if len(clean) == 0 {
		return nil
	}
	l.Share = clean[0]
	if n := utf16Len(l.Share); n > 80 {
		return Usagef("the share name is %d characters long; a share has at most 80", n)
	}
	for _, p := range clean[1:] {
		if n := utf16Len(p); n > maxComponent {
			return Usagef("a name in the path is %d characters long; the most is %d", n, maxComponent)
		}
	}
	l.Path = strings.Join(clean[1:], `\`)
	if n := utf16Len(l.Path); n > maxPath {
		return Usagef("the path is %d characters long; the most is %d", n, maxPath)
	}
	return nil
}

func utf16Len(s string) int {
	n := 0
	for _, r := range s {
		n++
		if r > 0xFFFF {
			n++
		}
	}
	return n
}
