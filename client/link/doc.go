// Package link is an SMB open that outlives the connection it was made by.
//
// A [Link] reaches a server by one of several addresses, logs on, connects to a share and keeps one open there, a [File]. When the connection is lost,
// the requests of the File wait, as its [Policy] has it, while the Link connects again and gets the open back; then what was under way
// is sent again, or not, and the callers never hear of it.
//
// # What is sent again
//
// READ, WRITE, FLUSH and the controls that are marked as repeatable (see [Kind]) have the same effect when they are carried out twice, so they are sent again.
// Others end with an [InterruptedError] once the new connection is there: the caller finds out by asking whether they were carried out.
//
// That a request is not carried out late, after its own repetition and after what followed that, has two reasons. If the server kept the open, Way.Reopen
// returns when nothing that was sent on a lost connection can be carried out any more (ChannelSequence). Otherwise the old open is gone: the new session names
// the old one as its predecessor, and the server ends that with all that it is doing before it answers ([MS-SMB2] 3.3.5.5.3).
//
// # Shut out
//
// Before a request is sent on a new connection, Hooks.Verify looks whether the open is still what it was. It may find that we are shut out: then
// the File is fenced, and everything that would change something fails until [File.Unfence], above all what was under way.
//
// # What a flush says
//
// What was written and acknowledged but not flushed may be gone when the server itself was restarted. A server that kept the open has it, or promised to. If the open
// is a new one, and the server does not say that it has been running all the time, then each Flush that is under way, or else the next one, fails with
// [ErrWritesLost], once: later ones speak of later writes.
package link
