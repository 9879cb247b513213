// Package kernel tests vdbridge with real Linux kernels as its users: the nbd driver on an export of `vdbridge nbd`, and the cifs client on
// `vdbridge serve`. Each test boots a guest with package vm, which takes a few seconds.
package kernel
