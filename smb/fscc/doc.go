// Package fscc holds the file and file system information structures of [MS-FSCC] that travel in QUERY_INFO, SET_INFO, QUERY_DIRECTORY
// and IOCTL buffers: bytes in, values out, no I/O.
//
// As in package wire, each direction is written from the specification by whoever needs it: *_client.go decodes what
// servers answer and encodes what clients set, *_server.go the reverse. They meet in types.go and in the tests only.
package fscc
