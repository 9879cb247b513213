//go:build !race

package rsvd

const raceEnabled = false
