package fscc

import (
	"encoding/binary"

	"vdbridge/smb/wire"
)

var le = binary.LittleEndian

func srvBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func srvZero(b []byte, n int) []byte {
	for range n {
		b = append(b, 0)
	}
	return b
}

func srvTimes(b []byte, ts ...uint64) []byte {
	for _, t := range ts {
		b = le.AppendUint64(b, t)
	}
	return b
}

// Append appends 40 bytes.
func (i *BasicInfo) Append(b []byte) []byte {
	b = srvTimes(b, i.CreationTime, i.LastAccessTime, i.LastWriteTime, i.ChangeTime)
	b = le.AppendUint32(b, i.Attributes)
	return le.AppendUint32(b, 0)
}

// Append appends 24 bytes.
func (i *StandardInfo) Append(b []byte) []byte {
	b = le.AppendUint64(b, uint64(i.AllocationSize))
	b = le.AppendUint64(b, uint64(i.EndOfFile))
	b = le.AppendUint32(b, i.Links)
	b = srvBool(b, i.DeletePending)
	b = srvBool(b, i.Directory)
	return append(b, 0, 0)
}

// Append appends 56 bytes.
func (i *NetworkOpenInfo) Append(b []byte) []byte {
	b = srvTimes(b, i.CreationTime, i.LastAccessTime, i.LastWriteTime, i.ChangeTime)
	b = le.AppendUint64(b, uint64(i.AllocationSize))
	b = le.AppendUint64(b, uint64(i.EndOfFile))
	b = le.AppendUint32(b, i.Attributes)
	return le.AppendUint32(b, 0)
}

// Append appends the structure and the name.
func (i *AllInfo) Append(b []byte) []byte {
	b = i.Basic.Append(b)
	b = i.Standard.Append(b)
	b = le.AppendUint64(b, i.FileID)
	b = le.AppendUint32(b, i.EASize)
	b = le.AppendUint32(b, i.AccessFlags)
	b = le.AppendUint64(b, uint64(i.Position))
	b = le.AppendUint32(b, i.Mode)
	b = le.AppendUint32(b, i.Alignment)
	return AppendName(b, i.Name)
}

// AllInfoFixed is the length in bytes of FileAllInformation without the name.
const AllInfoFixed = 100

// AppendName appends FileNameInformation (also FileNormalizedNameInformation and FileAlternateNameInformation). [MS-FSCC] 2.4.32
func AppendName(b []byte, name string) []byte {
	b = le.AppendUint32(b, uint32(wire.UTF16Len(name)))
	return wire.AppendUTF16(b, name)
}

// AppendStreams appends FileStreamInformation.
func AppendStreams(b []byte, streams []StreamInfo) []byte {
	for i, s := range streams {
		at := len(b)
		b = le.AppendUint32(b, 0)
		b = le.AppendUint32(b, uint32(wire.UTF16Len(s.Name)))
		b = le.AppendUint64(b, uint64(s.Size))
		b = le.AppendUint64(b, uint64(s.AllocationSize))
		b = wire.AppendUTF16(b, s.Name)
		if i < len(streams)-1 {
			b = srvZero(b, -(len(b)-at)&7)
			le.PutUint32(b[at:], uint32(len(b)-at))
		}
	}
	return b
}

// dirFixed is the length in bytes of an entry before its name, by class; 0 for classes that are none of a directory.
func dirFixed(class uint8) int {
	switch class {
	case FileDirectoryInformation:
		return 64
	case FileFullDirectoryInformation:
		return 68
	case FileBothDirectoryInformation:
		return 94
	case FileNamesInformation:
		return 12
	case FileIdBothDirectoryInformation:
		return 104
	case FileIdFullDirectoryInformation:
		return 80
	}
	return 0
}

// IsDirectoryClass says whether QUERY_DIRECTORY can be asked for class.
func IsDirectoryClass(class uint8) bool { return dirFixed(class) != 0 }

// DirEntryLen returns the bytes that AppendDirEntry needs for a name, without padding; class must be one of a directory.
func DirEntryLen(class uint8, name string) int { return dirFixed(class) + wire.UTF16Len(name) }

