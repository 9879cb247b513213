// Package server is an SMB 3 file server: dialects 3.1.1, 3.0.2 and 3.0 (2.1 on request), signing always, encryption on demand.
// Virtual disks that are opened shared ([MS-RSVD]) are behind the interface [DiskService].
//
// # Life of a message
//
// Each connection has one reading goroutine. It takes messages off the transport into pooled buffers, decrypts small ones, checks the
// message identifier against the window of granted credits, and notes the request in the connection's list. Then
// the request runs: on the reading goroutine when nothing else waits and the request is likely to be quick, otherwise on one of the
// connection's workers. Whoever ran it signs or seals the reply in the buffer in which it was made and hands it to
// transport.Sender, which joins replies into vectored writes.
//
// # Sessions, connections and persistent opens
//
// A session has one or more channels, each on a connection of its own and with its own signing key; it ends with the last of them. Trees
// and opens belong to the session, pending operations to the connection they came by.
//
// When a session ends, its persistent opens are parked: their close has begun as if they were closed, so that nothing uses them and everything
// that used them has ended, but it is not finished. CREATE with DH2C takes a parked open, gives it to the new session and takes
// the mark of the close off again. Nothing that an older request may still do can come after what the client asks for then.
//
// On continuously available shares, with a [State], persistent opens are written to a database (restore.go, record.go): before their CREATE is answered, with every change
// of their locks or names before that is, and out of it before CLOSE is. A server that begins makes parked opens of what is in the database. One that
// ends suspends them: descriptors are closed, and nothing that an open has is given up.
//
// # Locks
//
// In the order in which they may be taken, and none of them is held during I/O on file contents or on a socket:
//
//	name stripes (share.lockName)  one directory entry: create, rename, delete
//	objectTable.mu                 which files are open
//	object.mu                      share modes, byte-range locks, delete pending of one file
//	session.mu                     channels, trees and opens of a session
//	conn.mu                        window of message ids, requests, pending operations
//
// durable.recording is held while a picture of an open is taken for the database; it comes after name stripes and before the others. durables.mu stands alone: nothing but atomic fields is touched while it is held.
//
// A name stripe is held across the system calls on that directory entry, which is its purpose.
//
// An open's descriptor is used only between open.acquire and open.release. CLOSE marks the open, waits for those inside, and closes the
// descriptor last; so a descriptor is never used after it was closed, and an acknowledged CLOSE means that all I/O has ended.
package server
