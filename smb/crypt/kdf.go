package crypt

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"log/slog"

	"vdbridge/smb/wire"
)

// KDF is the key derivation function of SP 800-108 in counter mode with HMAC-SHA256, a 32-bit counter and a 32-bit length, as [MS-SMB2] 3.1.4.2
// uses it. Label and context are taken as they are: a terminating zero byte that the protocol wants must be in them. size is the length of the
// derived key in bytes, from 1 to 8160.
func KDF(key, label, context []byte, size int) []byte {
	out := make([]byte, 0, size+sha256.Size)
	mac := hmac.New(sha256.New, key)
	for i := uint32(1); len(out) < size; i++ {
		mac.Reset()
		var n [4]byte
		binary.BigEndian.PutUint32(n[:], i)
		mac.Write(n[:])
		mac.Write(label)
		mac.Write([]byte{0})
		mac.Write(context)
		binary.BigEndian.PutUint32(n[:], uint32(size)*8)
		mac.Write(n[:])
		out = mac.Sum(out)
	}
	return out[:size:size]
}

// Preauth is a pre-authentication integrity hash value of SMB 3.1.1. The zero value is where every connection begins.
// [MS-SMB2] 3.2.5.2, 3.3.5.4
type Preauth [sha512.Size]byte

// Update replaces the value by the SHA-512 hash of the value followed by the segments of one message.
func (p *Preauth) Update(message ...[]byte) {
	h := sha512.New()
	h.Write(p[:])
	for _, s := range message {
		h.Write(s)
	}
	h.Sum(p[:0])
}

// Keys are the keys of one session.
type Keys struct {
	// Signing is the key of NewSigner, 16 bytes.
	Signing []byte
	// Application is the key given to higher layers, 16 bytes.
	Application []byte
	// ClientToServer and ServerToClient are the sealing keys, 16 or 32 bytes. They are nil for dialects before 3.0.
	ClientToServer, ServerToClient []byte
}

// String keeps the keys out of logs.
func (Keys) String() string { return "[session keys]" }

// GoString keeps the keys out of logs.
func (k Keys) GoString() string { return k.String() }

// LogValue keeps the keys out of logs.
func (k Keys) LogValue() slog.Value { return slog.StringValue(k.String()) }

// SessionKey returns the first 16 bytes of what the authentication protocol made, padded with zeros. [MS-SMB2] 3.2.5.3.1
func SessionKey(full []byte) []byte {
	k := make([]byte, 16)
	copy(k, full)
	return k
}

// DeriveKeys derives the keys of a session. full is the key of the authentication protocol, of any length; cipher is the agreed one
// and decides the length of the sealing keys (before 3.1.1 it is AES-128-CCM); preauth is the session's pre-authentication integrity hash
// after the last SESSION_SETUP request, and matters for 3.1.1 only. [MS-SMB2] 3.2.5.3.1, 3.3.5.5.3
func DeriveKeys(d wire.Dialect, cipher wire.Cipher, full []byte, preauth *Preauth) Keys {
	key := SessionKey(full)
	if d < wire.Dialect300 {
		return Keys{Signing: key, Application: key}
	}
	k := Keys{Signing: SigningKey(d, full, preauth)}
	if d < wire.Dialect311 {
		k.Application = KDF(key, []byte("SMB2APP\x00"), []byte("SmbRpc\x00"), 16)
		k.ClientToServer = KDF(key, []byte("SMB2AESCCM\x00"), []byte("ServerIn \x00"), 16)
		k.ServerToClient = KDF(key, []byte("SMB2AESCCM\x00"), []byte("ServerOut\x00"), 16)
		return k
	}
	k.Application = KDF(key, []byte("SMBAppKey\x00"), preauth[:], 16)
	size := KeySize(cipher)
	if size == 32 {
		key = full
	}
	k.ClientToServer = KDF(key, []byte("SMBC2SCipherKey\x00"), preauth[:], size)
	k.ServerToClient = KDF(key, []byte("SMBS2CCipherKey\x00"), preauth[:], size)
	return k
}

// SigningKey derives a signing key alone, as an additional channel needs it. The signing key has 128 bits also when the cipher is
// AES-256: section 3.1.4.2 ties the length that goes into the derivation to the cipher for all keys, but Session.SigningKey is a 128-bit key
// (3.2.1.3), and Samba ties it only for the sealing keys.
func SigningKey(d wire.Dialect, full []byte, preauth *Preauth) []byte {
	key := SessionKey(full)
	switch {
	case d < wire.Dialect300:
		return key
	case d < wire.Dialect311:
		return KDF(key, []byte("SMB2AESCMAC\x00"), []byte("SmbSign\x00"), 16)
	}
	return KDF(key, []byte("SMBSigningKey\x00"), preauth[:], 16)
}

// KeySize returns the length in bytes of the cipher's key.
func KeySize(c wire.Cipher) int {
	if c == wire.CipherAES256CCM || c == wire.CipherAES256GCM {
		return 32
	}
	return 16
}
