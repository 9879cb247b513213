package tunnel

import (
	"errors"
	"fmt"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// ErrMalformed is wrapped by every error of a Parse function: the bytes are shorter than the structure, or contradict themselves.
var ErrMalformed = errors.New("malformed RSVD structure")

// Control codes. [MS-RSVD] 2.2.1
const (
	FsctlQuerySharedVirtualDiskSupport uint32 = 0x00090300 // no tunnel header
	FsctlSyncTunnelRequest             uint32 = 0x00090304 // FSCTL_SVHDX_SYNC_TUNNEL_REQUEST
	FsctlAsyncTunnelRequest            uint32 = 0x00090364 // FSCTL_SVHDX_ASYNC_TUNNEL_REQUEST, version 2
	FsctlStorageQoSControl             uint32 = 0x00090350 // [MS-SQOS], not part of RSVD
)

// Suffix is what a client appends to the name of a file that it opens as a shared virtual disk. [MS-RSVD] 3.1.4.2
const Suffix = ":SharedVirtualDisk"

// OpCode is the operation code of a tunnel header. [MS-RSVD] 2.2.2
type OpCode uint32

// Operations of version 1.
const (
	OpGetInitialInfo        OpCode = 0x02001001
	OpSCSI                  OpCode = 0x02001002
	OpCheckConnectionStatus OpCode = 0x02001003
	OpSRBStatus             OpCode = 0x02001004
	OpGetDiskInfo           OpCode = 0x02001005
	OpValidateDisk          OpCode = 0x02001006
)

// Operations of version 2. OpMetaOperationStart goes through FsctlAsyncTunnelRequest, the others through FsctlSyncTunnelRequest.
const (
	OpMetaOperationStart          OpCode = 0x02002101
	OpMetaOperationQueryProgress  OpCode = 0x02002002
	OpVHDSetQueryInformation      OpCode = 0x02002005
	OpDeleteSnapshot              OpCode = 0x02002006
	OpChangeTrackingGetParameters OpCode = 0x02002008
	OpChangeTrackingStart         OpCode = 0x02002009
	OpChangeTrackingStop          OpCode = 0x0200200A
	OpQueryVirtualDiskChanges     OpCode = 0x0200200C
	OpQuerySafeSize               OpCode = 0x0200200D
)

// The parts of an operation code: the top byte is OpPrefix in every code of the protocol, and the class says which version of
// the protocol brought the operation. [MS-RSVD] 2.2.2, 3.2.5.5
const (
	OpPrefixMask OpCode = 0xFF000000
	OpPrefix     OpCode = 0x02000000
	OpClassMask  OpCode = 0x00FFF000
	OpClassV1    OpCode = 0x00001000
	OpClassV2    OpCode = 0x00002000
)

var opNames = map[OpCode]string{
	OpGetInitialInfo:              "GET_INITIAL_INFO",
	OpSCSI:                        "SCSI",
	OpCheckConnectionStatus:       "CHECK_CONNECTION_STATUS",
	OpSRBStatus:                   "SRB_STATUS",
	OpGetDiskInfo:                 "GET_DISK_INFO",
	OpValidateDisk:                "VALIDATE_DISK",
	OpMetaOperationStart:          "META_OPERATION_START",
	OpMetaOperationQueryProgress:  "META_OPERATION_QUERY_PROGRESS",
	OpVHDSetQueryInformation:      "VHDSET_QUERY_INFORMATION",
	OpDeleteSnapshot:              "DELETE_SNAPSHOT",
	OpChangeTrackingGetParameters: "CHANGE_TRACKING_GET_PARAMETERS",
	OpChangeTrackingStart:         "CHANGE_TRACKING_START",
	OpChangeTrackingStop:          "CHANGE_TRACKING_STOP",
	OpQueryVirtualDiskChanges:     "QUERY_VIRTUAL_DISK_CHANGES",
	OpQuerySafeSize:               "QUERY_SAFE_SIZE",
}

// String returns the name without the prefix RSVD_TUNNEL_, or the number.
func (op OpCode) String() string {
	if n, ok := opNames[op]; ok {
		return n
	}
	return fmt.Sprintf("RSVD operation %#08x", uint32(op))
}

// Known says whether the specification names this operation.
func (op OpCode) Known() bool { _, ok := opNames[op]; return ok }

// HeaderSize is the length in bytes of SVHDX_TUNNEL_OPERATION_HEADER. [MS-RSVD] 2.2.4.11
const HeaderSize = 16

// RequestHeader precedes each request in the tunnel; the Status field of a request is zero on the wire. [MS-RSVD] 2.2.4.11
type RequestHeader struct {
	Op        OpCode
	RequestID uint64
}

// ResponseHeader precedes each reply in the tunnel. When Status is not zero nothing that follows has a meaning.
// [MS-RSVD] 2.2.4.11
type ResponseHeader struct {
	Op        OpCode
	Status    ntstatus.Status
	RequestID uint64
}

// Versions of the protocol, as they stand in the open contexts and in GET_INITIAL_INFO. [MS-RSVD] 2.2.4.12
const (
	Version1 uint32 = 1
	Version2 uint32 = 2
)

// Originator flags of an open context. [MS-RSVD] 2.2.4.12
const (
	OriginatorPVHDParser uint32 = 1 // open as a virtual SCSI disk
	OriginatorVHDMP      uint32 = 4 // open the file that holds the disk
)

// Sizes in bytes of the open contexts, and the largest host name in them.
const (
	OpenContextV1Size = 168
	OpenContextV2Size = 192
	MaxHostNameBytes  = 126 // of UTF-16LE: 63 units
)

// OpenContextRequest is SVHDX_OPEN_DEVICE_CONTEXT when Version is 1 and SVHDX_OPEN_DEVICE_CONTEXT_V2 when it is 2.
// [MS-RSVD] 2.2.4.12, 2.2.4.32. In a request of version 2 the five fields of DiskProperties are zero.
type OpenContextRequest struct {
	Version           uint32
	HasInitiatorID    uint8 // 0 or 1
	InitiatorID       wire.GUID
	Flags             uint32
	OriginatorFlags   uint32
	OpenRequestID     uint64
	InitiatorHostName string // at most MaxHostNameBytes as UTF-16
}

// DiskProperties is the tail of an SVHDX_OPEN_DEVICE_CONTEXT_V2_RESPONSE. [MS-RSVD] 2.2.4.33
type DiskProperties struct {
	Initialized          uint32 // non-zero: the sizes are valid; zero: they are zero
	ServerServiceVersion uint32
	SectorSize           uint32 // logical, bytes
	PhysicalSectorSize   uint32 // bytes
	VirtualSize          uint64 // bytes
}

// OpenContextResponse is the server's answer to an OpenContextRequest of the same version: the request's fields again, and, with version 2,
// the properties of the disk. [MS-RSVD] 2.2.4.31, 2.2.4.33
type OpenContextResponse struct {
	OpenContextRequest
	DiskProperties // zero with version 1
}

// Values of SupportResponse.
const (
	SupportV1 uint32 = 1 // shared virtual disks
	SupportV2 uint32 = 7 // and snapshots of every type

	HandleStateNone       uint32 = 0 // nobody has the file open as a shared disk
	HandleStateFileShared uint32 = 1 // somebody else has
	HandleStateShared     uint32 = 3 // this open is one of a shared disk
)

// SupportResponse is SVHDX_SHARED_VIRTUAL_DISK_SUPPORT_RESPONSE, the reply of FsctlQuerySharedVirtualDiskSupport, 8 bytes.
// [MS-RSVD] 2.2.4.16. The request is empty.
type SupportResponse struct {
	Support     uint32
	HandleState uint32
}

// InitialInfoResponse is SVHDX_TUNNEL_INITIAL_INFO_RESPONSE, 24 bytes. [MS-RSVD] 2.2.4.14. The request is only a header.
type InitialInfoResponse struct {
	ServerVersion      uint32 // the server's own, whatever the version of the open context
	SectorSize         uint32 // logical, bytes
	PhysicalSectorSize uint32 // bytes
	VirtualSize        uint64 // bytes
}

// SRBStatusRequest is SVHDX_TUNNEL_SRB_STATUS_REQUEST, 28 bytes. [MS-RSVD] 2.2.4.3
type SRBStatusRequest struct {
	StatusKey uint8 // low byte of the status that an I/O failed with
}

// SRB status values, 7 bits. [MS-RSVD] 2.2.5
const (
	SRBPending          uint8 = 0x00
	SRBSuccess          uint8 = 0x01
	SRBAborted          uint8 = 0x02
	SRBError            uint8 = 0x04
	SRBInvalidRequest   uint8 = 0x06
	SRBNoDevice         uint8 = 0x08
	SRBSelectionTimeout uint8 = 0x0A
	SRBDataOverrun      uint8 = 0x12
)

// MaxSense is RSVD_SCSI_SENSE_BUFFER_SIZE, and MaxCDB RSVD_CDB_GENERIC_LENGTH, in bytes. [MS-RSVD] 2.2.4.7
const (
	MaxSense = 20
	MaxCDB   = 16
)

// SRBStatusResponse is SVHDX_TUNNEL_SRB_STATUS_RESPONSE, 4 bytes and the sense data. [MS-RSVD] 2.2.4.4
type SRBStatusResponse struct {
	StatusKey          uint8
	SenseAutoGenerated bool
	SRBStatus          uint8
	SCSIStatus         uint8
	Sense              []byte // at most MaxSense
}

// DiskInfoRequestSize is the length in bytes of the GET_DISK_INFO request, all of it reserved. [MS-RSVD] 2.2.4.5
const DiskInfoRequestSize = 56

// Values of DiskInfoResponse. [MS-RSVD] 2.2.4.6
const (
	DiskTypeFixed    uint32 = 2
	DiskTypeDynamic  uint32 = 3
	DiskFormatVHDX   uint32 = 3
	DiskFormatVHDSet uint32 = 4
)

// DiskInfoResponse is SVHDX_TUNNEL_DISK_INFO_RESPONSE, 56 bytes. [MS-RSVD] 2.2.4.6
type DiskInfoResponse struct {
	DiskType      uint32
	DiskFormat    uint32
	BlockSize     uint32 // bytes; 0 for fixed disks
	LinkageID     wire.GUID
	IsMounted     bool
	Is4kAligned   bool
	FileSize      uint64 // bytes of the file that holds the disk
	VirtualDiskID wire.GUID
}

// Values of Disposition. [MS-RSVD] 2.2.4.7 has the first two the other way round in its prose; its examples and Windows agree with these.
const (
	DispositionOut  uint8 = 0 // client to device
	DispositionIn   uint8 = 1 // device to client
	DispositionNone uint8 = 2
)

// SRB flags. Servers echo them and attach no meaning. [MS-RSVD] 2.2.4.7 and the values of the Windows SRB
const (
	SRBFlagQueueActionEnable    uint32 = 0x00000002
	SRBFlagDisableDisconnect    uint32 = 0x00000004
	SRBFlagDisableSynchTransfer uint32 = 0x00000008
	SRBFlagDataIn               uint32 = 0x00000040
	SRBFlagDataOut              uint32 = 0x00000080
	SRBFlagNoQueueFreeze        uint32 = 0x00000100
	SRBFlagPortAllocSense       uint32 = 0x00200000
)

// SCSIRequestSize is the length in bytes of a SCSI request before its data, and the value of its Length field. [MS-RSVD] 2.2.4.7
const SCSIRequestSize = 36

// SCSIRequest is SVHDX_TUNNEL_SCSI_REQUEST without the data. [MS-RSVD] 2.2.4.7. Append writes the fixed part; the data follow.
type SCSIRequest struct {
	Length             uint16 // SCSIRequestSize
	CDBLength          uint8
	SenseLength        uint8
	Disposition        uint8
	SRBFlags           uint32
	DataTransferLength uint32
	CDB                [MaxCDB]byte
	Data               []byte // Parse only: what follows the fixed part
}

// SCSIResponseSize is the length in bytes of a SCSI reply before its data, with the sense area of 20 bytes that Windows always
// sends, and the value of its Length field.
const SCSIResponseSize = 36

// SCSIResponse is SVHDX_TUNNEL_SCSI_RESPONSE without the data. [MS-RSVD] 2.2.4.8. Append writes the fixed part with a sense area of
// MaxSense bytes; the data follow.
type SCSIResponse struct {
	Length             uint16
	SenseAutoGenerated bool
	SRBStatus          uint8
	SCSIStatus         uint8
	CDBLength          uint8
	SenseLength        uint8
	Disposition        uint8
	SRBFlags           uint32
	DataTransferLength uint32 // bytes of data that follow
	Sense              [MaxSense]byte
	Data               []byte // Parse only
}

// ValidateDiskRequestSize is the length in bytes of the VALIDATE_DISK request, all of it reserved. [MS-RSVD] 2.2.4.9
const ValidateDiskRequestSize = 56

// ValidateDiskResponse is SVHDX_TUNNEL_VALIDATE_DISK_RESPONSE, 1 byte. [MS-RSVD] 2.2.4.10
type ValidateDiskResponse struct {
	IsValid bool
}
