// Package faultnet is a network that misbehaves on request, for tests.
//
// Wrap puts faults on one net.Conn: it splits, delays, garbles, stalls or cuts the stream at a chosen byte. Relay stands between a
// client and a server of any kind, also programs outside the test, and adds delay without taking throughput, or cuts every
// connection at once as a failing switch would.
package faultnet
