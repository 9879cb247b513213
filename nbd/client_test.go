package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"vdbridge/test/leak"
	"vdbridge/test/ramdisk"
)

func TestMain(m *testing.M) { os.Exit(leak.Main(m)) }

// testServer is a server on a unix socket (or what network says) that ends with the test.
type testServer struct {
	*Server
	t        testing.TB
	addr     net.Addr
	served   chan error
	closed   bool
	closeErr error
}

func startServer(t testing.TB, cfg Config, network ...string) *testServer {
	t.Helper()
	srv, err := NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	nw, at := "unix", ""
	if len(network) > 0 {
		nw, at = network[0], "127.0.0.1:0"
	} else {
		at = filepath.Join(t.TempDir(), "nbd.sock")
	}
	l, err := net.Listen(nw, at)
	if err != nil {
		t.Fatal(err)
	}
	ts := &testServer{Server: srv, t: t, addr: l.Addr(), served: make(chan error, 1)}
	go func() { ts.served <- srv.Serve(t.Context(), l) }()
	t.Cleanup(func() { ts.shut() })
	return ts
}

// shut closes the server, if the test has not done so, and checks what Serve returned.
func (ts *testServer) shut() error {
	if ts.closed {
		return ts.closeErr
	}
	ts.closed = true
	ts.closeErr = ts.Close()
	if err := <-ts.served; err != nil && !errors.Is(err, ErrServerClosed) {
		ts.t.Errorf("Serve: %v", err)
	}
	return ts.closeErr
}

func oneDisk(d Disk) Config { return Config{Resolver: Exports{{Name: "disk", Disk: d}}} }

// rawClient speaks NBD byte by byte and fails the test when an answer is not as expected.
type rawClient struct {
	t     testing.TB
	c     net.Conn
	style replyStyle
	size  uint64
	flags uint16
}

func dial(t testing.TB, ts *testServer) *rawClient {
	t.Helper()
	c, err := net.Dial(ts.addr.Network(), ts.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(60 * time.Second)) // a test that hangs says where
	return &rawClient{t: t, c: c}
}

// hello does the exchange before the options.
func hello(t testing.TB, ts *testServer) *rawClient {
	t.Helper()
	r := dial(t, ts)
	r.greet(flagFixedNewstyle | flagNoZeroes)
	return r
}

func (r *rawClient) greet(flags uint32) {
	r.t.Helper()
	b := r.recv(18)
	if binary.BigEndian.Uint64(b) != magicInit || binary.BigEndian.Uint64(b[8:]) != magicOption || binary.BigEndian.Uint16(b[16:]) != 3 {
		r.t.Fatalf("greeting % x", b)
	}
	r.send(binary.BigEndian.AppendUint32(nil, flags))
}

func (r *rawClient) send(bs ...[]byte) {
	r.t.Helper()
	if _, err := r.c.Write(bytes.Join(bs, nil)); err != nil {
		r.t.Fatalf("send: %v", err)
	}
}

func (r *rawClient) recv(n int) []byte {
	r.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(r.c, b); err != nil {
		r.t.Fatalf("receive %d bytes: %v", n, err)
	}
	return b
}

// gone expects that the server closes the connection without another byte.
func (r *rawClient) gone() {
	r.t.Helper()
	b, err := io.ReadAll(r.c)
	if len(b) > 0 {
		r.t.Fatalf("got % x where the connection should end", b)
	}
	if err != nil && !isReset(err) {
		r.t.Fatalf("waiting for the end: %v", err)
	}
}

func isReset(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || bytes.Contains([]byte(err.Error()), []byte("reset")) ||
		bytes.Contains([]byte(err.Error()), []byte("broken pipe"))
}

func optionBytes(opt option, data []byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, magicOption)
	b = binary.BigEndian.AppendUint32(b, uint32(opt))
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

type optReply struct {
	typ  uint32
	data []byte
}

// reply receives one reply to opt.
func (r *rawClient) reply(opt option) optReply {
	r.t.Helper()
	b := r.recv(20)
	if binary.BigEndian.Uint64(b) != magicOptionReply || option(binary.BigEndian.Uint32(b[8:])) != opt {
		r.t.Fatalf("reply to option %d: % x", opt, b)
	}
	return optReply{binary.BigEndian.Uint32(b[12:]), r.recv(int(binary.BigEndian.Uint32(b[16:])))}
}

// ask sends an option and receives all its replies; the last is the final one.
func (r *rawClient) ask(opt option, data []byte) []optReply {
	r.t.Helper()
	r.send(optionBytes(opt, data))
	var all []optReply
	for {
		x := r.reply(opt)
		all = append(all, x)
		if x.typ == repAck || x.typ&(1<<31) != 0 {
			return all
		}
	}
}

