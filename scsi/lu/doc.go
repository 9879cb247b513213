// Package lu is a SCSI logical unit over any disk: it executes the commands of SPC-4 and SBC-3 that block device hosts use, for many
// initiators at once, with persistent reservations.
//
// An initiator is known by 16 bytes. Attach gives a Nexus, through which its commands run; several nexuses of one initiator are
// the same to reservations. Read, Write and Flush of a nexus are for transports that carry plain reads and writes beside SCSI (RSVD over
// SMB2): they pass the same checks as the commands.
//
// # Order
//
// A command is admitted under the lock of its initiator, held for a moment only: pending unit attention, then reservation. The admitted
// command counts as in flight. It then takes a lock on its range of blocks (shared for reads, exclusive for everything that changes blocks;
// first come, first served), does its I/O with no other lock held, and leaves.
//
// PERSISTENT RESERVE OUT commands run one at a time. Each changes access rights in three steps: rights are withdrawn from those who lose
// them; the commands in flight of those initiators are waited for (and of those whose commands are aborted: what has not begun its
// I/O fails with TASK ABORTED); only then are new rights given out, is the new state reported to anybody, and does the command return. Hence no write of an initiator lands after
// a PERSISTENT RESERVE OUT that forbade it has returned, and none lands after the first write of a new exclusive holder.
//
// Lock order: change token of reservations, LU.mu, initiator.mu. A work buffer, then locks of block ranges, are taken with none of these
// held; the change token is the only one of the three that is held while waiting for I/O.
package lu
