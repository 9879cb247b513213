package auth

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// kcmParts takes a file of tickets apart: the principal, and each ticket.
func kcmParts(t testing.TB) (principal []byte, creds [][]byte) {
	t.Helper()
	r := &ccReader{b: cacheBytes()[16:]}
	from := r.b
	r.principal()
	principal = from[:len(from)-len(r.b)]
	for len(r.b) > 0 {
		from = r.b
		r.credential(0x0504)
		creds = append(creds, from[:len(from)-len(r.b)])
	}
	if r.bad || len(creds) != 3 {
		t.Fatal("the tickets of the test")
	}
	return principal, creds
}

var be = binary.BigEndian

// kcmGives is a reply with a result, kcmFails one with the operation's error, and kcmRefuses one with the transport's.
func kcmGives(b ...byte) []byte {
	return append(be.AppendUint32(nil, uint32(4+len(b))), append(make([]byte, 8), b...)...)
}
func kcmFails(code int32) []byte {
	return be.AppendUint32(be.AppendUint64(nil, 4<<32), uint32(code))
}
func kcmRefuses(code int32) []byte { return be.AppendUint32(make([]byte, 4), uint32(code)) }

func kcmList(creds ...[]byte) []byte {
	b := be.AppendUint32(nil, uint32(len(creds)))
	for _, c := range creds {
		b = append(be.AppendUint32(b, uint32(len(c))), c...)
	}
	return b
}

// kcmScript says what a daemon answers to an operation on what; nil = it hangs up, empty = it says nothing.
type kcmScript func(op uint16, what string) []byte

// kcmServe runs a daemon for a test and returns its socket.
func kcmServe(t *testing.T, script kcmScript) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kcm") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for { // one after the other: the client has one connection at a time
			c, err := l.Accept()
			if err != nil {
				return
			}
			for {
				var head [8]byte
				if _, err := io.ReadFull(c, head[:]); err != nil {
					break
				}
				n := be.Uint32(head[:])
				if n < 4 || n > 2000 || head[4] != 2 || head[5] != 0 {
					t.Errorf("request %x", head)
					break
				}
				b := make([]byte, n-4)
				if _, err := io.ReadFull(c, b); err != nil {
					t.Errorf("request: %v", err)
					break
				}
				reply := script(be.Uint16(head[6:]), string(b))
				if reply == nil {
					break
				}
				if _, err := c.Write(reply); err != nil {
					break
				}
			}
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
		os.RemoveAll(dir)
	})
	return socket
}

// kcmDaemonOf is a daemon with alice's tickets in the cache 7:x, which is the default. more answers first.
func kcmDaemonOf(t testing.TB, more kcmScript) kcmScript {
	principal, creds := kcmParts(t)
	return func(op uint16, what string) []byte {
		if more != nil {
			if b := more(op, what); b == nil || len(b) != 1 {
				return b
			}
		}
		name, rest, ok := strings.Cut(what, "\x00")
		switch {
		case op == kcmGetDefaultCache && what == "":
			return kcmGives([]byte("7:x\x00")...)
		case !ok || name != "7:x":
			return kcmFails(krb5FCCNoFile)
		case op == kcmGetPrincipal && rest == "":
			return kcmGives(principal...)
		case op == kcmGetCredList && rest == "":
			return kcmGives(kcmList(creds...)...)
		case op == kcmGetCredUUIDs && rest == "":
			return kcmGives([]byte("aaaaaaaaaaaaaaaabbbbbbbbbbbbbbbbcccccccccccccccc")...)
		case op == kcmGetCredByUUID && len(rest) == kcmUUID:
			return kcmGives(creds[rest[0]-'a']...)
		}
		return kcmRefuses(krb5CCIO)
	}
}

// goOn lets kcmDaemonOf answer.
var goOn = []byte{0}

