package fscc

import "time"

// Info classes that only the server's half names. [MS-FSCC] 2.4, 2.5
const (
	FileNameInformation          uint8 = 9
	FilePipeInformation          uint8 = 23
	FileIdInformation            uint8 = 59
	FileDispositionInformationEx uint8 = 64
	FileRenameInformationEx      uint8 = 65

	FileFsLabelInformation   uint8 = 2
	FileFsControlInformation uint8 = 6
)

// More file system attributes. [MS-FSCC] 2.5.1
const (
	FSObjectIDs    uint32 = 0x00010000
	FSHardLinks    uint32 = 0x00400000
	FSOpenByFileID uint32 = 0x01000000
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

// Special values of a time that is set: leave it, stop updating it, take up updating it again. [MS-FSCC] 2.4.7
const (
	TimeUnchanged uint64 = 0
	TimeFreeze    uint64 = 0xFFFFFFFFFFFFFFFF
	TimeThaw      uint64 = 0xFFFFFFFFFFFFFFFE
)

const epochDifference = 116444736000000000 // 1601 to 1970 in 100 ns

// Filetime converts a time to a FILETIME: 100 ns steps since 1601-01-01 UTC. Times before become 0.
func Filetime(t time.Time) uint64 { return FiletimeOfUnix(t.Unix(), int64(t.Nanosecond())) }

// FiletimeOfUnix converts seconds and nanoseconds since 1970.
func FiletimeOfUnix(sec, nsec int64) uint64 {
	if sec < -epochDifference/10_000_000 || sec > (1<<63-1-epochDifference)/10_000_000-1 {
		return 0
	}
	return uint64(sec*10_000_000 + nsec/100 + epochDifference)
}

// FiletimeToUnix returns seconds and nanoseconds since 1970.
func FiletimeToUnix(t uint64) (sec, nsec int64) {
	v := int64(t) - epochDifference
	sec, nsec = v/10_000_000, v%10_000_000*100
	if nsec < 0 {
		sec--
		nsec += 1_000_000_000
	}
	return sec, nsec
}

// StreamInfo is one entry of FileStreamInformation. [MS-FSCC] 2.4.49
type StreamInfo struct {
	Size, AllocationSize int64
	Name                 string // "::$DATA" for the contents
}

// NotifyEntry is one FILE_NOTIFY_INFORMATION. [MS-FSCC] 2.7.1
type NotifyEntry struct {
	Action uint32
	Name   string
}

// SetRename is what a client asks for with FileRenameInformation, FileRenameInformationEx or FileLinkInformation.
type SetRename struct {
	RenameInfo
	Flags uint32 // FileRenameInformationEx only
}
