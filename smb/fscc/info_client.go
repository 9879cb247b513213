package fscc

import (
	"encoding/binary"
	"fmt"

	"vdbridge/smb/wire"
)

var cle = binary.LittleEndian

// short returns an error if b has fewer than n bytes.
func short(b []byte, n int, what string) error {
	if len(b) < n {
		return fmt.Errorf("%w: %s needs %d bytes, has %d", wire.ErrMalformed, what, n, len(b))
	}
	return nil
}

// name decodes n bytes of UTF-16 at b[off:].
func name(b []byte, off int, n uint32, what string) (string, error) {
	if uint64(n) > uint64(len(b)-off) || n&1 != 0 {
		return "", fmt.Errorf("%w: %s has a name of %d bytes in %d", wire.ErrMalformed, what, n, len(b)-off)
	}
	return wire.DecodeName(b[off : off+int(n)]), nil
}

// size decodes a signed length, which is never negative.
func size(b []byte, what string) (int64, error) {
	v := int64(cle.Uint64(b))
	if v < 0 {
		return 0, fmt.Errorf("%w: %s has a negative length %d", wire.ErrMalformed, what, v)
	}
	return v, nil
}

// ParseBasicInfo decodes FILE_BASIC_INFORMATION. [MS-FSCC] 2.4.7
func ParseBasicInfo(b []byte) (BasicInfo, error) {
	if err := short(b, 36, "FileBasicInformation"); err != nil {
		return BasicInfo{}, err
	}
	return BasicInfo{cle.Uint64(b), cle.Uint64(b[8:]), cle.Uint64(b[16:]), cle.Uint64(b[24:]), cle.Uint32(b[32:])}, nil
}

// AppendBasicInfo appends FILE_BASIC_INFORMATION for SET_INFO. [MS-FSCC] 2.4.7
func AppendBasicInfo(b []byte, v BasicInfo) []byte {
	b = cle.AppendUint64(b, v.CreationTime)
	b = cle.AppendUint64(b, v.LastAccessTime)
	b = cle.AppendUint64(b, v.LastWriteTime)
	b = cle.AppendUint64(b, v.ChangeTime)
	b = cle.AppendUint32(b, v.Attributes)
	return cle.AppendUint32(b, 0)
}

// ParseStandardInfo decodes FILE_STANDARD_INFORMATION. [MS-FSCC] 2.4.47
func ParseStandardInfo(b []byte) (StandardInfo, error) {
	var v StandardInfo
	err := short(b, 22, "FileStandardInformation")
	if err != nil {
		return v, err
	}
	if v.AllocationSize, err = size(b, "FileStandardInformation"); err != nil {
		return v, err
	}
	if v.EndOfFile, err = size(b[8:], "FileStandardInformation"); err != nil {
		return v, err
	}
	v.Links = cle.Uint32(b[16:])
	v.DeletePending = b[20] != 0
	v.Directory = b[21] != 0
	return v, nil
}

// ParseNetworkOpenInfo decodes FILE_NETWORK_OPEN_INFORMATION. [MS-FSCC] 2.4.34
func ParseNetworkOpenInfo(b []byte) (NetworkOpenInfo, error) {
	var v NetworkOpenInfo
	err := short(b, 52, "FileNetworkOpenInformation")
	if err != nil {
		return v, err
	}
	v.CreationTime, v.LastAccessTime = cle.Uint64(b), cle.Uint64(b[8:])
	v.LastWriteTime, v.ChangeTime = cle.Uint64(b[16:]), cle.Uint64(b[24:])
	if v.AllocationSize, err = size(b[32:], "FileNetworkOpenInformation"); err != nil {
		return v, err
	}
	if v.EndOfFile, err = size(b[40:], "FileNetworkOpenInformation"); err != nil {
		return v, err
	}
	v.Attributes = cle.Uint32(b[48:])
	return v, nil
}

// ParseAllInfo decodes FILE_ALL_INFORMATION. A name that a small buffer has cut off (status BUFFER_OVERFLOW) is left empty. [MS-FSCC] 2.4.2
func ParseAllInfo(b []byte) (AllInfo, error) {
	var v AllInfo
	err := short(b, 100, "FileAllInformation")
	if err != nil {
		return v, err
	}
	if v.Basic, err = ParseBasicInfo(b[:40]); err != nil {
		return v, err
	}
	if v.Standard, err = ParseStandardInfo(b[40:64]); err != nil {
		return v, err
	}
	v.FileID = cle.Uint64(b[64:])
	v.EASize = cle.Uint32(b[72:])
	v.AccessFlags = cle.Uint32(b[76:])
	v.Position = int64(cle.Uint64(b[80:]))
	v.Mode = cle.Uint32(b[88:])
	v.Alignment = cle.Uint32(b[92:])
	if n := cle.Uint32(b[96:]); uint64(n) <= uint64(len(b)-100) {
		v.Name = wire.DecodeName(b[100 : 100+n])
	}
	return v, nil
}

