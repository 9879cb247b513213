package client

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"vdbridge/smb/wire"
)

// TestCancelStuckWrite cancels a write that the network does not take, because the server reads nothing any more.
func TestCancelStuckWrite(t *testing.T) {
	for _, size := range []int{4096, 64 << 10} {
		p := newPeer(t)
		stuck := make(chan struct{})
		p.handle = func(p *peer, q *query) bool {
			if q.Command == wire.CmdFlush {
				<-stuck
			}
			return false
		}
		f := p.open(Config{Unsigned: true})
		t.Cleanup(func() { close(stuck) })
		go func() { _ = f.Flush(bg) }()
		// Fill the socket's buffers, as far as the credits go.
		ctx, cancel := context.WithCancel(bg)
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				for {
					if _, err := f.WriteAt(ctx, p.file[:size], 0); err != nil {
						if !errors.Is(err, context.Canceled) {
							t.Error(err)
						}
						return
					}
				}
			})
		}
		go func() {
			time.Sleep(10 * time.Millisecond) // there is no event for "nothing moves"; any moment is right
			cancel()
		}()
		wg.Wait()
		if f.t.sess.c.Err() != nil {
			t.Errorf("the connection was given up: %v", f.t.sess.c.Err())
		}
	}
}

// TestLargeIsNotStarved has a large request wait among small ones that never stop.
func TestLargeIsNotStarved(t *testing.T) {
	p := newPeer(t)
	f := p.open(Config{Credits: 20})
	ctx, cancel := context.WithCancel(bg)
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			buf := make([]byte, 512)
			for ctx.Err() == nil {
				if _, err := f.ReadAt(bg, buf, 0); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 20 {
		if _, err := f.Ioctl(bg, 1, p.file[:200<<10], nil, make([]byte, 200<<10), nil); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	wg.Wait()
}
