package faultnet

import (
	"math/rand/v2"
	"sync"
	"time"
)

// Part is a part of an SMB message.
type Part int

// The parts. Of a sealed message Header, Signature and Payload are those of its transform header and ciphertext. [MS-SMB2] 2.2.1, 2.2.41
const (
	Intact Part = iota
	Length      // the length in front of it
	Header
	Signature
	Payload
	Protocol // the four bytes that say what kind of message it is
)

func (p Part) String() string {
	return [...]string{"intact", "length", "header", "signature", "payload", "protocol"}[p]
}

// garble changes one byte of the part. msg begins with the length.
func garble(msg []byte, p Part, at int) {
	const (
		front     = 4
		header    = 64
		transform = 52
	)
	sealed := len(msg) > front && msg[front] == 0xFD
	first, n := 0, 0
	switch p {
	case Length:
		first, n = 1, 3
	case Protocol:
		first, n = front, 4
	case Header:
		first, n = front+4, header-16-4
		if sealed { // the nonce and what follows it
			first, n = front+20, transform-20
		}
	case Signature:
		first, n = front+header-16, 16
		if sealed {
			first = front + 4
		}
	case Payload:
		first = front + header
		if sealed {
			first = front + transform
		}
		n = len(msg) - first
	}
	if n = min(n, len(msg)-first); n <= 0 {
		return
	}
	msg[first+at%n] ^= 1 << (at / n & 7)
}

// Rates are how many of 10,000 messages meet each fault.
type Rates struct {
	From    int // messages of a connection before the first fault
	Delay   int // up to 5 ms
	Reorder int
	Repeat  int
	Corrupt int
	Drip    int
	Drop    int
}

// Chaos returns a script that decides by chance: for each connection and direction the same seed decides the same.
func Chaos(seed uint64, r Rates, count func(what string)) Script {
	if count == nil {
		count = func(string) {}
	}
	type lane struct {
		link int
		way  Way
	}
	var mu sync.Mutex
	rngs := make(map[lane]*rand.Rand)
	return func(link, n int, way Way, _ []byte) (f Fate) {
		mu.Lock()
		k := lane{link, way}
		rng := rngs[k]
		if rng == nil {
			rng = rand.New(rand.NewPCG(seed, uint64(link)<<1|uint64(way)))
			rngs[k] = rng
		}
		mu.Unlock()
		// Each message takes the same number of random numbers, whatever happens to it.
		at, kind, long := rng.IntN(10_000), rng.IntN(1<<20), time.Duration(rng.IntN(5000))*time.Microsecond
		if n < r.From {
			return f
		}
		hit := func(rate int) bool {
			at -= rate
			return at < 0
		}
		switch {
		case hit(r.Delay):
			f.Delay = long
			count("frame delayed")
		case hit(r.Reorder):
			f.Behind = 1 + kind%3
			count("frame reordered")
		case hit(r.Repeat):
			f.Repeat = 1
			count("frame repeated")
		case hit(r.Corrupt):
			f.Garble, f.At = Part(1+kind%5), kind/5
			count("frame corrupted")
		case hit(r.Drip):
			f.Drip = 1 + kind%64
			count("frame dripped")
		case hit(r.Drop):
			f.Drop = true
			count("frame dropped")
		}
		return f
	}
}
