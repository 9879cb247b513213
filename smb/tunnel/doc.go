// Package tunnel holds the structures of [MS-RSVD] section 2.2: the create contexts that open a shared virtual disk, and the
// operations that travel as FSCTLs ("the tunnel") on such an open. Bytes in, values out; no I/O, no state.
//
// Conventions:
//
//   - A structure that the client sends is type XRequest, one that the server sends is type XResponse; the tunnel header is
//     RequestHeader or ResponseHeader. Fields are in wire order. An operation's structure does not include the header.
//   - (*XRequest).Append(b) and ParseXResponse(b) are the client's half, in *_client.go. ParseXRequest(b) and
//     (*XResponse).Append(b) are the server's half, in *_server.go. The halves are written from the specification by different
//     people and meet only in the types and in the tests, so that one misreading cannot hide in both.
//   - Append encodes and trusts its caller. Parse checks every length; its error wraps ErrMalformed; slices in the returned value
//     alias the input.
//   - Payload of SCSI operations is not touched: the codec handles the fixed part, and says where the data lie.
//
// Everything is little-endian, except what is inside CDBs, SCSI parameter data and sense data. [MS-RSVD] 2.1
package tunnel
