// Package vm boots real Linux kernels for tests: Debian's User-Mode Linux (package user-mode-linux), which is an ordinary program that
// starts in about three seconds and needs no hardware support.
//
// The guest's root is this machine's own, read-only below an overlay that is thrown away, so every program that is installed here also runs
// there, unchanged. Run boots a guest, runs a shell script in it, and returns what it printed and its exit status. Nothing of a guest outlives
// Run: it has a process namespace of its own, and what still carries the name of its folder afterwards is ended.
//
// A Net joins guests and programs of the host through a network namespace without a name, which the kernel removes with the last process
// in it. In it the host is HostAddr, the first guest GuestAddr, and others have AddrOf. It needs root.
package vm
