// Package nbd serves disks to NBD clients: qemu, nbdcopy, nbd-client and the Linux kernel, fio.
//
// # Shape
//
// A [Server] offers exports, which a [Resolver] finds by name. Each client connection has one reader, which owns the receiving half of
// the socket, and in one of two gaits executes what it reads:
//
//   - inline: the disk answers at once (a RAM disk, a page cache). The reader calls the disk itself, collects the replies of all requests
//     that one receive brought in, and sends them together. Two system calls serve the whole batch and nothing is handed between
//     threads. The reader then blocks in the kernel on the socket, not in the Go scheduler, which saves a trip through epoll.
//   - handed out: the disk takes its time (a network, a spindle). The reader gives each request to a worker goroutine and goes on reading.
//     Replies leave in the order in which they get ready. Whoever finds the socket's sending half free sends, for all
//     that got ready meanwhile.
//
// Which gait is right is measured, not configured: the time of each disk call is noted, and inline execution is used only while the last
// calls were all short and nothing is in flight. A disk that knows that it never blocks says so with [NonBlocker].
//
// Large requests that are executed inline on a local socket move in pieces, see pieces.go. The payload of a WRITE to a disk that calls itself
// [NonBlocker] is then executed while it arrives, so a connection that dies half-way leaves half of an unacknowledged write on that disk. All other disks
// see a WRITE only when its payload is complete.
//
// # Memory
//
// Every byte between receiving a request and having sent its reply is counted against a limit for the connection and one for the server.
// A reader that reaches a limit stops reading; one request is always admitted, so nobody starves.
//
// # Ends
//
// [Server.Close] stops accepting, answers new requests with ESHUTDOWN, waits for what is in flight, cancels it when the
// drain time is over, and returns when every goroutine has ended. A connection that breaks in the middle of a message has its requests
// cancelled at once; a client that says goodbye gets everything finished first.
package nbd
