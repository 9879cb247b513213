package auth

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strings"
	"time"
)

// A KCM daemon (sssd-kcm, Heimdal's kcm) keeps tickets for those who ask it on a socket; by the socket it knows whose they may be. A request is a length, the
// protocol's version (two bytes), an operation (two bytes) and what that needs; a reply is a length, the code of the transport, and then, if that is zero,
// length bytes: the code of the operation and what that gives. Numbers are big-endian, names end with a zero byte, principals and tickets are as in a file of
// version 4. There is no specification but Heimdal's and MIT's sources.

const (
	kcmSocket   = "/var/run/.heim_org.h5l.kcm-socket"
	kcmTimeout  = 10 * time.Second // for a whole cache: the daemon may have to be started
	maxKCMName  = 1024
	maxKCMCreds = 4096
	kcmUUID     = 16

	kcmGetPrincipal    = 8
	kcmGetCredUUIDs    = 9
	kcmGetCredByUUID   = 10
	kcmGetDefaultCache = 20
	kcmGetCredList     = 13001 // MIT's, which Heimdal has not
)

// Codes of MIT's table of errors.
const (
	krb5CCNotFound  = -1765328243
	krb5CCEnd       = -1765328242
	krb5CCIO        = -1765328191
	krb5FCCPerm     = -1765328190
	krb5FCCNoFile   = -1765328189
	krb5FCCInternal = -1765328188
	krb5CCNoSupport = -1765328137
)

// kcmCode is a daemon's refusal.
type kcmCode int32

func (c kcmCode) Error() string {
	switch c {
	case krb5FCCPerm:
		return "they are somebody else's"
	case krb5FCCNoFile, krb5CCNotFound, krb5CCEnd:
		return "no such cache"
	}
	return fmt.Sprintf("error code %d of the KCM daemon", int32(c))
}

var (
	errKCMReply  = errors.New("unexpected contents in a reply of the KCM daemon")
	errKCMClosed = errors.New("the KCM daemon hangs up")
)

// kcmCall asks a daemon for something.
type kcmCall func(op uint16, args ...[]byte) ([]byte, error)

// readKCM reads the tickets that a daemon keeps. name is that of the cache; empty stands for the user's default.
func readKCM(ctx context.Context, socket, name string) (*ccache, error) {
	limited, cancel := context.WithTimeout(ctx, kcmTimeout)
	defer cancel()
	d := &kcmDaemon{socket: socket}
	defer d.close()
	c, err := kcmCache(func(op uint16, args ...[]byte) ([]byte, error) { return d.call(limited, op, args...) }, name)
	var code kcmCode
	var socketError *net.OpError
	switch {
	case err == nil:
		return c, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, fs.ErrNotExist):
		return nil, kerberosErrorf("the tickets in KCM:%s cannot be read, as no KCM daemon is there (%s does not exist): start sssd-kcm, or use KRB5CCNAME=FILE:… for both kinit and vdbridge: %w", name, socket, err)
	case errors.As(err, &code):
		return nil, kerberosErrorf("there are no tickets in KCM:%s (%w): run kinit, or give --keytab or --password-file", name, err)
	case limited.Err() != nil, errors.Is(err, errKCMClosed), errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &socketError) && !errors.Is(err, fs.ErrPermission):
		// It may be about to start anew.
		return nil, &KerberosError{Unreachable: true, Err: err,
			Sentence: fmt.Sprintf("the tickets in KCM:%s cannot be read, as the KCM daemon does not answer (%v): restart sssd-kcm, or use KRB5CCNAME=FILE:… for both kinit and vdbridge", name, err)}
	}
	return nil, kerberosErrorf("the tickets in KCM:%s cannot be read (%w): run kinit, or use KRB5CCNAME=FILE:… for both kinit and vdbridge", name, err)
}