// ParseInternalInfo decodes FILE_INTERNAL_INFORMATION, the file's 64-bit identifier. [MS-FSCC] 2.4.27
func ParseInternalInfo(b []byte) (uint64, error) {
	if err := short(b, 8, "FileInternalInformation"); err != nil {
		return 0, err
	}
	return cle.Uint64(b), nil
}

// AppendEndOfFile appends FILE_END_OF_FILE_INFORMATION (or, with the same layout, FILE_ALLOCATION_INFORMATION). [MS-FSCC] 2.4.14, 2.4.4
func AppendEndOfFile(b []byte, n int64) []byte { return cle.AppendUint64(b, uint64(n)) }

// AppendDisposition appends FILE_DISPOSITION_INFORMATION. [MS-FSCC] 2.4.11
func AppendDisposition(b []byte, remove bool) []byte {
	if remove {
		return append(b, 1)
	}
	return append(b, 0)
}

// Append appends FILE_RENAME_INFORMATION_TYPE_2, padded to its minimum of 24 bytes. [MS-FSCC] 2.4.42.2
func (r *RenameInfo) Append(b []byte) []byte {
	at := len(b)
	b = AppendDisposition(b, r.ReplaceIfExists)
	b = append(b, 0, 0, 0, 0, 0, 0, 0)
	b = cle.AppendUint64(b, r.RootDirectory)
	b = cle.AppendUint32(b, 0)
	b = wire.AppendName(b, r.Name)
	cle.PutUint32(b[at+16:], uint32(len(b)-at-20))
	for len(b)-at < 24 {
		b = append(b, 0)
	}
	return b
}

// idBothFixed is the length in bytes of FILE_ID_BOTH_DIR_INFORMATION before the name.
const idBothFixed = 104

// ParseIDBothDirectory decodes a buffer of FILE_ID_BOTH_DIR_INFORMATION entries. [MS-FSCC] 2.4.22
//
//	 0 NextEntryOffset | 4 FileIndex | 8 CreationTime | 16 LastAccessTime | 24 LastWriteTime | 32 ChangeTime
//	40 EndOfFile | 48 AllocationSize | 56 FileAttributes | 60 FileNameLength | 64 EaSize | 68 ShortNameLength
//	70 ShortName (24) | 94 Reserved2 | 96 FileId | 104 FileName
func ParseIDBothDirectory(b []byte) ([]DirEntry, error) {
	const what = "FileIdBothDirectoryInformation"
	out := make([]DirEntry, 0, len(b)/128)
	for {
		err := short(b, idBothFixed, what)
		if err != nil {
			return nil, err
		}
		next := uint64(cle.Uint32(b))
		e := b
		if next != 0 {
			if next < idBothFixed || next > uint64(len(b)) {
				return nil, fmt.Errorf("%w: %s has NextEntryOffset %d in %d bytes", wire.ErrMalformed, what, next, len(b))
			}
			e = b[:next]
		}
		d := DirEntry{
			FileIndex:      cle.Uint32(e[4:]),
			CreationTime:   cle.Uint64(e[8:]),
			LastAccessTime: cle.Uint64(e[16:]),
			LastWriteTime:  cle.Uint64(e[24:]),
			ChangeTime:     cle.Uint64(e[32:]),
			Attributes:     cle.Uint32(e[56:]),
			EASize:         cle.Uint32(e[64:]),
			FileID:         cle.Uint64(e[96:]),
		}
		if d.EndOfFile, err = size(e[40:], what); err != nil {
			return nil, err
		}
		if d.AllocationSize, err = size(e[48:], what); err != nil {
			return nil, err
		}
		if e[68] > 24 {
			return nil, fmt.Errorf("%w: %s has a short name of %d bytes", wire.ErrMalformed, what, e[68])
		}
		d.ShortName = wire.DecodeName(e[70 : 70+e[68]])
		if d.Name, err = name(e, idBothFixed, cle.Uint32(e[60:]), what); err != nil {
			return nil, err
		}
		out = append(out, d)
		if next == 0 {
			return out, nil
		}
		b = b[next:]
	}
}
