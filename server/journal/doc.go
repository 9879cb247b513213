// Package journal keeps a small table, numbers with a few hundred bytes each, on disk: a change is durable when Wait has returned, and
// after a crash the table is what it was after some change that is not older than the last durable one.
//
// # Why a log
//
// Changes are appended to one file; those that come together are made durable by one fdatasync. With one file for each entry a change would cost
// two of them, for the file and for its directory, and changes would not share any. What is in the file and no longer in the table is got
// rid of by writing the table to a new file that takes the old one's place.
//
// # What is in the file
//
// A head, and records of one change each. Every record has a checksum over its place, its contents and a random number of the file, so that neither old
// blocks of other files nor records at wrong places are taken for it. A record also says how much of the file was durable
// when it was made. That tells the two kinds of a broken record apart: the end of a file that was being written at
// the time of a crash, of which any part may be missing, is cut off, as nobody was told that it is durable; a broken record that another
// one calls durable is damage, and the file is refused.
//
// The file belongs to one process at a time; the caller sees to that.
package journal
