package daemon

import (
	"time"

	"vdbridge/bridge"
)

// How long the kernel lets requests wait when no connection is alive, that is while there is no daemon. Restarting one takes seconds, so no policy is
// shorter than shortest.
const (
	shortestWait = 30 * time.Second
	endlessWait  = 7 * 24 * time.Hour // for hold: an administrator is there before
)

// deadline is how long requests may wait for a daemon, by the policy of what happens when the server is lost.
func (s *Spec) deadline() (time.Duration, error) {
	if s.OnLoss == "" {
		return endlessWait, nil
	}
	p, err := bridge.ParseOnLoss(s.OnLoss)
	switch {
	case err != nil:
		return 0, err
	case !p.Holds():
		return shortestWait, nil
	case p.After() > 0:
		return min(max(p.After(), shortestWait), endlessWait), nil
	}
	return endlessWait, nil
}
