// Command fsx works at random on files of a folder, and knows at every moment what must be in them: it writes, appends, cuts, extends, punches holes, maps, renames, syncs, closes
// and opens again, and reads back. Each worker has files of its own. The first byte that is not as it must be, and the first call that fails, end it with status 1, the seed and
// the last operations.
//
// It is a program because it runs inside a guest, on a file system that a test mounts there while the server is killed and restarted below it. At the end it prints the SHA-256 of
// each file, for who can see them from the other side. (The idea is that of Apple's fsx.)
package main