// AppendDirEntry appends an entry in the form of class, with NextEntryOffset 0: LinkDirEntry chains it when another one follows.
func AppendDirEntry(b []byte, class uint8, e *DirEntry) []byte {
	b = le.AppendUint32(b, 0)
	b = le.AppendUint32(b, e.FileIndex)
	nameLen := uint32(wire.UTF16Len(e.Name))
	if class == FileNamesInformation {
		b = le.AppendUint32(b, nameLen)
		return wire.AppendUTF16(b, e.Name)
	}
	b = srvTimes(b, e.CreationTime, e.LastAccessTime, e.LastWriteTime, e.ChangeTime)
	b = le.AppendUint64(b, uint64(e.EndOfFile))
	b = le.AppendUint64(b, uint64(e.AllocationSize))
	b = le.AppendUint32(b, e.Attributes)
	b = le.AppendUint32(b, nameLen)
	if class != FileDirectoryInformation {
		b = le.AppendUint32(b, e.EASize)
	}
	switch class {
	case FileBothDirectoryInformation, FileIdBothDirectoryInformation:
		b = append(b, byte(min(wire.UTF16Len(e.ShortName), 24)), 0)
		at := len(b)
		b = wire.AppendUTF16(b, e.ShortName)
		b = b[:min(len(b), at+24)]
		b = srvZero(b, at+24-len(b))
	}
	switch class {
	case FileIdBothDirectoryInformation:
		b = append(b, 0, 0)
		b = le.AppendUint64(b, e.FileID)
	case FileIdFullDirectoryInformation:
		b = le.AppendUint32(b, 0)
		b = le.AppendUint64(b, e.FileID)
	}
	return wire.AppendUTF16(b, e.Name)
}

// LinkDirEntry pads b so that another entry can follow the one that begins at prev, and writes its NextEntryOffset. Offsets of
// entries are multiples of 8 from base.
func LinkDirEntry(b []byte, base, prev int) []byte {
	b = srvZero(b, -(len(b)-base)&7)
	le.PutUint32(b[prev:], uint32(len(b)-prev))
	return b
}

// AppendNotify appends a chain of FILE_NOTIFY_INFORMATION.
func AppendNotify(b []byte, entries []NotifyEntry) []byte {
	for i, e := range entries {
		at := len(b)
		b = le.AppendUint32(b, 0)
		b = le.AppendUint32(b, e.Action)
		b = AppendName(b, e.Name)
		if i < len(entries)-1 {
			b = srvZero(b, -(len(b)-at)&3)
			le.PutUint32(b[at:], uint32(len(b)-at))
		}
	}
	return b
}

// Append appends FileFSVolumeInformation.
func (i *FSVolumeInfo) Append(b []byte) []byte {
	b = le.AppendUint64(b, i.CreationTime)
	b = le.AppendUint32(b, i.SerialNumber)
	b = le.AppendUint32(b, uint32(wire.UTF16Len(i.Label)))
	b = srvBool(b, i.SupportsObjects)
	b = append(b, 0)
	return wire.AppendUTF16(b, i.Label)
}

// Append appends 24 bytes.
func (i *FSSizeInfo) Append(b []byte) []byte {
	b = le.AppendUint64(b, uint64(i.TotalUnits))
	b = le.AppendUint64(b, uint64(i.AvailableUnits))
	b = le.AppendUint32(b, i.SectorsPerUnit)
	return le.AppendUint32(b, i.BytesPerSector)
}

// Append appends 32 bytes.
func (i *FSFullSizeInfo) Append(b []byte) []byte {
	b = le.AppendUint64(b, uint64(i.TotalUnits))
	b = le.AppendUint64(b, uint64(i.CallerAvailableUnits))
	b = le.AppendUint64(b, uint64(i.ActualAvailableUnits))
	b = le.AppendUint32(b, i.SectorsPerUnit)
	return le.AppendUint32(b, i.BytesPerSector)
}

// AppendFSDevice appends FileFsDeviceInformation. [MS-FSCC] 2.5.10
func AppendFSDevice(b []byte, deviceType, characteristics uint32) []byte {
	b = le.AppendUint32(b, deviceType)
	return le.AppendUint32(b, characteristics)
}

// Append appends FileFSAttributeInformation.
func (i *FSAttributeInfo) Append(b []byte) []byte {
	b = le.AppendUint32(b, i.Attributes)
	b = le.AppendUint32(b, i.MaxNameLength)
	return AppendName(b, i.Name)
}

// Append appends 28 bytes.
func (i *FSSectorSizeInfo) Append(b []byte) []byte {
	for _, v := range [...]uint32{i.Logical, i.PhysicalForAtomicity, i.PhysicalForPerformance,
		i.EffectiveForAtomicity, i.Flags, i.SectorAlignment, i.PartitionAlignment} {
		b = le.AppendUint32(b, v)
	}
	return b
}
