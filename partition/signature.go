package partition

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"strings"
)

// Signature is a file system, or something else that lays claim to a disk or a partition.
type Signature struct {
	Name  string `json:"name"` // "ext4", "xfs", "ntfs" … as Linux mounts it, or blkid calls it
	Class Class  `json:"class"`
	UUID  string `json:"uuid,omitempty"`
	Label string `json:"label,omitempty"`
}

// Class says what something on a disk means for who may use it.
type Class int

// The classes.
const (
	FileSystem Class = iota // of one host: a second one that mounts it destroys it
	Cluster                 // a file system made for several hosts at once
	Container               // holds other things and belongs to one host: LVM, RAID, encryption
	Swap
)

// String is a stable name for machines.
func (c Class) String() string {
	return [...]string{"file system", "cluster file system", "container", "swap"}[c]
}

// MarshalText writes the name, for JSON.
func (c Class) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// SingleHost says that it must not be written by two hosts.
func (s Signature) SingleHost() bool { return s.Class != Cluster }

// areas are what is read of a disk to find signatures: its beginning, where VMFS has its own, and its end.
type areas struct {
	head, mega, tail []byte
	size             int64
	tailAt           int64
}

const (
	headBytes = 260 << 10
	megaAt    = 1 << 20
	megaBytes = 4 << 10
	tailBytes = 128 << 10
)

// at returns n bytes at off, zeros where nothing was read.
func (a *areas) at(off int64, n int) []byte {
	out := make([]byte, n)
	for _, r := range []struct {
		off int64
		b   []byte
	}{{0, a.head}, {megaAt, a.mega}, {a.tailAt, a.tail}} {
		if off >= r.off && off+int64(n) <= r.off+int64(len(r.b)) {
			copy(out, r.b[off-r.off:])
			break
		}
	}
	return out
}

func (a *areas) has(off int64, magic string) bool { return string(a.at(off, len(magic))) == magic }

// Identify finds what lays claim to the n bytes of src from off on. There may be several: what was there before is not always wiped. None means that
// nothing known was found, which an empty disk and a foreign format have in common.
func Identify(ctx context.Context, src Source, off, n int64) ([]Signature, error) {
	a := &areas{head: make([]byte, headBytes), size: n}
	if err := readAt(ctx, src, off, n, a.head, 0); err != nil {
		return nil, fmt.Errorf("look for file systems: %w", err)
	}
	if n > megaAt {
		a.mega = make([]byte, megaBytes)
		if err := readAt(ctx, src, off, n, a.mega, megaAt); err != nil {
			return nil, fmt.Errorf("look for file systems: %w", err)
		}
	}
	if n > tailBytes {
		a.tail = make([]byte, tailBytes)
		a.tailAt = n - tailBytes
		if err := readAt(ctx, src, off, n, a.tail, a.tailAt); err != nil {
			return nil, fmt.Errorf("look for file systems: %w", err)
		}
	}
	return a.identify(), nil
}

func (a *areas) identify() []Signature {
	found := []Signature{}
	for _, probe := range probes {
		if s, ok := probe(a); ok {
			found = append(found, s)
		}
	}
	return found
}

