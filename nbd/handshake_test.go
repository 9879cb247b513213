package nbd

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vdbridge/test/ramdisk"
)

func TestExportNameWithAndWithoutZeroes(t *testing.T) {
	ts := startServer(t, oneDisk(ramdisk.New(1<<20, 512)))
	for _, c := range []struct {
		flags uint32
		want  int
	}{{flagFixedNewstyle, 10 + 124}, {flagFixedNewstyle | flagNoZeroes, 10}, {0, 10 + 124}} {
		r := dial(t, ts)
		r.greet(c.flags)
		r.send(optionBytes(optExportName, []byte("disk")))
		b := r.recv(c.want)
		if binary.BigEndian.Uint64(b) != 1<<20 {
			t.Errorf("size %d", binary.BigEndian.Uint64(b))
		}
		if f := binary.BigEndian.Uint16(b[8:]); f != txHasFlags|txSendFlush|txSendFUA|txSendTrim|txSendWriteZeroes|txCanMultiConn|txSendCache|txSendFastZero {
			t.Errorf("flags %#x", f)
		}
		r.alive()
		r.bye()
	}
}

func TestUnknownClientFlagsEndTheConnection(t *testing.T) {
	ts := startServer(t, oneDisk(ramdisk.New(1<<20, 512)))
	r := dial(t, ts)
	r.greet(4)
	r.gone()
}

func TestUnknownExport(t *testing.T) {
	ts := startServer(t, oneDisk(ramdisk.New(1<<20, 512)))
	r := hello(t, ts)
	r.must(optInfo, infoData("nothing"), repErrUnknown)
	r.must(optGo, infoData("nothing"), repErrUnknown)
	r.must(optInfo, infoData("disk"), repAck)
	r.send(optionBytes(optExportName, []byte("nothing")))
	r.gone()
}

func TestUnknownOptionIsRefusedAndSkipped(t *testing.T) {
	ts := startServer(t, oneDisk(ramdisk.New(1<<20, 512)))
	r := hello(t, ts)
	r.must(4, []byte("peek"), repErrUnsup)
	r.must(0xffffffff, make([]byte, 40000), repErrUnsup)
	r.must(12, make([]byte, 200000), repErrTooBig)
	r.must(optList, []byte{1}, repErrInvalid)
	r.must(optStructuredReply, []byte{1}, repErrInvalid)
	r.must(optExtendedHeaders, []byte{1}, repErrInvalid)
	r.must(optStartTLS, nil, repErrPolicy)
	r.enter(styleSimple)
	r.alive()
}

func TestOptionDataWithoutBoundEndsTheConnection(t *testing.T) {
	ts := startServer(t, oneDisk(ramdisk.New(1<<20, 512)))
	r := hello(t, ts)
	b := optionBytes(optInfo, nil)
	binary.BigEndian.PutUint32(b[12:], 0xffffffff)
	r.send(b)
	r.gone()
}

func TestOptionsWithoutEndEndTheConnection(t *testing.T) {
	ts := startServer(t, oneDisk(ramdisk.New(1<<20, 512)))
	r := hello(t, ts)
	for range maxOptions {
		r.must(optList, nil, repAck)
	}
	r.gone()
}

func TestGarbageInHandshake(t *testing.T) {
	ts := startServer(t, oneDisk(ramdisk.New(1<<20, 512)))
	r := hello(t, ts)
	r.send(bytes.Repeat([]byte("GET / HTTP/1.1\r\n"), 4))
	r.gone()
}

func TestAbort(t *testing.T) {
	ts := startServer(t, oneDisk(ramdisk.New(1<<20, 512)))
	r := hello(t, ts)
	r.must(optAbort, nil, repAck)
	r.gone()
}

func TestHandshakeTimeout(t *testing.T) {
	cfg := oneDisk(ramdisk.New(1<<20, 512))
	cfg.HandshakeTimeout = 10 * time.Millisecond
	ts := startServer(t, cfg)
	r := dial(t, ts)
	r.recv(18)
	r.gone()
}

