package bridge

import (
	"bytes"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"vdbridge/client"
	"vdbridge/client/link"
	"vdbridge/test/faultnet"
	"vdbridge/test/leak"
)

// An NBD client gives up a connection on which a write hangs, writes the same again on another one, and then something newer. The hanging write does not come after that.
func TestNBDLateWrite(t *testing.T) {
	leak.Check(t)
	ctx := t.Context()
	e := embed(t, ServeOptions{RSVDVersion: 1, CA: true})
	s, err := faultnet.NewSwitch("127.0.0.1:0", e.addr, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	via := &embedded{dir: e.dir, addr: s.Addr()}
	d := via.open(t, func(o *Options) {
		o.OnLoss, o.Timeout, o.Mode = link.Hold, time.Minute, ModeRSVD
		o.Channels = client.ChannelOptions{Count: 2, Addrs: []string{s.Addr()}, MinDelay: time.Millisecond}
	})
	when(t, "two channels", func() bool { return len(d.Status().Channels) == 2 })
	dial, _ := export(t, d, NBDOptions{})

	old, newer := pattern(1, 4096), pattern(2, 4096)
	stalled := s.Links()[0]
	stalled.Stall(faultnet.Up)
	hangs := make(chan struct{})
	var answered atomic.Int64
	first := dial()
	go func() {
		defer close(hangs)
		for first.try(0, old) == nil { // until one takes the channel that is stalled
			answered.Add(1)
		}
	}()
	last, same := int64(-1), 0
	when(t, "a write hangs", func() bool {
		n := answered.Load()
		if n != last || stalled.Waiting(faultnet.Up) == 0 {
			last, same = n, 0
		}
		same++
		return same > 4
	})
	first.c.Close()
	<-hangs

	second, done := dial(), make(chan error, 1)
	go func() { done <- errors.Join(second.try(0, old), second.try(0, newer)) }()
	select {
	case err := <-done:
		t.Errorf("writes overtook the one that hangs (%v)", err)
		done <- err
	case <-time.After(100 * time.Millisecond): // so long a fault would take to show
	}
	stalled.Resume(faultnet.Up)
	if err := <-done; err != nil {
		t.Error(err)
	}
	q := make([]byte, 4096)
	if err := d.Read(ctx, q, 0); err != nil || !bytes.Equal(q, newer) {
		t.Errorf("the disk has something else than what was written last (%v)", err)
	}
}
