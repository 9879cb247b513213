package vhdx

// Kind is the kind of an image.
type Kind int

// Kinds of images.
const (
	KindFixed        Kind = iota + 1 // every block has its space
	KindDynamic                      // blocks get space when they are written
	KindDifferencing                 // dynamic, over a parent
)

func (k Kind) String() string {
	switch k {
	case KindFixed:
		return "fixed"
	case KindDynamic:
		return "dynamic"
	case KindDifferencing:
		return "differencing"
	}
	return "unknown"
}

// MarshalText writes the name, for JSON.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// LogState says what the log of an image held when it was opened.
type LogState int

// States of a log.
const (
	LogClean    LogState = iota + 1 // nothing to replay: the last writer closed the image
	LogReplayed                     // entries were found and replayed, in the file or, read-only, in memory
	LogEmpty                        // the log was marked as in use but held no entry: its writer died before the first
)

func (s LogState) String() string {
	switch s {
	case LogClean:
		return "clean"
	case LogReplayed:
		return "replayed"
	case LogEmpty:
		return "empty"
	}
	return "unknown"
}

// MarshalText writes the name, for JSON.
func (s LogState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Info describes an open image. Sizes and offsets are in bytes.
type Info struct {
	Kind               Kind        `json:"kind"`
	Size               int64       `json:"size"` // of the virtual disk
	BlockSize          int64       `json:"block_size"`
	LogicalSectorSize  int         `json:"logical_sector_size"`
	PhysicalSectorSize int         `json:"physical_sector_size"`
	Blocks             int64       `json:"blocks"`          // payload blocks, allocated or not
	VirtualDiskID      GUID        `json:"virtual_disk_id"` // also the designator on SCSI page 83h
	FileWriteGUID      GUID        `json:"file_write_guid"`
	DataWriteGUID      GUID        `json:"data_write_guid"` // changes with the data; a child disk refers to it
	Creator            string      `json:"creator"`         // what the creating program called itself
	LogState           LogState    `json:"log_state"`
	LogEntriesReplayed int         `json:"log_entries_replayed"`
	LogOffset          int64       `json:"log_offset"`
	LogLength          int64       `json:"log_length"`
	BATOffset          int64       `json:"bat_offset"`
	BATLength          int64       `json:"bat_length"`
	MetadataOffset     int64       `json:"metadata_offset"`
	MetadataLength     int64       `json:"metadata_length"`
	FileSize           int64       `json:"file_size"` // length of the backing file
	UserMetadataItems  int         `json:"user_metadata_items"`
	Name               string      `json:"name,omitempty"`   // Options.Name, or the place where a parent was found
	Parent             *ParentInfo `json:"parent,omitempty"` // of a differencing disk
}

// ParentInfo says what a differencing disk knows of its parent.
type ParentInfo struct {
	ParentLocator
	Place string `json:"place,omitempty"` // where it was found; empty when it was not looked for
}

// Usage says how the blocks of an image are used. It needs a pass over the whole BAT.
type Usage struct {
	AllocatedBlocks int64 `json:"allocated_blocks"`
	PartialBlocks   int64 `json:"partial_blocks,omitempty"` // of these, the ones of which the parent has a part
	AllocatedBytes  int64 `json:"allocated_bytes"`          // AllocatedBlocks times the block size
	ZeroBlocks      int64 `json:"zero_blocks"`              // marked as zero
	UnmappedBlocks  int64 `json:"unmapped_blocks"`          // trimmed, or marked as undefined
	DamagedEntries  int64 `json:"damaged_entries"`          // BAT entries that cannot be used; see Check
}
