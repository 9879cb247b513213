package wire

// Dialect is a dialect revision. [MS-SMB2] 2.2.3
type Dialect uint16

// The dialects that this project speaks, and the wildcard of multi-protocol negotiation.
const (
	Dialect202      Dialect = 0x0202
	Dialect210      Dialect = 0x0210
	Dialect300      Dialect = 0x0300
	Dialect302      Dialect = 0x0302
	Dialect311      Dialect = 0x0311
	DialectWildcard Dialect = 0x02FF
)

// String returns the usual dotted name.
func (d Dialect) String() string {
	switch d {
	case Dialect202:
		return "2.0.2"
	case Dialect210:
		return "2.1"
	case Dialect300:
		return "3.0"
	case Dialect302:
		return "3.0.2"
	case Dialect311:
		return "3.1.1"
	case DialectWildcard:
		return "2.???"
	}
	return "unknown dialect"
}

// GUID is 16 bytes as they lie on the wire (mixed-endian, [MS-DTYP] 2.3.4.2).
type GUID [16]byte

// FileID identifies an open on a connection. [MS-SMB2] 2.2.14.1
type FileID struct{ Persistent, Volatile uint64 }

// RelatedFileID in a related compound request stands for the file of the request before it.
var RelatedFileID = FileID{^uint64(0), ^uint64(0)}

// SecurityMode bits. [MS-SMB2] 2.2.3
const (
	NegotiateSigningEnabled  uint16 = 0x0001
	NegotiateSigningRequired uint16 = 0x0002
)

// Capabilities of client and server. [MS-SMB2] 2.2.3, 2.2.4
const (
	CapDFS               uint32 = 0x01
	CapLeasing           uint32 = 0x02
	CapLargeMTU          uint32 = 0x04
	CapMultiChannel      uint32 = 0x08
	CapPersistentHandles uint32 = 0x10
	CapDirectoryLeasing  uint32 = 0x20
	CapEncryption        uint32 = 0x40
)

// Negotiate context types. [MS-SMB2] 2.2.3.1
const (
	CtxPreauthIntegrity uint16 = 1
	CtxEncryption       uint16 = 2
	CtxCompression      uint16 = 3
	CtxNetname          uint16 = 5
	CtxTransport        uint16 = 6
	CtxRDMATransform    uint16 = 7
	CtxSigning          uint16 = 8
)

// HashSHA512 is the only pre-authentication hash. [MS-SMB2] 2.2.3.1.1
const HashSHA512 uint16 = 1

// Cipher is an encryption algorithm identifier. [MS-SMB2] 2.2.3.1.2
type Cipher uint16

// The ciphers. Zero means that none was agreed.
const (
	CipherNone      Cipher = 0
	CipherAES128CCM Cipher = 1
	CipherAES128GCM Cipher = 2
	CipherAES256CCM Cipher = 3
	CipherAES256GCM Cipher = 4
)

// String returns the usual name.
func (c Cipher) String() string {
	return [...]string{"none", "AES-128-CCM", "AES-128-GCM", "AES-256-CCM", "AES-256-GCM", "unknown cipher"}[min(int(c), 5)]
}

// SigningAlgorithm is a signing algorithm identifier. [MS-SMB2] 2.2.3.1.7
type SigningAlgorithm uint16

// The signing algorithms: HMAC-SHA256 for 2.x, AES-CMAC for 3.x, AES-GMAC where negotiated.
const (
	SigningHMACSHA256 SigningAlgorithm = 0
	SigningAESCMAC    SigningAlgorithm = 1
	SigningAESGMAC    SigningAlgorithm = 2
)

// String returns the usual name.
func (a SigningAlgorithm) String() string {
	return [...]string{"HMAC-SHA256", "AES-CMAC", "AES-GMAC", "unknown signing"}[min(int(a), 3)]
}

// NegotiateContext is one SMB2_NEGOTIATE_CONTEXT. [MS-SMB2] 2.2.3.1
type NegotiateContext struct {
	Type uint16
	Data []byte
}

// NegotiateRequest is [MS-SMB2] 2.2.3.
type NegotiateRequest struct {
	SecurityMode uint16
	Capabilities uint32
	ClientGUID   GUID
	Dialects     []Dialect
	Contexts     []NegotiateContext // only with Dialect311 among Dialects
}

