package fscc

// Info classes of files and directories. [MS-FSCC] 2.4
const (
	FileDirectoryInformation       uint8 = 1
	FileFullDirectoryInformation   uint8 = 2
	FileBothDirectoryInformation   uint8 = 3
	FileBasicInformation           uint8 = 4
	FileStandardInformation        uint8 = 5
	FileInternalInformation        uint8 = 6
	FileEaInformation              uint8 = 7
	FileAccessInformation          uint8 = 8
	FileRenameInformation          uint8 = 10
	FileLinkInformation            uint8 = 11
	FileNamesInformation           uint8 = 12
	FileDispositionInformation     uint8 = 13
	FilePositionInformation        uint8 = 14
	FileFullEaInformation          uint8 = 15
	FileModeInformation            uint8 = 16
	FileAlignmentInformation       uint8 = 17
	FileAllInformation             uint8 = 18
	FileAllocationInformation      uint8 = 19
	FileEndOfFileInformation       uint8 = 20
	FileAlternateNameInformation   uint8 = 21
	FileStreamInformation          uint8 = 22
	FileCompressionInformation     uint8 = 28
	FileNetworkOpenInformation     uint8 = 34
	FileAttributeTagInformation    uint8 = 35
	FileIdBothDirectoryInformation uint8 = 37
	FileIdFullDirectoryInformation uint8 = 38
	FileValidDataLengthInformation uint8 = 39
	FileNormalizedNameInformation  uint8 = 48
)

// Info classes of file systems. [MS-FSCC] 2.5
const (
	FileFsVolumeInformation     uint8 = 1
	FileFsSizeInformation       uint8 = 3
	FileFsDeviceInformation     uint8 = 4
	FileFsAttributeInformation  uint8 = 5
	FileFsFullSizeInformation   uint8 = 7
	FileFsObjectIdInformation   uint8 = 8
	FileFsSectorSizeInformation uint8 = 11
)

// File attributes. [MS-FSCC] 2.6
const (
	AttrReadonly     uint32 = 0x0001
	AttrHidden       uint32 = 0x0002
	AttrSystem       uint32 = 0x0004
	AttrDirectory    uint32 = 0x0010
	AttrArchive      uint32 = 0x0020
	AttrNormal       uint32 = 0x0080
	AttrTemporary    uint32 = 0x0100
	AttrSparse       uint32 = 0x0200
	AttrReparsePoint uint32 = 0x0400
	AttrCompressed   uint32 = 0x0800
	AttrOffline      uint32 = 0x1000
	AttrNotIndexed   uint32 = 0x2000
	AttrEncrypted    uint32 = 0x4000
)

// BasicInfo is FILE_BASIC_INFORMATION. Times are FILETIME; in SET_INFO zero leaves a value as it is. [MS-FSCC] 2.4.7
type BasicInfo struct {
	CreationTime   uint64
	LastAccessTime uint64
	LastWriteTime  uint64
	ChangeTime     uint64
	Attributes     uint32
}

// StandardInfo is FILE_STANDARD_INFORMATION. Sizes are bytes. [MS-FSCC] 2.4.47
type StandardInfo struct {
	AllocationSize int64
	EndOfFile      int64
	Links          uint32
	DeletePending  bool
	Directory      bool
}

// NetworkOpenInfo is FILE_NETWORK_OPEN_INFORMATION. [MS-FSCC] 2.4.34
type NetworkOpenInfo struct {
	CreationTime   uint64
	LastAccessTime uint64
	LastWriteTime  uint64
	ChangeTime     uint64
	AllocationSize int64
	EndOfFile      int64
	Attributes     uint32
}

// AllInfo is FILE_ALL_INFORMATION. [MS-FSCC] 2.4.2
type AllInfo struct {
	Basic       BasicInfo
	Standard    StandardInfo
	FileID      uint64
	EASize      uint32
	AccessFlags uint32
	Position    int64
	Mode        uint32
	Alignment   uint32
	Name        string
}

