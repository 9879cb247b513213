package crypt

import (
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
)

var errOpen = errors.New("message authentication failed")

// ccm is AES-CCM. RFC 3610, SP 800-38C. It implements cipher.AEAD.
//
// For the counter mode it borrows that of GCM, which is fast, keeps no state, and needs no allocation: with a nonce of at most 11
// bytes, the counter blocks of CCM are those of a GCM whose nonce is the flags byte and the nonce of CCM, filled up with zeros.
// GCM encrypts from counter 2 on, CCM from counter 1 on, so the first block is done apart.
type ccm struct {
	mac      cbcMAC
	gcm      cipher.AEAD
	nonceLen int
	tagLen   int
	pool     sync.Pool // of *ccmState
}

type ccmState struct {
	counter [blockSize]byte // A_i of RFC 3610 2.3
	stream  [blockSize]byte
	b0      [blockSize]byte
	saved   [blockSize]byte
	tag     [blockSize]byte
}

// gcmTag is how much GCM writes beyond the data.
const gcmTag = 16

// newCCM returns AES-CCM with nonces of 7 to 13 bytes and tags of 4 to 16 bytes (an even number).
func newCCM(b cipher.Block, nonceLen, tagLen int) (*ccm, error) {
	if nonceLen < 7 || nonceLen > 13 || tagLen < 4 || tagLen > 16 || tagLen%2 != 0 {
		return nil, fmt.Errorf("CCM with nonces of %d and tags of %d bytes is not defined", nonceLen, tagLen)
	}
	g, err := cipher.NewGCM(b)
	if err != nil {
		return nil, err
	}
	return &ccm{mac: cbcMAC{block: b}, gcm: g, nonceLen: nonceLen, tagLen: tagLen}, nil
}

func (c *ccm) NonceSize() int { return c.nonceLen }
func (c *ccm) Overhead() int  { return c.tagLen }

// fits says whether n bytes can be counted in the length field, and within what GCM encrypts with one nonce.
func (c *ccm) fits(n int) bool {
	return uint64(n) < 1<<(8*min(15-c.nonceLen, 4))
}

func (c *ccm) state() *ccmState {
	if s, ok := c.pool.Get().(*ccmState); ok {
		return s
	}
	return new(ccmState)
}

// sum computes the CBC-MAC of additional data and plaintext to s.tag. RFC 3610 2.2
func (c *ccm) sum(s *ccmState, nonce, plaintext, aad []byte) {
	m := c.mac.get()
	s.b0 = [blockSize]byte{byte((c.tagLen-2)/2<<3 | (14 - c.nonceLen))}
	if len(aad) > 0 {
		s.b0[0] |= 0x40
	}
	binary.BigEndian.PutUint64(s.b0[8:], uint64(len(plaintext)))
	copy(s.b0[1:], nonce)
	m.blocks(s.b0[:])
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
	whole := len(plaintext) &^ (blockSize - 1)
	m.blocks(plaintext[:whole])
	m.n = copy(m.tail[:], plaintext[whole:])
	m.pad()
	s.tag = m.mac
	c.mac.put(m)
}

// start sets the counter block for nonce, with counter 0.
func (c *ccm) start(s *ccmState, nonce []byte) {
	s.counter = [blockSize]byte{byte(14 - c.nonceLen)}
	copy(s.counter[1:], nonce)
}

// crypt encrypts or decrypts p in place, from counter 1 on.
func (c *ccm) crypt(s *ccmState, p []byte) {
	if c.nonceLen > 11 {
		binary.BigEndian.PutUint16(s.counter[14:], 1)
		cipher.NewCTR(c.mac.block, s.counter[:]).XORKeyStream(p, p)
		return
	}
	i := uint32(1)
	p = c.block(s, p, i)
	if len(p) > 4*blockSize {
		// GCM overwrites the 16 bytes behind what it is given, which must therefore not be the end.
		n := (len(p) - gcmTag) &^ (blockSize - 1)
		copy(s.saved[:], p[n:])
		c.gcm.Seal(p[:0], s.counter[:12], p[:n], nil)
		copy(p[n:], s.saved[:])
		p = p[n:]
		i += uint32(n / blockSize)
	}
	for len(p) > 0 {
		i++
		p = c.block(s, p, i)
	}
}

// block encrypts or decrypts at most one block at the beginning of p with counter i, and returns the rest of p.
func (c *ccm) block(s *ccmState, p []byte, i uint32) []byte {
	binary.BigEndian.PutUint32(s.counter[12:], i)
	c.mac.block.Encrypt(s.stream[:], s.counter[:])
	return p[subtle.XORBytes(p, p, s.stream[:]):]
}

// maskTag encrypts s.tag with counter 0.
func (c *ccm) maskTag(s *ccmState) {
	clear(s.counter[1+c.nonceLen:])
	c.mac.block.Encrypt(s.stream[:], s.counter[:])
	subtle.XORBytes(s.tag[:], s.tag[:], s.stream[:])
}

// sealInPlace encrypts p in place; the first tagLen bytes of tag become the tag.
func (c *ccm) sealInPlace(tag, nonce, p, aad []byte) {
	s := c.state()
	c.sum(s, nonce, p, aad)
	c.start(s, nonce)
	c.crypt(s, p)
	c.maskTag(s)
	copy(tag[:c.tagLen], s.tag[:])
	c.pool.Put(s)
}

// openInPlace decrypts p in place and checks the tag. On failure p is cleared.
func (c *ccm) openInPlace(tag, nonce, p, aad []byte) error {
	s := c.state()
	defer c.pool.Put(s)
	c.start(s, nonce)
	c.crypt(s, p)
	c.sum(s, nonce, p, aad)
	c.maskTag(s)
	if subtle.ConstantTimeCompare(tag, s.tag[:c.tagLen]) != 1 {
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
