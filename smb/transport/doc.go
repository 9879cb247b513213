// Package transport carries whole SMB2 messages between two peers and knows nothing of what is in them.
//
// A [Conn] is one connection: one goroutine reads, one writes, both at the same time. [NewTCP] makes one of any net.Conn with the
// Direct TCP framing of [MS-SMB2] 2.1; SMB Direct will be another implementation of the same interface.
//
// Reading is pull: NextMessage waits for a message and tells its length, Peek looks at its first bytes, ReadFull moves the next bytes
// to where they belong. A large payload goes from the socket into the caller's slice; many small messages come out of one
// system call.
//
// Writing from many goroutines goes through a [Sender], which joins what has queued up into one system call.
package transport
