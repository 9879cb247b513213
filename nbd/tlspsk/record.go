package tlspsk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Types of a record. [RFC 8446] 5.1
const (
	recordChangeCipherSpec = 20
	recordAlert            = 21
	recordHandshake        = 22
	recordData             = 23
)

// Alerts. [RFC 8446] 6
const (
	alertCloseNotify       = 0
	alertUnexpectedMessage = 10
	alertBadRecordMAC      = 20
	alertRecordOverflow    = 22
	alertHandshakeFailure  = 40
	alertIllegalParameter  = 47
	alertDecodeError       = 50
	alertDecryptError      = 51
	alertProtocolVersion   = 70
	alertMissingExtension  = 109
)

// Sizes, in bytes.
const (
	headerSize     = 5
	maxPlain       = 1 << 14
	maxCipher      = maxPlain + 256
	tagSize        = 16
	maxHandshake   = 64 << 10 // our own limit of one handshake message
	maxIdleRecords = 32       // records without data in a row, which only cost time
)

// rekeyAfter is how many records are sent with one key; AES-GCM allows 2^24.5. [RFC 8446] 5.5
const rekeyAfter = 1 << 23

// alertError ends a connection because of what the peer did. The peer gets the alert.
type alertError struct {
	alert byte
	text  string
}

func (e *alertError) Error() string { return e.text }

func fatal(alert byte, format string, args ...any) error {
	return &alertError{alert, fmt.Sprintf(format, args...)}
}

// Conn is an encrypted connection. One goroutine may read while another writes; Close and the deadlines may come from any.
type Conn struct {
	net.Conn
	identity string

	in       *direction // nil: not encrypted yet
	rbuf     []byte     // received bytes are rbuf[r:w]
	r, w     int
	data     []byte // plaintext that was not read yet, in rbuf
	messages []byte // of handshake messages that have not come whole
	readErr  error

	mu      sync.Mutex // guards what follows
	out     *direction
	sent    uint64 // records with the present key
	rekeyAt uint64
	buf     []byte
	wrote   error
}

// Identity is the name of the key that the client has proved to know.
func (c *Conn) Identity() string { return c.identity }

// fill receives until n bytes are there, n ≤ headerSize+maxCipher. What came before an error stays, so that a deadline loses nothing.
func (c *Conn) fill(n int) error {
	if c.w-c.r >= n {
		return nil
	}
	if c.rbuf == nil {
		c.rbuf = make([]byte, 4*(headerSize+maxCipher))
	}
	if len(c.rbuf)-c.r < n || c.r == c.w {
		c.w = copy(c.rbuf, c.rbuf[c.r:c.w])
		c.r = 0
	}
	for c.w-c.r < n {
		m, err := c.Conn.Read(c.rbuf[c.w:])
		c.w += m
		if err != nil && c.w-c.r < n {
			return err
		}
	}
	return nil
}

// record receives one record and opens it. The payload stays where it was received, until the next call.
func (c *Conn) record() (typ byte, p []byte, err error) {
	if err := c.fill(headerSize); err != nil {
		if c.w > c.r {
			err = unexpected(err)
		}
		return 0, nil, err
	}
	n, most := int(binary.BigEndian.Uint16(c.rbuf[c.r+3:])), maxCipher
	if c.in == nil {
		most = maxPlain
	}
	if n > most {
		return 0, nil, fatal(alertRecordOverflow, "a record of %d bytes", n)
	}
	if err := c.fill(headerSize + n); err != nil {
		return 0, nil, unexpected(err)
	}
	head := c.rbuf[c.r : c.r+headerSize]
	p = c.rbuf[c.r+headerSize : c.r+headerSize+n]
	c.r += headerSize + n
	if c.in == nil || head[0] == recordChangeCipherSpec {
		return head[0], p, nil
	}
	if head[0] != recordData || n < tagSize+1 {
		return 0, nil, fatal(alertUnexpectedMessage, "a record that is not encrypted")
	}
	if p, err = c.in.open(head, p); err != nil {
		return 0, nil, err
	}
	for len(p) > 0 && p[len(p)-1] == 0 { // padding
		p = p[:len(p)-1]
	}
	if len(p) == 0 || len(p) > maxPlain+1 {
		return 0, nil, fatal(alertUnexpectedMessage, "a record without a type, or too long")
	}
	return p[len(p)-1], p[:len(p)-1], nil
}

