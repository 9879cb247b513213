package pcap

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"vdbridge/smb/transport"
)

// Values of the pcap file format, in its variant with nanoseconds; the packets are bare IP.
const (
	magicNanoseconds = 0xA1B23C4D
	linkTypeRaw      = 101
	snapLen          = 256 << 10
)

// maxPayload is how much of a message goes into one made-up segment: an IP packet must stay below 64 KiB.
const maxPayload = 61440

// smbPort is the port by which Wireshark recognises SMB.
const smbPort = 445

// Writer writes one capture of any number of connections. Its methods may be called at the same time.
type Writer struct {
	mu   sync.Mutex
	file io.WriteCloser
	keys io.WriteCloser
	buf  *bufio.Writer
	now  func() time.Time
	err  error // the first one; the capture ends there, the connections go on

	nextPort uint16
	seen     map[uint64]bool // sessions whose key is written
}

// Create makes the capture file path, and path+".keys" for the session keys. Existing files are overwritten.
func Create(path string) (*Writer, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create capture: %w", err)
	}
	k, err := os.OpenFile(path+".keys", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("create capture keys: %w", err)
	}
	w, err := newWriter(f, k, time.Now)
	if err != nil {
		return nil, errors.Join(err, f.Close(), k.Close())
	}
	return w, nil
}

func newWriter(file, keys io.WriteCloser, now func() time.Time) (*Writer, error) {
	w := &Writer{file: file, keys: keys, buf: bufio.NewWriterSize(file, 128<<10), now: now, nextPort: 49152, seen: map[uint64]bool{}}
	var h [24]byte
	le := binary.LittleEndian
	le.PutUint32(h[0:], magicNanoseconds)
	le.PutUint16(h[4:], 2)
	le.PutUint16(h[6:], 4)
	le.PutUint32(h[16:], snapLen)
	le.PutUint32(h[20:], linkTypeRaw)
	w.buf.Write(h[:])
	if err := w.buf.Flush(); err != nil {
		return nil, fmt.Errorf("write capture: %w", err)
	}
	return w, nil
}

// Close writes what is left and closes both files. It returns the first error of the whole capture. Connections may still
// report messages afterwards; these are dropped.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		return nil
	}
	err := errors.Join(w.err, w.buf.Flush(), w.file.Close(), w.keys.Close())
	w.file = nil
	if err != nil {
		return fmt.Errorf("write capture: %w", err)
	}
	return nil
}

// SessionKey writes the line by which Wireshark decrypts the session: the identifier as it lies on the wire, and the session key
// of its authentication ([MS-SMB2] 3.2.1.3, Session.SessionKey; 16 bytes, with Kerberos up to 32). The second key of a session that re-authenticates
// is ignored, as the session's encryption keys stay.
func (w *Writer) SessionKey(sessionID uint64, key []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil || w.seen[sessionID] {
		return
	}
	w.seen[sessionID] = true
	var id [8]byte
	binary.LittleEndian.PutUint64(id[:], sessionID)
	w.fail(fmt.Fprintf(w.keys, "%s,%s,\"\",\"\"\n", hex.EncodeToString(id[:]), hex.EncodeToString(key)))
}

func (w *Writer) fail(_ int, err error) {
	if err != nil && w.err == nil {
		w.err = err
	}
}

// Connection adds a connection between the two addresses, where server says whether this process is the server of it. The tap
// that it returns is for this one connection. Addresses that are not IP are drawn as loopback.
func (w *Writer) Connection(local, remote net.Addr, server bool) *Connection {
	w.mu.Lock()
	defer w.mu.Unlock()
	client, srv := local, remote
	if server {
		client, srv = remote, local
	}
	c := &Connection{w: w}
	c.out, c.in = &c.clientSide, &c.serverSide
	if server {
		c.out, c.in = c.in, c.out
	}
	ca, cport := ipOf(client)
	sa, _ := ipOf(srv)
	if !ca.IsValid() || !sa.IsValid() || ca.Is4() != sa.Is4() {
		ca, sa = netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if cport == 0 {
		cport = w.nextPort
		w.nextPort++
	}
	c.clientSide = side{addr: ca, port: cport}
	c.serverSide = side{addr: sa, port: smbPort}
	w.handshake(c)
	return c
}

func ipOf(a net.Addr) (netip.Addr, uint16) {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return ap.Addr().Unmap().WithZone(""), ap.Port()
	}
	return netip.Addr{}, 0
}

// side is one end of a connection; seq is the number of its next byte.
type side struct {
	addr netip.Addr
	port uint16
	seq  uint32
}

// Connection draws one connection. It is a transport.Tap; Closed may be called once at its end.
type Connection struct {
	w                      *Writer
	clientSide, serverSide side
	out, in                *side // ours, the peer's

	sent, received []byte // the message being put together, with its framing
}

var _ transport.Tap = (*Connection)(nil)