// kcmCache reads a cache.
func kcmCache(call kcmCall, name string) (*ccache, error) {
	if name == "" {
		b, err := call(kcmGetDefaultCache)
		if err != nil {
			return nil, err
		}
		end := bytes.IndexByte(b, 0)
		if end <= 0 {
			return nil, errKCMReply
		}
		name = string(b[:end])
	}
	if len(name) > maxKCMName || strings.ContainsRune(name, 0) {
		return nil, errors.New("that is no name of a cache")
	}
	cache := append([]byte(name), 0)
	b, err := call(kcmGetPrincipal, cache)
	if err != nil {
		return nil, err
	}
	if len(b) == 0 {
		return nil, kcmCode(krb5FCCNoFile) // which is how Heimdal says so
	}
	c := new(ccache)
	r := &ccReader{b: b}
	if c.client, c.realm = r.principal(); r.bad || len(c.client.NameString) == 0 || c.realm == "" {
		return nil, errKCMReply
	}
	b, err = call(kcmGetCredList, cache)
	if kcmUnsupported(err) {
		return c, c.kcmByUUID(call, cache)
	}
	if err != nil {
		return nil, err
	}
	r = &ccReader{b: b}
	for n := r.u32(); n > 0; n-- {
		cred := r.data()
		if r.bad {
			return nil, errKCMReply
		}
		if err := c.addKCM(cred); err != nil {
			return nil, err
		}
	}
	if r.bad || len(r.b) > 0 {
		return nil, errKCMReply
	}
	return c, nil
}

// kcmByUUID asks for the tickets one by one.
func (c *ccache) kcmByUUID(call kcmCall, cache []byte) error {
	list, err := call(kcmGetCredUUIDs, cache)
	if err != nil {
		return err
	}
	if len(list)%kcmUUID != 0 {
		return errKCMReply
	}
	if len(list)/kcmUUID > maxKCMCreds {
		return fmt.Errorf("%d tickets are too many", len(list)/kcmUUID)
	}
	room := maxCCache
	for ; len(list) > 0; list = list[kcmUUID:] {
		cred, err := call(kcmGetCredByUUID, cache, list[:kcmUUID])
		if err == kcmCode(krb5CCEnd) || err == kcmCode(krb5CCNotFound) {
			continue // gone meanwhile
		}
		if err != nil {
			return err
		}
		if room -= len(cred); room < 0 {
			return fmt.Errorf("tickets of more than %d bytes are too long", maxCCache)
		}
		if err := c.addKCM(cred); err != nil {
			return err
		}
	}
	return nil
}

// addKCM adds a ticket, unless it is none but configuration.
func (c *ccache) addKCM(cred []byte) error {
	r := &ccReader{b: cred}
	t := r.credential(0x0504)
	if r.bad || len(r.b) > 0 {
		return errKCMReply
	}
	if !strings.HasPrefix(t.realm, "X-CACHECONF") {
		c.tickets = append(c.tickets, t)
	}
	return nil
}

// kcmUnsupported says that the daemon may not know an operation: each says so in its own way, and some by hanging up.
func kcmUnsupported(err error) bool {
	var code kcmCode
	if errors.As(err, &code) {
		return code == krb5CCIO || code == krb5FCCInternal || code == krb5CCNoSupport
	}
	return errors.Is(err, errKCMClosed)
}

// kcmDaemon is a connection with a daemon. After an error it is made anew.
type kcmDaemon struct {
	socket string
	conn   net.Conn
	done   func()
}

func (d *kcmDaemon) close() {
	if d.conn != nil {
		d.done()
		d.conn = nil
	}
}

func (d *kcmDaemon) call(ctx context.Context, op uint16, args ...[]byte) (reply []byte, err error) {
	if d.conn == nil {
		if d.conn, d.done, err = dialUntil(ctx, "unix", d.socket); err != nil {
			d.conn = nil
			return nil, err
		}
	}
	rest := bytes.Join(args, nil)
	b := binary.BigEndian.AppendUint32(nil, uint32(4+len(rest)))
	b = binary.BigEndian.AppendUint16(append(b, 2, 0), op)
	if _, err = d.conn.Write(append(b, rest...)); err == nil { // in one piece: sssd-kcm does not wait for the rest of a request
		reply, err = readKCMReply(d.conn)
	}
	if err != nil {
		d.close()
	}
	return reply, err
}

// readKCMReply reads what an operation gives, or its error.
func readKCMReply(r io.Reader) ([]byte, error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if err == io.EOF {
			err = errKCMClosed
		}
		return nil, err
	}
	if code := int32(binary.BigEndian.Uint32(head[4:])); code != 0 {
		return nil, kcmCode(code)
	}
	n := binary.BigEndian.Uint32(head[:])
	switch {
	case n < 4:
		return nil, errKCMReply
	case n > maxCCache:
		return nil, fmt.Errorf("a reply of %d bytes is too long", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("the reply of the KCM daemon ends too soon: %w", err)
	}
	if code := int32(binary.BigEndian.Uint32(b)); code != 0 {
		return nil, kcmCode(code)
	}
	return b[4:], nil
}
