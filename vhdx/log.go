package vhdx

// Signatures of the log. [MS-VHDX] 2.3.1
const (
	logEntrySignature = "loge"
	logDescSignature  = "desc"
	logZeroSignature  = "zero"
	logDataSignature  = "data"

	logHeaderSize = 64
	logDescSize   = 32
)

// logHeader is the beginning of a log entry. [MS-VHDX] 2.3.1.1
type logHeader struct {
	checksum        uint32
	entryLength     uint32
	tail            uint32 // offset in the log of the oldest entry that is still needed
	sequence        uint64
	descriptors     uint32
	guid            GUID
	flushedFileSize uint64
	lastFileSize    uint64
}

// descriptorSectors is how many sectors a header and n descriptors take.
func descriptorSectors(n int64) int64 { return ceilDiv(logHeaderSize+n*logDescSize, logSector) }

// decodeLogHeader checks what can be checked with the first sector of an entry and the size of the log.
func decodeLogHeader(b []byte, logLen int64) (logHeader, error) {
	var h logHeader
	if len(b) < logHeaderSize || string(b[:4]) != logEntrySignature {
		return h, corrupt("log", -1, "there is no entry")
	}
	h.checksum = le.Uint32(b[4:])
	h.entryLength = le.Uint32(b[8:])
	h.tail = le.Uint32(b[12:])
	h.sequence = le.Uint64(b[16:])
	h.descriptors = le.Uint32(b[24:])
	copy(h.guid[:], b[32:])
	h.flushedFileSize = le.Uint64(b[48:])
	h.lastFileSize = le.Uint64(b[56:])
	switch {
	case h.entryLength == 0 || h.entryLength%logSector != 0 || int64(h.entryLength) > logLen:
		return h, corrupt("log", -1, "an entry has the length %d", h.entryLength)
	case h.tail%logSector != 0 || int64(h.tail) >= logLen:
		return h, corrupt("log", -1, "an entry has the tail %d", h.tail)
	case h.sequence == 0:
		return h, corrupt("log", -1, "an entry has the sequence number zero")
	case descriptorSectors(int64(h.descriptors))*logSector > int64(h.entryLength):
		return h, corrupt("log", -1, "an entry of %d bytes claims %d descriptors", h.entryLength, h.descriptors)
	}
	return h, nil
}

// encode fills the first logHeaderSize bytes of b; the checksum is set when the entry is complete.
func (h *logHeader) encode(b []byte) {
	copy(b, logEntrySignature)
	le.PutUint32(b[4:], 0)
	le.PutUint32(b[8:], h.entryLength)
	le.PutUint32(b[12:], h.tail)
	le.PutUint64(b[16:], h.sequence)
	le.PutUint32(b[24:], h.descriptors)
	le.PutUint32(b[28:], 0)
	copy(b[32:], h.guid[:])
	le.PutUint64(b[48:], h.flushedFileSize)
	le.PutUint64(b[56:], h.lastFileSize)
}

// logDescriptor is a data or a zero descriptor. [MS-VHDX] 2.3.1.2, 2.3.1.3
type logDescriptor struct {
	zero     bool
	off      uint64
	n        uint64 // of a zero descriptor
	leading  uint64
	trailing uint32
}

// decodeLogDescriptor decodes one descriptor of an entry with the given sequence number.
func decodeLogDescriptor(b []byte, sequence uint64) (logDescriptor, error) {
	var d logDescriptor
	if len(b) < logDescSize {
		return d, corrupt("log", -1, "a descriptor is cut short")
	}
	d.off = le.Uint64(b[16:])
	switch string(b[:4]) {
	case logDescSignature:
		d.trailing, d.leading = le.Uint32(b[4:]), le.Uint64(b[8:])
	case logZeroSignature:
		d.zero, d.n = true, le.Uint64(b[8:])
	default:
		return d, corrupt("log", -1, "a descriptor has no known signature")
	}
	switch {
	case le.Uint64(b[24:]) != sequence:
		return d, corrupt("log", -1, "a descriptor belongs to another entry")
	case d.off%logSector != 0 || d.n%logSector != 0:
		return d, corrupt("log", -1, "a descriptor is not aligned to 4 KiB")
	}
	return d, nil
}

// checkDataSector says whether a data sector belongs to the entry. [MS-VHDX] 2.3.1.4
func checkDataSector(b []byte, sequence uint64) bool {
	return string(b[:4]) == logDataSignature && le.Uint32(b[4:]) == uint32(sequence>>32) && le.Uint32(b[logSector-4:]) == uint32(sequence)
}

// restoreSector puts back in place, into a data sector, what its descriptor has kept of the update.
func (d *logDescriptor) restoreSector(b []byte) {
	le.PutUint64(b, d.leading)
	le.PutUint32(b[logSector-4:], d.trailing)
}

// logUpdate is one sector that is to be changed through the log.
type logUpdate struct {
	off  int64
	data *[logSector]byte
}

// maxUpdates is how many updates an entry of the given size can carry.
func maxUpdates(sectors int64) int64 {
	n := sectors - 1
	for n > 0 && descriptorSectors(n)+n > sectors {
		n--
	}
	return max(n, 0)
}

// entryLen is the length of an entry with n updates.
func entryLen(n int) int64 { return (descriptorSectors(int64(n)) + int64(n)) * logSector }

// encodeLogEntry writes a whole entry into b, which has entryLen(len(updates)) bytes. It fills in length, descriptor count and checksum.
func encodeLogEntry(b []byte, h logHeader, updates []logUpdate) {
	clear(b)
	h.entryLength, h.descriptors = uint32(len(b)), uint32(len(updates))
	h.encode(b)
	data := b[descriptorSectors(int64(len(updates)))*logSector:]
	for i, u := range updates {
		d := b[logHeaderSize+i*logDescSize:]
		copy(d, logDescSignature)
		copy(d[4:8], u.data[logSector-4:])
		copy(d[8:16], u.data[:8])
		le.PutUint64(d[16:], uint64(u.off))
		le.PutUint64(d[24:], h.sequence)
		s := data[i*logSector : (i+1)*logSector]
		copy(s, logDataSignature)
		le.PutUint32(s[4:], uint32(h.sequence>>32))
		copy(s[8:], u.data[8:logSector-4])
		le.PutUint32(s[logSector-4:], uint32(h.sequence))
	}
	le.PutUint32(b[4:], checksum(b, 4))
}