func TestListManyExports(t *testing.T) {
	var xs Exports
	d := ramdisk.New(1<<20, 512)
	for i := range 3000 {
		xs = append(xs, &Export{Name: fmt.Sprintf("export-%04d", i), Description: strings.Repeat("d", i%300), Disk: d})
	}
	xs = append(xs, &Export{Name: strings.Repeat("n", 5000), Disk: d}) // cannot be listed
	ts := startServer(t, Config{Resolver: xs})
	r := hello(t, ts)
	all := r.must(optList, nil, repAck)
	if len(all) != 3001 {
		t.Fatalf("%d replies", len(all))
	}
	for i, x := range all[:3000] {
		want := append(str(xs[i].Name), xs[i].Description...)
		if x.typ != repServer || !bytes.Equal(x.data, want) {
			t.Fatalf("export %d: %d %q", i, x.typ, x.data)
		}
	}
}

func TestInfoReplies(t *testing.T) {
	d := ramdisk.New(1<<20, 4096)
	var released atomic.Int32
	ts := startServer(t, Config{Resolver: Exports{{Name: "disk", Description: "the disk", Disk: d, Release: func() { released.Add(1) }}}})
	r := hello(t, ts)
	all := r.must(optInfo, infoData("", infoName, infoDescription, infoBlockSize, 77), repAck)
	want := [][]byte{
		append(binary.BigEndian.AppendUint64([]byte{0, 0}, 1<<20), 0x0d, 0x6d),
		append([]byte{0, 1}, "disk"...),
		append([]byte{0, 2}, "the disk"...),
		{0, 3, 0, 0, 0x10, 0, 0, 0, 0x10, 0, 2, 0, 0, 0},
	}
	for i, w := range want {
		if all[i].typ != repInfo || !bytes.Equal(all[i].data, w) {
			t.Errorf("reply %d: type %d, % x, want % x", i, all[i].typ, all[i].data, w)
		}
	}
	if len(all) != 5 {
		t.Errorf("%d replies", len(all))
	}
	if released.Load() != 1 {
		t.Errorf("released %d times", released.Load())
	}
	for n := range infoData("disk", infoName) {
		r.must(optGo, infoData("disk", infoName)[:n], repErrInvalid)
	}
	r.must(optGo, append(infoData("disk", infoName), 0), repErrInvalid)
	r.must(optGo, infoData(strings.Repeat("x", 4097)), repErrInvalid)
	r.enter(styleStructured)
	if r.flags&txSendDF == 0 {
		t.Errorf("flags %#x: no DF though replies are structured", r.flags)
	}
}

func TestReadOnlyFlags(t *testing.T) {
	d := ramdisk.New(1<<20, 512)
	ts := startServer(t, Config{Resolver: Exports{{Name: "disk", Disk: d, ReadOnly: true, SingleConn: true}}})
	r := enter(t, ts, styleSimple)
	if r.flags != txHasFlags|txReadOnly|txSendFlush|txSendFUA|txSendCache {
		t.Errorf("flags %#x", r.flags)
	}
}

type dirtyMap struct{}

func (dirtyMap) Name() string { return "qemu:dirty-bitmap:b0" }
func (dirtyMap) Status(_ context.Context, off, n int64, yield func(int64, uint32) bool) error {
	for ; n > 0; off, n = off+4096, n-4096 {
		if !yield(min(4096, n), uint32(off/4096)&1) {
			break
		}
	}
	return nil
}

