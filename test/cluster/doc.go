// Package cluster runs clusters of two real Linux kernels (User-Mode Linux guests) on one shared disk of `vdbridge serve`: a cluster file system on both,
// and one of them fenced in the middle of its writing. The tests judge what is on the disk afterwards; `make demo-cluster` tells the same
// story to people.
package cluster
