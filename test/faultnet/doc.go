// Package faultnet is a network that misbehaves on request, for tests.
//
// Wrap puts faults on one net.Conn: it splits, delays, garbles, stalls or cuts the stream at a chosen byte. Relay stands between a
// client and a server of any kind, also programs outside the test, and adds delay without taking throughput, or cuts every
// connection at once as a failing switch would.
//
// Switch knows where the messages of SMB begin and end. A Script decides about each: it is lost, repeated, overtaken by others, held up, dripped, or one byte of a chosen
// part is changed; Chaos is a script of chance that decides the same again for the same seed. A Link of a switch can be cut, stalled in one direction (so that one channel's requests
// arrive after those of another), made a black hole in one direction or both (in the one to the client: a server that executes and does not answer), or orphaned: the client sees the
// end, goes on elsewhere, and what it had sent before arrives at the server later.
package faultnet