// NegotiateResponse is [MS-SMB2] 2.2.4. Times are FILETIME (100 ns since 1601).
type NegotiateResponse struct {
	SecurityMode    uint16
	Dialect         Dialect
	ServerGUID      GUID
	Capabilities    uint32
	MaxTransactSize uint32
	MaxReadSize     uint32
	MaxWriteSize    uint32
	SystemTime      uint64
	ServerStartTime uint64
	SecurityBuffer  []byte
	Contexts        []NegotiateContext // 3.1.1
}

// SESSION_SETUP request flag. [MS-SMB2] 2.2.5
const SessionFlagBinding uint8 = 0x01

// SESSION_SETUP reply flags. [MS-SMB2] 2.2.6
const (
	SessionFlagIsGuest     uint16 = 0x0001
	SessionFlagIsNull      uint16 = 0x0002
	SessionFlagEncryptData uint16 = 0x0004
)

// SessionSetupRequest is [MS-SMB2] 2.2.5.
type SessionSetupRequest struct {
	Flags             uint8
	SecurityMode      uint8
	Capabilities      uint32
	Channel           uint32
	PreviousSessionID uint64
	SecurityBuffer    []byte
}

// SessionSetupResponse is [MS-SMB2] 2.2.6.
type SessionSetupResponse struct {
	SessionFlags   uint16
	SecurityBuffer []byte
}

// Empty is the body that LOGOFF, TREE_DISCONNECT, ECHO and CANCEL share. LogoffRequest, LogoffResponse, TreeDisconnectRequest, TreeDisconnectResponse, EchoRequest, EchoResponse and CancelRequest all have
// the same body: StructureSize 4, Reserved 2. [MS-SMB2] 2.2.7, 2.2.8, 2.2.11, 2.2.12, 2.2.28 to 2.2.30
type Empty struct{}

// Share types in a TREE_CONNECT reply. [MS-SMB2] 2.2.10
const (
	ShareTypeDisk  uint8 = 1
	ShareTypePipe  uint8 = 2
	ShareTypePrint uint8 = 3
)

// Share flags and capabilities. [MS-SMB2] 2.2.10
const (
	ShareFlagManualCaching uint32 = 0x00000000
	ShareFlagNoCaching     uint32 = 0x00000030
	ShareFlagEncryptData   uint32 = 0x00008000

	ShareCapDFS                    uint32 = 0x08
	ShareCapContinuousAvailability uint32 = 0x10
	ShareCapScaleout               uint32 = 0x20
	ShareCapCluster                uint32 = 0x40
	ShareCapAsymmetric             uint32 = 0x80
)

// TreeConnectRequest is [MS-SMB2] 2.2.9. Path is \\server\share.
type TreeConnectRequest struct {
	Flags uint16
	Path  string
}

// TreeConnectResponse is [MS-SMB2] 2.2.10.
type TreeConnectResponse struct {
	ShareType     uint8
	ShareFlags    uint32
	Capabilities  uint32
	MaximalAccess uint32
}

// Access mask bits. [MS-SMB2] 2.2.13.1
const (
	AccessReadData        uint32 = 0x00000001 // or list directory
	AccessWriteData       uint32 = 0x00000002 // or add file
	AccessAppendData      uint32 = 0x00000004 // or add subdirectory
	AccessReadEA          uint32 = 0x00000008
	AccessWriteEA         uint32 = 0x00000010
	AccessExecute         uint32 = 0x00000020 // or traverse
	AccessDeleteChild     uint32 = 0x00000040
	AccessReadAttributes  uint32 = 0x00000080
	AccessWriteAttributes uint32 = 0x00000100
	AccessDelete          uint32 = 0x00010000
	AccessReadControl     uint32 = 0x00020000
	AccessWriteDAC        uint32 = 0x00040000
	AccessWriteOwner      uint32 = 0x00080000
	AccessSynchronize     uint32 = 0x00100000
	AccessSystemSecurity  uint32 = 0x01000000
	AccessMaximumAllowed  uint32 = 0x02000000
	AccessGenericAll      uint32 = 0x10000000
	AccessGenericExecute  uint32 = 0x20000000
	AccessGenericWrite    uint32 = 0x40000000
	AccessGenericRead     uint32 = 0x80000000
)

// Share access. [MS-SMB2] 2.2.13
const (
	ShareRead   uint32 = 1
	ShareWrite  uint32 = 2
	ShareDelete uint32 = 4
)

