package client

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
)

var be = binary.BigEndian

// Numbers of the protocol.
const (
	magicInit   = 0x4e42444d41474943 // NBDMAGIC
	magicOption = 0x49484156454F5054 // IHAVEOPT
	magicReply  = 0x3e889045565a9

	flagFixed, flagNoZeroes = 1, 2

	optAbort, optGo, optStructured, optSetMeta = 2, 7, 8, 10

	repAck, repInfo, repMeta = 1, 3, 4
	repError                 = 1 << 31

	infoExport, infoBlockSize = 0, 3

	transReadOnly, transFlush, transFUA, transTrim, transZeroes, transMulti, transFastZero = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 6, 1 << 8, 1 << 11

	magicRequest, magicSimple, magicStructured = 0x25609513, 0x67446698, 0x668e33ef

	cmdRead, cmdWrite, cmdDisconnect, cmdFlush, cmdTrim, cmdZeroes, cmdStatus = 0, 1, 2, 3, 4, 6, 7
	cmdFUA, cmdNoHole                                                         = 1, 2

	chunkDone                                                          = 1
	chunkNone, chunkData, chunkHole, chunkStatus, chunkErr, chunkErrAt = 0, 1, 2, 5, 1<<15 + 1, 1<<15 + 2

	requestSize = 28
	maxString   = 4096
	maxPayload  = 32 << 20
	maxOption   = 64 << 10 // of a reply to an option
)

// ErrProtocol says that the server did not keep to the protocol. The connection is of no use any more.
var ErrProtocol = errors.New("the NBD server broke the protocol")

func broken(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// serverError is an error number of the protocol as a syscall.Errno.
func serverError(n uint32) error {
	switch n {
	case 1:
		return syscall.EPERM
	case 5:
		return syscall.EIO
	case 12:
		return syscall.ENOMEM
	case 22:
		return syscall.EINVAL
	case 28:
		return syscall.ENOSPC
	case 75:
		return syscall.EOVERFLOW
	case 95:
		return syscall.EOPNOTSUPP
	case 108:
		return syscall.ESHUTDOWN
	}
	return syscall.EIO
}
