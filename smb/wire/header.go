package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrMalformed is wrapped by every decoding error of this package: the bytes are not what the
// specification allows. The connection they came from should be dropped.
var ErrMalformed = errors.New("malformed SMB2 message")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

var le = binary.LittleEndian

// HeaderSize is the length in bytes of the SMB2 header, synchronous or asynchronous. [MS-SMB2] 2.2.1
const HeaderSize = 64

// TransformHeaderSize is the length in bytes of SMB2 TRANSFORM_HEADER. [MS-SMB2] 2.2.41
const TransformHeaderSize = 52

// Protocol identifiers: the first four bytes of a message, as a little-endian number.
const (
	ProtocolSMB1        uint32 = 0x424D53FF // FF 'S' 'M' 'B'
	ProtocolSMB2        uint32 = 0x424D53FE // FE 'S' 'M' 'B'
	ProtocolTransform   uint32 = 0x424D53FD // FD 'S' 'M' 'B'
	ProtocolCompression uint32 = 0x424D53FC // FC 'S' 'M' 'B'
)

// Command is the SMB2 command code. [MS-SMB2] 2.2.1.2
type Command uint16

// The commands of [MS-SMB2] 2.2.1.2.
const (
	CmdNegotiate      Command = 0x00
	CmdSessionSetup   Command = 0x01
	CmdLogoff         Command = 0x02
	CmdTreeConnect    Command = 0x03
	CmdTreeDisconnect Command = 0x04
	CmdCreate         Command = 0x05
	CmdClose          Command = 0x06
	CmdFlush          Command = 0x07
	CmdRead           Command = 0x08
	CmdWrite          Command = 0x09
	CmdLock           Command = 0x0A
	CmdIoctl          Command = 0x0B
	CmdCancel         Command = 0x0C
	CmdEcho           Command = 0x0D
	CmdQueryDirectory Command = 0x0E
	CmdChangeNotify   Command = 0x0F
	CmdQueryInfo      Command = 0x10
	CmdSetInfo        Command = 0x11
	CmdOplockBreak    Command = 0x12
)

var commandNames = [...]string{"NEGOTIATE", "SESSION_SETUP", "LOGOFF", "TREE_CONNECT", "TREE_DISCONNECT", "CREATE", "CLOSE",
	"FLUSH", "READ", "WRITE", "LOCK", "IOCTL", "CANCEL", "ECHO", "QUERY_DIRECTORY", "CHANGE_NOTIFY", "QUERY_INFO", "SET_INFO",
	"OPLOCK_BREAK"}

// String returns the specification's name of the command.
func (c Command) String() string {
	if int(c) < len(commandNames) {
		return commandNames[c]
	}
	return fmt.Sprintf("command %#04x", uint16(c))
}

// Header flags. [MS-SMB2] 2.2.1.2
const (
	FlagServerToRedir   uint32 = 0x00000001
	FlagAsync           uint32 = 0x00000002
	FlagRelated         uint32 = 0x00000004
	FlagSigned          uint32 = 0x00000008
	FlagPriorityMask    uint32 = 0x00000070
	FlagDFSOperation    uint32 = 0x10000000
	FlagReplayOperation uint32 = 0x20000000
)

// Header is the SMB2 header in both its forms. [MS-SMB2] 2.2.1.1, 2.2.1.2
//
//	 0 ProtocolId FE 'SMB' | 4 StructureSize 64 | 6 CreditCharge | 8 Status (reply) or ChannelSequence+Reserved (request)
//	12 Command | 14 Credits | 16 Flags | 20 NextCommand | 24 MessageId
//	32 AsyncId (FlagAsync) or Reserved+TreeId | 40 SessionId | 48 Signature
type Header struct {
	CreditCharge uint16 // credits that this request uses; 0 and 1 both mean one
	// Status is the NTSTATUS of a reply. In a request the low 16 bits are the ChannelSequence (3.x).
	Status      uint32
	Command     Command
	Credits     uint16 // asked for (request) or granted (reply)
	Flags       uint32
	NextCommand uint32 // offset in bytes from this header to the next one of a compound, 0 for the last
	MessageID   uint64
	AsyncID     uint64 // only with FlagAsync
	TreeID      uint32 // only without FlagAsync
	SessionID   uint64
	Signature   [16]byte
}

