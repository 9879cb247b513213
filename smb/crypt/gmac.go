package crypt

import (
	"crypto/cipher"
	"encoding/binary"
	"math/bits"
	"sync"
	"sync/atomic"
)

// gmac is AES-GMAC under one key: GCM with everything as additional data and no plaintext. RFC 4543, SP 800-38D
type gmac struct {
	block  cipher.Block
	aead   cipher.AEAD
	h      element
	powers [16]atomic.Pointer[power] // of h, lately used
	pool   sync.Pool                 // of *gmacState
}

type gmacState struct {
	nonce [blockSize]byte // 12 bytes, and room for a counter
	tag   [blockSize]byte
	mask  [blockSize]byte
	join  [blockSize]byte
	copy  []byte
}

type power struct {
	n int
	v element
}

// gatherBelow is the length in bytes of a message up to which its segments are copied together, because that takes less time
// than joining their hashes.
const gatherBelow = 16 << 10

func newGMAC(b cipher.Block) (*gmac, error) {
	aead, err := cipher.NewGCM(b)
	if err != nil {
		return nil, err
	}
	var zero [blockSize]byte
	b.Encrypt(zero[:], zero[:])
	return &gmac{block: b, aead: aead, h: load(zero[:])}, nil
}

func (g *gmac) sum(mac *[blockSize]byte, nonce [12]byte, segments ...[]byte) {
	s, _ := g.pool.Get().(*gmacState)
	if s == nil {
		s = new(gmacState)
	}
	copy(s.nonce[:], nonce[:])
	n := 0
	for _, p := range segments {
		n += len(p)
	}
	switch {
	case len(segments) == 1:
		g.aead.Seal(s.tag[:0], s.nonce[:12], nil, segments[0])
	case n <= gatherBelow:
		s.copy = s.copy[:0]
		for _, p := range segments {
			s.copy = append(s.copy, p...)
		}
		g.aead.Seal(s.tag[:0], s.nonce[:12], nil, s.copy)
	default:
		g.join(s, segments, n)
	}
	*mac = s.tag
	g.pool.Put(s)
}

// join computes the tag of segments that do not lie together, and without bringing them together.
//
// The tag of blocks X1..Xm as additional data is E + (X1·H^m + … + Xm·H + L)·H, with E the encrypted first counter and L the
// block with the length. So the tags of two pieces, as GCM gives them, can be joined: what the first one contributes
// is multiplied by H as many times as there are blocks after it, and the length blocks are put right.
func (g *gmac) join(s *gmacState, segments [][]byte, total int) {
	binary.BigEndian.PutUint32(s.nonce[12:], 1)
	g.block.Encrypt(s.mask[:], s.nonce[:])
	mask := load(s.mask[:])

	after := (total + blockSize - 1) / blockSize // blocks after what has been added
	var sum, lengths element
	add := func(p []byte) {
		if len(p) == 0 {
			return
		}
		g.aead.Seal(s.tag[:0], s.nonce[:12], nil, p)
		after -= (len(p) + blockSize - 1) / blockSize
		t, l := load(s.tag[:]).plus(mask), lengthBlock(len(p))
		if after > 0 {
			h := g.power(after)
			t, l = t.times(h), l.times(h)
		}
		sum, lengths = sum.plus(t), lengths.plus(l)
	}
	n := 0 // bytes in s.join, of a block that spans segments
	for i, p := range segments {
		if n > 0 {
			m := copy(s.join[n:], p)
			n, p = n+m, p[m:]
			if n < blockSize && i < len(segments)-1 {
				continue
			}
			add(s.join[:n])
			n = 0
		}
		if i == len(segments)-1 {
			add(p)
			break
		}
		whole := len(p) &^ (blockSize - 1)
		add(p[:whole])
		n = copy(s.join[:], p[whole:])
	}
	lengths = lengths.plus(lengthBlock(total))
	sum.plus(mask).plus(lengths.times(g.h)).store(s.tag[:])
}

