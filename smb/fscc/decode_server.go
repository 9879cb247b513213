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
	return BasicInfo{CreationTime: le.Uint64(b), LastAccessTime: le.Uint64(b[8:]), LastWriteTime: le.Uint64(b[16:]),
		ChangeTime: le.Uint64(b[24:]), Attributes: le.Uint32(b[32:])}, nil
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
func ParseSetRename(b []byte, ex bool) (SetRename, error) {
	const fixed = 20
	if len(b) < fixed {
		return SetRename{}, srvShort("FileRenameInformation", len(b), fixed)
	}
	n := le.Uint32(b[16:])
	if uint64(n) > uint64(len(b)-fixed) {
		return SetRename{}, srvShort("FileRenameInformation", len(b), fixed+int(n))
	}
	name, err := wire.DecodeUTF16(b[fixed : fixed+int(n)])
	if err != nil {
		return SetRename{}, fmt.Errorf("FileRenameInformation: %w", ntstatus.ObjectNameInvalid)
	}
	r := SetRename{RenameInfo: RenameInfo{RootDirectory: le.Uint64(b[8:]), Name: name}}
	if ex {
		r.Flags = le.Uint32(b)
		r.ReplaceIfExists = r.Flags&RenameReplaceIfExists != 0
	} else {
		r.ReplaceIfExists = b[0] != 0
	}
	return r, nil
}

// ParseZeroData decodes FILE_ZERO_DATA_INFORMATION: zero from off to beyond. [MS-FSCC] 2.3.85
func ParseZeroData(b []byte) (ZeroData, error) {
	if len(b) < 16 {
		return ZeroData{}, srvShort("FILE_ZERO_DATA_INFORMATION", len(b), 16)
	}
	return ZeroData{FileOffset: int64(le.Uint64(b)), BeyondFinalZero: int64(le.Uint64(b[8:]))}, nil
}

// ParseFileRange decodes one FILE_ALLOCATED_RANGE_BUFFER. The numbers can be negative. [MS-FSCC] 2.3.51
func ParseFileRange(b []byte) (Range, error) {
	if len(b) < 16 {
		return Range{}, srvShort("FILE_ALLOCATED_RANGE_BUFFER", len(b), 16)
	}
	return Range{Offset: int64(le.Uint64(b)), Length: int64(le.Uint64(b[8:]))}, nil
}

// AppendFileRange appends one FILE_ALLOCATED_RANGE_BUFFER.
func AppendFileRange(b []byte, r Range) []byte {
	b = le.AppendUint64(b, uint64(r.Offset))
	return le.AppendUint64(b, uint64(r.Length))
}

// ParseTrim decodes the input of FSCTL_FILE_LEVEL_TRIM. The numbers can be negative. [MS-FSCC] 2.3.13.1
func ParseTrim(b []byte) ([]Range, error) {
	if len(b) < 8 {
		return nil, srvShort("FILE_LEVEL_TRIM", len(b), 24)
	}
	n := le.Uint32(b[4:])
	if uint64(n)*16 > uint64(len(b)-8) {
		return nil, srvShort("FILE_LEVEL_TRIM", len(b), 8+16*int(min(n, 1<<20)))
	}
	out := make([]Range, n)
	for i := range out {
		e := b[8+16*i:]
		out[i] = Range{Offset: int64(le.Uint64(e)), Length: int64(le.Uint64(e[8:]))}
	}
	return out, nil
}
