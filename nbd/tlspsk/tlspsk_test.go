package tlspsk

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"vdbridge/test/lab"
)

var testKeys = Keys{"alice": bytes.Repeat([]byte{0xa5}, 32), "bob": []byte("0123456789abcdef")}

// echo is a server that sends back what it gets, and tells how each connection ended.
type echo struct {
	addr string
	ends chan error
}

func newEcho(t *testing.T, rekeyAt uint64) *echo {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := &echo{addr: l.Addr().String(), ends: make(chan error, 100)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { e.ends <- serveEcho(nc, rekeyAt) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return e
}

func serveEcho(nc net.Conn, rekeyAt uint64) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := Server(ctx, nc, testKeys)
	if err != nil {
		nc.Close()
		return err
	}
	defer c.Close()
	if rekeyAt > 0 {
		c.rekeyAt = rekeyAt
	}
	_, err = io.Copy(c, struct{ io.Reader }{c})
	return err
}

// openssl talks to addr as OpenSSL's client. What goes in comes back.
func openssl(t *testing.T, addr, identity string, key []byte, input io.Reader, more ...string) ([]byte, error) {
	t.Helper()
	lab.Need(t, "openssl")
	args := append([]string{"s_client", "-connect", addr, "-tls1_3", "-psk_identity", identity, "-psk", hex.EncodeToString(key), "-quiet", "-no_ign_eof"}, more...)
	cmd := exec.CommandContext(t.Context(), "openssl", args...)
	cmd.Stdin = input
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		err = errors.Join(err, errors.New(errs.String()))
	}
	return out, err
}

func TestOpenSSL(t *testing.T) {
	for _, c := range []struct {
		name    string
		rekeyAt uint64
		more    []string
	}{
		{"default", 0, nil},
		{"P-256", 0, []string{"-curves", "P-256"}},
		{"X25519", 0, []string{"-curves", "X25519"}},
		{"many keys", 2, nil},
		{"small records", 0, []string{"-max_send_frag", "512"}},
		{"padding", 0, []string{"-record_padding", "4096"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := newEcho(t, c.rekeyAt)
			for name, key := range testKeys {
				data := bytes.Repeat([]byte("0123456789abcde\n"), 64<<10/16)
				// s_client ends when its input ends, so the input stays open until all has come back.
				r, w := io.Pipe()
				done := make(chan []byte, 1)
				cmd := exec.CommandContext(t.Context(), "openssl", append([]string{"s_client", "-connect", e.addr, "-tls1_3", "-psk_identity", name,
					"-psk", hex.EncodeToString(key), "-quiet"}, c.more...)...)
				lab.Need(t, "openssl")
				cmd.Stdin = r
				out, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				go func() {
					got := make([]byte, len(data))
					n, _ := io.ReadFull(out, got)
					done <- got[:n]
				}()
				if _, err := w.Write(data); err != nil {
					t.Fatal(err)
				}
				if got := <-done; !bytes.Equal(got, data) {
					t.Errorf("%s: %d of %d bytes came back, or others", name, len(got), len(data))
				}
				w.Close()
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
				<-e.ends
			}
		})
	}
}

// A client with the wrong key, and one whose name nobody knows, are told the same.
func TestRefused(t *testing.T) {
	e := newEcho(t, 0)
	for _, c := range []struct {
		name string
		key  []byte
		more []string
		want string
	}{
		{"alice", testKeys["bob"], nil, "alert decrypt error"},
		{"eve", testKeys["bob"], nil, "alert decrypt error"},
		{"alice", testKeys["alice"], []string{"-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"}, "alert"},
		{"alice", testKeys["alice"], []string{"-curves", "P-521"}, "handshake failure"},
	} {
		_, err := openssl(t, e.addr, c.name, c.key, strings.NewReader(""), c.more...)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %v: %v", c.name, c.more, err)
		}
		if err := <-e.ends; err == nil {
			t.Errorf("%s %v: the server has let the client in", c.name, c.more)
		}
	}
}

// hello returns the first flight of OpenSSL.
func hello(t testing.TB) []byte {
	t.Helper()
	lab.Need(t, "openssl")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := exec.Command("openssl", "s_client", "-connect", l.Addr().String(), "-tls1_3", "-psk_identity", "alice", "-psk", hex.EncodeToString(testKeys["alice"]))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	b := make([]byte, 5)
	if _, err := io.ReadFull(nc, b); err != nil {
		t.Fatal(err)
	}
	b = append(b, make([]byte, int(b[3])<<8|int(b[4]))...)
	if _, err := io.ReadFull(nc, b[5:]); err != nil {
		t.Fatal(err)
	}
	return b
}

// No change of a single bit of the ClientHello goes unnoticed, and no part of it is taken for the whole.
func TestHelloChanged(t *testing.T) {
	b := hello(t)
	for i := 5; i < len(b); i++ {
		bad := bytes.Clone(b)
		bad[i] ^= 1
		if _, err := Server(t.Context(), &script{in: bytes.NewReader(bad)}, testKeys); err == nil {
			t.Errorf("byte %d: %v", i, err)
		}
	}
	for i := range b {
		if _, err := Server(t.Context(), &script{in: bytes.NewReader(b[:i])}, testKeys); err == nil {
			t.Errorf("the first %d bytes are taken for the whole", i)
		}
	}
	for i := 4; i < len(b)-5; i++ {
		if _, err := parseClientHello(b[5 : 5+i]); err == nil {
			t.Errorf("a ClientHello of %d bytes is taken for whole", i)
		}
	}
}

