package auth

import (
	"crypto/sha256"
	"sync"
	"time"
)

// replayCache remembers authenticators for as long as they could be used again. RFC 4120 3.2.3. It is kept in memory: after a restart of the
// server a replay could log on within the allowed clock skew, and would get nothing from it, as it lacks the session key that all messages are signed with.
type replayCache struct {
	life time.Duration

	mu    sync.Mutex
	seen  map[[32]byte]time.Time
	purge time.Time
}

// maxReplay bounds the authenticators remembered. Only users with valid tickets add to them.
const maxReplay = 1 << 20

func newReplayCache(life time.Duration) *replayCache {
	return &replayCache{life: life, seen: map[[32]byte]time.Time{}}
}

// add returns false for what was added before, and when there is no room.
func (c *replayCache) add(authenticator []byte, now time.Time) bool {
	sum := sha256.Sum256(authenticator)
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.After(c.purge) || len(c.seen) >= maxReplay {
		for k, t := range c.seen {
			if now.Sub(t) > c.life {
				delete(c.seen, k)
			}
		}
		c.purge = now.Add(c.life / 4)
	}
	if _, ok := c.seen[sum]; ok || len(c.seen) >= maxReplay {
		return false
	}
	c.seen[sum] = now
	return true
}