// simple are the signatures that are a few bytes at one place.
var simple = []struct {
	name  string
	class Class
	off   int64
	magic string
}{
	{"refs", FileSystem, 3, "ReFS\x00"},
	{"bitlocker", Container, 3, "-FVE-FS-"},
	{"squashfs", FileSystem, 0, "hsqs"},
	{"erofs", FileSystem, 1024, "\xe2\xe1\xf5\xe0"},
	{"f2fs", FileSystem, 1024, "\x10\x20\xf5\xf2"},
	{"hfsplus", FileSystem, 1024, "H+\x00\x04"},
	{"hfsplus", FileSystem, 1024, "HX\x00\x05"},
	{"apfs", FileSystem, 32, "NXSB"},
	{"jfs", FileSystem, 32768, "JFS1"},
	{"reiserfs", FileSystem, 65536 + 52, "ReIsEr"},
	{"nilfs2", FileSystem, 1024 + 6, "\x34\x34"},
	{"iso9660", FileSystem, 32769, "CD001"},
	{"udf", FileSystem, 32769, "BEA01"},
	{"bcache", Container, 4096 + 24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"},
	{"bcachefs", FileSystem, 4096 + 24, "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"},
	{"ceph_bluestore", Container, 0, "bluestore block device"},
	{"vmfs", Cluster, 0x100000, "\x0d\xd0\x01\xc0"},
	{"oracleasm", Cluster, 32, "ORCLDISK"},
	{"ocfs", Cluster, 8, "OracleCFS"},
}

type probe func(*areas) (Signature, bool)

var probes = append([]probe{ext, xfs, btrfs, boot, lvm, luks, swap, ocfs2, gfs, raid, zfs}, simpleProbes()...)

func simpleProbes() (list []probe) {
	for _, s := range simple {
		list = append(list, func(a *areas) (Signature, bool) {
			return Signature{Name: s.name, Class: s.class}, a.has(s.off, s.magic)
		})
	}
	return list
}

func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return strings.TrimSpace(strings.ToValidUTF8(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7F {
			return '?'
		}
		return r
	}, string(b)), "?"))
}

