// Package svhdx is the server's role in MS-RSVD: it opens VHDX files as shared virtual disks and serves the operations of the tunnel. It
// implements server.DiskService over package lu and package vhdx.
//
// All opens of one file share one disk and one SCSI logical unit, made for the first and closed with the last. An open names its
// initiator in the open context; reservations belong to initiators. When the last open of an initiator closes, its registration goes,
// unless it asked for reservations to be kept over a power loss (APTPL): those are kept in a file beside the disk, see FileState.
//
// The numbers in square brackets are sections of [MS-RSVD].
package svhdx
