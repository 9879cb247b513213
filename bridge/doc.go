// Package bridge joins one open disk to one front end and owns the life of both.
//
// Open finds a disk by its URL: a shared virtual disk by MS-RSVD when the server offers it, otherwise the image file itself,
// interpreted by package vhdx on this side, or a local image. What comes back is a *Disk, which fits the front ends (NBDServer,
// Mount) and whose errors all unwrap to a syscall.Errno beside the status that the server gave.
//
// Life, in this order: connection, session, tree, open; front end; and on the way out the front end is drained, the disk is
// flushed, reservations are left to the server (it drops them with the last open of an initiator), then CLOSE, TREE_DISCONNECT, LOGOFF.
//
// Secrets live in Credentials and nowhere else. They are never printed or logged.
package bridge
