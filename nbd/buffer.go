package nbd

import (
	"math/bits"
	"sync"
)

// buffer is a pooled block of memory whose size is a power of two; blocks of a page or more are aligned to a page, as the Go allocator aligns
// its size classes, so a disk may use them for direct I/O.
type buffer struct {
	b     []byte
	class int
}

const (
	minBufferBits = 12
	maxBufferBits = 25
)

var bufferPools [maxBufferBits - minBufferBits + 1]sync.Pool

// getBuffer returns a buffer of at least n bytes, n ≤ maxPayloadAdvertised, with old contents.
func getBuffer(n int) *buffer {
	class := 0
	if n > 1<<minBufferBits {
		class = bits.Len(uint(n-1)) - minBufferBits
	}
	if v := bufferPools[class].Get(); v != nil {
		return v.(*buffer)
	}
	return &buffer{b: make([]byte, 1<<(class+minBufferBits)), class: class}
}

func (b *buffer) release() { bufferPools[b.class].Put(b) }

// bufferBytes is what getBuffer(n) costs in memory.
func bufferBytes(n int) int64 {
	if n <= 1<<minBufferBits {
		return 1 << minBufferBits
	}
	return 1 << bits.Len(uint(n-1))
}
