package nbd

import "encoding/binary"

// Values of the NBD protocol description (doc/proto.md of the NBD project). All integers are big-endian.

// Magic numbers.
const (
	magicInit            = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption          = 0x49484156454F5054 // "IHAVEOPT"
	magicOptionReply     = 0x0003e889045565a9
	magicRequest         = 0x25609513
	magicSimpleReply     = 0x67446698
	magicStructuredReply = 0x668e33ef
	magicExtRequest      = 0x21e41c71
	magicExtReply        = 0x6e8a278c
)

// Handshake flags of the server, and of the client.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Option is the number of a handshake option.
type option uint32

const (
	optExportName      option = 1
	optAbort           option = 2
	optList            option = 3
	optStartTLS        option = 5
	optInfo            option = 6
	optGo              option = 7
	optStructuredReply option = 8
	optListMetaContext option = 9
	optSetMetaContext  option = 10
	optExtendedHeaders option = 11
)

// Types of a reply to an option.
const (
	repAck              = 1
	repServer           = 2
	repInfo             = 3
	repMetaContext      = 4
	repErrUnsup         = 1<<31 + 1
	repErrPolicy        = 1<<31 + 2
	repErrInvalid       = 1<<31 + 3
	repErrTLSReqd       = 1<<31 + 5
	repErrUnknown       = 1<<31 + 6
	repErrShutdown      = 1<<31 + 7
	repErrTooBig        = 1<<31 + 9
	repErrExtHeaderReqd = 1<<31 + 10
)

// Information types of INFO and GO.
const (
	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

// Transmission flags.
const (
	txHasFlags           = 1 << 0
	txReadOnly           = 1 << 1
	txSendFlush          = 1 << 2
	txSendFUA            = 1 << 3
	txRotational         = 1 << 4
	txSendTrim           = 1 << 5
	txSendWriteZeroes    = 1 << 6
	txSendDF             = 1 << 7
	txCanMultiConn       = 1 << 8
	txSendCache          = 1 << 10
	txSendFastZero       = 1 << 11
	txBlockStatusPayload = 1 << 12
)

// Command is the type of a request in the transmission phase.
type command uint16

const (
	cmdRead        command = 0
	cmdWrite       command = 1
	cmdDisc        command = 2
	cmdFlush       command = 3
	cmdTrim        command = 4
	cmdCache       command = 5
	cmdWriteZeroes command = 6
	cmdBlockStatus command = 7
)

var commandNames = [...]string{"READ", "WRITE", "DISC", "FLUSH", "TRIM", "CACHE", "WRITE_ZEROES", "BLOCK_STATUS"}

func (c command) String() string {
	if int(c) < len(commandNames) {
		return commandNames[c]
	}
	return "unknown command"
}

// Command flags.
const (
	cmdFlagFUA        = 1 << 0
	cmdFlagNoHole     = 1 << 1
	cmdFlagDF         = 1 << 2
	cmdFlagReqOne     = 1 << 3
	cmdFlagFastZero   = 1 << 4
	cmdFlagPayloadLen = 1 << 5
)

// Flags and types of a structured reply chunk.
const (
	replyFlagDone           = 1 << 0
	replyTypeNone           = 0
	replyTypeOffsetData     = 1
	replyTypeOffsetHole     = 2
	replyTypeBlockStatus    = 5
	replyTypeBlockStatusExt = 6
	replyTypeError          = 1<<15 + 1
)

// Status flags of the base:allocation context.
const (
	stateHole = 1 << 0
	stateZero = 1 << 1
)

// Sizes of messages on the wire, in bytes.
const (
	optionHeaderSize     = 16
	requestSize          = 28
	extRequestSize       = 32
	simpleReplySize      = 16
	structuredReplySize  = 20
	extReplySize         = 32
	maxString            = 4096          // longest string the protocol allows
	zeroesAfterExport    = 124           // padding after an EXPORT_NAME reply
	maxChunkHeader       = 32 + 8 + 4    // longest fixed part of any reply chunk
	maxPayloadAdvertised = 1 << 25       // largest READ or WRITE
	maxPayloadDrained    = 1 << 26       // a longer payload ends the connection
	maxTransmissionSize  = 1<<63 - 1<<16 // offsets are int64 in a Disk
)

// Request is one request of the transmission phase, decoded.
type wireRequest struct {
	flags  uint16
	cmd    command
	cookie uint64
	offset uint64
	length uint64
}

// parseRequest decodes a compact request header. b has at least requestSize bytes. It reports whether the magic number is right.
func parseRequest(b []byte) (r wireRequest, ok bool) {
	_ = b[requestSize-1]
	r.flags = binary.BigEndian.Uint16(b[4:])
	r.cmd = command(binary.BigEndian.Uint16(b[6:]))
	r.cookie = binary.BigEndian.Uint64(b[8:])
	r.offset = binary.BigEndian.Uint64(b[16:])
	r.length = uint64(binary.BigEndian.Uint32(b[24:]))
	return r, binary.BigEndian.Uint32(b) == magicRequest
}

// parseExtRequest decodes an extended request header. b has at least extRequestSize bytes.
func parseExtRequest(b []byte) (r wireRequest, ok bool) {
	_ = b[extRequestSize-1]
	r.flags = binary.BigEndian.Uint16(b[4:])
	r.cmd = command(binary.BigEndian.Uint16(b[6:]))
	r.cookie = binary.BigEndian.Uint64(b[8:])
	r.offset = binary.BigEndian.Uint64(b[16:])
	r.length = binary.BigEndian.Uint64(b[24:])
	return r, binary.BigEndian.Uint32(b) == magicExtRequest
}

// replyStyle is the form of replies that the handshake agreed on.
type replyStyle uint8

const (
	styleSimple replyStyle = iota
	styleStructured
	styleExtended
)

// appendSimple appends a simple reply header.
func appendSimple(b []byte, cookie uint64, errno uint32) []byte {
	b = binary.BigEndian.AppendUint32(b, magicSimpleReply)
	b = binary.BigEndian.AppendUint32(b, errno)
	return binary.BigEndian.AppendUint64(b, cookie)
}

// appendChunk appends the header of a structured or extended reply chunk whose payload has n bytes.
func appendChunk(b []byte, style replyStyle, flags, typ uint16, cookie, offset uint64, n uint32) []byte {
	if style == styleExtended {
		b = binary.BigEndian.AppendUint32(b, magicExtReply)
		b = binary.BigEndian.AppendUint16(b, flags)
		b = binary.BigEndian.AppendUint16(b, typ)
		b = binary.BigEndian.AppendUint64(b, cookie)
		b = binary.BigEndian.AppendUint64(b, offset)
		return binary.BigEndian.AppendUint64(b, uint64(n))
	}
	b = binary.BigEndian.AppendUint32(b, magicStructuredReply)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, typ)
	b = binary.BigEndian.AppendUint64(b, cookie)
	return binary.BigEndian.AppendUint32(b, n)
}