func TestKCM(t *testing.T) {
	ctx := context.Background()
	var asked []uint16
	instead := func(op uint16, reply []byte) kcmScript {
		return func(o uint16, _ string) []byte {
			asked = append(asked, o)
			if o == op {
				return reply
			}
			return goOn
		}
	}
	byOne := []uint16{kcmGetPrincipal, kcmGetCredList, kcmGetCredUUIDs, kcmGetCredByUUID, kcmGetCredByUUID, kcmGetCredByUUID}
	for name, v := range map[string]struct {
		cache string
		more  kcmScript
		asked []uint16
	}{
		"the default":          {"", instead(0, nil), []uint16{kcmGetDefaultCache, kcmGetPrincipal, kcmGetCredList}},
		"by name":              {"7:x", instead(0, nil), []uint16{kcmGetPrincipal, kcmGetCredList}},
		"no list: sssd":        {"7:x", instead(kcmGetCredList, kcmRefuses(krb5CCIO)), byOne},
		"no list: not made":    {"7:x", instead(kcmGetCredList, kcmFails(krb5CCNoSupport)), byOne},
		"no list: Heimdal":     {"7:x", instead(kcmGetCredList, kcmFails(krb5FCCInternal)), byOne},
		"no list: it hangs up": {"7:x", instead(kcmGetCredList, nil), byOne},
	} {
		asked = nil
		c, err := readCCache(ctx, "KCM:"+v.cache, kcmServe(t, kcmDaemonOf(t, v.more)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if c.client.PrincipalNameString() != "alice" || c.realm != testRealm || len(c.tickets) != 2 || c.find([]string{"cifs", "files.example"}, "", false) == nil {
			t.Errorf("%s: %+v", name, c)
		}
		if !slices.Equal(asked, v.asked) {
			t.Errorf("%s: asked %v", name, asked)
		}
	}

	c, err := readKCM(ctx, kcmServe(t, kcmDaemonOf(t, func(op uint16, what string) []byte {
		switch {
		case op == kcmGetCredList:
			return kcmFails(krb5CCNoSupport)
		case op == kcmGetCredByUUID && strings.HasSuffix(what, "b"):
			return kcmFails(krb5CCEnd)
		}
		return goOn
	})), "7:x")
	if err != nil || len(c.tickets) != 1 {
		t.Errorf("a ticket that has gone meanwhile: %+v, %v", c, err)
	}
}

// TestKCMTooMuch: tickets that come one by one are together no more than a cache may be.
func TestKCMTooMuch(t *testing.T) {
	_, creds := kcmParts(t)
	big := bytes.Clone(creds[1][:len(creds[1])-4-len("ticket")-4])
	big = append(be.AppendUint32(big, maxCCache*2/5), make([]byte, maxCCache*2/5+4)...)
	n := 0
	socket := kcmServe(t, kcmDaemonOf(t, func(op uint16, _ string) []byte {
		switch op {
		case kcmGetCredList:
			return kcmRefuses(krb5CCIO)
		case kcmGetCredByUUID:
			n++
			return kcmGives(big...)
		}
		return goOn
	}))
	if _, err := readKCM(context.Background(), socket, "7:x"); err == nil || !strings.Contains(err.Error(), "too long") || n != 3 {
		t.Errorf("%d tickets: %v", n, err)
	}
}

// TestKCMErrors: what a daemon refuses, and what it says wrongly, is an error in words, and takes no more memory than a cache may.
func TestKCMErrors(t *testing.T) {
	_, creds := kcmParts(t)
	long := kcmGives()
	be.PutUint32(long, maxCCache+1)
	short := kcmGives([]byte("7:x\x00")...)
	be.PutUint32(short, 400)
	twice := kcmList(creds[1], creds[2])
	be.PutUint32(twice, 3)
	more := kcmList(creds[1])
	be.PutUint32(more[4:], uint32(len(creds[1])+1))
	less := kcmList(creds[1])
	be.PutUint32(less[4:], uint32(len(creds[1])-1))
	endless := kcmList()
	be.PutUint32(endless, 1<<32-1)
	const contents = "unexpected contents"
	for name, v := range map[string]struct {
		op          uint16
		reply       []byte
		want        string
		unreachable bool
	}{
		"no such cache":          {kcmGetPrincipal, kcmFails(krb5FCCNoFile), "there are no tickets in KCM: (no such cache): run kinit", false},
		"no principal":           {kcmGetPrincipal, kcmGives(), "there are no tickets in KCM: (no such cache): run kinit", false},
		"of another":             {kcmGetPrincipal, kcmFails(krb5FCCPerm), "somebody else's", false},
		"refused":                {kcmGetPrincipal, kcmRefuses(13), "error code 13 ", false},
		"list refused":           {kcmGetCredList, kcmFails(krb5FCCPerm), "somebody else's", false},
		"hangs up":               {kcmGetPrincipal, nil, "restart sssd-kcm", true},
		"half a head":            {kcmGetDefaultCache, kcmGives()[:5], "does not answer", true},
		"no room for a code":     {kcmGetDefaultCache, make([]byte, 8), contents, false},
		"half a code":            {kcmGetDefaultCache, append([]byte{0, 0, 0, 3}, make([]byte, 7)...), contents, false},
		"a name without an end":  {kcmGetDefaultCache, kcmGives([]byte("7:x")...), contents, false},
		"no name":                {kcmGetDefaultCache, kcmGives(0), contents, false},
		"a long name":            {kcmGetDefaultCache, kcmGives([]byte(strings.Repeat("x", 2000) + "\x00")...), "no name", false},
		"too long":               {kcmGetDefaultCache, long, "too long", false},
		"too short":              {kcmGetDefaultCache, short, "does not answer", true},
		"half a principal":       {kcmGetPrincipal, kcmGives(0, 0, 0, 1, 0, 0, 0, 1), contents, false},
		"a principal of nobody":  {kcmGetPrincipal, kcmGives(make([]byte, 12)...), contents, false},
		"components without end": {kcmGetPrincipal, kcmGives(0, 0, 0, 1, 255, 255, 255, 255, 0, 0, 0, 1, 'X'), contents, false},
		"a list of no length":    {kcmGetCredList, kcmGives(0, 0), contents, false},
		"fewer than it says":     {kcmGetCredList, kcmGives(twice...), contents, false},
		"a ticket too short":     {kcmGetCredList, kcmGives(less...), contents, false},
		"a ticket too long":      {kcmGetCredList, kcmGives(more...), contents, false},
		"a ticket and more":      {kcmGetCredList, kcmGives(append(kcmList(creds[1]), 0)...), contents, false},
		"a ticket in the ticket": {kcmGetCredList, kcmGives(kcmList(append(bytes.Clone(creds[1]), 0))...), contents, false},
		"endless":                {kcmGetCredList, kcmGives(endless...), contents, false},
		"half an identifier":     {kcmGetCredUUIDs, kcmGives(make([]byte, 17)...), contents, false},
		"many identifiers":       {kcmGetCredUUIDs, kcmGives(make([]byte, 16*(maxKCMCreds+1))...), "4097 tickets are too many", false},
		"no identifiers":         {kcmGetCredUUIDs, kcmFails(krb5FCCInternal), "error code -1765328188", false},
		"half a ticket":          {kcmGetCredByUUID, kcmGives(creds[0][:20]...), contents, false},
		"no ticket":              {kcmGetCredByUUID, kcmFails(krb5FCCPerm), "somebody else's", false},
	} {
		t.Run(name, func(t *testing.T) {
			socket := kcmServe(t, kcmDaemonOf(t, func(op uint16, _ string) []byte {
				switch {
				case op == v.op:
					return v.reply
				case op == kcmGetCredList && v.op < kcmGetDefaultCache && v.op != kcmGetPrincipal:
					return kcmFails(krb5CCNoSupport)
				}
				return goOn
			}))
			if name == "half a head" || name == "too short" {
				socket = kcmCut(t, v.reply) // it would be waited for
			}
			c, err := readKCM(context.Background(), socket, "")
			var ke *KerberosError
			if !errors.As(err, &ke) || !strings.Contains(err.Error(), v.want) || ke.Unreachable != v.unreachable {
				t.Errorf("%+v, %v", c, err)
			}
		})
	}
}

// kcmCut runs a daemon that says something and hangs up.
func kcmCut(t *testing.T, says []byte) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kcm")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c, err := l.Accept(); err == nil {
			io.ReadFull(c, make([]byte, 8))
			c.Write(says)
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
		os.RemoveAll(dir)
	})
	return l.Addr().String()
}

