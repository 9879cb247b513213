// Package attach tests vdbridge's block devices with real kernels. Part of it is the program in a guest, driven by shell scripts; part is this
// package's test binary, which runs once more inside a guest and works on package bridge/daemon and nbd/kernel directly.
//
// The short cases belong to every run; VDBRIDGE_VM=all adds the long ones (make test-vm).
package attach
