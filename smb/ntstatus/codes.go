package ntstatus

// The statuses that SMB servers send, with their numbers from [MS-ERREF] 2.3.1.
const (
	Success                          Status = 0x00000000
	Pending                          Status = 0x00000103
	MoreEntries                      Status = 0x00000105
	OplockBreakInProgress            Status = 0x00000108
	NotifyCleanup                    Status = 0x0000010B
	NotifyEnumDir                    Status = 0x0000010C
	BufferOverflow                   Status = 0x80000005
	NoMoreFiles                      Status = 0x80000006
	StoppedOnSymlink                 Status = 0x8000002D
	Unsuccessful                     Status = 0xC0000001
	NotImplemented                   Status = 0xC0000002
	InvalidInfoClass                 Status = 0xC0000003
	InfoLengthMismatch               Status = 0xC0000004
	InvalidHandle                    Status = 0xC0000008
	InvalidParameter                 Status = 0xC000000D
	NoSuchDevice                     Status = 0xC000000E
	NoSuchFile                       Status = 0xC000000F
	InvalidDeviceRequest             Status = 0xC0000010
	EndOfFile                        Status = 0xC0000011
	NoMediaInDevice                  Status = 0xC0000013
	MoreProcessingRequired           Status = 0xC0000016
	NoMemory                         Status = 0xC0000017
	AccessDenied                     Status = 0xC0000022
	BufferTooSmall                   Status = 0xC0000023
	ObjectTypeMismatch               Status = 0xC0000024
	ObjectNameInvalid                Status = 0xC0000033
	ObjectNameNotFound               Status = 0xC0000034
	ObjectNameCollision              Status = 0xC0000035
	ObjectPathInvalid                Status = 0xC0000039
	ObjectPathNotFound               Status = 0xC000003A
	ObjectPathSyntaxBad              Status = 0xC000003B
	DataError                        Status = 0xC000003E
	CRCError                         Status = 0xC000003F
	SharingViolation                 Status = 0xC0000043
	QuotaExceeded                    Status = 0xC0000044
	EAsNotSupported                  Status = 0xC000004F
	EATooLarge                       Status = 0xC0000050
	NonexistentEAEntry               Status = 0xC0000051
	NoEAsOnFile                      Status = 0xC0000052
	FileLockConflict                 Status = 0xC0000054
	LockNotGranted                   Status = 0xC0000055
	DeletePending                    Status = 0xC0000056
	NoLogonServers                   Status = 0xC000005E
	NoSuchLogonSession               Status = 0xC000005F
	PrivilegeNotHeld                 Status = 0xC0000061
	NoSuchUser                       Status = 0xC0000064
	WrongPassword                    Status = 0xC000006A
	LogonFailure                     Status = 0xC000006D
	AccountRestriction               Status = 0xC000006E
	InvalidLogonHours                Status = 0xC000006F
	InvalidWorkstation               Status = 0xC0000070
	PasswordExpired                  Status = 0xC0000071
	AccountDisabled                  Status = 0xC0000072
	InvalidSID                       Status = 0xC0000078
	InvalidSecurityDescr             Status = 0xC0000079
	RangeNotLocked                   Status = 0xC000007E
	DiskFull                         Status = 0xC000007F
	InsufficientResources            Status = 0xC000009A
	DFSExitPathFound                 Status = 0xC000009B
	MediaWriteProtected              Status = 0xC00000A2
	DeviceNotReady                   Status = 0xC00000A3
	BadImpersonationLevel            Status = 0xC00000A5
	InstanceNotAvailable             Status = 0xC00000AB
	PipeNotAvailable                 Status = 0xC00000AC
	InvalidPipeState                 Status = 0xC00000AD
	PipeBusy                         Status = 0xC00000AE
	PipeDisconnected                 Status = 0xC00000B0
	PipeClosing                      Status = 0xC00000B1
	IOTimeout                        Status = 0xC00000B5
	FileForcedClosed                 Status = 0xC00000B6
	FileIsADirectory                 Status = 0xC00000BA
	NotSupported                     Status = 0xC00000BB
	BadNetworkPath                   Status = 0xC00000BE
	NetworkBusy                      Status = 0xC00000BF
	InvalidNetworkResponse           Status = 0xC00000C3
	UnexpectedNetworkError           Status = 0xC00000C4
	NetworkNameDeleted               Status = 0xC00000C9
	NetworkAccessDenied              Status = 0xC00000CA
	BadDeviceType                    Status = 0xC00000CB
	BadNetworkName                   Status = 0xC00000CC
	TooManySessions                  Status = 0xC00000CE
	RequestNotAccepted               Status = 0xC00000D0
	NotSameDevice                    Status = 0xC00000D4
	FileRenamed                      Status = 0xC00000D5
	NoSecurityOnObject               Status = 0xC00000D7
	InvalidOplockProtocol            Status = 0xC00000E3
	InternalError                    Status = 0xC00000E5
	InvalidParameter1                Status = 0xC00000EF
	InvalidParameter2                Status = 0xC00000F0
	InvalidParameter3                Status = 0xC00000F1
	InvalidParameter4                Status = 0xC00000F2
	InvalidParameter5                Status = 0xC00000F3
	InvalidParameter6                Status = 0xC00000F4
	DirectoryNotEmpty                Status = 0xC0000101
	FileCorruptError                 Status = 0xC0000102
	NotADirectory                    Status = 0xC0000103
	NameTooLong                      Status = 0xC0000106
	TooManyOpenedFiles               Status = 0xC000011F
	Cancelled                        Status = 0xC0000120
	CannotDelete                     Status = 0xC0000121
	FileDeleted                      Status = 0xC0000123
	FileClosed                       Status = 0xC0000128
	TimeDifferenceAtDC               Status = 0xC0000133
	InvalidConnection                Status = 0xC0000140
	InvalidAddress                   Status = 0xC0000141
	InvalidLevel                     Status = 0xC0000148
	LogonTypeNotGranted              Status = 0xC000015B
	UnmappableCharacter              Status = 0xC0000162
	DiskOperationFailed              Status = 0xC000016A
	InvalidDeviceState               Status = 0xC0000184
	IODeviceError                    Status = 0xC0000185
	TrustFailure                     Status = 0xC0000190
	AccountExpired                   Status = 0xC0000193
	NologonWorkstationTrustAccount   Status = 0xC0000199
	InvalidLockRange                 Status = 0xC00001A1
	UserSessionDeleted               Status = 0xC0000203
	InvalidBufferSize                Status = 0xC0000206
	ConnectionDisconnected           Status = 0xC000020C
	ConnectionReset                  Status = 0xC000020D
	PasswordMustChange               Status = 0xC0000224
	NotFound                         Status = 0xC0000225
	DuplicateObjectID                Status = 0xC000022A
	Retry                            Status = 0xC000022D
	AccountLockedOut                 Status = 0xC0000234
	ConnectionRefused                Status = 0xC0000236
	NetworkUnreachable               Status = 0xC000023C
	HostUnreachable                  Status = 0xC000023D
	RequestAborted                   Status = 0xC0000240
	PathNotCovered                   Status = 0xC0000257
	NotAReparsePoint                 Status = 0xC0000275
	ObjectIDNotFound                 Status = 0xC00002F0
	NetworkSessionExpired            Status = 0xC000035C
	RequestOutOfSequence             Status = 0xC000042A
	DowngradeDetected                Status = 0xC0000388
	InvalidToken                     Status = 0xC0000465
	ServerUnavailable                Status = 0xC0000466
	FileNotAvailable                 Status = 0xC0000467
	ContextMismatch                  Status = 0xC0000719
	InvalidSignature                 Status = 0xC000A000
	HashNotSupported                 Status = 0xC000A100
	OffloadReadFileNotSupported      Status = 0xC000A2A3
	OffloadWriteFileNotSupported     Status = 0xC000A2A4
	SMBNoPreauthIntegrityHashOverlap Status = 0xC05D0000
)

