// Package allocs watches what a request costs in memory on its whole way, NBD server, RSVD, SMB client, SMB server, logical unit, VHDX, all in one
// process: once warm, a 4 KiB request must not allocate.
package allocs
