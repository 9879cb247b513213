package tlspsk

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"net"
	"testing"
	"time"
)

// helloOf makes the ClientHello of alice.
func helloOf(key *ecdh.PrivateKey, psk []byte) []byte {
	u16 := binary.BigEndian.AppendUint16
	vec := func(p []byte) []byte { return append(u16(nil, uint16(len(p))), p...) }
	ext := func(typ uint16, p []byte) []byte { return append(u16(nil, typ), vec(p)...) }
	share := append(u16(nil, groupX25519), vec(key.PublicKey().Bytes())...)
	exts := ext(extSupportedVersions, []byte{2, versionTLS13 >> 8, versionTLS13 & 0xff})
	exts = append(exts, ext(extPSKModes, []byte{1, modePSKDHE})...)
	exts = append(exts, ext(extKeyShare, vec(share))...)
	ids := vec(append(vec([]byte("alice")), 0, 0, 0, 0))
	exts = append(exts, ext(extPreSharedKey, append(ids, vec(append([]byte{hashSize}, make([]byte, hashSize)...))...))...)
	body := append(u16(nil, versionTLS12), make([]byte, 32)...)
	body = append(body, 0, 0, 2, suiteAES128GCM>>8, suiteAES128GCM&0xff, 1, 0)
	msg := message(msgClientHello, append(body, vec(exts)...))
	binder := len(msg) - hashSize
	sum := sha256.Sum256(msg[:binder-3])
	copy(msg[binder:], binderOf(psk, sum[:]))
	return msg
}

// The last message of the client is checked too, though its binder has shown that it knows the key: it vouches for all that was said after it.
func TestClientFinished(t *testing.T) {
	for _, flip := range []byte{0, 1} {
		a, b := net.Pipe()
		done := make(chan error, 1)
		go func() {
			defer b.Close()
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			_, err := Server(ctx, b, testKeys)
			done <- err
		}()
		psk := testKeys["alice"]
		key, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := &Conn{Conn: a, rekeyAt: rekeyAfter}
		hello := helloOf(key, psk)
		if _, err := a.Write(c.seal(nil, recordHandshake, hello)); err != nil {
			t.Fatal(err)
		}
		reply, err := c.handshakeMessage(msgServerHello)
		if err != nil {
			t.Fatal(err)
		}
		// The share stands behind the version, the random, the empty session id, suite, compression, the extensions' length, supported_versions, and its own header.
		at := 4 + 2 + 32 + 1 + 2 + 1 + 2 + 6 + 4 + 4
		peer, err := ecdh.X25519().NewPublicKey(reply[at : at+32])
		if err != nil {
			t.Fatal(err)
		}
		shared, err := key.ECDH(peer)
		if err != nil {
			t.Fatal(err)
		}
		h := sha256.New()
		h.Write(hello)
		h.Write(reply)
		secret := extract(shared, derive(extract(psk, nil), "derived", emptyHash()))
		mine := derive(secret, "c hs traffic", h.Sum(nil))
		c.in = newDirection(derive(secret, "s hs traffic", h.Sum(nil)))
		for _, typ := range []byte{msgEncryptedExtensions, msgFinished} {
			msg, err := c.handshakeMessage(typ)
			if err != nil {
				t.Fatal(err)
			}
			h.Write(msg)
		}
		verify := finishedMAC(mine, h.Sum(nil))
		verify[5] ^= flip
		c.out = newDirection(mine)
		go func() { _, _, _ = c.record() }() // takes the alert
		if _, err := a.Write(c.seal(nil, recordHandshake, message(msgFinished, verify))); err != nil {
			t.Fatal(err)
		}
		if err := <-done; (err == nil) != (flip == 0) {
			t.Errorf("flip %d: %v", flip, err)
		}
		a.Close()
	}
}
