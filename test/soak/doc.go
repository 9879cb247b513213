// Package soak keeps the whole chain under load for as long as the environment variable VDBRIDGE_SOAK says (`make test-soak SOAK=1h`), and a few seconds
// without it: two initiators on one shared disk, every block verified by its writer and by the other one, memory and open files of
// the programs watched, the image checked by qemu-img at the end.
package soak