// TestKCMSocket: a daemon that is not there, is dead, or is silent.
func TestKCMSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "kcm")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	conf := filepath.Join(dir, "krb5.conf")
	if err := os.WriteFile(conf, []byte("[libdefaults]\n default_realm = "+testRealm+"\n default_ccache_name = KCM:%{uid}\n kcm_socket = "+socket+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	logon := func(ctx context.Context, cache string) error {
		k, err := NewKerberos(KerberosConfig{Conf: conf, CCache: cache, Getenv: func(string) string { return "" }})
		if err != nil {
			t.Fatal(err)
		}
		_, err = k.Mechanism(ctx, "cifs/files.example")
		return err
	}
	var ke *KerberosError
	err = logon(context.Background(), "")
	if !errors.As(err, &ke) || ke.Unreachable || !strings.Contains(err.Error(), "("+socket+" does not exist): start sssd-kcm, or use KRB5CCNAME=FILE:") {
		t.Errorf("no daemon: %v", err)
	}

	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	silent := make(chan struct{})
	go func() {
		defer close(silent)
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		io.ReadFull(c, make([]byte, 8))
		cancel() // while it waits for the answer
		io.Copy(io.Discard, c)
	}()
	if err := logon(ctx, "KCM:7:x"); !errors.Is(err, context.Canceled) {
		t.Errorf("a silent daemon: %v", err)
	}
	<-silent
	l.SetUnlinkOnClose(false)
	l.Close()
	if err := logon(context.Background(), "KCM:"); !errors.As(err, &ke) || !ke.Unreachable || !strings.Contains(err.Error(), "restart sssd-kcm") {
		t.Errorf("a dead daemon: %v", err)
	}
	if err := logon(context.Background(), "KCM:a\x00b"); err == nil {
		t.Error("a zero byte in a name")
	}

	k, err := NewKerberos(KerberosConfig{Conf: conf, CCache: "KCM:7:x", Getenv: func(string) string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	k.kcmSocket = kcmServe(t, kcmDaemonOf(t, nil))
	m, err := k.Mechanism(context.Background(), "cifs/files.example")
	if err == nil || !strings.Contains(err.Error(), "KCM:7:x") { // the tickets of the test cannot be parsed as such
		t.Errorf("%v, %v", m, err)
	}
}

// FuzzKCM gives the client whatever a daemon may say.
func FuzzKCM(f *testing.F) {
	principal, creds := kcmParts(f)
	name := kcmGives([]byte("7:x\x00")...)
	join := func(b ...[]byte) []byte { return bytes.Join(b, nil) }
	f.Add(join(name, kcmGives(principal...), kcmGives(kcmList(creds...)...)))
	f.Add(join(name, kcmGives(principal...), kcmRefuses(krb5CCIO), kcmGives([]byte("aaaaaaaaaaaaaaaabbbbbbbbbbbbbbbb")...), kcmFails(krb5CCEnd), kcmGives(creds[1]...)))
	f.Add(join(name, kcmFails(krb5FCCNoFile)))
	f.Add([]byte{0, 64, 0, 1, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		c, err := kcmCache(func(uint16, ...[]byte) ([]byte, error) { return readKCMReply(r) }, "")
		if err != nil {
			return
		}
		if len(c.client.NameString) == 0 || c.realm == "" {
			t.Fatalf("tickets of nobody: %+v", c)
		}
		size := 0
		for _, k := range c.tickets {
			size += len(k.ticket) + len(k.key.KeyValue)
		}
		if size > len(b) {
			t.Fatalf("%d bytes of tickets in %d bytes", size, len(b))
		}
	})
}
