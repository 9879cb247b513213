package client

import (
	"fmt"
	"net"
	"net/url"
	"strings"
)

// Address is what an NBD URI names.
type Address struct {
	Network string // tcp or unix
	Addr    string
	Export  string
}

// IsURI says whether s has one of the schemes of NBD.
func IsURI(s string) bool {
	scheme, _, ok := strings.Cut(s, ":")
	switch strings.ToLower(scheme) {
	case "nbd", "nbds", "nbd+unix", "nbds+unix", "nbd+vsock", "nbds+vsock":
		return ok
	}
	return false
}

// ParseURI reads nbd://host[:port]/export and nbd+unix:///export?socket=PATH.
func ParseURI(s string) (Address, error) {
	u, err := url.Parse(s)
	if err != nil {
		return Address{}, fmt.Errorf("%q is not a URI", s)
	}
	a := Address{Export: strings.TrimPrefix(u.Path, "/")}
	if len(a.Export) > maxString {
		return a, fmt.Errorf("the name of the export has %d bytes; at most %d are possible", len(a.Export), maxString)
	}
	switch strings.ToLower(u.Scheme) {
	case "nbd":
		host, port := u.Hostname(), u.Port()
		if host == "" {
			return a, fmt.Errorf("%q names no host; write nbd://host/export", s)
		}
		if port == "" {
			port = "10809"
		}
		a.Network, a.Addr = "tcp", net.JoinHostPort(host, port)
	case "nbd+unix":
		a.Network, a.Addr = "unix", u.Query().Get("socket")
		if a.Addr == "" {
			return a, fmt.Errorf("%q names no socket; write nbd+unix:///export?socket=PATH", s)
		}
	default:
		return a, fmt.Errorf("the scheme %q is not known here; nbd and nbd+unix are, without TLS", u.Scheme)
	}
	return a, nil
}