func (r *rawClient) must(opt option, data []byte, final uint32) []optReply {
	r.t.Helper()
	all := r.ask(opt, data)
	if got := all[len(all)-1]; got.typ != final {
		r.t.Fatalf("option %d: final reply %#x %q, want %#x", opt, got.typ, got.data, final)
	}
	return all
}

func str(s string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...)
}

func infoData(name string, infos ...uint16) []byte {
	b := binary.BigEndian.AppendUint16(str(name), uint16(len(infos)))
	for _, i := range infos {
		b = binary.BigEndian.AppendUint16(b, i)
	}
	return b
}

func metaData(name string, queries ...string) []byte {
	b := binary.BigEndian.AppendUint32(str(name), uint32(len(queries)))
	for _, q := range queries {
		b = append(b, str(q)...)
	}
	return b
}

// enter goes to the transmission phase of the export "disk" in the given style, with base:allocation if the style allows it.
func enter(t testing.TB, ts *testServer, style replyStyle) *rawClient {
	t.Helper()
	r := hello(t, ts)
	r.enter(style)
	return r
}

func (r *rawClient) enter(style replyStyle) {
	r.t.Helper()
	r.style = style
	switch style {
	case styleStructured:
		r.must(optStructuredReply, nil, repAck)
	case styleExtended:
		r.must(optExtendedHeaders, nil, repAck)
	}
	if style != styleSimple {
		r.must(optSetMetaContext, metaData("disk", baseAllocationName), repAck)
	}
	all := r.must(optGo, infoData("disk", infoBlockSize), repAck)
	r.size = binary.BigEndian.Uint64(all[0].data[2:])
	r.flags = binary.BigEndian.Uint16(all[0].data[10:])
}

func (r *rawClient) requestBytes(q wireRequest, payload []byte) []byte {
	magic := uint32(magicRequest)
	if r.style == styleExtended {
		magic = magicExtRequest
		if payload != nil {
			q.flags |= cmdFlagPayloadLen
		}
	}
	b := binary.BigEndian.AppendUint32(nil, magic)
	b = binary.BigEndian.AppendUint16(b, q.flags)
	b = binary.BigEndian.AppendUint16(b, uint16(q.cmd))
	b = binary.BigEndian.AppendUint64(b, q.cookie)
	b = binary.BigEndian.AppendUint64(b, q.offset)
	if r.style == styleExtended {
		b = binary.BigEndian.AppendUint64(b, q.length)
	} else {
		b = binary.BigEndian.AppendUint32(b, uint32(q.length))
	}
	return append(b, payload...)
}

func (r *rawClient) request(q wireRequest, payload []byte) {
	r.t.Helper()
	r.send(r.requestBytes(q, payload))
}

// answer is one chunk, or a simple reply.
type answer struct {
	simple bool
	flags  uint16
	typ    uint16
	cookie uint64
	errno  uint32
	offset uint64 // of an extended reply
	data   []byte // the payload; for errors the text
}

// answer receives one reply or chunk. dataLen is the number of bytes that a simple reply without an error has.
func (r *rawClient) answer(dataLen func(cookie uint64) int) answer {
	r.t.Helper()
	a, err := readAnswer(r.c, r.style, dataLen)
	if err != nil {
		r.t.Fatal(err)
	}
	return a
}

func readAnswer(rd io.Reader, style replyStyle, dataLen func(cookie uint64) int) (a answer, err error) {
	var b [extReplySize]byte
	recv := func(p []byte) {
		if err == nil {
			_, err = io.ReadFull(rd, p)
		}
	}
	recv(b[:4])
	var n uint64
	switch magic := binary.BigEndian.Uint32(b[:]); {
	case err != nil:
		return a, fmt.Errorf("receive a reply: %w", err)
	case magic == magicSimpleReply && style != styleExtended:
		recv(b[4:16])
		a.simple, a.flags = true, replyFlagDone
		a.errno, a.cookie = binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint64(b[8:])
		if a.errno == 0 && dataLen != nil {
			n = uint64(dataLen(a.cookie))
		}
	case magic == magicStructuredReply && style == styleStructured:
		recv(b[4:20])
		n = uint64(binary.BigEndian.Uint32(b[16:]))
	case magic == magicExtReply && style == styleExtended:
		recv(b[4:32])
		a.offset, n = binary.BigEndian.Uint64(b[16:]), binary.BigEndian.Uint64(b[24:])
	default:
		return a, fmt.Errorf("magic %#x in style %d", magic, style)
	}
	if !a.simple {
		a.flags, a.typ, a.cookie = binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:]), binary.BigEndian.Uint64(b[8:])
	}
	if n > 64<<20 {
		return a, fmt.Errorf("a reply of %d bytes", n)
	}
	a.data = make([]byte, n)
	recv(a.data)
	if err == nil && a.typ == replyTypeError {
		if len(a.data) < 6 || len(a.data) != 6+int(binary.BigEndian.Uint16(a.data[4:])) {
			return a, fmt.Errorf("malformed error chunk % x", a.data)
		}
		a.errno, a.data = binary.BigEndian.Uint32(a.data), a.data[6:]
	}
	return a, err
}

