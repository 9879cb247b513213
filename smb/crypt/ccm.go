package crypt

import (
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
)

var errOpen = errors.New("message authentication failed")

// ccm is AES-CCM under one key. RFC 3610, SP 800-38C. It implements cipher.AEAD.
type ccm struct {
	key      *aesKey
	nonceLen int
	tagLen   int
}

// newCCM returns AES-CCM with nonces of 7 to 13 bytes and tags of 4 to 16 bytes (an even number).
func newCCM(key *aesKey, nonceLen, tagLen int) (*ccm, error) {
	if nonceLen < 7 || nonceLen > 13 || tagLen < 4 || tagLen > 16 || tagLen%2 != 0 {
		return nil, fmt.Errorf("CCM with nonces of %d and tags of %d bytes is not defined", nonceLen, tagLen)
	}
	return &ccm{key: key, nonceLen: nonceLen, tagLen: tagLen}, nil
}

func (c *ccm) NonceSize() int { return c.nonceLen }
func (c *ccm) Overhead() int  { return c.tagLen }

// fits says whether n bytes can be counted in the length field, and their blocks in 32 bits.
func (c *ccm) fits(n int) bool {
	return uint64(n) < 1<<(8*min(15-c.nonceLen, 4))
}

// crypt encrypts or decrypts p in place and returns the tag that belongs to it.
func (c *ccm) crypt(nonce, p, aad []byte, open bool) [blockSize]byte {
	m := c.key.chain()
	// The first block says how long everything is. RFC 3610 2.2
	binary.BigEndian.PutUint64(m.tail[8:], uint64(len(p)))
	m.tail[0] = byte((c.tagLen-2)/2<<3 | (14 - c.nonceLen))
	if len(aad) > 0 {
		m.tail[0] |= 0x40
	}
	copy(m.tail[1:], nonce)
	m.flush()
	if n := len(aad); n > 0 {
		if n < 0xFF00 {
			binary.BigEndian.PutUint16(m.tail[:], uint16(n))
			m.n = 2
		} else {
			binary.BigEndian.PutUint16(m.tail[:], 0xFFFE)
			binary.BigEndian.PutUint32(m.tail[2:], uint32(n))
			m.n = 6
		}
		m.write(aad)
		m.pad()
	}

	// Counter blocks are flags, nonce and counter. RFC 3610 2.3
	var counter [blockSize]byte
	counter[0] = byte(14 - c.nonceLen)
	copy(counter[1:], nonce)
	if c.nonceLen <= 11 {
		m.ccm(&counter, p, open)
	} else {
		c.shortCounter(&m, &counter, p, open)
	}

	clear(counter[1+c.nonceLen:])
	tag := m.mac
	mask := c.key.encrypt(m.slow, &counter, binary.BigEndian.Uint32(counter[12:]))
	for i := range tag {
		tag[i] ^= mask[i]
	}
	m.end()
	return tag
}

// shortCounter does the same as chain.ccm where the counter has less than 32 bits. SMB has no such nonces, so it need not be fast.
func (c *ccm) shortCounter(m *chain, counter *[blockSize]byte, p []byte, open bool) {
	one := *counter
	one[15] = 1
	stream := cipher.NewCTR(c.key.Block, one[:])
	if open {
		stream.XORKeyStream(p, p)
	}
	whole := len(p) &^ (blockSize - 1)
	m.blocks(p[:whole])
	m.n = copy(m.tail[:], p[whole:])
	m.pad()
	if !open {
		stream.XORKeyStream(p, p)
	}
}

// sealInPlace encrypts p in place; the first tagLen bytes of tag become the tag.
func (c *ccm) sealInPlace(tag, nonce, p, aad []byte) {
	t := c.crypt(nonce, p, aad, false)
	copy(tag[:c.tagLen], t[:])
}

// openInPlace decrypts p in place and checks the tag. On failure p is cleared.
func (c *ccm) openInPlace(tag, nonce, p, aad []byte) error {
	t := c.crypt(nonce, p, aad, true)
	if subtle.ConstantTimeCompare(tag, t[:c.tagLen]) != 1 {
		clear(p)
		return errOpen
	}
	return nil
}

// Seal implements cipher.AEAD. Like all implementations it panics on lengths that the caller must know to be wrong.
func (c *ccm) Seal(dst, nonce, plaintext, aad []byte) []byte {
	if len(nonce) != c.nonceLen || !c.fits(len(plaintext)) || uint64(len(aad)) > 1<<32-1 {
		panic("crypt: wrong length given to CCM")
	}
	n := len(dst)
	dst = append(dst, plaintext...)
	dst = append(dst, make([]byte, c.tagLen)...)
	p := dst[n : n+len(plaintext)]
	c.sealInPlace(dst[n+len(plaintext):], nonce, p, aad)
	return dst
}

// Open implements cipher.AEAD.
func (c *ccm) Open(dst, nonce, ciphertext, aad []byte) ([]byte, error) {
	if len(nonce) != c.nonceLen {
		panic("crypt: wrong nonce length given to CCM")
	}
	m := len(ciphertext) - c.tagLen
	if m < 0 || !c.fits(m) || uint64(len(aad)) > 1<<32-1 {
		return nil, errOpen
	}
	var tag [blockSize]byte
	copy(tag[:], ciphertext[m:])
	n := len(dst)
	dst = append(dst, ciphertext[:m]...)
	if err := c.openInPlace(tag[:c.tagLen], nonce, dst[n:], aad); err != nil {
		return nil, err
	}
	return dst, nil
}