func uuid(b []byte) string {
	if [16]byte(b) == ([16]byte{}) {
		return ""
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

func ext(a *areas) (Signature, bool) {
	sb := a.at(1024, 1024)
	le := binary.LittleEndian
	if le.Uint16(sb[56:]) != 0xEF53 || le.Uint32(sb[4:]) == 0 && le.Uint32(sb[0:]) == 0 {
		return Signature{}, false
	}
	compat, incompat, ro := le.Uint32(sb[92:]), le.Uint32(sb[96:]), le.Uint32(sb[100:])
	s := Signature{Name: "ext2", UUID: uuid(sb[104:120]), Label: text(sb[120:136])}
	switch {
	case incompat&0x8 != 0:
		s.Name, s.Class = "jbd", Container // a journal that lies apart from its file system
	case incompat&^0x16 != 0 || ro&^0x7 != 0: // more than ext3 knows
		s.Name = "ext4"
	case compat&0x4 != 0:
		s.Name = "ext3"
	}
	return s, true
}

func xfs(a *areas) (Signature, bool) {
	sb := a.at(0, 512)
	return Signature{Name: "xfs", UUID: uuid(sb[32:48]), Label: text(sb[108:120])}, string(sb[:4]) == "XFSB"
}

func btrfs(a *areas) (Signature, bool) {
	sb := a.at(0x10000, 4096)
	return Signature{Name: "btrfs", UUID: uuid(sb[0x20:0x30]), Label: text(sb[0x12B : 0x12B+256])}, string(sb[0x40:0x48]) == "_BHRfS_M"
}

// bootSectorOf names the file system whose boot sector b is, or "".
func bootSectorOf(b []byte) string {
	if b[510] != 0x55 || b[511] != 0xAA {
		return ""
	}
	switch string(b[3:11]) {
	case "NTFS    ":
		return "ntfs"
	case "EXFAT   ":
		return "exfat"
	}
	le := binary.LittleEndian
	sector, cluster := le.Uint16(b[11:]), b[13]
	pow2 := func(n uint16) bool { return n != 0 && n&(n-1) == 0 }
	if !pow2(sector) || sector < 512 || sector > 4096 || !pow2(uint16(cluster)) || le.Uint16(b[14:]) == 0 || b[16] < 1 || b[16] > 2 || b[21] != 0xF0 && b[21] < 0xF8 {
		return ""
	}
	if b[0] != 0xEB && b[0] != 0xE9 {
		return ""
	}
	return "vfat"
}

func boot(a *areas) (Signature, bool) {
	b := a.at(0, 512)
	s := Signature{Name: bootSectorOf(b)}
	le := binary.LittleEndian
	switch s.Name {
	case "ntfs":
		s.UUID = fmt.Sprintf("%016X", le.Uint64(b[72:]))
	case "exfat":
		s.UUID = fmt.Sprintf("%04X-%04X", le.Uint16(b[102:]), le.Uint16(b[100:]))
	case "vfat":
		serial, label := b[39:], b[43:54] // FAT12 and FAT16
		if le.Uint16(b[22:]) == 0 {
			serial, label = b[67:], b[71:82] // FAT32
		}
		s.UUID = fmt.Sprintf("%04X-%04X", le.Uint16(serial[2:]), le.Uint16(serial))
		if s.Label = text(label); s.Label == "NO NAME" {
			s.Label = ""
		}
	}
	return s, s.Name != ""
}

func lvm(a *areas) (Signature, bool) {
	for i := range int64(4) {
		b := a.at(i*512, 64)
		if string(b[:8]) == "LABELONE" && string(b[24:32]) == "LVM2 001" {
			return Signature{Name: "LVM2_member", Class: Container, UUID: text(b[32:64])}, true
		}
	}
	return Signature{}, false
}

func luks(a *areas) (Signature, bool) {
	b := a.at(0, 512)
	s := Signature{Name: "crypto_LUKS", Class: Container, UUID: text(b[168:208])}
	if string(b[:6]) == "LUKS\xba\xbe" {
		return s, true
	}
	for off := int64(0x4000); off <= 0x40000; off *= 2 { // the second header of LUKS2, if the first is lost
		if a.has(off, "SKUL\xba\xbe") {
			s.UUID = ""
			return s, true
		}
	}
	return s, false
}

func swap(a *areas) (Signature, bool) {
	for page := int64(4096); page <= 65536; page *= 2 {
		if m := string(a.at(page-10, 10)); m == "SWAPSPACE2" || m == "SWAP-SPACE" {
			b := a.at(1024, 64)
			return Signature{Name: "swap", Class: Swap, UUID: uuid(b[12:28]), Label: text(b[28:44])}, true
		}
	}
	return Signature{}, false
}

func ocfs2(a *areas) (Signature, bool) {
	for block := int64(512); block <= 4096; block *= 2 {
		b := a.at(2*block, 512)
		if string(b[:6]) == "OCFSV2" {
			// The superblock's fields begin at 0xC0 of the dinode: the label at 0x50, 64 bytes, and then the UUID.
			return Signature{Name: "ocfs2", Class: Cluster, Label: text(b[0xC0+0x50 : 0xC0+0x90]), UUID: uuid(b[0xC0+0x90 : 0xC0+0xA0])}, true
		}
	}
	return Signature{}, false
}

func gfs(a *areas) (Signature, bool) {
	b := a.at(65536, 512)
	be := binary.BigEndian
	if be.Uint32(b) != 0x01161970 || be.Uint32(b[4:]) != 1 {
		return Signature{}, false
	}
	s := Signature{Name: "gfs2", Class: Cluster, Label: text(b[160:224])}
	if f := be.Uint32(b[24:]); f < 1800 {
		s.Name = "gfs"
	} else {
		s.UUID = uuid(b[256:272])
	}
	// One that was made for a single host says so.
	if text(b[96:160]) == "lock_nolock" {
		s.Class = FileSystem
	}
	return s, true
}

func raid(a *areas) (Signature, bool) {
	const magic = "\xfc\x4e\x2b\xa9"
	s := Signature{Name: "linux_raid_member", Class: Container}
	places := []int64{0, 4096}
	if a.size >= 128<<10 {
		places = append(places, (a.size/512-16)&^7*512, a.size&^65535-65536)
	}
	for _, p := range places {
		if a.has(p, magic) {
			return s, true
		}
	}
	return s, false
}

// zfs looks for the ring of uberblocks in the first label.
func zfs(a *areas) (Signature, bool) {
	for off := int64(128 << 10); off < 256<<10; off += 1024 {
		if m := string(a.at(off, 8)); m == "\x0c\xb1\xba\x00\x00\x00\x00\x00" || m == "\x00\x00\x00\x00\x00\xba\xb1\x0c" {
			return Signature{Name: "zfs_member", Class: Container}, true
		}
	}
	return Signature{}, false
}
