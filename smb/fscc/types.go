package fscc

import "time"

// File information classes. [MS-FSCC] 2.4
const (
	FileDirectoryInformation       uint8 = 1
	FileFullDirectoryInformation   uint8 = 2
	FileBothDirectoryInformation   uint8 = 3
	FileBasicInformation           uint8 = 4
	FileStandardInformation        uint8 = 5
	FileInternalInformation        uint8 = 6
	FileEaInformation              uint8 = 7
	FileAccessInformation          uint8 = 8
	FileNameInformation            uint8 = 9
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
	FilePipeInformation            uint8 = 23
	FileCompressionInformation     uint8 = 28
	FileNetworkOpenInformation     uint8 = 34
	FileAttributeTagInformation    uint8 = 35
	FileIDBothDirectoryInformation uint8 = 37
	FileIDFullDirectoryInformation uint8 = 38
	FileValidDataLengthInformation uint8 = 39
	FileNormalizedNameInformation  uint8 = 48
	FileIDInformation              uint8 = 59
	FileDispositionInformationEx   uint8 = 64
	FileRenameInformationEx        uint8 = 65
)

// File system information classes. [MS-FSCC] 2.5
const (
	FileFsVolumeInformation     uint8 = 1
	FileFsLabelInformation      uint8 = 2
	FileFsSizeInformation       uint8 = 3
	FileFsDeviceInformation     uint8 = 4
	FileFsAttributeInformation  uint8 = 5
	FileFsControlInformation    uint8 = 6
	FileFsFullSizeInformation   uint8 = 7
	FileFsObjectIDInformation   uint8 = 8
	FileFsSectorSizeInformation uint8 = 11
)

// File attributes. [MS-FSCC] 2.6
const (
	AttrReadonly     uint32 = 0x00000001
	AttrHidden       uint32 = 0x00000002
	AttrSystem       uint32 = 0x00000004
	AttrDirectory    uint32 = 0x00000010
	AttrArchive      uint32 = 0x00000020
	AttrNormal       uint32 = 0x00000080
	AttrTemporary    uint32 = 0x00000100
	AttrSparse       uint32 = 0x00000200
	AttrReparsePoint uint32 = 0x00000400
	AttrCompressed   uint32 = 0x00000800
	AttrOffline      uint32 = 0x00001000
	AttrNotIndexed   uint32 = 0x00002000
	AttrEncrypted    uint32 = 0x00004000
)

// File system attributes. [MS-FSCC] 2.5.1
const (
	FSCaseSensitiveSearch    uint32 = 0x00000001
	FSCasePreservedNames     uint32 = 0x00000002
	FSUnicodeOnDisk          uint32 = 0x00000004
	FSPersistentACLs         uint32 = 0x00000008
	FSSupportsSparseFiles    uint32 = 0x00000040
	FSSupportsReparsePoints  uint32 = 0x00000080
	FSSupportsObjectIDs      uint32 = 0x00010000
	FSReadOnlyVolume         uint32 = 0x00080000
	FSSupportsHardLinks      uint32 = 0x00400000
	FSSupportsOpenByFileID   uint32 = 0x01000000
	FSSupportsBlockRefcounts uint32 = 0x08000000
)

// Actions of a change notification. [MS-FSCC] 2.7.1
const (
	ActionAdded          uint32 = 1
	ActionRemoved        uint32 = 2
	ActionModified       uint32 = 3
	ActionRenamedOldName uint32 = 4
	ActionRenamedNewName uint32 = 5
)

// Completion filters of CHANGE_NOTIFY. [MS-SMB2] 2.2.35
const (
	NotifyFileName   uint32 = 0x001
	NotifyDirName    uint32 = 0x002
	NotifyAttributes uint32 = 0x004
	NotifySize       uint32 = 0x008
	NotifyLastWrite  uint32 = 0x010
	NotifyLastAccess uint32 = 0x020
	NotifyCreation   uint32 = 0x040
	NotifyEA         uint32 = 0x080
	NotifySecurity   uint32 = 0x100
)

// Disposition flags of FileDispositionInformationEx. [MS-FSCC] 2.4.12
const (
	DispositionDelete                  uint32 = 0x01
	DispositionPosixSemantics          uint32 = 0x02
	DispositionForceImageSectionCheck  uint32 = 0x04
	DispositionOnClose                 uint32 = 0x08
	DispositionIgnoreReadonlyAttribute uint32 = 0x10
)

// Rename flags of FileRenameInformationEx. [MS-FSCC] 2.4.43
const (
	RenameReplaceIfExists         uint32 = 0x01
	RenamePosixSemantics          uint32 = 0x02
	RenameIgnoreReadonlyAttribute uint32 = 0x40
)

// Time is a FILETIME: 100 ns steps since 1601-01-01 UTC. In SET_INFO 0 and all ones mean "leave as it is", all ones less one
// "take up updating again". [MS-FSCC] 2.1.1
type Time uint64

// Special values of Time when set. [MS-FSCC] 2.4.7
const (
	TimeUnchanged Time = 0
	TimeFreeze    Time = 0xFFFFFFFFFFFFFFFF
	TimeThaw      Time = 0xFFFFFFFFFFFFFFFE
)

const epochDifference = 116444736000000000 // 1601 to 1970 in 100 ns

