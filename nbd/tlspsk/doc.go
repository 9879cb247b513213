// Package tlspsk is the server's side of TLS 1.3 with pre-shared keys, which crypto/tls does not have: both sides know a secret under a name, and
// there are no certificates. [RFC 8446]
//
// It speaks what GnuTLS (QEMU, libnbd, nbd-client) and OpenSSL speak by default: psk_dhe_ke, so that a key that gets known later opens no
// earlier recording; X25519 or P-256; TLS_AES_128_GCM_SHA256, the suite that every implementation must have. There is no HelloRetryRequest: a client
// that sends no share of either group is refused. Sessions are not resumed, and there is no early data.
//
// All primitives are the standard library's; here are only the messages, the key schedule and the records.
package tlspsk