// Create dispositions. [MS-SMB2] 2.2.13
const (
	FileSupersede   uint32 = 0
	FileOpen        uint32 = 1
	FileCreate      uint32 = 2
	FileOpenIf      uint32 = 3
	FileOverwrite   uint32 = 4
	FileOverwriteIf uint32 = 5
)

// Create options. [MS-SMB2] 2.2.13
const (
	OptDirectoryFile           uint32 = 0x00000001
	OptWriteThrough            uint32 = 0x00000002
	OptSequentialOnly          uint32 = 0x00000004
	OptNoIntermediateBuffering uint32 = 0x00000008
	OptSynchronousIOAlert      uint32 = 0x00000010
	OptSynchronousIONonalert   uint32 = 0x00000020
	OptNonDirectoryFile        uint32 = 0x00000040
	OptCompleteIfOplocked      uint32 = 0x00000100
	OptNoEAKnowledge           uint32 = 0x00000200
	OptRandomAccess            uint32 = 0x00000800
	OptDeleteOnClose           uint32 = 0x00001000
	OptOpenByFileID            uint32 = 0x00002000
	OptOpenForBackupIntent     uint32 = 0x00004000
	OptNoCompression           uint32 = 0x00008000
	OptOpenReparsePoint        uint32 = 0x00200000
	OptOpenNoRecall            uint32 = 0x00400000
)

// Create actions of a reply. [MS-SMB2] 2.2.14
const (
	ActionSuperseded  uint32 = 0
	ActionOpened      uint32 = 1
	ActionCreated     uint32 = 2
	ActionOverwritten uint32 = 3
)

// Oplock levels. [MS-SMB2] 2.2.13
const (
	OplockNone      uint8 = 0x00
	OplockII        uint8 = 0x01
	OplockExclusive uint8 = 0x08
	OplockBatch     uint8 = 0x09
	OplockLease     uint8 = 0xFF
)

// Lease states. [MS-SMB2] 2.2.13.2.8
const (
	LeaseRead   uint32 = 0x01
	LeaseHandle uint32 = 0x02
	LeaseWrite  uint32 = 0x04
)

// ImpersonationImpersonation is the level that clients ask for. [MS-SMB2] 2.2.13
const ImpersonationImpersonation uint32 = 2

// Names of create contexts. [MS-SMB2] 2.2.13.2
const (
	CreateEA              = "ExtA"
	CreateSD              = "SecD"
	CreateDurableRequest  = "DHnQ"
	CreateDurableConnect  = "DHnC"
	CreateAllocationSize  = "AlSi"
	CreateMaximalAccess   = "MxAc"
	CreateTimewarp        = "TWrp"
	CreateQueryOnDiskID   = "QFid"
	CreateLease           = "RqLs"
	CreateDurableRequest2 = "DH2Q"
	CreateDurableConnect2 = "DH2C"
	CreateAppInstanceID   = "\x45\xBC\xA6\x6A\xEF\xA7\xF7\x4A\x90\x08\xFA\x46\x2E\x14\x4D\x74"
	CreateAppInstanceVer  = "\xB9\x82\xD0\xB7\x3B\x56\x07\x4F\xA0\x7B\x52\x4A\x81\x16\xA0\x10"
	// CreateSVHDX is SVHDX_OPEN_DEVICE_CONTEXT, versions 1 and 2. [MS-RSVD] 2.2.4.12, 2.2.4.32
	CreateSVHDX = "\x9C\xCB\xCF\x9E\x04\xC1\xE6\x43\x98\x0E\x15\x8D\xA1\xF6\xEC\x83"
)

// CreateContext is one SMB2_CREATE_CONTEXT. [MS-SMB2] 2.2.13.2. Name is its raw bytes.
type CreateContext struct {
	Name string
	Data []byte
}

// CreateRequest is [MS-SMB2] 2.2.13. Name is relative to the share, separated by backslashes, without a leading one.
type CreateRequest struct {
	OplockLevel    uint8
	Impersonation  uint32
	DesiredAccess  uint32
	FileAttributes uint32
	ShareAccess    uint32
	Disposition    uint32
	Options        uint32
	Name           string
	Contexts       []CreateContext
}

