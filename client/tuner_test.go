package client

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestTuner lets the tuner find its way at simulated servers, with a lot of noise.
func TestTuner(t *testing.T) {
	const depth = 64
	for _, c := range []struct {
		name     string
		each     time.Duration // time of one request within a message
		message  time.Duration // time of a message beside that
		parallel int           // messages at the same time
		low, top int           // acceptable sizes
	}{
		{"busy with messages", 5 * time.Microsecond, 30 * time.Microsecond, 1, 4, 16},
		{"slow disks", time.Millisecond, 30 * time.Microsecond, depth, 1, 1},
		{"very slow disks", 8 * time.Millisecond, 30 * time.Microsecond, depth, 1, 1},
		{"indifferent", 20 * time.Microsecond, 0, 1, 1, 16},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			now := time.Unix(0, 0)
			tune := tuner{limit: 16, best: firstJoin, turns: minWait, wait: minWait}
			good, all := 0, 0
			for now.Before(time.Unix(20, 0)) {
				k := tune.size()
				// One round: every request in flight once.
				messages := depth / k
				took := (c.message + time.Duration(k)*c.each) * time.Duration((messages+c.parallel-1)/c.parallel)
				took = time.Duration(float64(took) * (0.7 + 0.6*r.Float64()))
				for range messages {
					now = now.Add(took / time.Duration(messages))
					tune.sent(func() time.Time { return now }, k, true)
				}
				if now.After(time.Unix(3, 0)) {
					all++
					if k >= c.low && k <= c.top {
						good++
					}
				}
			}
			if good*10 < all*9 {
				t.Errorf("%d of %d rounds had a good size; at last %d", good, all, tune.best)
			}
		})
	}
	off := tuner{limit: 1, best: 1}
	for range 1000 {
		off.sent(time.Now, 1, true)
	}
	if off.size() != 1 {
		t.Error("joins although it is switched off")
	}
}
