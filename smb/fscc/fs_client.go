package fscc

import (
	"fmt"

	"vdbridge/smb/wire"
)

// ParseFSVolumeInfo decodes FILE_FS_VOLUME_INFORMATION. [MS-FSCC] 2.5.9
func ParseFSVolumeInfo(b []byte) (FSVolumeInfo, error) {
	var v FSVolumeInfo
	err := short(b, 18, "FileFsVolumeInformation")
	if err != nil {
		return v, err
	}
	v.CreationTime = cle.Uint64(b)
	v.SerialNumber = cle.Uint32(b[8:])
	v.SupportsObjects = b[16] != 0
	v.Label, err = name(b, 18, cle.Uint32(b[12:]), "FileFsVolumeInformation")
	return v, err
}

// ParseFSFullSizeInfo decodes FILE_FS_FULL_SIZE_INFORMATION. [MS-FSCC] 2.5.4
func ParseFSFullSizeInfo(b []byte) (FSFullSizeInfo, error) {
	const what = "FileFsFullSizeInformation"
	var v FSFullSizeInfo
	err := short(b, 32, what)
	if err != nil {
		return v, err
	}
	if v.TotalUnits, err = size(b, what); err != nil {
		return v, err
	}
	if v.CallerAvailableUnits, err = size(b[8:], what); err != nil {
		return v, err
	}
	if v.ActualAvailableUnits, err = size(b[16:], what); err != nil {
		return v, err
	}
	v.SectorsPerUnit, v.BytesPerSector = cle.Uint32(b[24:]), cle.Uint32(b[28:])
	return v, nil
}

// ParseFSSizeInfo decodes FILE_FS_SIZE_INFORMATION. [MS-FSCC] 2.5.8
func ParseFSSizeInfo(b []byte) (FSSizeInfo, error) {
	const what = "FileFsSizeInformation"
	var v FSSizeInfo
	err := short(b, 24, what)
	if err != nil {
		return v, err
	}
	if v.TotalUnits, err = size(b, what); err != nil {
		return v, err
	}
	if v.AvailableUnits, err = size(b[8:], what); err != nil {
		return v, err
	}
	v.SectorsPerUnit, v.BytesPerSector = cle.Uint32(b[16:]), cle.Uint32(b[20:])
	return v, nil
}

// ParseFSAttributeInfo decodes FILE_FS_ATTRIBUTE_INFORMATION. [MS-FSCC] 2.5.1
func ParseFSAttributeInfo(b []byte) (FSAttributeInfo, error) {
	var v FSAttributeInfo
	err := short(b, 12, "FileFsAttributeInformation")
	if err != nil {
		return v, err
	}
	v.Attributes, v.MaxNameLength = cle.Uint32(b), cle.Uint32(b[4:])
	v.Name, err = name(b, 12, cle.Uint32(b[8:]), "FileFsAttributeInformation")
	return v, err
}

// ParseFSSectorSizeInfo decodes FILE_FS_SECTOR_SIZE_INFORMATION. [MS-FSCC] 2.5.7
func ParseFSSectorSizeInfo(b []byte) (FSSectorSizeInfo, error) {
	if err := short(b, 28, "FileFsSectorSizeInformation"); err != nil {
		return FSSectorSizeInfo{}, err
	}
	return FSSectorSizeInfo{
		Logical:                cle.Uint32(b),
		PhysicalForAtomicity:   cle.Uint32(b[4:]),
		PhysicalForPerformance: cle.Uint32(b[8:]),
		EffectiveForAtomicity:  cle.Uint32(b[12:]),
		Flags:                  cle.Uint32(b[16:]),
		SectorAlignment:        cle.Uint32(b[20:]),
		PartitionAlignment:     cle.Uint32(b[24:]),
	}, nil
}

// AppendZeroData appends FILE_ZERO_DATA_INFORMATION, the input of FSCTL_SET_ZERO_DATA. [MS-FSCC] 2.3.85
func AppendZeroData(b []byte, v ZeroData) []byte {
	b = cle.AppendUint64(b, uint64(v.FileOffset))
	return cle.AppendUint64(b, uint64(v.BeyondFinalZero))
}

// AppendRange appends one FILE_ALLOCATED_RANGE_BUFFER, the input of FSCTL_QUERY_ALLOCATED_RANGES. [MS-FSCC] 2.3.51
func AppendRange(b []byte, r Range) []byte {
	b = cle.AppendUint64(b, uint64(r.Offset))
	return cle.AppendUint64(b, uint64(r.Length))
}

// ParseRanges decodes the output of FSCTL_QUERY_ALLOCATED_RANGES: ranges in ascending order that do not overlap. [MS-FSCC] 2.3.52
func ParseRanges(b []byte) ([]Range, error) {
	if len(b)%16 != 0 {
		return nil, fmt.Errorf("%w: allocated ranges in %d bytes", wire.ErrMalformed, len(b))
	}
	out := make([]Range, 0, len(b)/16)
	end := int64(0)
	for ; len(b) > 0; b = b[16:] {
		r := Range{int64(cle.Uint64(b)), int64(cle.Uint64(b[8:]))}
		if r.Offset < end || r.Length < 0 || r.Offset+r.Length < r.Offset {
			return nil, fmt.Errorf("%w: allocated range %d+%d behind %d", wire.ErrMalformed, r.Offset, r.Length, end)
		}
		end = r.Offset + r.Length
		out = append(out, r)
	}
	return out, nil
}

// AppendTrim appends FILE_LEVEL_TRIM, the input of FSCTL_FILE_LEVEL_TRIM. [MS-FSCC] 2.3.13
func AppendTrim(b []byte, ranges []Range) []byte {
	b = cle.AppendUint32(b, 0)
	b = cle.AppendUint32(b, uint32(len(ranges)))
	for _, r := range ranges {
		b = AppendRange(b, r)
	}
	return b
}