// CreateResponse is [MS-SMB2] 2.2.14. Times are FILETIME, sizes bytes.
type CreateResponse struct {
	OplockLevel    uint8
	Flags          uint8
	Action         uint32
	CreationTime   uint64
	LastAccessTime uint64
	LastWriteTime  uint64
	ChangeTime     uint64
	AllocationSize uint64
	EndOfFile      uint64
	FileAttributes uint32
	FileID         FileID
	Contexts       []CreateContext
}

// CloseFlagPostQueryAttrib asks for the attributes in the CLOSE reply. [MS-SMB2] 2.2.15
const CloseFlagPostQueryAttrib uint16 = 1

// CloseRequest is [MS-SMB2] 2.2.15.
type CloseRequest struct {
	Flags  uint16
	FileID FileID
}

// CloseResponse is [MS-SMB2] 2.2.16.
type CloseResponse struct {
	Flags          uint16
	CreationTime   uint64
	LastAccessTime uint64
	LastWriteTime  uint64
	ChangeTime     uint64
	AllocationSize uint64
	EndOfFile      uint64
	FileAttributes uint32
}

// FlushRequest is [MS-SMB2] 2.2.17. The reply is Empty.
type FlushRequest struct{ FileID FileID }

// READ and WRITE flags and channels. [MS-SMB2] 2.2.19, 2.2.21
const (
	ReadFlagUnbuffered    uint8  = 0x01
	WriteFlagWriteThrough uint32 = 0x01
	WriteFlagUnbuffered   uint32 = 0x02

	ChannelNone             uint32 = 0
	ChannelRDMAV1           uint32 = 1
	ChannelRDMAV1Invalidate uint32 = 2
	ChannelRDMATransform    uint32 = 3
)

// ReadRequest is [MS-SMB2] 2.2.19.
type ReadRequest struct {
	Padding        uint8
	Flags          uint8
	Length         uint32
	Offset         uint64
	FileID         FileID
	MinimumCount   uint32
	Channel        uint32
	RemainingBytes uint32
	ChannelInfo    []byte
}

// ReadResponseFixed is the length in bytes of a READ reply's body before its data, and the usual place of the data behind the header.
const ReadResponseFixed = 16

// ReadResponse is [MS-SMB2] 2.2.20 without the data. DataOffset counts from the SMB2 header.
type ReadResponse struct {
	DataOffset    uint8
	DataLength    uint32
	DataRemaining uint32
	Flags         uint32
}

// WriteRequestFixed is the length in bytes of a WRITE request's body before its data.
const WriteRequestFixed = 48

// WriteRequest is [MS-SMB2] 2.2.21 without the data, which follows the fixed part at DataOffset from the header.
type WriteRequest struct {
	DataOffset     uint16
	Length         uint32
	Offset         uint64
	FileID         FileID
	Channel        uint32
	RemainingBytes uint32
	Flags          uint32
	ChannelInfo    []byte
}

// WriteResponse is [MS-SMB2] 2.2.22.
type WriteResponse struct {
	Count     uint32
	Remaining uint32
}

// Lock flags. [MS-SMB2] 2.2.26.1
const (
	LockShared          uint32 = 0x01
	LockExclusive       uint32 = 0x02
	LockUnlock          uint32 = 0x04
	LockFailImmediately uint32 = 0x10
)

// LockElement is [MS-SMB2] 2.2.26.1.
type LockElement struct {
	Offset uint64
	Length uint64
	Flags  uint32
}

// LockRequest is [MS-SMB2] 2.2.26. The reply is Empty.
type LockRequest struct {
	LockSequence uint32 // 4 bits number, 28 bits index
	FileID       FileID
	Locks        []LockElement
}