// dataHeaderSize is the number of bytes before the data of a successful READ.
func (s replyStyle) dataHeaderSize() int {
	switch s {
	case styleSimple:
		return simpleReplySize
	case styleStructured:
		return structuredReplySize + 8
	default:
		return extReplySize + 8
	}
}

// appendDataHeader appends what precedes the n bytes of data of a successful READ.
func appendDataHeader(b []byte, style replyStyle, r *wireRequest, n int) []byte {
	if style == styleSimple {
		return appendSimple(b, r.cookie, 0)
	}
	b = appendChunk(b, style, replyFlagDone, replyTypeOffsetData, r.cookie, r.offset, uint32(n)+8)
	return binary.BigEndian.AppendUint64(b, r.offset)
}

// appendHole appends a whole reply that says that everything the READ asked for is zero.
func appendHole(b []byte, style replyStyle, r *wireRequest) []byte {
	b = appendChunk(b, style, replyFlagDone, replyTypeOffsetHole, r.cookie, r.offset, 12)
	b = binary.BigEndian.AppendUint64(b, r.offset)
	return binary.BigEndian.AppendUint32(b, uint32(r.length))
}

// appendDone appends the reply to a request that succeeded and has no data to return.
func appendDone(b []byte, style replyStyle, r *wireRequest) []byte {
	if style == styleExtended {
		return appendChunk(b, style, replyFlagDone, replyTypeNone, r.cookie, r.offset, 0)
	}
	return appendSimple(b, r.cookie, 0)
}

// appendError appends the reply to a request that failed. The message is for people, and is sent where the reply style has room for it.
func appendError(b []byte, style replyStyle, r *wireRequest, errno uint32, message string) []byte {
	if style == styleSimple {
		return appendSimple(b, r.cookie, errno)
	}
	message = truncateText(message, maxErrorText)
	b = appendChunk(b, style, replyFlagDone, replyTypeError, r.cookie, r.offset, uint32(6+len(message)))
	b = binary.BigEndian.AppendUint32(b, errno)
	b = binary.BigEndian.AppendUint16(b, uint16(len(message)))
	return append(b, message...)
}