func TestMetaContexts(t *testing.T) {
	d := ramdisk.New(1<<20, 512)
	ts := startServer(t, Config{Resolver: Exports{{Name: "disk", Disk: d, Contexts: []MetaContext{dirtyMap{}}}, {Name: "other", Disk: d}}})
	r := hello(t, ts)
	r.must(optSetMetaContext, metaData("disk", baseAllocationName), repErrInvalid) // before structured replies
	r.must(optStructuredReply, nil, repAck)
	names := func(all []optReply) string {
		var s []string
		for _, x := range all[:len(all)-1] {
			s = append(s, fmt.Sprintf("%d=%s", binary.BigEndian.Uint32(x.data), x.data[4:]))
		}
		return strings.Join(s, " ")
	}
	for _, c := range []struct {
		opt     option
		queries []string
		want    string
	}{
		{optListMetaContext, nil, "0=base:allocation 0=qemu:dirty-bitmap:b0"},
		{optListMetaContext, []string{"base:"}, "0=base:allocation"},
		{optListMetaContext, []string{"qemu:", "x-y:z"}, "0=qemu:dirty-bitmap:b0"},
		{optListMetaContext, []string{"nonsense"}, ""},
		{optSetMetaContext, nil, ""},
		{optSetMetaContext, []string{"base:"}, ""},
		{optSetMetaContext, []string{"qemu:dirty-bitmap:b0", "base:allocation", "base:allocation"}, "1=base:allocation 2=qemu:dirty-bitmap:b0"},
	} {
		if got := names(r.must(c.opt, metaData("disk", c.queries...), repAck)); got != c.want {
			t.Errorf("%d %q: %s, want %s", c.opt, c.queries, got, c.want)
		}
	}
	whole := metaData("disk", "base:allocation")
	for n := range whole {
		r.must(optListMetaContext, whole[:n], repErrInvalid)
	}
	r.must(optListMetaContext, append(whole, 0), repErrInvalid)
	r.must(optListMetaContext, append(str("disk"), 0xff, 0xff, 0xff, 0xff), repErrInvalid)
	r.must(optSetMetaContext, metaData("nothing", "base:allocation"), repErrUnknown)
	r.must(optSetMetaContext, metaData("disk", "qemu:dirty-bitmap:b0", "base:allocation"), repAck)
	r.must(optGo, infoData("disk"), repAck)
	r.style = styleStructured
	// Two contexts: two chunks.
	r.request(wireRequest{cmd: cmdBlockStatus, cookie: 9, offset: 4096, length: 8192}, nil)
	a := r.answer(nil)
	if a.typ != replyTypeBlockStatus || a.flags != 0 || !bytes.Equal(a.data, []byte{0, 0, 0, 1, 0, 0, 0x20, 0, 0, 0, 0, 3}) {
		t.Errorf("first chunk %+v", a)
	}
	a = r.answer(nil)
	if a.typ != replyTypeBlockStatus || a.flags != replyFlagDone ||
		!bytes.Equal(a.data, []byte{0, 0, 0, 2, 0, 0, 0x10, 0, 0, 0, 0, 1, 0, 0, 0x10, 0, 0, 0, 0, 0}) {
		t.Errorf("second chunk %+v", a)
	}

	// A selection for one export does not hold for another.
	r = hello(t, ts)
	r.must(optStructuredReply, nil, repAck)
	r.must(optSetMetaContext, metaData("disk", "base:allocation"), repAck)
	r.must(optGo, infoData("other"), repAck)
	r.style = styleStructured
	r.expect(nbdEINVAL, wireRequest{cmd: cmdBlockStatus, length: 8192}, nil)
}

func TestExtendedHeadersPrecedence(t *testing.T) {
	ts := startServer(t, oneDisk(ramdisk.New(1<<20, 512)))
	r := hello(t, ts)
	r.must(optStructuredReply, nil, repAck)
	r.must(optExtendedHeaders, nil, repAck)
	r.must(optStructuredReply, nil, repErrExtHeaderReqd)
	r.send(optionBytes(optExportName, []byte("disk")))
	r.gone()
}

// resolverFunc fails as the test wants it.
type resolverFunc func(name string) (*Export, error)

