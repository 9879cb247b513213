// Package fusefs shows a disk as files: disk.raw is the disk, info.json says what it is.
//
// # What can be relied on
//
//   - A write that has returned has been written to the disk; nothing is held back in this process or, as write-back caching is off, in the
//     kernel. It is durable after fsync, after close of a handle that wrote, and after a clean unmount ([FS.Wait] returns nil).
//   - A disk that is shared with other hosts is never cached: all its I/O is direct, and two writes may run at the same time. A write that is not a multiple of
//     the logical block size is refused with EINVAL there, as reading, changing and writing back would undo another host's
//     write. On a disk of our own it is done under a lock of the blocks concerned.
//   - fallocate with PUNCH_HOLE and ZERO_RANGE makes zeros, lseek with SEEK_DATA and SEEK_HOLE tells where they are. The size never
//     changes: opening with O_TRUNC leaves it alone as a block device does, ftruncate to another size is EINVAL.
//
// # Interruption
//
// A signal to a process that waits for the disk must not make its read fail, as signals are everyday matters (the Go runtime sends
// them to itself) and few programs expect EINTR from a file. So an operation can be interrupted only after it has taken
// [Options.InterruptAfter]: long enough for any disk that works, short enough for someone who holds Ctrl-C.
//
// # Shape
//
// The tree is made of nodes, each of which is a directory or a file (node.go); the raw FUSE calls are translated in raw.go, and know nothing of
// disks; disk.go is the file disk.raw. A new kind of file or directory is a new node.
package fusefs
