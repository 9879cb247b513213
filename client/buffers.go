package client

import (
	"sync"
	"sync/atomic"

	"vdbridge/smb/crypt"
)

// frame is a received message (or several, compounded), or a message being built, in pooled memory. It counts its users: each reply that is handed
// out keeps the frame it lies in.
type frame struct {
	b    []byte
	pool *sync.Pool // nil: too large to keep
	refs atomic.Int32
}

// frameSizes are chosen so that a payload of 4 KiB, 64 KiB, 256 KiB, 1 MiB or 8 MiB fits with its headers.
var frameSizes = [...]int{512, 4<<10 + 512, 16<<10 + 512, 64<<10 + 4096, 256<<10 + 4096, 1<<20 + 4096, 8<<20 + 4096}

// frames hands out frames of any size.
type frames struct{ pools [len(frameSizes)]sync.Pool }

// get returns a frame with n bytes, whose content is arbitrary, and one user.
func (p *frames) get(n int) *frame {
	for i, size := range frameSizes {
		if n > size-crypt.SealSlack {
			continue
		}
		f, _ := p.pools[i].Get().(*frame)
		if f == nil {
			f = &frame{b: make([]byte, size), pool: &p.pools[i]}
		}
		f.b = f.b[:n]
		f.refs.Store(1)
		return f
	}
	f := &frame{b: make([]byte, n, n+crypt.SealSlack)}
	f.refs.Store(1)
	return f
}

func (f *frame) ref() { f.refs.Add(1) }

// unref gives up one use. The last one returns the memory.
func (f *frame) unref() {
	switch n := f.refs.Add(-1); {
	case n < 0:
		panic("client: frame released twice")
	case n == 0 && f.pool != nil:
		f.b = f.b[:cap(f.b)]
		f.pool.Put(f)
	}
}