// Control codes that SMB itself names. [MS-SMB2] 2.2.31, [MS-FSCC] 2.3; those of RSVD are in package tunnel.
const (
	FsctlDFSGetReferrals           uint32 = 0x00060194
	FsctlDFSGetReferralsEx         uint32 = 0x000601B0
	FsctlPipePeek                  uint32 = 0x0011400C
	FsctlPipeWait                  uint32 = 0x00110018
	FsctlPipeTransceive            uint32 = 0x0011C017
	FsctlSrvCopychunk              uint32 = 0x001440F2
	FsctlSrvCopychunkWrite         uint32 = 0x001480F2
	FsctlSrvEnumerateSnapshots     uint32 = 0x00144064
	FsctlSrvRequestResumeKey       uint32 = 0x00140078
	FsctlSrvReadHash               uint32 = 0x001441BB
	FsctlLMRRequestResiliency      uint32 = 0x001401D4
	FsctlQueryNetworkInterfaceInfo uint32 = 0x001401FC
	FsctlSetReparsePoint           uint32 = 0x000900A4
	FsctlGetReparsePoint           uint32 = 0x000900A8
	FsctlCreateOrGetObjectID       uint32 = 0x000900C0
	FsctlSetSparse                 uint32 = 0x000900C4
	FsctlSetZeroData               uint32 = 0x000980C8
	FsctlQueryAllocatedRanges      uint32 = 0x000940CF
	FsctlFileLevelTrim             uint32 = 0x00098208
	FsctlOffloadRead               uint32 = 0x00094264
	FsctlOffloadWrite              uint32 = 0x00098268
	FsctlValidateNegotiateInfo     uint32 = 0x00140204

	IoctlFlagIsFsctl uint32 = 1
)

// IoctlRequestFixed and IoctlResponseFixed are the lengths in bytes of the bodies before their buffers.
const (
	IoctlRequestFixed  = 56
	IoctlResponseFixed = 48
)

// IoctlRequest is [MS-SMB2] 2.2.31. Append writes only the fixed part, with InputCount from InputCount and InputOffset 120;
// the input follows. Parse points Input into the message.
type IoctlRequest struct {
	CtlCode           uint32
	FileID            FileID
	InputCount        uint32
	MaxInputResponse  uint32
	MaxOutputResponse uint32
	Flags             uint32
	Input             []byte // Parse only
}

// IoctlResponse is [MS-SMB2] 2.2.32. Append writes only the fixed part, with OutputOffset 112 and OutputCount from OutputCount
// (no input is echoed); the output follows. Parse points Output into the message.
type IoctlResponse struct {
	CtlCode     uint32
	FileID      FileID
	OutputCount uint32
	Flags       uint32
	Output      []byte // Parse only
}

// QUERY_DIRECTORY flags. [MS-SMB2] 2.2.33
const (
	QueryDirRestart     uint8 = 0x01
	QueryDirSingleEntry uint8 = 0x02
	QueryDirIndex       uint8 = 0x04
	QueryDirReopen      uint8 = 0x10
)

// QueryDirectoryRequest is [MS-SMB2] 2.2.33.
type QueryDirectoryRequest struct {
	InfoClass          uint8
	Flags              uint8
	FileIndex          uint32
	FileID             FileID
	OutputBufferLength uint32
	Pattern            string
}

// OutputResponse is the reply of QUERY_DIRECTORY, CHANGE_NOTIFY and QUERY_INFO. [MS-SMB2] 2.2.34, 2.2.36, 2.2.38
type OutputResponse struct{ Buffer []byte }

// ChangeNotifyRequest is [MS-SMB2] 2.2.35.
type ChangeNotifyRequest struct {
	Flags              uint16
	OutputBufferLength uint32
	FileID             FileID
	CompletionFilter   uint32
}

// Info types of QUERY_INFO and SET_INFO. [MS-SMB2] 2.2.37
const (
	InfoFile       uint8 = 1
	InfoFileSystem uint8 = 2
	InfoSecurity   uint8 = 3
	InfoQuota      uint8 = 4
)

// QueryInfoRequest is [MS-SMB2] 2.2.37.
type QueryInfoRequest struct {
	InfoType              uint8
	FileInfoClass         uint8
	OutputBufferLength    uint32
	AdditionalInformation uint32
	Flags                 uint32
	FileID                FileID
	Input                 []byte
}

// SetInfoRequest is [MS-SMB2] 2.2.39. The reply has StructureSize 2 and nothing else.
type SetInfoRequest struct {
	InfoType              uint8
	FileInfoClass         uint8
	AdditionalInformation uint32
	FileID                FileID
	Buffer                []byte
}

// OplockBreak is notification, acknowledgement and reply alike. [MS-SMB2] 2.2.23.1, 2.2.24.1, 2.2.25.1
type OplockBreak struct {
	OplockLevel uint8
	FileID      FileID
}

// ErrorResponse is [MS-SMB2] 2.2.2.
type ErrorResponse struct {
	ContextCount uint8
	Data         []byte
}
