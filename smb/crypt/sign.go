package crypt

import (
	"crypto/aes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"sync"

	"vdbridge/smb/wire"
)

// ErrSignature is wrapped when a message's signature is missing or wrong: the message was changed on its way, or does not come from the
// peer. It must not be believed in any part.
var ErrSignature = errors.New("SMB signature is wrong")

// Offsets in the SMB2 header. [MS-SMB2] 2.2.1
const (
	offCommand   = 12
	offFlags     = 16
	offMessageID = 24
	offSignature = 48
	endSignature = 64
)

// Signer signs and verifies messages under one signing key. [MS-SMB2] 3.1.4.1, 3.1.5.1
//
// All methods may be called at the same time, for different messages, and do not allocate once warm.
type Signer struct {
	alg  wire.SigningAlgorithm
	cmac *cmac
	gmac *gmac
	key  []byte
	pool sync.Pool // of *hmacState
}

type hmacState struct {
	mac hash.Hash
	sum [sha256.Size]byte
}

// NewSigner returns a Signer. key has 16 bytes.
func NewSigner(alg wire.SigningAlgorithm, key []byte) (*Signer, error) {
	s := &Signer{alg: alg}
	if len(key) != 16 {
		return nil, fmt.Errorf("signing key of %d bytes, need 16", len(key))
	}
	if alg == wire.SigningHMACSHA256 {
		s.key = append([]byte(nil), key...)
		return s, nil
	}
	switch alg {
	case wire.SigningAESCMAC:
		k, err := newAESKey(key, canFuse)
		if err != nil {
			return nil, err
		}
		s.cmac = newCMAC(k)
	case wire.SigningAESGMAC:
		b, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		if s.gmac, err = newGMAC(b); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("signing algorithm %d is unknown", alg)
	}
	return s, nil
}

// Algorithm returns the algorithm of the signer.
func (s *Signer) Algorithm() wire.SigningAlgorithm { return s.alg }

// Sign puts the signature into the header at the beginning of the message, which is the concatenation of the segments. The header, with
// FlagSigned set, must lie whole in the first segment. The message is one message of a compound, with its padding. (*Signer).Sign panics when
// the first segment is shorter than a header.
//
// The nonce of AES-GMAC is made of what the header says: the message id, whether the sender is the server (FlagServerToRedir), and
// whether the message is a CANCEL.
func (s *Signer) Sign(message ...[]byte) {
	head := message[0]
	clear(head[offSignature:endSignature])
	var sum [16]byte
	s.sum(&sum, message)
	copy(head[offSignature:endSignature], sum[:])
}

// Verify returns nil if the signature in the header of the message is right, and an error that wraps ErrSignature otherwise. While it
// works, the signature field in the first segment is zero; nothing else is changed. That FlagSigned is set where it must be, and
// that the message flows in the right direction, is for the caller to check.
func (s *Signer) Verify(message ...[]byte) error {
	if len(message) == 0 || len(message[0]) < endSignature {
		return fmt.Errorf("%w: message is shorter than a header", ErrSignature)
	}
	field := message[0][offSignature:endSignature]
	given := [16]byte(field)
	clear(field)
	var sum [16]byte
	s.sum(&sum, message)
	copy(field, given[:])
	if subtle.ConstantTimeCompare(sum[:], given[:]) != 1 {
		return fmt.Errorf("%w: %s with message id %d", ErrSignature,
			wire.Command(binary.LittleEndian.Uint16(message[0][offCommand:])), binary.LittleEndian.Uint64(message[0][offMessageID:]))
	}
	return nil
}

func (s *Signer) sum(sum *[16]byte, message [][]byte) {
	switch s.alg {
	case wire.SigningAESCMAC:
		s.cmac.sum(sum, message...)
	case wire.SigningAESGMAC:
		s.gmac.sum(sum, gmacNonce(message[0]), message...)
	default:
		h, _ := s.pool.Get().(*hmacState)
		if h == nil {
			h = &hmacState{mac: hmac.New(sha256.New, s.key)}
		}
		h.mac.Reset()
		for _, p := range message {
			h.mac.Write(p)
		}
		h.mac.Sum(h.sum[:0])
		copy(sum[:], h.sum[:])
		s.pool.Put(h)
	}
}

// gmacNonce is the nonce of [MS-SMB2] 3.1.4.1 for the message with this header.
func gmacNonce(header []byte) (nonce [12]byte) {
	copy(nonce[:8], header[offMessageID:])
	nonce[8] = header[offFlags] & byte(wire.FlagServerToRedir)
	if nonce[8] == 0 && wire.Command(binary.LittleEndian.Uint16(header[offCommand:])) == wire.CmdCancel {
		nonce[8] |= 2
	}
	return nonce
}
