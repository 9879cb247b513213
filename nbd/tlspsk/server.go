package tlspsk

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"
)

// Keys are the keys by their identities. They do not change while they are in use.
type Keys map[string][]byte

// groups are those that the server knows, in its order of preference.
var groups = []struct {
	id    uint16
	curve ecdh.Curve
}{{groupX25519, ecdh.X25519()}, {groupP256, ecdh.P256()}}

// Server does the server's part of the handshake on c and returns the encrypted connection, whose Close closes c. ctx bounds the handshake. After an
// error, which the client is told by an alert where it is its own, c can only be closed.
func Server(ctx context.Context, c net.Conn, keys Keys) (*Conn, error) {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	s := &Conn{Conn: c, rekeyAt: rekeyAfter}
	err := s.handshake(keys)
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		var a *alertError
		if errors.As(err, &a) {
			s.alert(2, a.alert)
		}
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	return s, nil
}

// handshake is one round trip: ClientHello; ServerHello, EncryptedExtensions and Finished; Finished. [RFC 8446] 2.2
func (c *Conn) handshake(keys Keys) error {
	msg, err := c.handshakeMessage(msgClientHello)
	if err != nil {
		return err
	}
	hello, err := parseClientHello(msg)
	if err != nil {
		return fatal(alertDecodeError, "%v", err)
	}
	if len(c.messages) > 0 {
		return fatal(alertUnexpectedMessage, "something follows the ClientHello")
	}
	if err := hello.check(); err != nil {
		return err
	}
	index, psk, err := hello.authenticate(msg, keys)
	if err != nil {
		return err
	}
	c.identity = string(hello.identities[index])
	group, share, shared, err := hello.agree()
	if err != nil {
		return err
	}
	random := make([]byte, 32)
	if _, err := rand.Read(random); err != nil {
		return err
	}
	reply := serverHello(random, hello.sessionID, group, share, index)
	transcript := sha256.New()
	transcript.Write(msg)
	transcript.Write(reply)
	sum := transcript.Sum(nil)

	secret := extract(shared, derive(extract(psk, nil), "derived", emptyHash()))
	fromClient, toClient := derive(secret, "c hs traffic", sum), derive(secret, "s hs traffic", sum)
	out := c.seal(nil, recordHandshake, reply)
	if len(hello.sessionID) > 0 { // for boxes on the way that take this for TLS 1.2. [RFC 8446] D.4
		out = c.seal(out, recordChangeCipherSpec, []byte{1})
	}
	c.out = newDirection(toClient)
	exts := message(msgEncryptedExtensions, []byte{0, 0})
	transcript.Write(exts)
	finished := message(msgFinished, finishedMAC(toClient, transcript.Sum(nil)))
	transcript.Write(finished)
	sum = transcript.Sum(nil)
	if _, err := c.Conn.Write(c.seal(out, recordHandshake, append(exts, finished...))); err != nil {
		return err
	}
	secret = extract(make([]byte, hashSize), derive(secret, "derived", emptyHash()))
	c.out = newDirection(derive(secret, "s ap traffic", sum))
	c.sent = 0

	c.in = newDirection(fromClient)
	msg, err = c.handshakeMessage(msgFinished)
	if err != nil {
		return err
	}
	if !hmac.Equal(msg[4:], finishedMAC(fromClient, sum)) {
		return fatal(alertDecryptError, "the client's Finished does not fit what was said")
	}
	if len(c.messages) > 0 {
		return fatal(alertUnexpectedMessage, "something follows the client's Finished in its record")
	}
	c.in = newDirection(derive(secret, "c ap traffic", sum))
	return nil
}

// handshakeMessage receives a whole message of the wanted type, with its header.
func (c *Conn) handshakeMessage(want byte) ([]byte, error) {
	for range maxIdleRecords {
		if len(c.messages) >= 4 {
			n := 4 + int(c.messages[1])<<16 + int(c.messages[2])<<8 + int(c.messages[3])
			if c.messages[0] != want {
				return nil, fatal(alertUnexpectedMessage, "handshake message %d where %d is due", c.messages[0], want)
			}
			if n > maxHandshake {
				return nil, fatal(alertDecodeError, "a handshake message of %d bytes", n)
			}
			if len(c.messages) >= n {
				msg := slices.Clone(c.messages[:n])
				c.messages = c.messages[n:]
				return msg, nil
			}
		}
		typ, p, err := c.record()
		switch {
		case err != nil:
			return nil, unexpected(err)
		case typ == recordHandshake:
			c.messages = append(c.messages, p...)
		case typ == recordAlert:
			return nil, received(p)
		case typ == recordChangeCipherSpec && bytes.Equal(p, []byte{1}): // means nothing. [RFC 8446] 5
		default:
			return nil, fatal(alertUnexpectedMessage, "a record of type %d where handshake message %d is due", typ, want)
		}
	}
	return nil, fatal(alertUnexpectedMessage, "a handshake message in too many pieces")
}

// check says whether the client can speak what this package speaks.
func (h *clientHello) check() error {
	switch {
	case !h.tls13:
		return fatal(alertProtocolVersion, "the client does not know TLS 1.3")
	case !slices.Contains(h.suites, suiteAES128GCM):
		return fatal(alertHandshakeFailure, "the client does not offer TLS_AES_128_GCM_SHA256")
	case len(h.identities) == 0:
		return fatal(alertMissingExtension, "the client has no pre-shared key")
	case !h.pskDHE:
		return fatal(alertHandshakeFailure, "the client does not offer pre-shared keys with a key exchange (psk_dhe_ke)")
	}
	return nil
}

// authenticate finds the first identity that is known, and checks that the client has its key. An unknown identity and a wrong key are told apart
// neither by the answer nor by the time.
func (h *clientHello) authenticate(msg []byte, keys Keys) (index int, psk []byte, err error) {
	sum := sha256.Sum256(msg[:h.truncated])
	unknown := make([]byte, hashSize)
	if _, err := rand.Read(unknown); err != nil {
		return 0, nil, err
	}
	index, psk = 0, unknown
	for i, id := range h.identities {
		if key, ok := keys[string(id)]; ok {
			index, psk = i, key
			break
		}
	}
	if !hmac.Equal(h.binders[index], binderOf(psk, sum[:])) {
		return 0, nil, fatal(alertDecryptError, "the client does not know the key of the name that it gives, or the name is not known")
	}
	return index, psk, nil
}

// agree makes our share of the key exchange, and the secret.
func (h *clientHello) agree() (group uint16, share, secret []byte, err error) {
	for _, g := range groups {
		theirs, ok := h.shares[g.id]
		if !ok {
			continue
		}
		peer, err := g.curve.NewPublicKey(theirs)
		if err != nil {
			return 0, nil, nil, fatal(alertIllegalParameter, "the client's key share: %v", err)
		}
		key, err := g.curve.GenerateKey(rand.Reader)
		if err != nil {
			return 0, nil, nil, err
		}
		secret, err := key.ECDH(peer)
		if err != nil {
			return 0, nil, nil, fatal(alertIllegalParameter, "the client's key share: %v", err)
		}
		return g.id, key.PublicKey().Bytes(), secret, nil
	}
	return 0, nil, nil, fatal(alertHandshakeFailure, "the client sends no key share of X25519 or P-256")
}