// Put writes the header to the first HeaderSize bytes of b, which must be there.
func (h *Header) Put(b []byte) {
	_ = b[HeaderSize-1]
	le.PutUint32(b[0:], ProtocolSMB2)
	le.PutUint16(b[4:], HeaderSize)
	le.PutUint16(b[6:], h.CreditCharge)
	le.PutUint32(b[8:], h.Status)
	le.PutUint16(b[12:], uint16(h.Command))
	le.PutUint16(b[14:], h.Credits)
	le.PutUint32(b[16:], h.Flags)
	le.PutUint32(b[20:], h.NextCommand)
	le.PutUint64(b[24:], h.MessageID)
	if h.Flags&FlagAsync != 0 {
		le.PutUint64(b[32:], h.AsyncID)
	} else {
		le.PutUint32(b[32:], 0)
		le.PutUint32(b[36:], h.TreeID)
	}
	le.PutUint64(b[40:], h.SessionID)
	copy(b[48:64], h.Signature[:])
}

// ParseHeader decodes the header at the start of msg. It checks the protocol identifier and the structure size, and
// nothing that depends on the state of a connection.
func ParseHeader(msg []byte) (Header, error) {
	var h Header
	if len(msg) < HeaderSize {
		return h, malformed("header needs %d bytes, have %d", HeaderSize, len(msg))
	}
	if p := le.Uint32(msg); p != ProtocolSMB2 {
		return h, malformed("protocol id %#08x", p)
	}
	if s := le.Uint16(msg[4:]); s != HeaderSize {
		return h, malformed("header StructureSize %d", s)
	}
	h.CreditCharge = le.Uint16(msg[6:])
	h.Status = le.Uint32(msg[8:])
	h.Command = Command(le.Uint16(msg[12:]))
	h.Credits = le.Uint16(msg[14:])
	h.Flags = le.Uint32(msg[16:])
	h.NextCommand = le.Uint32(msg[20:])
	h.MessageID = le.Uint64(msg[24:])
	if h.Flags&FlagAsync != 0 {
		h.AsyncID = le.Uint64(msg[32:])
	} else {
		h.TreeID = le.Uint32(msg[36:])
	}
	h.SessionID = le.Uint64(msg[40:])
	copy(h.Signature[:], msg[48:64])
	return h, nil
}

// TransformHeader stands before an encrypted message. [MS-SMB2] 2.2.41
type TransformHeader struct {
	Signature           [16]byte // the authentication tag
	Nonce               [16]byte // 11 bytes used by CCM, 12 by GCM, the rest zero
	OriginalMessageSize uint32   // bytes of plaintext
	Flags               uint16   // 3.1.1: 1 = encrypted; 3.0.x: EncryptionAlgorithm 1 = AES-128-CCM
	SessionID           uint64
}

// TransformAAD is the offset of the first byte of a transform header that is authenticated (Nonce and on).
const TransformAAD = 20

// Put writes the header to the first TransformHeaderSize bytes of b.
func (h *TransformHeader) Put(b []byte) {
	_ = b[TransformHeaderSize-1]
	le.PutUint32(b[0:], ProtocolTransform)
	copy(b[4:20], h.Signature[:])
	copy(b[20:36], h.Nonce[:])
	le.PutUint32(b[36:], h.OriginalMessageSize)
	le.PutUint16(b[40:], 0)
	le.PutUint16(b[42:], h.Flags)
	le.PutUint64(b[44:], h.SessionID)
}

// ParseTransformHeader decodes the transform header at the start of b.
func ParseTransformHeader(b []byte) (TransformHeader, error) {
	var h TransformHeader
	if len(b) < TransformHeaderSize {
		return h, malformed("transform header needs %d bytes, have %d", TransformHeaderSize, len(b))
	}
	if p := le.Uint32(b); p != ProtocolTransform {
		return h, malformed("transform protocol id %#08x", p)
	}
	copy(h.Signature[:], b[4:20])
	copy(h.Nonce[:], b[20:36])
	h.OriginalMessageSize = le.Uint32(b[36:])
	h.Flags = le.Uint16(b[42:])
	h.SessionID = le.Uint64(b[44:])
	return h, nil
}
