// Package partition says what is on a disk: the partition table (GPT with its backup, MBR with logical partitions, none) and the file systems
// and containers, by their signatures. It only reads, and knows a disk by the interface that it declares.
//
// GPT is as in the UEFI specification, chapter 5; where a table is damaged, what could be used and what is wrong are both told. Every
// number from the disk is checked against the disk's size before it is used.
package partition