// power returns h to the n-th. Block counts come from a handful of I/O sizes, so the last ones are kept.
func (g *gmac) power(n int) element {
	slot := &g.powers[uint(n)*0x9E3779B1>>8%uint(len(g.powers))]
	if p := slot.Load(); p != nil && p.n == n {
		return p.v
	}
	v := g.h
	for i := bits.Len(uint(n)) - 2; i >= 0; i-- {
		v = v.times(v)
		if n>>i&1 != 0 {
			v = v.times(g.h)
		}
	}
	slot.Store(&power{n, v})
	return v
}

// lengthBlock is the last block of GHASH for n bytes of additional data.
func lengthBlock(n int) element { return element{hi: uint64(n) * 8} }

// element is an element of GF(2^128) as GCM has it: hi and lo are the two halves of the block as big-endian numbers, and the most
// significant bit of hi is the coefficient of x^0.
type element struct{ hi, lo uint64 }

func load(b []byte) element {
	return element{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}
}

func (a element) store(b []byte) {
	binary.BigEndian.PutUint64(b, a.hi)
	binary.BigEndian.PutUint64(b[8:], a.lo)
}

func (a element) plus(b element) element { return element{a.hi ^ b.hi, a.lo ^ b.lo} }

// times multiplies in constant time. Reversing the bits of a half gives a polynomial in its usual order, with the lowest coefficient in
// the least significant bit.
func (a element) times(b element) element {
	a0, a1 := bits.Reverse64(a.hi), bits.Reverse64(a.lo)
	b0, b1 := bits.Reverse64(b.hi), bits.Reverse64(b.lo)
	// The product is r0 + r1·x^64 + r2·x^128 + r3·x^192, after Karatsuba.
	l1, l0 := clmul(a0, b0)
	h1, h0 := clmul(a1, b1)
	m1, m0 := clmul(a0^a1, b0^b1)
	m0, m1 = m0^l0^h0, m1^l1^h1
	r0, r1, r2, r3 := l0, l1^m0, h0^m1, h1
	// x^128 = x^7 + x^2 + x + 1.
	r1 ^= r3 ^ r3<<1 ^ r3<<2 ^ r3<<7
	r2 ^= r3>>63 ^ r3>>62 ^ r3>>57
	r0 ^= r2 ^ r2<<1 ^ r2<<2 ^ r2<<7
	r1 ^= r2>>63 ^ r2>>62 ^ r2>>57
	return element{bits.Reverse64(r0), bits.Reverse64(r1)}
}

// clmul multiplies without carries, in constant time, by three multiplications of halves, after Karatsuba.
func clmul(a, b uint64) (hi, lo uint64) {
	l := clmul32(uint32(a), uint32(b))
	h := clmul32(uint32(a>>32), uint32(b>>32))
	m := clmul32(uint32(a)^uint32(a>>32), uint32(b)^uint32(b>>32)) ^ l ^ h
	return h ^ m>>32, l ^ m<<32
}

// clmul32 makes it of ordinary products. Each takes only every fourth bit of the operands, so that a sum, of at most 8 ones, stays
// within the four bits of its place, and the lowest of these is what is wanted.
func clmul32(a, b uint32) uint64 {
	const mask = 0x1111111111111111
	a0, a1, a2, a3 := uint64(a)&mask, uint64(a)&(mask<<1), uint64(a)&(mask<<2), uint64(a)&(mask<<3&0xFFFFFFFF)
	b0, b1, b2, b3 := uint64(b)&mask, uint64(b)&(mask<<1), uint64(b)&(mask<<2), uint64(b)&(mask<<3&0xFFFFFFFF)
	return (a0*b0^a1*b3^a2*b2^a3*b1)&mask |
		(a0*b1^a1*b0^a2*b3^a3*b2)&(mask<<1) |
		(a0*b2^a1*b1^a2*b0^a3*b3)&(mask<<2) |
		(a0*b3^a1*b2^a2*b1^a3*b0)&(mask<<3&0xFFFFFFFFFFFFFFFF)
}
