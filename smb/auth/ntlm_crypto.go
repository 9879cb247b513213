package auth

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/rc4"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"

	//lint:ignore SA1019 NTLM is built on MD4; nothing else can be used.
	"golang.org/x/crypto/md4"
)

// utf16le returns s as UTF-16LE, as all strings in NTLM messages are.
func utf16le(s string) []byte {
	u := utf16.Encode([]rune(s))
	b := make([]byte, 0, 2*len(u))
	for _, c := range u {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return b
}

// fromUTF16 is the inverse of utf16le. b has an even length.
func fromUTF16(b []byte) string {
	u := make([]uint16, len(b)/2)
	for i := range u {
		u[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return string(utf16.Decode(u))
}

// NTHash returns the NT hash of a password: MD4 of its UTF-16. [MS-NLMP] 3.3.1 NTOWFv1
func NTHash(password string) [16]byte {
	h := md4.New()
	h.Write(utf16le(password))
	return [16]byte(h.Sum(nil))
}

func hmacMD5(key []byte, parts ...[]byte) (sum [16]byte) {
	h := hmac.New(md5.New, key)
	for _, p := range parts {
		h.Write(p)
	}
	h.Sum(sum[:0])
	return sum
}

// upper maps to upper case character by character, so that the length does not change.
func upper(s string) string { return strings.Map(unicode.ToUpper, s) }

// responseKey is NTOWFv2 of [MS-NLMP] 3.3.2.
func responseKey(ntHash [16]byte, user, domain string) [16]byte {
	return hmacMD5(ntHash[:], utf16le(upper(user)+domain))
}

// proof is NTProofStr of [MS-NLMP] 3.3.2.
func proof(key [16]byte, serverChallenge [8]byte, temp []byte) [16]byte {
	return hmacMD5(key[:], serverChallenge[:], temp)
}

// rc4Once is RC4K of [MS-NLMP] 6.
func rc4Once(key, data []byte) []byte {
	c, err := rc4.NewCipher(key)
	if err != nil {
		panic("auth: RC4 key of wrong length")
	}
	out := make([]byte, len(data))
	c.XORKeyStream(out, data)
	return out
}

// ntlmKeys are the keys for signatures in one direction, with extended session security. [MS-NLMP] 3.4.5
type ntlmKeys struct {
	sign, seal [16]byte
}

// newKeys is SIGNKEY and SEALKEY with 128-bit keys. direction is "client-to-server" or "server-to-client".
func newKeys(exported []byte, direction string) ntlmKeys {
	magic := func(what string) [16]byte {
		return md5.Sum(append(append([]byte(nil), exported...), "session key to "+direction+" "+what+" key magic constant\x00"...))
	}
	return ntlmKeys{magic("signing"), magic("sealing")}
}

// mac is MAC of [MS-NLMP] 3.4.4.2 for the first message in this direction; keyExchange says whether the checksum is encrypted. The RC4 state
// is used for mechListMIC only and, as [MS-SPNG] 3.2.5.1 wants, forgotten afterwards.
func (k *ntlmKeys) mac(message []byte, keyExchange bool) []byte {
	var sequence [4]byte
	sum := hmacMD5(k.sign[:], sequence[:], message)
	check := sum[:8]
	if keyExchange {
		check = rc4Once(k.seal[:], check)
	}
	out := make([]byte, 0, 16)
	out = binary.LittleEndian.AppendUint32(out, 1)
	out = append(out, check...)
	return append(out, sequence[:]...)
}

// ntlmSession is what both sides have after a successful exchange. It implements most of a mechanism.
type ntlmSession struct {
	exported    []byte // ExportedSessionKey
	keyExchange bool
	send, recv  ntlmKeys
}

func (s *ntlmSession) GetMIC(message []byte) ([]byte, error) {
	if s.exported == nil {
		return nil, malformed("NTLM: MIC before the end")
	}
	return s.send.mac(message, s.keyExchange), nil
}

func (s *ntlmSession) VerifyMIC(message, mic []byte) error {
	if s.exported == nil {
		return malformed("NTLM: MIC before the end")
	}
	if subtle.ConstantTimeCompare(s.recv.mac(message, s.keyExchange), mic) != 1 {
		return fmt.Errorf("%w: mechListMIC is wrong", ErrRefused)
	}
	return nil
}

func (s *ntlmSession) SessionKey() []byte { return s.exported }