// The statuses of shared virtual disks. [MS-RSVD] 2.2.3
const (
	SVHDXErrorStored                             Status = 0xC05C0000
	SVHDXErrorNotAvailable                       Status = 0xC05CFF00
	SVHDXUnitAttentionAvailable                  Status = 0xC05CFF01
	SVHDXUnitAttentionCapacityDataChanged        Status = 0xC05CFF02
	SVHDXUnitAttentionReservationsPreempted      Status = 0xC05CFF03
	SVHDXUnitAttentionReservationsReleased       Status = 0xC05CFF04
	SVHDXUnitAttentionRegistrationsPreempted     Status = 0xC05CFF05
	SVHDXUnitAttentionOperatingDefinitionChanged Status = 0xC05CFF06
	SVHDXReservationConflict                     Status = 0xC05CFF07
	SVHDXWrongFileType                           Status = 0xC05CFF08
	SVHDXVersionMismatch                         Status = 0xC05CFF09
	VHDShared                                    Status = 0xC05CFF0A
	SVHDXNoInitiator                             Status = 0xC05CFF0B
	VHDSetBackingStorageNotFound                 Status = 0xC05CFF0C
)

var names = map[Status]string{
	Success:                                  "STATUS_SUCCESS",
	Pending:                                  "STATUS_PENDING",
	MoreEntries:                              "STATUS_MORE_ENTRIES",
	OplockBreakInProgress:                    "STATUS_OPLOCK_BREAK_IN_PROGRESS",
	NotifyCleanup:                            "STATUS_NOTIFY_CLEANUP",
	NotifyEnumDir:                            "STATUS_NOTIFY_ENUM_DIR",
	BufferOverflow:                           "STATUS_BUFFER_OVERFLOW",
	NoMoreFiles:                              "STATUS_NO_MORE_FILES",
	StoppedOnSymlink:                         "STATUS_STOPPED_ON_SYMLINK",
	Unsuccessful:                             "STATUS_UNSUCCESSFUL",
	NotImplemented:                           "STATUS_NOT_IMPLEMENTED",
	InvalidInfoClass:                         "STATUS_INVALID_INFO_CLASS",
	InfoLengthMismatch:                       "STATUS_INFO_LENGTH_MISMATCH",
	InvalidHandle:                            "STATUS_INVALID_HANDLE",
	InvalidParameter:                         "STATUS_INVALID_PARAMETER",
	NoSuchDevice:                             "STATUS_NO_SUCH_DEVICE",
	NoSuchFile:                               "STATUS_NO_SUCH_FILE",
	InvalidDeviceRequest:                     "STATUS_INVALID_DEVICE_REQUEST",
	EndOfFile:                                "STATUS_END_OF_FILE",
	NoMediaInDevice:                          "STATUS_NO_MEDIA_IN_DEVICE",
	MoreProcessingRequired:                   "STATUS_MORE_PROCESSING_REQUIRED",
	NoMemory:                                 "STATUS_NO_MEMORY",
	AccessDenied:                             "STATUS_ACCESS_DENIED",
	BufferTooSmall:                           "STATUS_BUFFER_TOO_SMALL",
	ObjectTypeMismatch:                       "STATUS_OBJECT_TYPE_MISMATCH",
	ObjectNameInvalid:                        "STATUS_OBJECT_NAME_INVALID",
	ObjectNameNotFound:                       "STATUS_OBJECT_NAME_NOT_FOUND",
	ObjectNameCollision:                      "STATUS_OBJECT_NAME_COLLISION",
	ObjectPathInvalid:                        "STATUS_OBJECT_PATH_INVALID",
	ObjectPathNotFound:                       "STATUS_OBJECT_PATH_NOT_FOUND",
	ObjectPathSyntaxBad:                      "STATUS_OBJECT_PATH_SYNTAX_BAD",
	DataError:                                "STATUS_DATA_ERROR",
	CRCError:                                 "STATUS_CRC_ERROR",
	SharingViolation:                         "STATUS_SHARING_VIOLATION",
	QuotaExceeded:                            "STATUS_QUOTA_EXCEEDED",
	EAsNotSupported:                          "STATUS_EAS_NOT_SUPPORTED",
	EATooLarge:                               "STATUS_EA_TOO_LARGE",
	NonexistentEAEntry:                       "STATUS_NONEXISTENT_EA_ENTRY",
	NoEAsOnFile:                              "STATUS_NO_EAS_ON_FILE",
	FileLockConflict:                         "STATUS_FILE_LOCK_CONFLICT",
	LockNotGranted:                           "STATUS_LOCK_NOT_GRANTED",
	DeletePending:                            "STATUS_DELETE_PENDING",
	NoLogonServers:                           "STATUS_NO_LOGON_SERVERS",
	NoSuchLogonSession:                       "STATUS_NO_SUCH_LOGON_SESSION",
	PrivilegeNotHeld:                         "STATUS_PRIVILEGE_NOT_HELD",
	NoSuchUser:                               "STATUS_NO_SUCH_USER",
	WrongPassword:                            "STATUS_WRONG_PASSWORD",
	LogonFailure:                             "STATUS_LOGON_FAILURE",
	AccountRestriction:                       "STATUS_ACCOUNT_RESTRICTION",
	InvalidLogonHours:                        "STATUS_INVALID_LOGON_HOURS",
	InvalidWorkstation:                       "STATUS_INVALID_WORKSTATION",
	PasswordExpired:                          "STATUS_PASSWORD_EXPIRED",
	AccountDisabled:                          "STATUS_ACCOUNT_DISABLED",
	InvalidSID:                               "STATUS_INVALID_SID",
	InvalidSecurityDescr:                     "STATUS_INVALID_SECURITY_DESCR",
	RangeNotLocked:                           "STATUS_RANGE_NOT_LOCKED",
	DiskFull:                                 "STATUS_DISK_FULL",
	InsufficientResources:                    "STATUS_INSUFFICIENT_RESOURCES",
	DFSExitPathFound:                         "STATUS_DFS_EXIT_PATH_FOUND",
	MediaWriteProtected:                      "STATUS_MEDIA_WRITE_PROTECTED",
	DeviceNotReady:                           "STATUS_DEVICE_NOT_READY",
	BadImpersonationLevel:                    "STATUS_BAD_IMPERSONATION_LEVEL",
	InstanceNotAvailable:                     "STATUS_INSTANCE_NOT_AVAILABLE",
	PipeNotAvailable:                         "STATUS_PIPE_NOT_AVAILABLE",
	InvalidPipeState:                         "STATUS_INVALID_PIPE_STATE",
	PipeBusy:                                 "STATUS_PIPE_BUSY",
	PipeDisconnected:                         "STATUS_PIPE_DISCONNECTED",
	PipeClosing:                              "STATUS_PIPE_CLOSING",
	IOTimeout:                                "STATUS_IO_TIMEOUT",
	FileForcedClosed:                         "STATUS_FILE_FORCED_CLOSED",
	FileIsADirectory:                         "STATUS_FILE_IS_A_DIRECTORY",
	NotSupported:                             "STATUS_NOT_SUPPORTED",
	BadNetworkPath:                           "STATUS_BAD_NETWORK_PATH",
	NetworkBusy:                              "STATUS_NETWORK_BUSY",
	InvalidNetworkResponse:                   "STATUS_INVALID_NETWORK_RESPONSE",
	UnexpectedNetworkError:                   "STATUS_UNEXPECTED_NETWORK_ERROR",
	NetworkNameDeleted:                       "STATUS_NETWORK_NAME_DELETED",
	NetworkAccessDenied:                      "STATUS_NETWORK_ACCESS_DENIED",
	BadDeviceType:                            "STATUS_BAD_DEVICE_TYPE",
	BadNetworkName:                           "STATUS_BAD_NETWORK_NAME",
	TooManySessions:                          "STATUS_TOO_MANY_SESSIONS",
	RequestNotAccepted:                       "STATUS_REQUEST_NOT_ACCEPTED",
	NotSameDevice:                            "STATUS_NOT_SAME_DEVICE",
	FileRenamed:                              "STATUS_FILE_RENAMED",
	NoSecurityOnObject:                       "STATUS_NO_SECURITY_ON_OBJECT",
	InvalidOplockProtocol:                    "STATUS_INVALID_OPLOCK_PROTOCOL",
	InternalError:                            "STATUS_INTERNAL_ERROR",
	InvalidParameter1:                        "STATUS_INVALID_PARAMETER_1",
	InvalidParameter2:                        "STATUS_INVALID_PARAMETER_2",
	InvalidParameter3:                        "STATUS_INVALID_PARAMETER_3",
	InvalidParameter4:                        "STATUS_INVALID_PARAMETER_4",
	InvalidParameter5:                        "STATUS_INVALID_PARAMETER_5",
	InvalidParameter6:                        "STATUS_INVALID_PARAMETER_6",
	DirectoryNotEmpty:                        "STATUS_DIRECTORY_NOT_EMPTY",
	FileCorruptError:                         "STATUS_FILE_CORRUPT_ERROR",
	NotADirectory:                            "STATUS_NOT_A_DIRECTORY",
	NameTooLong:                              "STATUS_NAME_TOO_LONG",
	TooManyOpenedFiles:                       "STATUS_TOO_MANY_OPENED_FILES",
	Cancelled:                                "STATUS_CANCELLED",
	CannotDelete:                             "STATUS_CANNOT_DELETE",
	FileDeleted:                              "STATUS_FILE_DELETED",
	FileClosed:                               "STATUS_FILE_CLOSED",
	TimeDifferenceAtDC:                       "STATUS_TIME_DIFFERENCE_AT_DC",
	InvalidConnection:                        "STATUS_INVALID_CONNECTION",
	InvalidAddress:                           "STATUS_INVALID_ADDRESS",
	InvalidLevel:                             "STATUS_INVALID_LEVEL",
	LogonTypeNotGranted:                      "STATUS_LOGON_TYPE_NOT_GRANTED",
	UnmappableCharacter:                      "STATUS_UNMAPPABLE_CHARACTER",
	DiskOperationFailed:                      "STATUS_DISK_OPERATION_FAILED",
	InvalidDeviceState:                       "STATUS_INVALID_DEVICE_STATE",
	IODeviceError:                            "STATUS_IO_DEVICE_ERROR",
	TrustFailure:                             "STATUS_TRUST_FAILURE",
	AccountExpired:                           "STATUS_ACCOUNT_EXPIRED",
	NologonWorkstationTrustAccount:           "STATUS_NOLOGON_WORKSTATION_TRUST_ACCOUNT",
	InvalidLockRange:                         "STATUS_INVALID_LOCK_RANGE",
	UserSessionDeleted:                       "STATUS_USER_SESSION_DELETED",
	InvalidBufferSize:                        "STATUS_INVALID_BUFFER_SIZE",
	ConnectionDisconnected:                   "STATUS_CONNECTION_DISCONNECTED",
	ConnectionReset:                          "STATUS_CONNECTION_RESET",
	PasswordMustChange:                       "STATUS_PASSWORD_MUST_CHANGE",
	NotFound:                                 "STATUS_NOT_FOUND",
	DuplicateObjectID:                        "STATUS_DUPLICATE_OBJECTID",
	Retry:                                    "STATUS_RETRY",
	AccountLockedOut:                         "STATUS_ACCOUNT_LOCKED_OUT",
	ConnectionRefused:                        "STATUS_CONNECTION_REFUSED",
	NetworkUnreachable:                       "STATUS_NETWORK_UNREACHABLE",
	HostUnreachable:                          "STATUS_HOST_UNREACHABLE",
	RequestAborted:                           "STATUS_REQUEST_ABORTED",
	PathNotCovered:                           "STATUS_PATH_NOT_COVERED",
	NotAReparsePoint:                         "STATUS_NOT_A_REPARSE_POINT",
	ObjectIDNotFound:                         "STATUS_OBJECTID_NOT_FOUND",
	NetworkSessionExpired:                    "STATUS_NETWORK_SESSION_EXPIRED",
	RequestOutOfSequence:                     "STATUS_REQUEST_OUT_OF_SEQUENCE",
	DowngradeDetected:                        "STATUS_DOWNGRADE_DETECTED",
	InvalidToken:                             "STATUS_INVALID_TOKEN",
	ServerUnavailable:                        "STATUS_SERVER_UNAVAILABLE",
	FileNotAvailable:                         "STATUS_FILE_NOT_AVAILABLE",
	ContextMismatch:                          "STATUS_CONTEXT_MISMATCH",
	InvalidSignature:                         "STATUS_INVALID_SIGNATURE",
	HashNotSupported:                         "STATUS_HASH_NOT_SUPPORTED",
	OffloadReadFileNotSupported:              "STATUS_OFFLOAD_READ_FILE_NOT_SUPPORTED",
	OffloadWriteFileNotSupported:             "STATUS_OFFLOAD_WRITE_FILE_NOT_SUPPORTED",
	SMBNoPreauthIntegrityHashOverlap:         "STATUS_SMB_NO_PREAUTH_INTEGRITY_HASH_OVERLAP",
	SVHDXErrorStored:                         "STATUS_SVHDX_ERROR_STORED",
	SVHDXErrorNotAvailable:                   "STATUS_SVHDX_ERROR_NOT_AVAILABLE",
	SVHDXUnitAttentionAvailable:              "STATUS_SVHDX_UNIT_ATTENTION_AVAILABLE",
	SVHDXUnitAttentionCapacityDataChanged:    "STATUS_SVHDX_UNIT_ATTENTION_CAPACITY_DATA_CHANGED",
	SVHDXUnitAttentionReservationsPreempted:  "STATUS_SVHDX_UNIT_ATTENTION_RESERVATIONS_PREEMPTED",
	SVHDXUnitAttentionReservationsReleased:   "STATUS_SVHDX_UNIT_ATTENTION_RESERVATIONS_RELEASED",
	SVHDXUnitAttentionRegistrationsPreempted: "STATUS_SVHDX_UNIT_ATTENTION_REGISTRATIONS_PREEMPTED",
	SVHDXUnitAttentionOperatingDefinitionChanged: "STATUS_SVHDX_UNIT_ATTENTION_OPERATING_DEFINITION_CHANGED",
	SVHDXReservationConflict:                     "STATUS_SVHDX_RESERVATION_CONFLICT",
	SVHDXWrongFileType:                           "STATUS_SVHDX_WRONG_FILE_TYPE",
	SVHDXVersionMismatch:                         "STATUS_SVHDX_VERSION_MISMATCH",
	VHDShared:                                    "STATUS_VHD_SHARED",
	SVHDXNoInitiator:                             "STATUS_SVHDX_NO_INITIATOR",
	VHDSetBackingStorageNotFound:                 "STATUS_VHDSET_BACKING_STORAGE_NOT_FOUND",
}
