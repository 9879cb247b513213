package tlspsk

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
)

const hashSize = sha256.Size

// expandLabel is HKDF-Expand-Label. [RFC 8446] 7.1
func expandLabel(secret []byte, label string, context []byte, n int) []byte {
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	info = append(info, byte(len("tls13 ")+len(label)))
	info = append(append(info, "tls13 "...), label...)
	info = append(append(info, byte(len(context))), context...)
	out, err := hkdf.Expand(sha256.New, secret, string(info), n)
	if err != nil {
		panic(err) // only for lengths that do not occur here
	}
	return out
}

// extract is HKDF-Extract.
func extract(secret, salt []byte) []byte {
	out, err := hkdf.Extract(sha256.New, secret, salt)
	if err != nil {
		panic(err) // never with SHA-256
	}
	return out
}

// derive is Derive-Secret with the hash of the messages so far.
func derive(secret []byte, label string, transcript []byte) []byte {
	return expandLabel(secret, label, transcript, hashSize)
}

func emptyHash() []byte {
	h := sha256.Sum256(nil)
	return h[:]
}

// finishedMAC is the verify_data of Finished, and a PSK binder. [RFC 8446] 4.4.4
func finishedMAC(base, transcript []byte) []byte {
	m := hmac.New(sha256.New, expandLabel(base, "finished", nil, hashSize))
	m.Write(transcript)
	return m.Sum(nil)
}

// binderOf is what proves that the client knows psk. truncated is the hash of the ClientHello without its binders. [RFC 8446] 4.2.11.2
func binderOf(psk, truncated []byte) []byte {
	return finishedMAC(derive(extract(psk, nil), "ext binder", emptyHash()), truncated)
}

// direction protects the records of one direction. [RFC 8446] 5.2, 5.3
type direction struct {
	secret []byte
	aead   cipher.AEAD
	iv     [12]byte
	buf    [12]byte
	seq    uint64
}

func newDirection(secret []byte) *direction {
	d := &direction{}
	d.use(secret)
	return d
}

// use begins a new key.
func (d *direction) use(secret []byte) {
	block, err := aes.NewCipher(expandLabel(secret, "key", nil, 16))
	if err != nil {
		panic(err) // never with 16 bytes
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	d.secret, d.aead, d.seq = secret, aead, 0
	copy(d.iv[:], expandLabel(secret, "iv", nil, len(d.iv)))
}

// update goes on to the next key. [RFC 8446] 7.2
func (d *direction) update() { d.use(expandLabel(d.secret, "traffic upd", nil, hashSize)) }

// nonce is that of the next record; it is valid until the next call.
func (d *direction) nonce() []byte {
	d.buf = d.iv
	for i := range 8 {
		d.buf[11-i] ^= byte(d.seq >> (8 * i))
	}
	d.seq++
	return d.buf[:]
}

// open decrypts the body of a record in place. [RFC 8446] 5.2
func (d *direction) open(head, body []byte) ([]byte, error) {
	p, err := d.aead.Open(body[:0], d.nonce(), body, head)
	if err != nil {
		return nil, fatal(alertBadRecordMAC, "a record was changed on its way")
	}
	return p, nil
}

// seal appends the encrypted body of a record.
func (d *direction) seal(b, head []byte, typ byte, p []byte) []byte {
	at := len(b)
	b = append(append(b, p...), typ)
	// head may lie in the memory that append has just left; its bytes are the same.
	return d.aead.Seal(b[:at], d.nonce(), b[at:], head)
}
