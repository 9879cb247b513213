package fscc

import (
	"fmt"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// srvShort says that what a client sent is shorter than its structure. [MS-FSA] 2.1.5.15
func srvShort(name string, have, want int) error {
	return fmt.Errorf("%s of %d bytes, want %d: %w", name, have, want, ntstatus.InfoLengthMismatch)
}

// ParseSetBasicInfo decodes what SET_INFO carries for FileBasicInformation. Errors carry an ntstatus.Status.
func ParseSetBasicInfo(b []byte) (BasicInfo, error) {
	if len(b) < 36 {
		return BasicInfo{}, srvShort("FileBasicInformation", len(b), 40)
	}
	return BasicInfo{Creation: Time(le.Uint64(b)), LastAccess: Time(le.Uint64(b[8:])), LastWrite: Time(le.Uint64(b[16:])),
		Change: Time(le.Uint64(b[24:])), Attributes: le.Uint32(b[32:])}, nil
}

// ParseSetUint64 decodes FileEndOfFileInformation, FileAllocationInformation, FilePositionInformation and FileValidDataLengthInformation.
func ParseSetUint64(b []byte) (uint64, error) {
	if len(b) < 8 {
		return 0, srvShort("file size information", len(b), 8)
	}
	return le.Uint64(b), nil
}

// ParseSetUint32 decodes FileDispositionInformationEx and FileModeInformation.
func ParseSetUint32(b []byte) (uint32, error) {
	if len(b) < 4 {
		return 0, srvShort("file information", len(b), 4)
	}
	return le.Uint32(b), nil
}

// ParseSetDisposition decodes FileDispositionInformation. [MS-FSCC] 2.4.11
func ParseSetDisposition(b []byte) (remove bool, err error) {
	if len(b) < 1 {
		return false, srvShort("FileDispositionInformation", len(b), 1)
	}
	return b[0] != 0, nil
}

// ParseSetRename decodes FileRenameInformation, FileLinkInformation (ex false) and FileRenameInformationEx (ex true).
func ParseSetRename(b []byte, ex bool) (RenameInfo, error) {
	const fixed = 20
	if len(b) < fixed {
		return RenameInfo{}, srvShort("FileRenameInformation", len(b), fixed)
	}
	n := le.Uint32(b[16:])
	if uint64(n) > uint64(len(b)-fixed) {
		return RenameInfo{}, srvShort("FileRenameInformation", len(b), fixed+int(n))
	}
	name, err := wire.DecodeUTF16(b[fixed : fixed+int(n)])
	if err != nil {
		return RenameInfo{}, fmt.Errorf("FileRenameInformation: %w", ntstatus.ObjectNameInvalid)
	}
	r := RenameInfo{RootDirectory: le.Uint64(b[8:]), Name: name}
	if ex {
		r.Flags = le.Uint32(b)
		r.Replace = r.Flags&RenameReplaceIfExists != 0
	} else {
		r.Replace = b[0] != 0
	}
	return r, nil
}

// ParseZeroData decodes FILE_ZERO_DATA_INFORMATION: zero from off to beyond. [MS-FSCC] 2.3.71
func ParseZeroData(b []byte) (off, beyond uint64, err error) {
	if len(b) < 16 {
		return 0, 0, srvShort("FILE_ZERO_DATA_INFORMATION", len(b), 16)
	}
	return le.Uint64(b), le.Uint64(b[8:]), nil
}

// ParseFileRange decodes one FILE_ALLOCATED_RANGE_BUFFER. [MS-FSCC] 2.3.52
func ParseFileRange(b []byte) (FileRange, error) {
	if len(b) < 16 {
		return FileRange{}, srvShort("FILE_ALLOCATED_RANGE_BUFFER", len(b), 16)
	}
	return FileRange{Offset: le.Uint64(b), Length: le.Uint64(b[8:])}, nil
}

// AppendFileRange appends one FILE_ALLOCATED_RANGE_BUFFER.
func AppendFileRange(b []byte, r FileRange) []byte {
	b = le.AppendUint64(b, r.Offset)
	return le.AppendUint64(b, r.Length)
}

// ParseTrim decodes FSCTL_FILE_LEVEL_TRIM input. [MS-FSCC] 2.3.73
func ParseTrim(b []byte) ([]FileRange, error) {
	if len(b) < 8 {
		return nil, srvShort("FILE_LEVEL_TRIM", len(b), 24)
	}
	n := le.Uint32(b[4:])
	if uint64(n)*16 > uint64(len(b)-8) {
		return nil, srvShort("FILE_LEVEL_TRIM", len(b), 8+16*int(min(n, 1<<20)))
	}
	out := make([]FileRange, n)
	for i := range out {
		e := b[8+16*i:]
		out[i] = FileRange{Offset: le.Uint64(e), Length: le.Uint64(e[8:])}
	}
	return out, nil
}
