// Package history judges recorded histories of a shared disk.
//
// Several clients use one disk at the same time, by every path there is, while connections are cut, requests are cancelled and the server dies and
// forgets what was not flushed. Every operation is recorded with the times of its call and its return. Check then asks whether some order of the operations,
// each placed between its call and its return, explains all results under the rules of a disk with persistent reservations. If there is none,
// an acknowledged write was lost or mixed up, or a reservation did not hold.
//
// The disk is judged in cells, a few neighbouring sectors each, so that the atomicity of multi-sector requests is judged too. The reservations belong to
// every cell's history. An operation whose outcome is unknown may have happened at any time after its call, sector by sector, or never.
//
// `go test ./test/history` runs for about 12 seconds; VDBRIDGE_SOAK=10m makes it a long run, which draws its seed. The seed is printed; VDBRIDGE_SEED=n repeats its decisions (not the
// scheduling).
package history
