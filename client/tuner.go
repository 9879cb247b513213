package client

import "time"

// tuner finds out how many requests to join, by comparing how many get through. Now and then it lets twice or half as many go together for a while, in
// turns with what was best so far, and changes over if that is better more often than chance explains. joiner.mu guards it.
//
// The measure is requests sent per second while there is more than one to send. As every sender waits for its reply before it
// sends again, that is what the server gets done.
type tuner struct {
	limit int // 1 switches joining off
	best  int
	other int // on trial; 0 when there is no trial

	began time.Time // of the current turn
	count int       // requests in this turn
	turns int       // of this trial; without a trial, how many are left until the next one
	wait  int       // turns between trials
	down  bool      // the next trial is with fewer

	last     float64 // rate of the first turn of the current pair
	lead     int     // pairs won by other, less pairs lost
	sum      [2]float64
	decisive bool // other has won every pair by far
}

const (
	firstJoin = 8 // what to begin with

	// A turn lasts at least that long and has at least that many requests. One that has taken far too long was interrupted, and does not count.
	turnTime     = 5 * time.Millisecond
	turnRequests = 64
	turnTooLong  = 2 * time.Second

	// A trial consists of pairs of turns, and is over when other has won or lost that many more than the opposite.
	winBy, loseBy = 4, 3
	maxPairs      = 16

	minWait = 4
	maxWait = 128
)

// size returns how many requests may go together now.
func (t *tuner) size() int {
	if t.onTrial() {
		return t.other
	}
	return max(t.best, 1)
}

// onTrial says whether this turn belongs to other. The order alternates, so that a trend favours neither: best, other, other, best, ….
func (t *tuner) onTrial() bool {
	return t.other != 0 && (t.turns%4 == 1 || t.turns%4 == 2)
}

// sent counts n requests that go out together. busy says that there was a choice.
func (t *tuner) sent(now func() time.Time, n int, busy bool) {
	if t.limit <= 1 || !busy {
		return
	}
	if t.count == 0 {
		t.began = now()
	}
	t.count += n
	if t.count < turnRequests {
		return
	}
	end := now()
	if d := end.Sub(t.began); d >= turnTime {
		if d < turnTooLong {
			t.turn(float64(t.count-n) / d.Seconds())
		}
		t.began, t.count = end, n
	}
}

// turn ends a turn with that many requests per second.
func (t *tuner) turn(rate float64) {
	if t.other == 0 {
		if t.turns--; t.turns <= 0 {
			t.try()
		}
		return
	}
	trial := t.onTrial()
	t.turns++
	if t.turns%2 == 1 {
		t.last = rate
		return
	}
	best, other := t.last, rate
	if !trial {
		best, other = rate, t.last
	}
	t.sum[0] += best
	t.sum[1] += other
	if other > best {
		t.lead++
	} else {
		t.lead--
	}
	t.decisive = t.decisive && other > best*1.4
	switch {
	case t.lead >= winBy && t.sum[1] > 1.03*t.sum[0], t.decisive && t.lead >= 2:
		t.best = t.other
		t.wait = minWait
		t.try() // further in the same direction
	case t.lead >= winBy, t.lead <= -loseBy, t.turns >= 2*maxPairs:
		t.other, t.down = 0, !t.down
		t.turns = t.wait
		t.wait = min(2*t.wait, maxWait)
	}
}

// try begins a trial, if there is something to try.
func (t *tuner) try() {
	t.turns, t.lead, t.sum, t.decisive = 0, 0, [2]float64{}, true
	t.other = t.best * 2
	if t.down {
		t.other = t.best / 2
	}
	if t.other < 1 || t.other > t.limit {
		t.other, t.down = 0, !t.down
		t.turns = t.wait
	}
}
