package crypt

import "encoding/binary"

// cmac is AES-CMAC under one key. RFC 4493
type cmac struct {
	key    *aesKey
	k1, k2 [blockSize]byte
}

func newCMAC(key *aesKey) *cmac {
	m := &cmac{key: key}
	key.Encrypt(m.k1[:], m.k1[:])
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
	c := m.key.chain()
	for _, p := range segments {
		c.write(p)
	}
	k := &m.k1
	if c.n < blockSize {
		k = &m.k2
		c.tail[c.n] = 0x80
		clear(c.tail[c.n+1:])
	}
	for i := range c.tail {
		c.tail[i] ^= k[i]
	}
	c.flush()
	*mac = c.mac
	c.end()
}
