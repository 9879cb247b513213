package crypt

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sync/atomic"

	"vdbridge/smb/wire"
)

var (
	// ErrSealed is wrapped when a sealed message cannot be opened: it was changed on its way, or does not come from the peer.
	ErrSealed = errors.New("sealed SMB message cannot be opened")
	// ErrNonces is wrapped when a Sealer has used up its nonces. The session must be replaced.
	ErrNonces = errors.New("no nonces left for sealing")
)

// SealRoom is how many bytes of room Seal needs before the plaintext.
const SealRoom = wire.TransformHeaderSize

// SealSlack is how many bytes of capacity behind the message make Seal and Open work without a copy when the cipher is GCM.
const SealSlack = 16

// flagEncrypted is the value of the last field but one of a transform header in every dialect: "encrypted" in 3.1.1, AES-128-CCM
// before. [MS-SMB2] 2.2.41
const flagEncrypted = 1

// Sealer seals what one side of a session sends and opens what it receives. [MS-SMB2] 3.1.4.3, 3.2.5.1.1.1
//
// All methods may be called at the same time, for different messages, and do not allocate once warm. One key must never be in two
// Sealers, as each makes sure only by itself that no nonce is used twice; several channels of a session share one Sealer.
type Sealer struct {
	sessionID uint64
	send      sealing
	receive   sealing
	nonces    nonces
}

// SealerConfig says what a Sealer is made of.
type SealerConfig struct {
	// Cipher is the agreed cipher; in the dialects 3.0 and 3.0.2 that is always AES-128-CCM.
	Cipher wire.Cipher
	// SendKey is Keys.ClientToServer at a client, Keys.ServerToClient at a server; ReceiveKey is the other one.
	SendKey, ReceiveKey []byte
	SessionID           uint64
}

// NewSealer returns a Sealer.
func NewSealer(c SealerConfig) (*Sealer, error) {
	s := &Sealer{sessionID: c.SessionID}
	if err := s.send.init(c.Cipher, c.SendKey); err != nil {
		return nil, err
	}
	if err := s.receive.init(c.Cipher, c.ReceiveKey); err != nil {
		return nil, err
	}
	rand.Read(s.nonces.prefix[:])
	return s, nil
}

// nonces makes nonces that are never the same under one key: a counter of 64 bits, and bytes that are random but fixed.
type nonces struct {
	counter atomic.Uint64
	prefix  [4]byte
}

// next puts a nonce of size bytes, 11 or 12, to the field of 16 bytes.
func (n *nonces) next(field []byte, size int) error {
	for {
		c := n.counter.Load()
		if c == math.MaxUint64 {
			return ErrNonces
		}
		if n.counter.CompareAndSwap(c, c+1) {
			clear(field)
			copy(field, n.prefix[:size-8])
			binary.LittleEndian.PutUint64(field[size-8:], c)
			return nil
		}
	}
}

// sealing is one cipher with one key.
type sealing struct {
	gcm       cipher.AEAD // or
	ccm       *ccm
	nonceSize int
}

func (s *sealing) init(c wire.Cipher, key []byte) error {
	if c < wire.CipherAES128CCM || c > wire.CipherAES256GCM {
		return fmt.Errorf("cipher %d is unknown", c)
	}
	if len(key) != KeySize(c) {
		return fmt.Errorf("%v with a key of %d bytes, need %d", c, len(key), KeySize(c))
	}
	if c == wire.CipherAES128CCM || c == wire.CipherAES256CCM {
		k, err := newAESKey(key, canFuse)
		if err != nil {
			return err
		}
		s.nonceSize = 11
		s.ccm, err = newCCM(k, s.nonceSize, 16)
		return err
	}
	b, err := aes.NewCipher(key)
	if err != nil {
		return err
	}
	s.nonceSize = 12
	s.gcm, err = cipher.NewGCM(b)
	return err
}

// Seal encrypts the message buf[SealRoom:] in place and puts the transform header before it, so that buf is what is to be sent. The header of
// the message must have a zero signature. If buf has SealSlack bytes of capacity beyond its length, these are overwritten;
// otherwise AES-GCM has to copy.
func (s *Sealer) Seal(buf []byte) error {
	if len(buf) <= SealRoom || len(buf)-SealRoom > math.MaxInt32 {
		return fmt.Errorf("seal: message of %d bytes", len(buf)-SealRoom)
	}
	head, text := buf[:SealRoom:SealRoom], buf[SealRoom:]
	h := wire.TransformHeader{OriginalMessageSize: uint32(len(text)), Flags: flagEncrypted, SessionID: s.sessionID}
	h.Put(head)
	if err := s.nonces.next(head[20:36], s.send.nonceSize); err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	tag, nonce, aad := head[4:20], head[20:20+s.send.nonceSize], head[wire.TransformAAD:]
	if s.send.ccm != nil {
		s.send.ccm.sealInPlace(tag, nonce, text, aad)
		return nil
	}
	out := s.send.gcm.Seal(text[:0], nonce, text, aad)
	if &out[0] != &text[0] {
		copy(text, out)
	}
	copy(tag, out[len(text):])
	return nil
}

// SealedFor returns the session that the sealed message at the beginning of buf says to belong to, and the size in bytes of the message
// inside; nothing of this is authenticated yet. ok is false when buf does not begin with a transform header.
func SealedFor(buf []byte) (sessionID uint64, size uint32, ok bool) {
	h, err := wire.ParseTransformHeader(buf)
	return h.SessionID, h.OriginalMessageSize, err == nil
}

// Open decrypts the sealed message buf in place and returns the message, which is buf[SealRoom:]. When it fails, buf is of no more use. If
// buf has SealSlack bytes of capacity beyond its length, these are overwritten; otherwise AES-GCM has to copy.
func (s *Sealer) Open(buf []byte) ([]byte, error) {
	h, err := wire.ParseTransformHeader(buf)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSealed, err)
	}
	head, text := buf[:SealRoom:SealRoom], buf[SealRoom:]
	switch {
	case h.Flags != flagEncrypted:
		return nil, fmt.Errorf("%w: flags %#04x", ErrSealed, h.Flags)
	case h.SessionID != s.sessionID:
		return nil, fmt.Errorf("%w: session %#x, expected %#x", ErrSealed, h.SessionID, s.sessionID)
	case len(text) == 0 || uint64(h.OriginalMessageSize) != uint64(len(text)):
		return nil, fmt.Errorf("%w: %d bytes, and says %d", ErrSealed, len(text), h.OriginalMessageSize)
	}
	tag, nonce, aad := head[4:20], head[20:20+s.receive.nonceSize], head[wire.TransformAAD:]
	if s.receive.ccm != nil {
		err = s.receive.ccm.openInPlace(tag, nonce, text, aad)
	} else {
		var out []byte
		out, err = s.receive.gcm.Open(text[:0], nonce, append(text, tag...), aad)
		if err == nil && &out[0] != &text[0] {
			copy(text, out)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSealed, err)
	}
	return text, nil
}