// unexpected makes an error of an end in the middle of something.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Read reads decrypted bytes. io.EOF means that the client has said that it is done; a stream that just ends was perhaps cut by somebody, and gives
// io.ErrUnexpectedEOF. After a deadline, reading may go on.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for range maxIdleRecords {
		if len(c.data) > 0 {
			n := copy(p, c.data)
			c.data = c.data[n:]
			return n, nil
		}
		if c.readErr != nil {
			return 0, c.readErr
		}
		if err := c.next(); err != nil {
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				return 0, err
			}
			c.readErr = c.end(err)
		}
	}
	if c.readErr == nil {
		c.readErr = c.end(fatal(alertUnexpectedMessage, "many records without data"))
	}
	return 0, c.readErr
}

// next receives one record after the handshake.
func (c *Conn) next() error {
	typ, p, err := c.record()
	if err != nil {
		if errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		}
		return err
	}
	switch typ {
	case recordData:
		c.data = p
		return nil
	case recordAlert:
		return received(p)
	case recordHandshake:
		return c.postHandshake(p)
	}
	return fatal(alertUnexpectedMessage, "a record of type %d", typ)
}

// received is the error that an alert of the client means.
func received(p []byte) error {
	switch {
	case len(p) != 2:
		return fatal(alertDecodeError, "an alert of %d bytes", len(p))
	case p[1] == alertCloseNotify:
		return io.EOF
	}
	return fmt.Errorf("the client ended TLS with alert %d", p[1])
}

// postHandshake handles what is no data: KeyUpdate, which must end its record. [RFC 8446] 4.6.3, 5.1
func (c *Conn) postHandshake(p []byte) error {
	if len(p) != 5 || p[0] != msgKeyUpdate || p[1] != 0 || p[2] != 0 || p[3] != 1 || p[4] > 1 {
		return fatal(alertUnexpectedMessage, "a handshake message that is no key update")
	}
	c.in.update()
	if p[4] == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.wrote != nil {
		return c.wrote
	}
	return c.rekey()
}

// end tells the client of an error that it has made, and gives it the package's name.
func (c *Conn) end(err error) error {
	if err == io.EOF {
		return err
	}
	var a *alertError
	if errors.As(err, &a) {
		c.alert(2, a.alert)
	}
	return fmt.Errorf("TLS: %w", err)
}

// alert sends an alert; nobody waits long for a client that does not take it.
func (c *Conn) alert(level, what byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.wrote != nil {
		return
	}
	_ = c.SetWriteDeadline(time.Now().Add(alertTimeout))
	_, _ = c.Conn.Write(c.seal(nil, recordAlert, []byte{level, what}))
	c.wrote = net.ErrClosed
}

const alertTimeout = time.Second

// seal appends a record with the payload, at most maxPlain bytes. mu is held, or nobody else writes yet.
func (c *Conn) seal(b []byte, typ byte, p []byte) []byte {
	n := len(p)
	if c.out != nil {
		n += 1 + tagSize
		b = append(b, recordData)
	} else {
		b = append(b, typ)
	}
	b = append(b, versionTLS12>>8, versionTLS12&0xff, byte(n>>8), byte(n))
	if c.out == nil {
		return append(b, p...)
	}
	c.sent++
	return c.out.seal(b, b[len(b)-headerSize:], typ, p)
}

// rekey sends a KeyUpdate and goes on with the next key. mu is held.
func (c *Conn) rekey() error {
	if _, err := c.Conn.Write(c.seal(c.buf[:0], recordHandshake, message(msgKeyUpdate, []byte{0}))); err != nil {
		c.wrote = err
		return err
	}
	c.out.update()
	c.sent = 0
	return nil
}

// Write encrypts and sends p. After an error, also one of a deadline, the connection cannot be written any more, as a part of a record may have left.
func (c *Conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	done := 0
	for c.wrote == nil && done < len(p) {
		if c.sent >= c.rekeyAt {
			if c.rekey() != nil {
				break
			}
		}
		c.buf = c.buf[:0]
		n := done
		for ; n < len(p) && len(c.buf) < writeBytes; n += min(len(p)-n, maxPlain) {
			c.buf = c.seal(c.buf, recordData, p[n:min(n+maxPlain, len(p))])
		}
		if _, err := c.Conn.Write(c.buf); err != nil {
			c.wrote = err
			break
		}
		done = n
	}
	return done, c.wrote
}

// writeBytes is about how much leaves in one system call.
const writeBytes = 128 << 10

// Close says goodbye to the client and closes the connection below.
func (c *Conn) Close() error {
	c.alert(1, alertCloseNotify)
	return c.Conn.Close()
}
