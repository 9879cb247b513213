// Package scsi holds the SCSI formats that this project speaks, both ways: command descriptor blocks (CDBs), sense data, INQUIRY
// and vital product data, mode pages, capacity, provisioning and persistent reservation data. Bytes in, values out; no I/O, no state.
//
// References are to SPC-4 (primary commands), SBC-3 (block commands) and SAM-5 (status). All integers on the wire are big-endian.
//
// A constructor such as Read16 makes a CDB, which is a value of 16 bytes that knows its length. ParseX takes a CDB or parameter
// data of any length and checks it; a CDB must be at least as long as its operation code demands. Append writes, and trusts its
// caller. Errors of Parse functions wrap ErrMalformed. The CDBs of READ and WRITE are made and parsed without allocation.
package scsi
