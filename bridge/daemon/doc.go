// Package daemon keeps disks attached to the kernel as /dev/nbdX: one process for a host and many disks.
//
// # Parts
//
//   - A [Manager] has the attachments. Each joins an open disk to a device: sockets whose one end the kernel's driver has (nbd/kernel) and whose other
//     end is served by package nbd, over an nbd.Settled.
//   - A control socket ([Serve], [Call]): one JSON request and one JSON answer a connection. Only root, or the user whose daemon it is, may use it. Other processes
//     that serve a disk (vdbridge nbd, vdbridge mount) announce themselves with a socket of their own beside it, so that status finds all.
//   - A record of each attachment in the state directory, by which the next daemon takes its device back.
//   - /etc/vdbridge/tab ([ParseTab]).
//
// # Life of an attachment
//
// Attach writes the record, opens the disk, connects the device, and returns when the device can be used. When a connection between the kernel and us dies, the kernel
// says so and gets another. When the daemon dies, the kernel lets requests wait; the next daemon finds the device by the identifier in the record, opens the disk and hands in
// fresh sockets. A daemon that is asked to end does the same on purpose: it finishes what is in flight, flushes, and leaves the devices to its successor. Only
// Detach ends an attachment: it refuses while somebody uses the device, takes it for itself, flushes, waits until nothing is in flight, and disconnects.
//
// # Memory
//
// When the machine is short of memory, the kernel may have to write dirty pages to this very device before it can give memory to anybody, us included. [Harden] therefore
// keeps our pages in memory (mlockall with MCL_ONFAULT: what was touched once stays), tells the kernel that memory for us must not wait for writing
// (PR_SET_IO_FLUSHER), and asks it to kill others first. Requests in flight are bounded in bytes (nbd.Config), and their buffers are pooled, so a warm
// daemon asks for little.
package daemon
