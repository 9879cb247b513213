package crypt

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"sync"
)

const blockSize = 16

// aesKey is AES under one key, with what CMAC and CCM need of it beyond the standard library. It may be used by many goroutines at the same time.
//
// Where the processor allows it, CBC-MAC and the counter mode of CCM are done in one loop of our own (aes_amd64.s). Elsewhere, CBC-MACs come from
// the standard library's CBC mode, whose output goes to a scratch buffer, and the counter mode is borrowed from GCM.
type aesKey struct {
	cipher.Block
	fused  bool
	rounds int
	xk     [15 * blockSize]byte // round keys, if fused
	gcm    cipher.AEAD          // for the counter mode, if not fused
	pool   sync.Pool            // of *slowState, if not fused
}

// newAESKey takes keys of 16 or 32 bytes.
func newAESKey(key []byte, fused bool) (*aesKey, error) {
	b, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	k := &aesKey{Block: b, fused: fused && len(key) != 24, rounds: 6 + len(key)/4}
	if k.fused {
		expandKey(k.rounds, &key[0], &k.xk[0])
		return k, nil
	}
	k.gcm, err = cipher.NewGCM(b)
	return k, err
}

// slowState is what the standard library needs to have on the heap.
type slowState struct {
	mode    cipher.BlockMode
	zero    [blockSize]byte
	in      [blockSize]byte
	out     [2048]byte
	counter [blockSize]byte
	stream  [blockSize]byte
	saved   [blockSize]byte
}

// slow returns a state with the CBC chain at zero, or nil if none is needed.
func (k *aesKey) slow() *slowState {
	if k.fused {
		return nil
	}
	s, _ := k.pool.Get().(*slowState)
	if s == nil {
		s = new(slowState)
	} else if r, ok := s.mode.(interface{ SetIV([]byte) }); ok {
		r.SetIV(s.zero[:])
		return s
	}
	s.mode = cipher.NewCBCEncrypter(k.Block, s.zero[:])
	return s
}

// chain is a CBC-MAC in the making.
type chain struct {
	k    *aesKey
	slow *slowState
	tail [blockSize]byte // bytes that do not fill a block yet, or, for CMAC, that may be the last block
	n    int             // bytes in tail
	mac  [blockSize]byte // of all blocks so far
}

func (k *aesKey) chain() chain { return chain{k: k, slow: k.slow()} }

// end gives back what the chain has borrowed.
func (c *chain) end() {
	if c.slow != nil {
		c.k.pool.Put(c.slow)
	}
}

// blocks chains whole blocks.
func (c *chain) blocks(p []byte) {
	if len(p) == 0 {
		return
	}
	if c.slow == nil {
		cbcMACBlocks(c.k.rounds, &c.k.xk[0], &c.mac[0], &p[0], len(p)/blockSize)
		return
	}
	for len(p) > 0 {
		n := min(len(p), len(c.slow.out))
		c.slow.mode.CryptBlocks(c.slow.out[:n], p[:n])
		c.mac = [blockSize]byte(c.slow.out[n-blockSize : n])
		p = p[n:]
	}
}

// flush chains the tail as it is.
func (c *chain) flush() {
	c.n = 0
	if c.slow == nil {
		cbcMACBlocks(c.k.rounds, &c.k.xk[0], &c.mac[0], &c.tail[0], 1)
		return
	}
	c.slow.in = c.tail
	c.slow.mode.CryptBlocks(c.slow.out[:blockSize], c.slow.in[:])
	c.mac = [blockSize]byte(c.slow.out[:blockSize])
}

// write chains p, but always keeps back the last block, whole or not.
func (c *chain) write(p []byte) {
	if c.n+len(p) <= blockSize {
		c.n += copy(c.tail[c.n:], p)
		return
	}
	if c.n > 0 {
		n := copy(c.tail[c.n:], p)
		p = p[n:]
		c.flush()
	}
	whole := (len(p) - 1) &^ (blockSize - 1)
	c.blocks(p[:whole])
	c.n = copy(c.tail[:], p[whole:])
}

// pad fills up the last block with zeros and chains it.
func (c *chain) pad() {
	if c.n > 0 {
		clear(c.tail[c.n:])
		c.flush()
	}
}

// ccm chains the plaintext of p, and encrypts or decrypts p in place with counter blocks from counter 1 on, which is 12 fixed bytes and 32 bits that
// count.
func (c *chain) ccm(counter *[blockSize]byte, p []byte, open bool) {
	whole := len(p) &^ (blockSize - 1)
	next := uint32(whole/blockSize) + 1
	if c.slow == nil {
		if whole > 0 {
			binary.BigEndian.PutUint32(counter[12:], 1)
			var mask uint32
			if open {
				mask = ^mask
			}
			ccmBlocks(c.k.rounds, &c.k.xk[0], &c.mac[0], &counter[0], &p[0], whole/blockSize, mask)
		}
	} else if open {
		c.slowCounter(counter, p[:whole])
		c.blocks(p[:whole])
	} else {
		c.blocks(p[:whole])
		c.slowCounter(counter, p[:whole])
	}
	if p = p[whole:]; len(p) == 0 {
		return
	}
	stream := c.k.encrypt(c.slow, counter, next)
	if open {
		subtle.XORBytes(p, p, stream[:])
	}
	c.n = copy(c.tail[:], p)
	c.pad()
	if !open {
		subtle.XORBytes(p, p, stream[:])
	}
}

// encrypt returns counter block i, encrypted.
func (k *aesKey) encrypt(slow *slowState, counter *[blockSize]byte, i uint32) (out [blockSize]byte) {
	binary.BigEndian.PutUint32(counter[12:], i)
	if slow == nil {
		// A CBC-MAC of one block from zero.
		cbcMACBlocks(k.rounds, &k.xk[0], &out[0], &counter[0], 1)
		return out
	}
	slow.counter = *counter
	k.Encrypt(slow.stream[:], slow.counter[:])
	return slow.stream
}

// slowCounter encrypts or decrypts whole blocks. GCM's counter mode is fast, keeps no state, and needs no allocation, but begins with counter 2, and
// writes a tag behind what it encrypts. So the first block is done apart, and the last one too.
func (c *chain) slowCounter(counter *[blockSize]byte, p []byte) {
	s := c.slow
	i := uint32(1)
	block := func() {
		subtle.XORBytes(p, p[:blockSize], c.xor(counter, i))
		p = p[blockSize:]
		i++
	}
	if len(p) == 0 {
		return
	}
	block()
	if n := len(p) - blockSize; n > 4*blockSize {
		copy(s.saved[:], p[n:])
		s.counter = *counter
		c.k.gcm.Seal(p[:0], s.counter[:12], p[:n], nil)
		copy(p[n:], s.saved[:])
		p = p[n:]
		i += uint32(n / blockSize)
	}
	for len(p) > 0 {
		block()
	}
}

func (c *chain) xor(counter *[blockSize]byte, i uint32) []byte {
	c.k.encrypt(c.slow, counter, i)
	return c.slow.stream[:]
}
