package auth

import (
	"encoding/hex"
	"fmt"
	"io"
	"strings"
)

// UserDB tells an acceptor the NT hash of a user's password. Lookup may be called from any goroutine at any time. Names are not case-sensitive;
// domain is what the client sent, possibly empty.
type UserDB interface {
	Lookup(user, domain string) (ntHash [16]byte, ok bool)
}

// Users is a UserDB in memory.
type Users struct {
	hashes map[string][16]byte // by lower-case name, or domain\name
}

// ntPrefix marks a hash in a users file.
const ntPrefix = "$NT$"

// ParseUsers reads users, one a line, as name:password or name:$NT$hash, the hash being the NT hash (MD4 of the password in UTF-16) as 32 hexadecimal
// digits. A name may be DOMAIN\name, and is then valid with this domain only. Everything after the first colon is the password. Empty
// lines, and lines that begin with #, are skipped. Errors carry the line's number, and nothing of a password.
func ParseUsers(r io.Reader) (*Users, error) {
	u := &Users{hashes: make(map[string][16]byte)}
	err := lines(r, func(line string) error {
		name, secret, ok := strings.Cut(line, ":")
		name = strings.TrimSpace(name)
		if !ok || name == "" {
			return fmt.Errorf("expected name:password or name:%s and 32 hexadecimal digits", ntPrefix)
		}
		if secret == "" {
			return fmt.Errorf("user %q has no password", name)
		}
		hash := NTHash(secret)
		if h, ok := strings.CutPrefix(secret, ntPrefix); ok {
			b, err := hex.DecodeString(strings.TrimSpace(h))
			if err != nil || len(b) != 16 {
				return fmt.Errorf("user %q: after %s must come 32 hexadecimal digits", name, ntPrefix)
			}
			hash = [16]byte(b)
		}
		key := strings.ToLower(name)
		if _, ok := u.hashes[key]; ok {
			return fmt.Errorf("user %q is there twice", name)
		}
		u.hashes[key] = hash
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read users: %w", err)
	}
	return u, nil
}

// NewUsers makes a UserDB of names and passwords.
func NewUsers(passwords map[string]string) *Users {
	u := &Users{hashes: make(map[string][16]byte, len(passwords))}
	for name, password := range passwords {
		u.hashes[strings.ToLower(name)] = NTHash(password)
	}
	return u
}

// Len returns the number of users.
func (u *Users) Len() int { return len(u.hashes) }

// String keeps the hashes out of logs.
func (u *Users) String() string { return fmt.Sprintf("%d users", len(u.hashes)) }

// GoString keeps the hashes out of logs.
func (u *Users) GoString() string { return u.String() }

// Lookup implements UserDB. It looks for domain\user first, then for user, then, if user is a user principal name, for the part before the @.
func (u *Users) Lookup(user, domain string) (ntHash [16]byte, ok bool) {
	user = strings.ToLower(user)
	if domain != "" {
		if h, ok := u.hashes[strings.ToLower(domain)+`\`+user]; ok {
			return h, true
		}
	}
	if h, ok := u.hashes[user]; ok && !strings.Contains(user, `\`) {
		return h, true
	}
	name, at := SplitUPN(user)
	if at == "" {
		return ntHash, false
	}
	if h, ok := u.hashes[at+`\`+name]; ok {
		return h, true
	}
	h, ok := u.hashes[name]
	return h, ok && !strings.Contains(name, `\`)
}
