package auth

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/jcmturner/gokrb5/v8/types"
)

// ccache is a file of tickets, as kinit writes it.
type ccache struct {
	client  types.PrincipalName
	realm   string
	tickets []cachedTicket
}

type cachedTicket struct {
	server types.PrincipalName
	realm  string
	key    types.EncryptionKey
	start  time.Time
	end    time.Time
	ticket []byte
}

// maxCCache bounds a file of tickets in bytes.
const maxCCache = 4 << 20

// ccachePath finds the file of a credential cache's name: KRB5CCNAME, or the usual place. Keyrings and KCM stay as they are.
func ccachePath(name string, uid int) (string, error) {
	if name == "" {
		return fmt.Sprintf("/tmp/krb5cc_%d", uid), nil
	}
	kind, rest, ok := strings.Cut(name, ":")
	if !ok {
		return name, nil
	}
	switch kind {
	case "FILE", "WRFILE":
		return rest, nil
	case "DIR":
		if sub, ok := strings.CutPrefix(rest, ":"); ok {
			return sub, nil
		}
		b, err := readSmall(filepath.Join(rest, "primary"), 4096)
		if errors.Is(err, fs.ErrNotExist) {
			return filepath.Join(rest, "tkt"), nil
		}
		if err != nil {
			return "", kerberosErrorf("the tickets in the directory %s cannot be read: %w", rest, err)
		}
		primary := strings.TrimRight(string(b), "\r\n")
		if !strings.HasPrefix(primary, "tkt") || strings.ContainsAny(primary, "/\x00") {
			return "", kerberosErrorf("%s names no file of tickets", filepath.Join(rest, "primary"))
		}
		return filepath.Join(rest, primary), nil
	case "KEYRING", "KCM":
		return name, nil
	case "API", "MEMORY", "MSLSA":
		return "", kerberosErrorf("the ticket cache %s is none of FILE, DIR, KEYRING and KCM, and only those can be read: run KRB5CCNAME=FILE:/tmp/tickets kinit, and start vdbridge with the same KRB5CCNAME", name)
	}
	if strings.HasPrefix(name, "/") || strings.HasPrefix(name, ".") {
		return name, nil
	}
	return "", kerberosErrorf("the ticket cache %s is of an unknown kind: use FILE:…, DIR:…, KEYRING:… or KCM: in KRB5CCNAME", name)
}

// readCCache reads a file of tickets, a keyring, or what a KCM daemon at socket keeps.
func readCCache(ctx context.Context, path, socket string) (*ccache, error) {
	if name, ok := strings.CutPrefix(path, "KEYRING:"); ok {
		return readKeyring(name)
	}
	if name, ok := strings.CutPrefix(path, "KCM:"); ok {
		return readKCM(ctx, socket, name)
	}
	b, err := readSmall(path, maxCCache)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, kerberosErrorf("there are no tickets (%s does not exist): run kinit, or give --keytab or --password-file: %w", path, err)
	}
	if err != nil {
		return nil, kerberosErrorf("the tickets cannot be read: %w", err)
	}
	c, err := parseCCache(b)
	if err != nil {
		return nil, kerberosErrorf("%s is damaged, or no file of tickets: %w", path, err)
	}
	return c, nil
}

// ccReader reads big-endian fields. After the first that is not there, everything is zero and bad is set.
type ccReader struct {
	b   []byte
	bad bool
}

func (r *ccReader) take(n uint32) []byte {
	if r.bad || uint64(n) > uint64(len(r.b)) {
		r.bad = true
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *ccReader) u16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *ccReader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *ccReader) data() []byte { return r.take(r.u32()) }

func (r *ccReader) time() time.Time {
	if t := r.u32(); t != 0 {
		return time.Unix(int64(t), 0)
	}
	return time.Time{}
}

func (r *ccReader) principal() (p types.PrincipalName, realm string) {
	p.NameType = int32(r.u32())
	n := r.u32()
	realm = string(r.data())
	if n > maxKerberosComponent {
		r.bad = true
		return
	}
	for range n {
		p.NameString = append(p.NameString, string(r.data()))
	}
	return
}

// credential reads one ticket with its key.
func (r *ccReader) credential(version uint16) (t cachedTicket) {
	r.principal()
	t.server, t.realm = r.principal()
	t.key.KeyType = int32(int16(r.u16()))
	if version == 0x0503 {
		r.u16()
	}
	t.key.KeyValue = append([]byte(nil), r.data()...)
	auth := r.time()
	t.start, t.end = r.time(), r.time()
	if t.start.IsZero() {
		t.start = auth
	}
	r.u32()       // renew till
	r.take(1)     // user-to-user
	r.u32()       // flags
	for range 2 { // addresses, authorization data
		for n := r.u32(); n > 0 && !r.bad; n-- {
			r.u16()
			r.data()
		}
	}
	t.ticket = append([]byte(nil), r.data()...)
	r.data() // second ticket
	return t
}

// parseCCache parses versions 3 and 4 of the format, all that has been written in this century.
func parseCCache(b []byte) (*ccache, error) {
	damaged := errors.New("unexpected contents")
	r := &ccReader{b: b}
	version := r.u16()
	if version != 0x0503 && version != 0x0504 {
		return nil, damaged
	}
	if version == 0x0504 {
		r.take(uint32(r.u16()))
	}
	c := new(ccache)
	c.client, c.realm = r.principal()
	if r.bad || len(c.client.NameString) == 0 || c.realm == "" {
		return nil, damaged
	}
	for len(r.b) > 0 {
		t := r.credential(version)
		if r.bad {
			return nil, damaged
		}
		// Configuration is stored as tickets of a realm that cannot be.
		if strings.HasPrefix(t.realm, "X-CACHECONF") {
			continue
		}
		c.tickets = append(c.tickets, t)
	}
	return c, nil
}

// find returns the longest-lasting ticket for a server that is of a good type. realm may be empty, for any.
func (c *ccache) find(server []string, realm string, rc4 bool) *cachedTicket {
	var best *cachedTicket
	for i := range c.tickets {
		t := &c.tickets[i]
		same := len(t.server.NameString) == len(server) && (realm == "" || t.realm == realm)
		for j := 0; same && j < len(server); j++ {
			same = strings.EqualFold(t.server.NameString[j], server[j])
		}
		if same && goodType(t.key.KeyType, rc4) && checkKey(t.key) == nil && (best == nil || t.end.After(best.end)) {
			best = t
		}
	}
	return best
}
