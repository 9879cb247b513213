//go:build race

package bridge

// raceEnabled: the race detector makes sync.Pool forget on purpose, so allocations cannot be counted.
const raceEnabled = true
