package nbd

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"vdbridge/test/ramdisk"
)

// TestRandomHistory runs random requests, many in flight, against a model. Requests in flight together never touch the same part of the disk,
// so the outcome is certain.
func TestRandomHistory(t *testing.T) {
	variants(t, func(t *testing.T, d *ramdisk.Disk, style replyStyle) {
		ts := startServer(t, oneDisk(d))
		var wg sync.WaitGroup
		for k := range 3 {
			r := enter(t, ts, style)
			wg.Go(func() { randomHistory(t, r, uint64(k), 1500) })
		}
		wg.Wait()
	})
	t.Run("now fast, now slow", func(t *testing.T) {
		d := ramdisk.New(64<<20, 512)
		var n atomic.Int64
		d.SetHook(func(ctx context.Context, op ramdisk.Op, off, k int64) error {
			if n.Add(1)%100 == 0 {
				return slowHook(ctx, op, off, k)
			}
			return nil
		})
		ts := startServer(t, oneDisk(d))
		var wg sync.WaitGroup
		for k := range 3 {
			r := enter(t, ts, styleStructured)
			wg.Go(func() { randomHistory(t, r, uint64(k), 3000) })
		}
		wg.Wait()
	})
}

// randomHistory uses the k-th part of 16 MiB of the disk, cut into slots. Each slot has at most one request in flight.
func randomHistory(t *testing.T, r *rawClient, k uint64, steps int) {
	const slots, slotSize = 48, 256 << 10
	rnd := newRand(k + 1)
	model := make([]byte, slots*slotSize)
	type flight struct {
		q    wireRequest
		want []byte
	}
	inflight := map[uint64]flight{}
	base := k * (16 << 20)
	receive := func() bool {
		a, err := readAnswer(r.c, r.style, func(cookie uint64) int {
			if f := inflight[cookie]; f.q.cmd == cmdRead {
				return int(f.q.length)
			}
			return 0
		})
		f, ok := inflight[a.cookie]
		if ok && err == nil {
			a = joinPieces(t, a, f.q, func() answer {
				b, err := readAnswer(r.c, r.style, nil)
				if err != nil {
					t.Error(err)
					b = answer{errno: nbdEIO, flags: replyFlagDone, cookie: a.cookie, offset: a.offset}
				}
				return b
			})
		}
		delete(inflight, a.cookie)
		if err != nil || !ok || a.errno != 0 {
			t.Errorf("%v: %+v (%v)", f.q.cmd, a, err)
			return false
		}
		if f.q.cmd == cmdRead && !bytes.Equal(content(t, a, f.q.offset, f.q.length), f.want) {
			t.Errorf("read of %d bytes at %d: other data", f.q.length, f.q.offset)
			return false
		}
		return true
	}
	for step := range steps {
		slot := rnd.next() % slots
		if _, busy := inflight[slot]; busy || len(inflight) >= 32 {
			if !receive() {
				return
			}
			continue
		}
		var n uint64
		switch rnd.next() % 8 {
		case 0:
			n = slotSize
		case 1:
			n = 65536 + 512*(rnd.next()%100)
		default:
			n = 512 * (1 + rnd.next()%16)
		}
		at := slot*slotSize + 512*(rnd.next()%((slotSize-n)/512+1))
		q := wireRequest{cookie: slot, offset: base + at, length: n}
		var payload []byte
		f := flight{}
		switch rnd.next() % 10 {
		case 0, 1, 2, 3:
			q.cmd = cmdRead
			f.want = bytes.Clone(model[at : at+n])
		case 4:
			q.cmd = cmdWriteZeroes
			clear(model[at : at+n])
		case 5:
			q.cmd, q.offset, q.length = cmdFlush, 0, 0
		default:
			q.cmd = cmdWrite
			payload = pattern(int(n), byte(step))
			copy(model[at:], payload)
		}
		f.q = q
		inflight[slot] = f
		if _, err := r.c.Write(r.requestBytes(q, payload)); err != nil {
			t.Error(err)
			return
		}
	}
	for len(inflight) > 0 {
		if !receive() {
			return
		}
	}
}

type splitmix uint64

func newRand(seed uint64) *splitmix { s := splitmix(seed); return &s }

func (s *splitmix) next() uint64 {
	*s += 0x9e3779b97f4a7c15
	z := uint64(*s)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return (z ^ z>>31) >> 8
}
