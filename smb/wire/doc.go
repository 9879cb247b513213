// Package wire holds the SMB 2 and 3 messages of [MS-SMB2] section 2.2: bytes in, values out, no I/O, no state.
//
// Conventions, the same for every message X:
//
//   - type X (XRequest, XResponse) has the fields of the body in wire order and the specification's names.
//   - (*X).Append(b) appends the body to b, where b must end where the 64-byte header ends: offsets that the
//     specification counts from the header are computed for a body that begins 64 bytes after its header.
//     Encoding trusts its caller.
//   - ParseX(msg) decodes a body; msg begins at the SMB2 header and ends where this message of a compound ends. Decoding checks
//     everything: a returned value's slices lie inside msg (and alias it). Errors wrap ErrMalformed.
//   - Payload of READ replies and WRITE requests is not touched: the codec gives the fixed part, and the offset and length of
//     the data.
//
// Each direction of a message is written from the specification by whoever needs it: requests are encoded and replies decoded in
// *_client.go, requests decoded and replies encoded in *_server.go. The two halves meet only in the types of this package
// and in its tests, so that one misreading cannot hide in both.
package wire