// do sends a request and receives its reply, which must be one chunk.
func (r *rawClient) do(q wireRequest, payload []byte) answer {
	r.t.Helper()
	if q.cookie == 0 {
		q.cookie = 0x0123456789abcdef
	}
	r.request(q, payload)
	dataLen := func(uint64) int {
		if q.cmd == cmdRead {
			return int(q.length)
		}
		return 0
	}
	a := r.answer(dataLen)
	a = joinPieces(r.t, a, q, func() answer { return r.answer(dataLen) })
	if a.cookie != q.cookie || a.flags != replyFlagDone || r.style == styleExtended && a.offset != q.offset {
		r.t.Fatalf("%v: reply %+v", q.cmd, a)
	}
	return a
}

// joinPieces makes one answer of the chunks of a READ that did not ask for one chunk: the first is a, next gets the others.
func joinPieces(t testing.TB, a answer, q wireRequest, next func() answer) answer {
	t.Helper()
	if q.cmd != cmdRead || q.flags&cmdFlagDF != 0 || a.flags&replyFlagDone != 0 {
		return a
	}
	all := make([]byte, 8, q.length+8)
	binary.BigEndian.PutUint64(all, q.offset)
	for {
		if a.errno != 0 {
			return a
		}
		at, n := q.offset+uint64(len(all)-8), uint64(len(a.data))-8
		if a.typ == replyTypeOffsetHole {
			n = uint64(binary.BigEndian.Uint32(a.data[8:]))
		}
		all = append(all, content(t, a, at, n)...)
		if a.flags&replyFlagDone != 0 {
			a.typ, a.data = replyTypeOffsetData, all
			return a
		}
		b := next()
		if b.cookie != a.cookie || b.offset != a.offset {
			t.Fatalf("chunk %+v after one of cookie %#x, offset %d", b.flags, a.cookie, a.offset)
		}
		a = b
	}
}

// expect is do, and checks the error number.
func (r *rawClient) expect(errno uint32, q wireRequest, payload []byte) answer {
	r.t.Helper()
	a := r.do(q, payload)
	if a.errno != errno {
		r.t.Fatalf("%v of %d bytes at %d, flags %#x: error %d %q, want %d", q.cmd, q.length, q.offset, q.flags, a.errno, a.data, errno)
	}
	return a
}

// read reads and returns the data.
func (r *rawClient) read(off, n uint64) []byte {
	r.t.Helper()
	a := r.expect(0, wireRequest{cmd: cmdRead, offset: off, length: n}, nil)
	return content(r.t, a, off, n)
}

// content is the data of a successful read.
func content(t testing.TB, a answer, off, n uint64) []byte {
	t.Helper()
	switch {
	case a.simple:
		return a.data
	case a.typ == replyTypeOffsetData && len(a.data) == int(n)+8 && binary.BigEndian.Uint64(a.data) == off:
		return a.data[8:]
	case a.typ == replyTypeOffsetHole && len(a.data) == 12 && binary.BigEndian.Uint64(a.data) == off && binary.BigEndian.Uint32(a.data[8:]) == uint32(n):
		return make([]byte, n)
	}
	t.Fatalf("not a READ reply: type %d, %d bytes", a.typ, len(a.data))
	return nil
}

func (r *rawClient) write(off uint64, p []byte) {
	r.t.Helper()
	r.expect(0, wireRequest{cmd: cmdWrite, offset: off, length: uint64(len(p))}, p)
}

// alive checks that the connection still works.
func (r *rawClient) alive() {
	r.t.Helper()
	r.read(0, 4096)
}

func (r *rawClient) bye() {
	r.t.Helper()
	r.request(wireRequest{cmd: cmdDisc}, nil)
	r.gone()
}

func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i>>9) ^ byte(i*7) ^ seed
	}
	return p
}

// variants runs f for every style, inline and handed out.
func variants(t *testing.T, f func(t *testing.T, d *ramdisk.Disk, style replyStyle)) {
	for style, name := range []string{"simple", "structured", "extended"} {
		for _, inline := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/inline=%v", name, inline), func(t *testing.T) {
				d := ramdisk.New(64<<20, 512)
				if !inline {
					d.SetHook(busyHook)
				}
				f(t, d, replyStyle(style))
			})
		}
	}
}
