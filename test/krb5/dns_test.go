package krb5

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"vdbridge/test/lab"
)

// dnsServer is a DNS server with a zone of a few records.
type dnsServer struct {
	addr string // without the port, which is 53

	mu    sync.Mutex
	zone  map[string]dnsmessage.ResourceBody // by type and name in small letters
	asked []string
}

// startDNS serves on an address of loopback that is ours: programs always ask port 53.
func startDNS(t *testing.T) *dnsServer {
	t.Helper()
	lab.NeedRoot(t)
	pid := os.Getpid()
	s := &dnsServer{addr: fmt.Sprintf("127.%d.%d.%d", 100+pid>>16&63, pid>>8&255, 1+pid%254)}
	conn, err := net.ListenPacket("udp4", s.addr+":53")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			if reply := s.answer(b[:n]); reply != nil {
				conn.WriteTo(reply, from)
			}
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return s
}

func (s *dnsServer) answer(query []byte) []byte {
	var p dnsmessage.Parser
	head, err := p.Start(query)
	if err != nil {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := strings.TrimPrefix(q.Type.String(), "Type") + " " + strings.ToLower(q.Name.String())
	s.asked = append(s.asked, key)
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: head.ID, Response: true, Authoritative: true, RCode: dnsmessage.RCodeNameError}, Questions: []dnsmessage.Question{q}}
	for k := range s.zone {
		if strings.HasSuffix(k, " "+strings.ToLower(q.Name.String())) {
			m.RCode = dnsmessage.RCodeSuccess
		}
	}
	if body := s.zone[key]; body != nil {
		m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1}, Body: body}}
	}
	reply, err := m.Pack()
	if err != nil {
		return nil
	}
	return reply
}

// set replaces the zone, and forgets what has been asked.
func (s *dnsServer) set(zone map[string]dnsmessage.ResourceBody) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.zone, s.asked = zone, nil
}

// questions returns the names that have been asked for.
func (s *dnsServer) questions() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

// TestDNS finds the KDC by DNS where krb5.conf does not name it. The programs run where resolv.conf is ours.
func TestDNS(t *testing.T) {
	lab.Need(t, "unshare", "mount")
	s := startDNS(t)
	k := Start(t, Options{})
	k.User(t, "alice", password)
	keytab := k.Service(t, "cifs/localhost")
	bin := lab.Vdbridge(t)
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/hello.txt", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	server, err := lab.Start(exec.Command(bin, "serve", dir, "--keytab", keytab, "--no-ntlm", "--listen", "127.0.0.1:0"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(10 * time.Second); err != nil {
			t.Error(err)
		}
	})
	url, err := server.WaitLine(ctx, "ready smb://")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(url, ":")
	share := "//localhost:" + rest
	write := func(name, text string) string {
		if err := os.WriteFile(k.File(name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return k.File(name)
	}
	resolv := write("resolv.conf", "nameserver "+s.addr+"\nsearch wrong.test\noptions timeout:2 attempts:1\n")
	unshare, err := lab.Look("unshare")
	if err != nil {
		t.Fatal(err)
	}
	run := func(conf, input string, args ...string) (string, int) {
		t.Helper()
		cmd := exec.CommandContext(ctx, unshare, append([]string{"--mount", "sh", "-ec", `mount --bind "$0" /etc/resolv.conf; exec "$@"`, resolv}, args...)...)
		cmd.Env = k.Env("KRB5_CONFIG="+conf, "GODEBUG=netdns=go")
		cmd.Stdin = strings.NewReader(input)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	ls := []string{bin, "ls", "--krb5", "--user", "alice@VDB.TEST", "--password-file", passwordFile(t, password), share}
	plain := write("plain.conf", "[libdefaults]\n default_realm = VDB.TEST\n")
	on := write("on.conf", "[libdefaults]\n default_realm = VDB.TEST\n dns_lookup_kdc = true\n")
	off := write("off.conf", "[libdefaults]\n default_realm = VDB.TEST\n dns_lookup_kdc = false\n")

	_, port, _ := net.SplitHostPort(k.Addr)
	var number uint16
	fmt.Sscan(port, &number)
	name := dnsmessage.MustNewName
	host := &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}
	at := &dnsmessage.SRVResource{Port: number, Target: name("kdc.elsewhere.test.")}
	const tcp, udp, kdc = "SRV _kerberos._tcp.vdb.test.", "SRV _kerberos._udp.vdb.test.", "A kdc.elsewhere.test."
	both := map[string]dnsmessage.ResourceBody{tcp: at, udp: at, kdc: host}

	s.set(both)
	if out, code := run(on, password+"\n", "kinit", "-c", "FILE:"+k.File("dns-cache"), "alice"); code != 0 {
		t.Errorf("MIT's kinit does not find the KDC: %d, %s\nasked: %q", code, out, s.questions())
	}
	none := &dnsmessage.SRVResource{Target: name(".")}
	for _, c := range []struct {
		what, conf string
		zone       map[string]dnsmessage.ResourceBody
		code       int
		want       string
		asked      string // "" = nothing
	}{
		{"on", on, both, 0, "hello.txt", tcp},
		{"by itself", plain, both, 0, "hello.txt", tcp},
		{"only for UDP", plain, map[string]dnsmessage.ResourceBody{udp: at, kdc: host}, 0, "hello.txt", udp},
		{"off", off, both, 3, "krb5.conf names no Kerberos server of the realm VDB.TEST", ""},
		{"not there", on, nil, 3, "neither in krb5.conf nor in DNS (_kerberos._tcp.VDB.TEST)", udp},
		{"said not to be there", on, map[string]dnsmessage.ResourceBody{tcp: none, udp: none}, 3, "neither in krb5.conf nor in DNS", udp},
		{"without an address", on, map[string]dnsmessage.ResourceBody{tcp: at}, 9, "no Kerberos server of the realm VDB.TEST answers (kdc.elsewhere.test:" + port + ")", tcp},
	} {
		s.set(c.zone)
		out, code := run(c.conf, "", ls...)
		asked := s.questions()
		if code != c.code || !strings.Contains(out, c.want) {
			t.Errorf("%s: exit code %d, %s\nasked: %q", c.what, code, out, asked)
		}
		kerberos := slices.DeleteFunc(slices.Clone(asked), func(q string) bool { return !strings.Contains(q, "_kerberos") })
		if c.asked == "" && len(kerberos) > 0 || c.asked != "" && !slices.Contains(kerberos, c.asked) {
			t.Errorf("%s: asked %q", c.what, asked)
		}
		for _, q := range kerberos {
			if strings.Contains(q, "wrong.test") {
				t.Errorf("%s: asked for a name that is not the realm's: %q", c.what, q)
			}
		}
	}
}
