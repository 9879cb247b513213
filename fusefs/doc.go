// Package fusefs shows a disk as files, by FUSE: disk.raw, the disk itself, and info.json, what is known about it.
//
// # Caching
//
// A disk that other hosts may write to (one that says Shared() == true) is never cached: every read and write of disk.raw goes to the disk, and what
// is smaller than a logical block can be read but not written, because reading, changing and writing a block back would undo what another
// host wrote to it in between. A disk of this host alone is read through the kernel's page cache; writes go through it to the disk
// at once, and blocks are changed in part under a lock of their range.
//
// # Durability
//
// fsync of disk.raw flushes the disk, and so does closing it when it was written to. The end of the mount flushes it too.
package fusefs