// Sent implements transport.Tap.
func (c *Connection) Sent(m transport.Message) {
	c.sent = binary.BigEndian.AppendUint32(c.sent[:0], uint32(m.Len()))
	for _, s := range m {
		c.sent = append(c.sent, s...)
	}
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	c.w.stream(c.out, c.in, c.sent)
}

// Received implements transport.Tap.
func (c *Connection) Received(piece []byte, remaining int) {
	if len(c.received) == 0 {
		c.received = binary.BigEndian.AppendUint32(c.received, uint32(len(piece)+remaining))
	}
	c.received = append(c.received, piece...)
	if remaining > 0 {
		return
	}
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	c.w.stream(c.in, c.out, c.received)
	c.received = c.received[:0]
}

// Closed draws the end of the connection.
func (c *Connection) Closed() {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	c.w.packet(c.out, c.in, tcpFIN|tcpACK, nil)
	c.out.seq++
	c.w.packet(c.in, c.out, tcpFIN|tcpACK, nil)
	c.in.seq++
	c.w.packet(c.out, c.in, tcpACK, nil)
	c.w.flush()
}

// TCP flags.
const (
	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpPSH = 0x08
	tcpACK = 0x10
)

func (w *Writer) handshake(c *Connection) {
	w.packet(&c.clientSide, &c.serverSide, tcpSYN, nil)
	c.clientSide.seq++
	w.packet(&c.serverSide, &c.clientSide, tcpSYN|tcpACK, nil)
	c.serverSide.seq++
	w.packet(&c.clientSide, &c.serverSide, tcpACK, nil)
	w.flush()
}

// stream draws b, flowing from one side to the other, as segments.
func (w *Writer) stream(from, to *side, b []byte) {
	for len(b) > 0 {
		n := min(len(b), maxPayload)
		flags := byte(tcpACK)
		if n == len(b) {
			flags |= tcpPSH
		}
		w.packet(from, to, flags, b[:n])
		from.seq += uint32(n)
		b = b[n:]
	}
	w.flush()
}

func (w *Writer) flush() {
	if w.file != nil && w.err == nil {
		w.fail(0, w.buf.Flush())
	}
}

// packet writes one IP packet with its record header.
func (w *Writer) packet(from, to *side, flags byte, payload []byte) {
	if w.file == nil || w.err != nil {
		return
	}
	var b [16 + 40 + 20]byte // record, IPv6, TCP: the most there is
	be, le := binary.BigEndian, binary.LittleEndian
	const rec, tcpLen = 16, 20
	ip := 20
	if from.addr.Is6() {
		ip = 40
	}
	total := ip + tcpLen + len(payload)

	now := w.now()
	le.PutUint32(b[0:], uint32(now.Unix()))
	le.PutUint32(b[4:], uint32(now.Nanosecond()))
	le.PutUint32(b[8:], uint32(total))
	le.PutUint32(b[12:], uint32(total))

	h := b[rec : rec+ip]
	src, dst := from.addr.AsSlice(), to.addr.AsSlice()
	if ip == 20 {
		h[0] = 0x45
		be.PutUint16(h[2:], uint16(total))
		h[6] = 0x40 // do not fragment
		h[8] = 64
		h[9] = 6
		copy(h[12:], src)
		copy(h[16:], dst)
		be.PutUint16(h[10:], ^fold(sum(0, h)))
	} else {
		h[0] = 0x60
		be.PutUint16(h[4:], uint16(tcpLen+len(payload)))
		h[6] = 6
		h[7] = 64
		copy(h[8:], src)
		copy(h[24:], dst)
	}
	t := b[rec+ip : rec+ip+tcpLen]
	be.PutUint16(t[0:], from.port)
	be.PutUint16(t[2:], to.port)
	be.PutUint32(t[4:], from.seq)
	if flags&tcpACK != 0 {
		be.PutUint32(t[8:], to.seq)
	}
	t[12] = 5 << 4
	t[13] = flags
	be.PutUint16(t[14:], 0xFFFF)
	pseudo := sum(sum(6+uint64(tcpLen+len(payload)), src), dst)
	be.PutUint16(t[16:], ^fold(sum(sum(pseudo, t), payload)))

	w.fail(w.buf.Write(b[:rec+ip+tcpLen]))
	w.fail(w.buf.Write(payload))
}

// sum adds b to a one's-complement sum of 16-bit words; only the last piece of what is summed may have an odd length.
func sum(s uint64, b []byte) uint64 {
	for ; len(b) >= 2; b = b[2:] {
		s += uint64(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint64(b[0]) << 8
	}
	return s
}

func fold(s uint64) uint16 {
	for s>>16 != 0 {
		s = s&0xFFFF + s>>16
	}
	return uint16(s)
}

// DecryptOptions reads the keys file of the capture at path and returns the options by which tshark decrypts it.
func DecryptOptions(path string) ([]string, error) {
	b, err := os.ReadFile(path + ".keys")
	if err != nil {
		return nil, fmt.Errorf("read capture keys: %w", err)
	}
	var opts []string
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" {
			opts = append(opts, "-o", "uat:smb2_seskey_list:"+line)
		}
	}
	return opts, nil
}
