// Package lab runs other programs for whole-program tests, the demonstration and the benchmarks: it finds them, starts them so that they
// cannot outlive the one who started them, waits until they are ready, and ends them.
package lab
