package crypt

import (
	"crypto/cipher"
	"encoding/binary"
	"sync"
)

const blockSize = 16

// cbcMAC computes CBC-MACs under one key, many at the same time. It lets the standard library's CBC mode write its output to a scratch
// buffer, which is half as much work per block as calling the block cipher, as the chaining stays inside.
type cbcMAC struct {
	block cipher.Block
	pool  sync.Pool // of *cbcState
}

type cbcState struct {
	mode cipher.BlockMode
	tail [blockSize]byte // bytes that do not fill a block yet, or, for CMAC, that may be the last block
	n    int             // bytes in tail
	mac  [blockSize]byte
	zero [blockSize]byte
	out  [2048]byte
}

// get returns a state with the chain at zero.
func (m *cbcMAC) get() *cbcState {
	s, _ := m.pool.Get().(*cbcState)
	if s == nil {
		s = new(cbcState)
	} else if r, ok := s.mode.(interface{ SetIV([]byte) }); ok {
		r.SetIV(s.zero[:])
		s.n = 0
		return s
	}
	s.mode = cipher.NewCBCEncrypter(m.block, s.zero[:])
	s.n = 0
	return s
}

func (m *cbcMAC) put(s *cbcState) { m.pool.Put(s) }

// blocks chains whole blocks; mac is then the last one.
func (s *cbcState) blocks(p []byte) {
	for len(p) > 0 {
		n := min(len(p), len(s.out))
		s.mode.CryptBlocks(s.out[:n], p[:n])
		s.mac = [blockSize]byte(s.out[n-blockSize : n])
		p = p[n:]
	}
}

// write chains p, but always keeps back the last block, whole or not.
func (s *cbcState) write(p []byte) {
	if s.n+len(p) <= blockSize {
		s.n += copy(s.tail[s.n:], p)
		return
	}
	if s.n > 0 {
		n := copy(s.tail[s.n:], p)
		p = p[n:]
		s.blocks(s.tail[:])
	}
	whole := (len(p) - 1) &^ (blockSize - 1)
	s.blocks(p[:whole])
	s.n = copy(s.tail[:], p[whole:])
}

// pad fills up the last block with zeros and chains it.
func (s *cbcState) pad() {
	if s.n > 0 {
		clear(s.tail[s.n:])
		s.blocks(s.tail[:])
		s.n = 0
	}
}

// cmac is AES-CMAC under one key. RFC 4493
type cmac struct {
	cbcMAC
	k1, k2 [blockSize]byte
}

func newCMAC(b cipher.Block) *cmac {
	m := &cmac{cbcMAC: cbcMAC{block: b}}
	b.Encrypt(m.k1[:], m.k1[:])
	double(&m.k1)
	m.k2 = m.k1
	double(&m.k2)
	return m
}

// double multiplies by x in GF(2^128), in constant time.
func double(k *[blockSize]byte) {
	hi, lo := binary.BigEndian.Uint64(k[:]), binary.BigEndian.Uint64(k[8:])
	carry := -(hi >> 63) & 0x87
	binary.BigEndian.PutUint64(k[:], hi<<1|lo>>63)
	binary.BigEndian.PutUint64(k[8:], lo<<1^carry)
}

// sum computes the MAC of the concatenated segments.
func (m *cmac) sum(mac *[blockSize]byte, segments ...[]byte) {
	s := m.get()
	for _, p := range segments {
		s.write(p)
	}
	k := &m.k1
	if s.n < blockSize {
		k = &m.k2
		s.tail[s.n] = 0x80
		clear(s.tail[s.n+1:])
	}
	for i := range s.tail {
		s.tail[i] ^= k[i]
	}
	s.blocks(s.tail[:])
	*mac = s.mac
	m.put(s)
}
