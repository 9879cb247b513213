// Package kernel is the side of the Linux nbd driver: it gives sockets to /dev/nbdX and takes them away, and knows what the kernel
// tells about the device. It serves nothing; who holds the other ends of the sockets speaks NBD on them (package nbd).
//
// A [Driver] is one of two ways to the same driver. [Open] takes generic netlink (family "nbd", Linux 4.12), where the kernel owns the device: it
// chooses a free one, a process may die and another one hand in fresh sockets ([Driver.Reconnect]) while requests wait. Where the family cannot be
// reached, as in a network namespace that is not the first, [Open] falls back to ioctls on /dev/nbdX, where a thread of this process
// is the device's life.
//
// # What the kernel does with requests
//
// This is what the rest of vdbridge is built on (drivers/block/nbd.c, Linux 6.1 to 7.3):
//
//   - A request that waits for its reply longer than [Config.Timeout] is sent again on a live connection, and the connection that it was sent on is
//     shut down. So a request may be executed twice, and the first execution may still go on when the second begins: whoever
//     serves must let the first come to its end before it executes anything else there (nbd.Settled does).
//   - When a connection dies, what is in flight on it waits for that same timeout; the kernel does not look earlier.
//   - When no connection is left, requests wait for [Config.DeadConnTimeout] and then fail, for good.
//   - DISCONNECT fails what is in flight. So nothing may be when it comes.
//   - There is one block size, which is the logical and the physical one. Optimal sizes cannot be told.
//
// [Sys] reads and sets what is in sysfs and procfs: the queue's settings, partitions, and who uses a device.
package kernel