func (f resolverFunc) Resolve(_ context.Context, name string) (*Export, error) { return f(name) }
func (f resolverFunc) List(context.Context, func(name, description string) bool) error {
	return errors.New("not today")
}

func TestResolverErrors(t *testing.T) {
	odd := ramdisk.New(3<<20, 3)
	ts := startServer(t, Config{Resolver: resolverFunc(func(name string) (*Export, error) {
		switch name {
		case "odd":
			return &Export{Disk: odd}, nil
		case "empty":
			return &Export{}, nil
		}
		return nil, errors.New("you may not")
	})})
	r := hello(t, ts)
	r.must(optList, nil, repErrPolicy)
	all := r.must(optGo, infoData("x"), repErrPolicy)
	if !strings.Contains(string(all[0].data), "you may not") {
		t.Errorf("text %q", all[0].data)
	}
	r.must(optGo, infoData("odd"), repErrPolicy)
	r.must(optGo, infoData("empty"), repErrUnknown)
	r.must(optAbort, nil, repAck)
}

func TestTooManyConnections(t *testing.T) {
	cfg := oneDisk(ramdisk.New(1<<20, 512))
	cfg.MaxConns = 2
	ts := startServer(t, cfg)
	a, b := enter(t, ts, styleSimple), hello(t, ts)
	dial(t, ts).gone()
	b.must(optAbort, nil, repAck)
	b.gone()
	a.alive()
}

func testCertificate(t *testing.T) (server *tls.Config, client *tls.Config) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, &tls.Config{RootCAs: pool, ServerName: "localhost"}
}

func TestStartTLS(t *testing.T) {
	server, client := testCertificate(t)
	for _, hook := range []ramdisk.Hook{nil, busyHook} {
		d := ramdisk.New(64<<20, 512)
		d.SetHook(hook)
		cfg := oneDisk(d)
		cfg.TLS, cfg.RequireTLS = server, true
		ts := startServer(t, cfg)
		r := hello(t, ts)
		r.must(optList, nil, repErrTLSReqd)
		r.must(optGo, infoData("disk"), repErrTLSReqd)
		r.must(optStartTLS, []byte{1}, repErrInvalid)
		r.must(optStartTLS, nil, repAck)
		tc := tls.Client(r.c, client)
		if err := tc.Handshake(); err != nil {
			t.Fatal(err)
		}
		var plain net.Conn
		plain, r.c = r.c, tc
		r.must(optStartTLS, nil, repErrInvalid)
		r.enter(styleStructured)
		p := pattern(5<<20, 3)
		r.write(1<<20, p)
		if !bytes.Equal(r.read(1<<20, 5<<20), p) {
			t.Error("read something else")
		}
		r.bye()

		r = hello(t, ts)
		r.send(optionBytes(optExportName, []byte("disk")))
		r.gone()
		plain.Close()
		r = hello(t, ts)
		r.must(optStartTLS, nil, repAck)
		r.send(make([]byte, 100))                                   // not TLS
		if _, err := io.ReadAll(r.c); err != nil && !isReset(err) { // perhaps an alert, then the end
			t.Error(err)
		}
	}
}

func TestServeConnOverPipe(t *testing.T) {
	srv, err := NewServer(oneDisk(ramdisk.New(1<<20, 512)))
	if err != nil {
		t.Fatal(err)
	}
	a, b := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- srv.ServeConn(b) }()
	r := &rawClient{t: t, c: a}
	r.greet(3)
	r.enter(styleStructured)
	r.write(0, pattern(1<<20, 1))
	if !bytes.Equal(r.read(4096, 8192), pattern(1<<20, 1)[4096:][:8192]) {
		t.Error("read something else")
	}
	r.request(wireRequest{cmd: cmdDisc}, nil)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := srv.Close(); err != nil {
		t.Error(err)
	}
	if err := srv.ServeConn(b); !errors.Is(err, ErrServerClosed) {
		t.Errorf("after Close: %v", err)
	}
}
