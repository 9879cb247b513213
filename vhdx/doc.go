// Package vhdx reads and writes virtual hard disks in the VHDX format ([MS-VHDX]) over any backing file.
//
// [Open] gives a [*Disk]: reads, writes, trim and flush may run at the same time from any number of goroutines. There is no big lock.
// An access to an allocated block is one call to the backing file: the block's place is looked up without a lock in a cache of BAT
// pages, which is filled on demand and bounded, so that a 64 TiB image opens at once and costs little memory.
//
// # What is durable when
//
// A new block is given space at once, but its BAT entry is only changed in memory. [Disk.Flush] makes it durable, for all blocks allocated since the
// last one together: payload first where the old content of the space matters, then one log entry that holds every changed BAT sector, then the BAT
// itself. A write that was not flushed may be lost in a crash, never half a structure: the log is replayed at the next open, by us or by any other
// implementation. Space that a trim gave back is used again only when the BAT change is durable and no request that could still
// touch it is running, so a block never shows what another block left behind.
//
// # Session
//
// The headers are updated before the first modification of a session (new FileWriteGuid and DataWriteGuid), the log is
// started before the first BAT change, and cleared by [Disk.Close]. An image that was only read is not written to at all, whatever it was opened for.
// An image with entries in its log is replayed into the file when it is opened for writing, and in memory when it is opened read-only.
//
// # Chains
//
// A differencing disk is opened with its parents, which Options.Resolver finds, and is then a disk like any other. [CreateChild] makes one over a parent without
// copying data, [Disk.Map] says where in the chain a part lies, [Disk.SetParent] moves it to another parent. [Merge] copies an image into its parent;
// [Disk.MergeParent] does so with the parent of a disk that is in use.
//
// # Changing images
//
// [Disk.Resize] and [Disk.Compact] work while the disk is in use, [Convert] makes any kind from any other, [Check] reports what is wrong with a file and [Repair]
// puts right what is beyond doubt. What changes an image is safe against a crash at every step; all take a context, and the long ones tell their progress.
package vhdx