// TimeOf converts a time. Times before 1601 become 0.
func TimeOf(t time.Time) Time { return TimeOfUnix(t.Unix(), int64(t.Nanosecond())) }

// TimeOfUnix converts seconds and nanoseconds since 1970.
func TimeOfUnix(sec, nsec int64) Time {
	v := sec*10_000_000 + nsec/100 + epochDifference
	if v < 0 || sec > (1<<63-1-epochDifference)/10_000_000-1 || sec < -epochDifference/10_000_000 {
		return 0
	}
	return Time(v)
}

// Unix returns seconds and nanoseconds since 1970.
func (t Time) Unix() (sec, nsec int64) {
	v := int64(t) - epochDifference
	sec, nsec = v/10_000_000, v%10_000_000*100
	if nsec < 0 {
		sec--
		nsec += 1_000_000_000
	}
	return sec, nsec
}

// Time converts to a time.Time in UTC.
func (t Time) Time() time.Time {
	s, n := t.Unix()
	return time.Unix(s, n).UTC()
}

// BasicInfo is FileBasicInformation. [MS-FSCC] 2.4.7
type BasicInfo struct {
	Creation, LastAccess, LastWrite, Change Time
	Attributes                              uint32
}

// StandardInfo is FileStandardInformation. [MS-FSCC] 2.4.47
type StandardInfo struct {
	AllocationSize uint64
	EndOfFile      uint64
	Links          uint32
	DeletePending  bool
	Directory      bool
}

// NetworkOpenInfo is FileNetworkOpenInformation. [MS-FSCC] 2.4.33
type NetworkOpenInfo struct {
	Creation, LastAccess, LastWrite, Change Time
	AllocationSize, EndOfFile               uint64
	Attributes                              uint32
}

// AllInfo is FileAllInformation. [MS-FSCC] 2.4.2
type AllInfo struct {
	Basic       BasicInfo
	Standard    StandardInfo
	IndexNumber uint64
	EASize      uint32
	AccessFlags uint32
	Position    uint64
	Mode        uint32
	Alignment   uint32
	Name        string
}

// StreamInfo is one entry of FileStreamInformation. [MS-FSCC] 2.4.49
type StreamInfo struct {
	Size, AllocationSize uint64
	Name                 string // "::$DATA" for the contents
}

// DirEntry is one entry of a directory, whatever class it is sent in. [MS-FSCC] 2.4.8, 2.4.10, 2.4.14, 2.4.17, 2.4.18, 2.4.33
type DirEntry struct {
	FileIndex                               uint32
	Creation, LastAccess, LastWrite, Change Time
	EndOfFile, AllocationSize               uint64
	Attributes                              uint32
	EASize                                  uint32
	ShortName                               string // at most 12 characters
	FileID                                  uint64
	Name                                    string
}

// NotifyEntry is one FILE_NOTIFY_INFORMATION. [MS-FSCC] 2.7.1
type NotifyEntry struct {
	Action uint32
	Name   string
}

// RenameInfo is FileRenameInformation, FileRenameInformationEx or FileLinkInformation as SMB2 sends them. [MS-FSCC] 2.4.42.2, 2.4.43, 2.4.27.2
type RenameInfo struct {
	Replace       bool   // the only flag of the classes without Ex
	Flags         uint32 // FileRenameInformationEx: Rename…
	RootDirectory uint64
	Name          string
}

// FsVolumeInfo is FileFsVolumeInformation. [MS-FSCC] 2.5.9
type FsVolumeInfo struct {
	Creation        Time
	SerialNumber    uint32
	SupportsObjects bool
	Label           string
}

// FsSizeInfo is FileFsSizeInformation; in units of SectorsPerUnit × BytesPerSector. [MS-FSCC] 2.5.8
type FsSizeInfo struct {
	TotalUnits     uint64
	AvailableUnits uint64
	SectorsPerUnit uint32
	BytesPerSector uint32
}

// FsFullSizeInfo is FileFsFullSizeInformation. [MS-FSCC] 2.5.4
type FsFullSizeInfo struct {
	TotalUnits           uint64
	CallerAvailableUnits uint64
	ActualAvailableUnits uint64
	SectorsPerUnit       uint32
	BytesPerSector       uint32
}

// FsDeviceInfo is FileFsDeviceInformation. [MS-FSCC] 2.5.10
type FsDeviceInfo struct {
	DeviceType      uint32 // 7 = disk
	Characteristics uint32 // 0x20 = mounted
}

// FsAttributeInfo is FileFsAttributeInformation. [MS-FSCC] 2.5.1
type FsAttributeInfo struct {
	Attributes    uint32
	MaxNameLength uint32 // characters
	Name          string
}

// FsSectorSizeInfo is FileFsSectorSizeInformation. [MS-FSCC] 2.5.7
type FsSectorSizeInfo struct {
	LogicalBytesPerSector                                 uint32
	PhysicalBytesPerSectorForAtomicity                    uint32
	PhysicalBytesPerSectorForPerformance                  uint32
	FileSystemEffectivePhysicalBytesPerSectorForAtomicity uint32
	Flags                                                 uint32
	ByteOffsetForSectorAlignment                          uint32
	ByteOffsetForPartitionAlignment                       uint32
}

// FileRange is an offset and a length in bytes: an allocated range, or one to trim. [MS-FSCC] 2.3.52, 2.3.73
type FileRange struct{ Offset, Length uint64 }