// script is a connection with fixed input.
type script struct {
	in  io.Reader
	out bytes.Buffer
}

func (s *script) Read(p []byte) (int, error)       { return s.in.Read(p) }
func (s *script) Write(p []byte) (int, error)      { return s.out.Write(p) }
func (s *script) Close() error                     { return nil }
func (s *script) LocalAddr() net.Addr              { return nil }
func (s *script) RemoteAddr() net.Addr             { return nil }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// A byte that is changed behind the handshake ends the connection, with no data from the changed record; a record that is sent again too.
func TestDataChanged(t *testing.T) {
	key := bytes.Repeat([]byte{1}, 32)
	out := &Conn{out: newDirection(key)}
	first := out.seal(nil, recordData, []byte("first"))
	second := out.seal(nil, recordData, []byte("second"))
	read := func(stream ...[]byte) (string, error) {
		got, err := io.ReadAll(&Conn{Conn: &script{in: bytes.NewReader(bytes.Join(stream, nil))}, in: newDirection(key)})
		return string(got), err
	}
	for i := headerSize; i < len(second); i++ {
		bad := bytes.Clone(second)
		bad[i] ^= 1
		got, err := read(first, bad)
		var a *alertError
		if got != "first" || !errors.As(err, &a) || a.alert != alertBadRecordMAC {
			t.Errorf("byte %d: %q, %v", i, got, err)
		}
	}
	for name, stream := range map[string][][]byte{"repeated": {first, first}, "reordered": {second, first}} {
		if got, err := read(stream...); len(got) > 5 || !strings.HasPrefix("first", got) || err == nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// A connection that is cut does not look like one that the client has ended.
func TestTruncated(t *testing.T) {
	key := bytes.Repeat([]byte{1}, 32)
	out := &Conn{out: newDirection(key)}
	b := out.seal(nil, recordData, []byte("data"))
	whole := out.seal(bytes.Clone(b), recordAlert, []byte{1, alertCloseNotify})
	for n := len(b); n <= len(whole); n++ {
		c := &Conn{Conn: &script{in: bytes.NewReader(whole[:n])}, in: newDirection(key)}
		got, err := io.ReadAll(c)
		if string(got) != "data" || n < len(whole) && !errors.Is(err, io.ErrUnexpectedEOF) || n == len(whole) && err != nil {
			t.Errorf("%d of %d bytes: %q, %v", n, len(whole), got, err)
		}
	}
}

// slow is a connection on which every second read meets the deadline, and others bring one byte.
type slow struct {
	script
	n int
}

func (s *slow) Read(p []byte) (int, error) {
	if s.n++; s.n%2 == 1 {
		return 0, os.ErrDeadlineExceeded
	}
	return s.in.Read(p[:1])
}

// Deadlines lose nothing, wherever they fall.
func TestDeadlines(t *testing.T) {
	key := bytes.Repeat([]byte{7}, 32)
	out := &Conn{out: newDirection(key)}
	b := out.seal(nil, recordData, []byte("some "))
	b = out.seal(b, recordHandshake, message(msgKeyUpdate, []byte{0}))
	out.out.update()
	b = out.seal(b, recordData, []byte("data"))
	b = out.seal(b, recordAlert, []byte{1, alertCloseNotify})
	c := &Conn{Conn: &slow{script: script{in: bytes.NewReader(b)}}, in: newDirection(key)}
	var got []byte
	for p := make([]byte, 3); ; {
		n, err := c.Read(p)
		got = append(got, p[:n]...)
		if err == io.EOF {
			break
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
	if string(got) != "some data" {
		t.Errorf("got %q", got)
	}
}

func TestLoadKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	for _, c := range []struct{ text, want string }{
		{"# of the cluster\n\nalice:000102030405060708090a0b0c0d0e0f\n", ""},
		{"alice\n", "line 1: not of the form"},
		{"\nalice:0g\n", "line 2: the key is not"},
		{"alice:00\n", "must have 16 to 512"},
		{"a:000102030405060708090a0b0c0d0e0f\na:000102030405060708090a0b0c0d0e0f\n", "line 2: \"a\" is there twice"},
		{"# none\n", "no key"},
	} {
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		keys, err := LoadKeys(path)
		if c.want == "" && (err != nil || len(keys["alice"]) != 16) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q: %v", c.text, err)
		}
	}
}

func FuzzClientHello(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0})
	if lab.Missing("openssl") == nil {
		f.Add(hello(f)[5:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 4 {
			return
		}
		h, err := parseClientHello(b)
		if err == nil && len(h.identities) > 0 && (h.truncated < 4 || h.truncated > len(b)) {
			t.Errorf("the binders begin at %d of %d", h.truncated, len(b))
		}
	})
}

func FuzzServer(f *testing.F) {
	if lab.Missing("openssl") == nil {
		f.Add(hello(f))
	}
	f.Add([]byte{22, 3, 3, 0, 4, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := Server(t.Context(), &script{in: bytes.NewReader(b)}, Keys{}); err == nil {
			t.Errorf("a client without a key is let in as %q", c.Identity())
		}
	})
}
