package server

import (
	"sync"

	"vdbridge/smb/crypt"
)

// buffer is a pooled piece of memory. Its owner gives it back exactly once.
type buffer struct {
	b     []byte
	class int
}

// Room for what stands around a payload: transform header, SMB2 header, body, alignment, authentication tag.
const overhead = 512

// bufferClasses are the sizes in which buffers come: small requests, 4 KiB, 64 KiB and 1 MiB payloads, and the largest.
var bufferClasses = [...]int{1024, 4096 + overhead, 16<<10 + overhead, 64<<10 + overhead, 256<<10 + overhead, 1<<20 + overhead, 4<<20 + overhead, 8<<20 + 64<<10}

var bufferPools [len(bufferClasses)]sync.Pool

// getBuffer returns a buffer with len(b) == n and what capacity its class has: at least crypt.SealSlack more.
func getBuffer(n int) *buffer {
	for i, size := range bufferClasses {
		if n+crypt.SealSlack > size {
			continue
		}
		if v := bufferPools[i].Get(); v != nil {
			buf := v.(*buffer)
			buf.b = buf.b[:n]
			return buf
		}
		return &buffer{b: make([]byte, n, size), class: i}
	}
	return &buffer{b: make([]byte, n, n+crypt.SealSlack), class: -1}
}

// bufferCost returns the capacity that getBuffer(n) has.
func bufferCost(n int) int64 {
	for _, size := range bufferClasses {
		if n+crypt.SealSlack <= size {
			return int64(size)
		}
	}
	return int64(n + crypt.SealSlack)
}

func (buf *buffer) free() {
	if buf != nil && buf.class >= 0 {
		bufferPools[buf.class].Put(buf)
	}
}
