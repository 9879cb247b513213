package auth

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// readKeyring reads the tickets that MIT Kerberos keeps in a keyring of the kernel. name is what stands behind KEYRING: the keyring in which to look
// (persistent, session, user, process, thread; session if it is left out), the name of the collection, and that of a cache in it, if it is not the primary one.
func readKeyring(name string) (*ccache, error) {
	// What a thread finds is its own for the time being.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c, err := keyringCache(name)
	if err != nil {
		return nil, kerberosErrorf("there are no tickets in KEYRING:%s (%w): run kinit, or give --keytab or --password-file", name, err)
	}
	return c, nil
}

func keyringCache(name string) (*ccache, error) {
	anchor, collection, cache := "legacy", name, ""
	if a, rest, ok := strings.Cut(name, ":"); ok {
		anchor = a
		collection, cache, _ = strings.Cut(rest, ":")
	}
	var ring int
	var err error
	inside := "_krb_" + collection
	switch anchor {
	case "session", "legacy":
		ring = unix.KEY_SPEC_SESSION_KEYRING
	case "user":
		ring = unix.KEY_SPEC_USER_KEYRING
	case "process":
		ring = unix.KEY_SPEC_PROCESS_KEYRING
	case "thread":
		ring = unix.KEY_SPEC_THREAD_KEYRING
	case "persistent":
		uid := os.Geteuid()
		if collection != "" {
			if uid, err = strconv.Atoi(collection); err != nil || uid < 0 {
				return nil, fmt.Errorf("%q is no user's number", collection)
			}
		}
		ring, err = unix.KeyctlInt(unix.KEYCTL_GET_PERSISTENT, uid, unix.KEY_SPEC_THREAD_KEYRING, 0, 0)
		if err == unix.EOPNOTSUPP && uid == os.Geteuid() {
			ring, err = unix.KEY_SPEC_USER_KEYRING, nil
		}
		if err != nil {
			return nil, fmt.Errorf("persistent keyring of user %d: %w", uid, err)
		}
		inside = "_krb"
	default:
		return nil, fmt.Errorf("%q is no keyring", anchor)
	}
	// Linked to the thread, so that it may read what it finds.
	set, err := unix.KeyctlSearch(ring, "keyring", inside, unix.KEY_SPEC_THREAD_KEYRING)
	if err != nil {
		if anchor != "legacy" {
			return nil, err
		}
		id, err := unix.KeyctlSearch(ring, "keyring", collection, 0)
		if err != nil {
			return nil, err
		}
		return keyringTickets(id)
	}
	if cache == "" {
		key, err := unix.KeyctlSearch(set, "user", "krb_ccache:primary", 0)
		if err != nil {
			return nil, err
		}
		b, err := readKey(key, 4096)
		if err != nil {
			return nil, err
		}
		r := &ccReader{b: b}
		if r.u32() != 1 {
			return nil, fmt.Errorf("unknown version")
		}
		if cache = string(r.data()); r.bad {
			return nil, fmt.Errorf("unexpected contents")
		}
	}
	id, err := unix.KeyctlSearch(set, "keyring", cache, 0)
	if err != nil {
		return nil, err
	}
	return keyringTickets(id)
}

// keyringTickets reads one cache: a keyring with a key for the principal and one for each ticket.
func keyringTickets(id int) (*ccache, error) {
	list, err := readKey(id, maxCCache)
	if err != nil {
		return nil, err
	}
	c := new(ccache)
	room := maxCCache
	for ; len(list) >= 4; list = list[4:] {
		key := int(int32(binary.NativeEndian.Uint32(list)))
		b := make([]byte, 4096)
		n, err := unix.KeyctlBuffer(unix.KEYCTL_DESCRIBE, key, b, 0)
		if err != nil || n > len(b) {
			continue // gone meanwhile
		}
		what := strings.SplitN(strings.TrimRight(string(b[:n]), "\x00"), ";", 5)
		if len(what) != 5 || what[0] == "keyring" {
			continue
		}
		switch what[4] {
		case "__krb5_time_offsets__", "__krb5_cc_set__":
			continue
		}
		data, err := readKey(key, room)
		if err == unix.ENOKEY || err == unix.EKEYEXPIRED || err == unix.EKEYREVOKED {
			continue // the kernel forgets tickets that have expired
		}
		if err != nil {
			return nil, err
		}
		room -= len(data)
		r := &ccReader{b: data}
		if what[4] == "__krb5_princ__" {
			c.client, c.realm = r.principal()
		} else if t := r.credential(0x0504); !r.bad && !strings.HasPrefix(t.realm, "X-CACHECONF") {
			c.tickets = append(c.tickets, t)
		}
		if r.bad {
			return nil, fmt.Errorf("key %q: unexpected contents", what[4])
		}
	}
	if len(c.client.NameString) == 0 || c.realm == "" {
		return nil, fmt.Errorf("it says not whose they are")
	}
	return c, nil
}

// readKey reads a key of at most a number of bytes.
func readKey(id, most int) ([]byte, error) {
	size := min(4096, max(most, 1))
	for {
		b := make([]byte, size)
		n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, id, b, 0)
		switch {
		case err != nil:
			return nil, err
		case n <= len(b):
			return b[:n], nil
		case n > most:
			return nil, fmt.Errorf("a key of %d bytes is too long", n)
		}
		size = n
	}
}
