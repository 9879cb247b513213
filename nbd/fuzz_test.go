package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"vdbridge/test/ramdisk"
)

// pour sends b to a fresh connection of a server over d, in the given style beyond the handshake (or none), and reads until the
// server has closed. It fails only when the server panics, hangs or answers what cannot be parsed.
func pour(t *testing.T, cfg Config, b []byte, enter bool, style replyStyle, tcp bool) {
	srv, err := NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var near, far net.Conn
	if tcp {
		near, far = socketPair(t)
	} else {
		near, far = net.Pipe()
	}
	near.SetDeadline(time.Now().Add(20 * time.Second))
	done := make(chan error, 1)
	go func() { done <- srv.ServeConn(far) }()
	r := &rawClient{t: t, c: near}
	if enter {
		r.greet(3)
		r.enter(style)
	}
	go func() {
		near.Write(b)
		if c, ok := near.(interface{ CloseWrite() error }); ok {
			c.CloseWrite()
		}
	}()
	n, err := io.Copy(io.Discard, &untilQuiet{near, 50 * time.Millisecond, tcp})
	if errors.Is(err, os.ErrDeadlineExceeded) && tcp {
		t.Errorf("the server neither answers nor ends after %d bytes", n)
	}
	near.Close()
	<-done
	if err := srv.Close(); err != nil {
		t.Error(err)
	}
	if u := srv.budget.used.Load(); u != 0 {
		t.Errorf("%d bytes are still counted as in flight", u)
	}
}

// untilQuiet reads from a pipe until nothing has come for a while, as a pipe has no half-close; from a socket until the end.
type untilQuiet struct {
	net.Conn
	quiet  time.Duration
	closes bool
}

func (u *untilQuiet) Read(p []byte) (int, error) {
	if !u.closes {
		u.SetReadDeadline(time.Now().Add(u.quiet))
	}
	return u.Conn.Read(p)
}

// socketPair returns two ends of a unix socket.
func socketPair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func FuzzHandshake(f *testing.F) {
	flags := []byte{0, 0, 0, 3}
	f.Add(flags)
	f.Add(append(flags, optionBytes(optList, nil)...))
	f.Add(bytes.Join([][]byte{flags, optionBytes(optStructuredReply, nil), optionBytes(optSetMetaContext, metaData("disk", "base:allocation")),
		optionBytes(optGo, infoData("disk", 3, 1, 2))}, nil))
	f.Add(append(flags, optionBytes(optExportName, []byte("disk"))...))
	f.Add(bytes.Join([][]byte{flags, optionBytes(optExtendedHeaders, nil), optionBytes(optListMetaContext, metaData("disk")), optionBytes(optAbort, nil)}, nil))
	f.Add(append(flags, optionBytes(optStartTLS, nil)...))
	cfg := Config{Resolver: Exports{{Name: "disk", Description: "d", Disk: ramdisk.New(1<<20, 512)}}, HandshakeTimeout: 5 * time.Second}
	f.Fuzz(func(t *testing.T, b []byte) { pour(t, cfg, b, false, styleSimple, true) })
}

func FuzzTransmission(f *testing.F) {
	for style := range replyStyle(3) {
		r := &rawClient{style: style}
		var all []byte
		for cmd := cmdRead; cmd <= cmdBlockStatus; cmd++ {
			if cmd == cmdDisc {
				continue
			}
			q := wireRequest{cmd: cmd, cookie: uint64(cmd), length: 4096, offset: 512}
			var p []byte
			switch cmd {
			case cmdWrite:
				p = make([]byte, 4096)
			case cmdFlush:
				q.offset, q.length = 0, 0
			}
			b := r.requestBytes(q, p)
			f.Add(uint8(style), false, b)
			all = append(all, b...)
		}
		f.Add(uint8(style), true, all)
		f.Add(uint8(style), true, append(all, r.requestBytes(wireRequest{cmd: cmdDisc}, nil)...))
	}
	f.Fuzz(func(t *testing.T, style uint8, busy bool, b []byte) {
		d := ramdisk.New(1<<20, 512)
		if busy {
			d.SetHook(busyHook)
		}
		pour(t, oneDisk(d), b, true, replyStyle(style%3), true)
	})
}

// FuzzOptionData checks that what the decoders accept has the lengths that its parts say.
func FuzzOptionData(f *testing.F) {
	f.Add(infoData("disk", 1, 2, 3))
	f.Add(metaData("disk", "base:", "qemu:x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := parseInfo(b); err == nil && !bytes.Equal(infoData(r.name, r.infos...), b) {
			t.Errorf("INFO data % x decodes to %+v", b, r)
		}
		if r, err := parseMeta(b); err == nil && !bytes.Equal(metaData(r.export, r.queries...), b) {
			t.Errorf("META data % x decodes to %+v", b, r)
		}
	})
}

func TestRequestHeaderBytes(t *testing.T) {
	b := []byte{0x25, 0x60, 0x95, 0x13, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x10, 0}
	want := wireRequest{flags: 1, cmd: cmdWriteZeroes, cookie: 0x0102030405060708, offset: 1 << 40, length: 4096}
	if q, ok := parseRequest(b); !ok || q != want {
		t.Errorf("%+v %v", q, ok)
	}
	e := append([]byte{0x21, 0xe4, 0x1c, 0x71}, b[4:24]...)
	e = binary.BigEndian.AppendUint64(e, 1<<33)
	want.length = 1 << 33
	if q, ok := parseExtRequest(e); !ok || q != want {
		t.Errorf("%+v %v", q, ok)
	}
	q := wireRequest{cookie: 7, offset: 1 << 40, length: 4096}
	for _, c := range []struct {
		got  []byte
		want string
	}{
		{appendDone(nil, styleSimple, &q), "67446698 00000000 0000000000000007"},
		{appendDone(nil, styleExtended, &q), "6e8a278c 0001 0000 0000000000000007 0000010000000000 0000000000000000"},
		{appendError(nil, styleSimple, &q, 28, "full"), "67446698 0000001c 0000000000000007"},
		{appendError(nil, styleStructured, &q, 28, "full"), "668e33ef 0001 8001 0000000000000007 0000000a 0000001c 0004 66756c6c"},
		{appendDataHeader(nil, styleStructured, &q, 4096), "668e33ef 0001 0001 0000000000000007 00001008 0000010000000000"},
		{appendHole(nil, styleStructured, &q), "668e33ef 0001 0002 0000000000000007 0000000c 0000010000000000 00001000"},
		{appendHole(nil, styleExtended, &q), "6e8a278c 0001 0002 0000000000000007 0000010000000000 000000000000000c 0000010000000000 00001000"},
	} {
		if got := hexOf(c.got); got != stripSpaces(c.want) {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}

func hexOf(b []byte) string {
	const digits = "0123456789abcdef"
	var s []byte
	for _, c := range b {
		s = append(s, digits[c>>4], digits[c&15])
	}
	return string(s)
}

func stripSpaces(s string) string { return string(bytes.ReplaceAll([]byte(s), []byte(" "), nil)) }
