// Package arrows holds the tests of the source tree itself: which room may import which (docs/architecture.md), that every package says
// what it is, that files stay readable, and that no test sleeps instead of waiting for what it means.
package arrows
