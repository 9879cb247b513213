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
// # Channels
//
// A session begins on one connection and may be bound to more ([Session.Bind], or [Session.KeepChannels] for those that come back by themselves). Trees and opens
// belong to the session; a request goes to the channel with the fewest bytes under way. Each channel has its own signing key, all have the session's
// sealing keys, and with them one counter of nonces. A session ends with its last channel, not with the connection on which it began.
//
// # Losing a channel
//
// When a connection ends, the session first takes the channel off its list and raises its channel sequence, and only then are the callers woken whose
// requests were under way. A request gets its sequence together with its message id, under Conn.mu, while the connection is known to live: so nothing that
// bears the new number is ever sent on the lost connection, and everything that is left of that connection bears an older one. The server refuses what
// is older than the last number that it has seen on the open, with STATUS_FILE_NOT_AVAILABLE. [MS-SMB2] 3.3.5.2.10
//
// Each call decides for itself what becomes of its request (attempt.again):
//
//   - never sent, because it waited for credits: it goes to another channel as if nothing had happened;
//   - harmless when executed twice (READ, WRITE, FLUSH, queries, most SET_INFO, CLOSE, controls by IoctlIdempotent, CREATE with a CreateGuid): it is sent again with
//     the flag of replay. Before a WRITE, SET_INFO or IOCTL the open is settled: see File.Settle. So an old WRITE that the server is still executing has ended
//     before its replay is acknowledged, also at servers that execute the first replay with a new number at once;
//   - anything else fails, with ErrOutcomeUnknown. Somebody above must look at what the request should have changed, after File.Settle.
//
// STATUS_FILE_NOT_AVAILABLE for a WRITE, SET_INFO or IOCTL says that it was not executed. It is sent again as a replay, with pauses, whatever it is.
//
// An open is durable when it was asked for and granted. After its session is lost, [Tree.Reopen] gets it back on a new one, and carries its channel sequence
// on: the new File adds to the sequence of its session what makes it one higher than anything before.
//
// # Sessions that expire
//
// STATUS_NETWORK_SESSION_EXPIRED makes one goroutine of the session authenticate again with what SessionOptions.Renew returns. Requests wait for it (those that were refused, and new
// ones, at Conn.acquire), and are sent again: they were not executed. When the mechanism tells when its proof ends, it is renewed before, and nobody waits.
//
// # Cancelling
//
// When a context is done, its call sends CANCEL and returns at once. The request stays in the table as abandoned until the reply comes, so
// that credits stay right; the payload of that reply goes nowhere. If the reader was already filling the caller's buffer, the
// call waits for that to end and returns the result. A CREATE that succeeds after it was abandoned is closed again.
//
// # Locks
//
// Conn.mu guards the message ids, credits and the table, and which channels the connection carries; it is never held during I/O, cryptography or a channel send.
// Session.mu guards the list of channels (which is read without it: it is replaced, never changed), why the session ended, the bound connections, trees, the opens that
// have an oplock or lease, and what those hold. It may be held while Conn.mu is taken, not the other way round. File.settling and Session.proving are held across
// I/O; that is their purpose: one goroutine settles an open, or authenticates, and others wait for it or for their context.
package client