// DirEntry is FILE_ID_BOTH_DIR_INFORMATION, and what other directory classes have of it. [MS-FSCC] 2.4.22
type DirEntry struct {
	FileIndex      uint32
	CreationTime   uint64
	LastAccessTime uint64
	LastWriteTime  uint64
	ChangeTime     uint64
	EndOfFile      int64
	AllocationSize int64
	Attributes     uint32
	EASize         uint32 // the reparse tag when Attributes has AttrReparsePoint
	ShortName      string
	FileID         uint64
	Name           string
}

// RenameInfo is FILE_RENAME_INFORMATION_TYPE_2, and FILE_LINK_INFORMATION_TYPE_2. Name is relative to the share. [MS-FSCC] 2.4.42.2, 2.4.28.2
type RenameInfo struct {
	ReplaceIfExists bool
	RootDirectory   uint64
	Name            string
}

// Range is a range of bytes of a file, in FSCTL_QUERY_ALLOCATED_RANGES and FSCTL_FILE_LEVEL_TRIM. [MS-FSCC] 2.3.51, 2.3.13.1
type Range struct{ Offset, Length int64 }

// ZeroData is FILE_ZERO_DATA_INFORMATION. [MS-FSCC] 2.3.85
type ZeroData struct{ FileOffset, BeyondFinalZero int64 }

// FSVolumeInfo is FILE_FS_VOLUME_INFORMATION. [MS-FSCC] 2.5.9
type FSVolumeInfo struct {
	CreationTime    uint64
	SerialNumber    uint32
	SupportsObjects bool
	Label           string
}

// FSSizeInfo is FILE_FS_SIZE_INFORMATION. [MS-FSCC] 2.5.8
type FSSizeInfo struct {
	TotalUnits     int64
	AvailableUnits int64
	SectorsPerUnit uint32
	BytesPerSector uint32
}

// FSFullSizeInfo is FILE_FS_FULL_SIZE_INFORMATION. [MS-FSCC] 2.5.4
type FSFullSizeInfo struct {
	TotalUnits           int64
	CallerAvailableUnits int64
	ActualAvailableUnits int64
	SectorsPerUnit       uint32
	BytesPerSector       uint32
}

// FSAttributeInfo is FILE_FS_ATTRIBUTE_INFORMATION. [MS-FSCC] 2.5.1
type FSAttributeInfo struct {
	Attributes    uint32
	MaxNameLength uint32
	Name          string
}

// FSSectorSizeInfo is FILE_FS_SECTOR_SIZE_INFORMATION. [MS-FSCC] 2.5.7
type FSSectorSizeInfo struct {
	Logical                uint32
	PhysicalForAtomicity   uint32
	PhysicalForPerformance uint32
	EffectiveForAtomicity  uint32
	Flags                  uint32
	SectorAlignment        uint32
	PartitionAlignment     uint32
}

// Flags of FSSectorSizeInfo. [MS-FSCC] 2.5.7
const (
	SectorAlignedDevice    uint32 = 1
	SectorPartitionAligned uint32 = 2
	SectorNoSeekPenalty    uint32 = 4
	SectorTrimEnabled      uint32 = 8
)

// File system attributes that matter here. [MS-FSCC] 2.5.1
const (
	FSCaseSensitive   uint32 = 0x00000001
	FSCasePreserved   uint32 = 0x00000002
	FSUnicode         uint32 = 0x00000004
	FSPersistentACLs  uint32 = 0x00000008
	FSSparseFiles     uint32 = 0x00000040
	FSReparsePoints   uint32 = 0x00000080
	FSReadOnlyVolume  uint32 = 0x00080000
	FSNamedStreams    uint32 = 0x00040000
	FSExtendedAttrs   uint32 = 0x00800000
	FSBlockRefcounted uint32 = 0x08000000
)
