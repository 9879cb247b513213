// Package fscc holds the file information structures of [MS-FSCC] that SMB carries: bytes in, values out, no I/O.
//
// The same conventions as in package wire hold: what a server sends is encoded by Append methods in *_server.go and decoded by ParseX in
// *_client.go; what a client sends, the other way round. Both halves are written from the specification, and meet only in the types.
package fscc
