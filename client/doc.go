// Package client is an SMB 2 and 3 client: connections, sessions, tree connects and opens. [MS-SMB2]
//
// A [Conn] is one connection to one server, made by [Dial]. [Conn.Session] authenticates a user, [Session.Tree] connects to a share,
// [Tree.Open] opens a file. All methods may be called from any number of goroutines at the same time; that many requests are in
// flight on the one connection, and replies are matched in whatever order they come.
//
// # How a request travels
//
// The calling goroutine takes a message id and credits (Conn.acquire, the only place where it may wait for others), encodes, signs or
// seals, and hands the message to the connection's Sender, which joins what is ready into one system call. One goroutine per
// connection receives. It finds the request in the table, grants its credits, and moves the payload of READ and IOCTL replies from the
// socket to where the caller wants it; then it wakes the caller, who verifies the signature. Large sealed messages are
// opened by a few worker goroutines, as only the plaintext tells whose they are.
//
// # Cancelling
//
// When a context is done, its call sends CANCEL and returns at once. The request stays in the table as abandoned until the reply comes, so
// that credits stay right; the payload of that reply goes nowhere. If the reader was already filling the caller's buffer, the
// call waits for that to end and returns the result. A CREATE that succeeds after it was abandoned is closed again.
//
// # Locks
//
// Conn.mu guards the message ids, credits and the table; it is never held during I/O, cryptography or a channel send.
// Session.mu and Tree.mu guard their lists of children, and may be held while Conn.mu is taken, not the other way round.
package client
