package client

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
)

// TestJoin has many goroutines read, write and control in small pieces at the same time, some of them cancelled at random moments. Compounds
// must have been sent, every piece be right, and nothing be left behind.
func TestJoin(t *testing.T) {
	for name, set := range protections {
		t.Run(name, func(t *testing.T) {
			p := newPeer(t)
			cfg := Config{}
			set(p, &cfg)
			f := p.open(cfg)
			var cancelled atomic.Int64
			var wg sync.WaitGroup
			for w := range 32 {
				wg.Go(func() {
					buf, out := make([]byte, 4096), make([]byte, 100)
					for i := range 60 {
						off := w*5000 + i*3
						n := 1 + (w*131+i*977)%len(buf)
						ctx, cancel := context.WithCancel(bg)
						if (w+i)%7 == 0 {
							go cancel()
						}
						var err error
						switch i % 3 {
						case 0:
							clear(buf)
							if _, err = f.ReadAt(ctx, buf[:n], int64(off)); err == nil && !bytes.Equal(buf[:n], p.file[off:off+n]) {
								t.Errorf("read %d at %d is garbled", n, off)
							}
						case 1:
							_, err = f.WriteAt(ctx, p.file[off:off+n], int64(off))
						case 2:
							in := p.file[off : off+100]
							if _, err = f.Ioctl(ctx, 1, in[:30], in[30:], out[:50], out[50:]); err == nil {
								for k := range in {
									if out[99-k] != in[k] {
										t.Errorf("ioctl output %d is garbled", k)
										break
									}
								}
							}
						}
						cancel()
						if errors.Is(err, context.Canceled) {
							cancelled.Add(1)
						} else if err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			if f.t.sess.c.Err() != nil {
				t.Fatal(f.t.sess.c.Err())
			}
			// Replies to what was cancelled have come before that of a request that was sent later, as the peer answers in order.
			if err := f.t.sess.c.Echo(bg); err != nil {
				t.Fatal(err)
			}
			f.t.sess.c.checkIdle(t)
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.joined == 0 {
				t.Error("nothing was joined")
			}
			t.Logf("%d joined, %d cancelled", p.joined, cancelled.Load())
		})
	}
}

// TestJoinOff sends everything alone.
func TestJoinOff(t *testing.T) {
	p := newPeer(t)
	f := p.open(Config{MaxCompound: 1})
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for range 20 {
				if _, err := f.ReadAt(bg, make([]byte, 100), 0); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.joined != 0 {
		t.Errorf("%d were joined", p.joined)
	}
}
