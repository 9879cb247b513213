package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"vdbridge/client"
	"vdbridge/rsvd"
	"vdbridge/scsi"
	"vdbridge/smb/tunnel"
	"vdbridge/smb/wire"
	"vdbridge/vhdx"
)

// Info describes a disk.
type Info struct {
	Disk           string          `json:"disk"`
	Mode           string          `json:"mode"`
	Size           int64           `json:"size"`
	LogicalSector  int             `json:"logical_sector"`
	PhysicalSector int             `json:"physical_sector"`
	Optimal        int             `json:"optimal_transfer,omitempty"`
	ReadOnly       *bool           `json:"read_only,omitempty"` // how an attachment has it; nil for who only looks
	RSVD           *RSVDInfo       `json:"rsvd,omitempty"`
	VHDX           *vhdx.Info      `json:"vhdx,omitempty"`
	Usage          *vhdx.Usage     `json:"usage,omitempty"`
	Connection     *ConnectionInfo `json:"connection,omitempty"`
}

// RSVDInfo is what the server says about a shared disk.
type RSVDInfo struct {
	ServerVersion  uint32   `json:"server_version"`
	ContextVersion uint32   `json:"context_version"`
	IO             string   `json:"io"`
	Type           string   `json:"type,omitempty"`
	Format         string   `json:"format,omitempty"`
	BlockSize      uint32   `json:"block_size,omitempty"`
	FileSize       uint64   `json:"file_size,omitempty"`
	VirtualDiskID  string   `json:"virtual_disk_id,omitempty"`
	Vendor         string   `json:"vendor,omitempty"`
	Product        string   `json:"product,omitempty"`
	Revision       string   `json:"revision,omitempty"`
	Serial         string   `json:"serial,omitempty"`
	Reservation    string   `json:"reservation,omitempty"`
	Keys           []string `json:"keys,omitempty"`
}

// GetInfo opens the disk read-only, as a passer-by, and describes it.
func GetInfo(ctx context.Context, loc Location, o Options) (*Info, error) {
	o.ReadOnly = true
	d, err := Open(ctx, loc, o)
	if err != nil {
		return nil, err
	}
	i, err := d.Info(ctx)
	if i != nil {
		i.ReadOnly = nil // that is us
	}
	return i, errors.Join(err, d.Close())
}

// Info describes an open disk. What the server does not tell is left out.
func (d *Disk) Info(ctx context.Context) (*Info, error) {
	i := &Info{Disk: d.loc.String(), Mode: d.mode.String(), Size: d.Size()}
	ro := d.ReadOnly()
	i.ReadOnly = &ro
	i.LogicalSector, i.PhysicalSector, i.Optimal, _ = d.BlockSizes()
	if d.remote != nil {
		i.Connection = d.remote.Info()
	}
	if d.image != nil {
		v := d.image.Info()
		i.VHDX = &v
		u, err := d.image.Usage(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d.loc, err)
		}
		i.Usage = &u
	}
	if d.shared != nil {
		i.RSVD = describeShared(ctx, d.shared)
	}
	return i, ctx.Err()
}

func describeShared(ctx context.Context, s *rsvd.Disk) *RSVDInfo {
	r := &RSVDInfo{ServerVersion: s.ServerVersion(), ContextVersion: s.Version(), IO: s.IO().String()}
	if di, err := s.DiskInfo(ctx); err == nil {
		r.Type = map[uint32]string{tunnel.DiskTypeFixed: "fixed", tunnel.DiskTypeDynamic: "dynamic"}[di.DiskType]
		r.Format = map[uint32]string{tunnel.DiskFormatVHDX: "VHDX", tunnel.DiskFormatVHDSet: "VHD set"}[di.DiskFormat]
		r.BlockSize, r.FileSize, r.VirtualDiskID = di.BlockSize, di.FileSize, FormatGUID(di.VirtualDiskID)
	}
	buf := make([]byte, 252)
	inq := scsi.Inquiry(96)
	if n, err := s.Execute(ctx, inq.Bytes(), nil, buf[:96]); err == nil {
		if q, err := scsi.ParseInquiry(buf[:n]); err == nil {
			r.Vendor, r.Product, r.Revision = strings.TrimSpace(q.Vendor), strings.TrimSpace(q.Product), strings.TrimSpace(q.Revision)
		}
	}
	vpd := scsi.InquiryVPD(scsi.VPDUnitSerialNumber, 252)
	if n, err := s.Execute(ctx, vpd.Bytes(), nil, buf); err == nil {
		if q, err := scsi.ParseSerialNumber(buf[:n]); err == nil {
			r.Serial = strings.TrimSpace(q)
		}
	}
	if v, err := s.ReadReservation(ctx); err == nil {
		r.Reservation = "none"
		if v.Held {
			r.Reservation = fmt.Sprintf("%v, key %#016x", v.Type, v.Key)
		}
	}
	if k, err := s.ReadKeys(ctx); err == nil {
		for _, key := range k.Keys {
			r.Keys = append(r.Keys, fmt.Sprintf("%#016x", key))
		}
	}
	return r
}

// Entry is a file or a directory in a listing.
type Entry struct {
	Name      string    `json:"name"`
	Size      int64     `json:"size"`
	Directory bool      `json:"directory,omitempty"`
	Modified  time.Time `json:"modified"`
}

// List lists the directory at loc, or the file alone, by name.
func List(ctx context.Context, loc Location, o Options) ([]Entry, error) {
	if loc.Local {
		return listLocal(loc)
	}
	r, err := Connect(ctx, loc, o)
	if err != nil {
		return nil, err
	}
	list, err := r.list(ctx)
	return list, errors.Join(err, r.Close())
}

func (r *Remote) list(ctx context.Context) (list []Entry, err error) {
	st, err := r.tree().Stat(ctx, r.loc.Path)
	if err != nil {
		return nil, explainOpen(r.loc, err)
	}
	if !st.IsDir() {
		return []Entry{{Name: r.loc.Base(), Size: st.Size, Modified: st.Written}}, nil
	}
	dir, err := r.tree().Open(ctx, r.loc.Path, client.OpenOptions{
		Access: wire.AccessReadData | wire.AccessReadAttributes, Share: wire.ShareRead | wire.ShareWrite | wire.ShareDelete,
		Disposition: wire.FileOpen, Options: wire.OptDirectoryFile,
	})
	if err != nil {
		return nil, explainOpen(r.loc, err)
	}
	list = []Entry{}
	for e, err := range dir.ReadDir(ctx, "*") {
		if err != nil {
			return nil, errors.Join(explainOpen(r.loc, err), dir.Close())
		}
		list = append(list, Entry{Name: e.Name, Size: int64(e.EndOfFile), Directory: e.Attributes&attrDirectory != 0, Modified: client.FileTime(e.LastWriteTime).UTC()})
	}
	slices.SortFunc(list, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return list, dir.Close()
}

// attrDirectory is FILE_ATTRIBUTE_DIRECTORY. [MS-FSCC] 2.6
const attrDirectory = 0x10

// CreateOptions describe a new image. See vhdx.CreateOptions.
type CreateOptions struct {
	Size           int64
	Fixed          bool
	BlockSize      int64 // 0 = 32 MiB
	LogicalSector  int   // 0 = 512
	PhysicalSector int   // 0 = 4096
	Overwrite      bool  // replace an image that is there; what it holds is lost
}

// Create makes a new image. Without Overwrite an existing file stays as it is; a file that could not be completed is removed.
func Create(ctx context.Context, loc Location, o Options, co CreateOptions) error {
	vo := vhdx.CreateOptions{Size: co.Size, Fixed: co.Fixed, BlockSize: co.BlockSize, LogicalSector: co.LogicalSector, PhysicalSector: co.PhysicalSector, Overwrite: co.Overwrite}
	if err := checkCreate(loc, co); err != nil {
		return err
	}
	if loc.Local {
		if err := vhdx.CreateFile(ctx, loc.Path, vo); err != nil {
			return explainCreate(loc, err)
		}
		return nil
	}
	r, err := Connect(ctx, loc, o)
	if err != nil {
		return err
	}
	return errors.Join(r.create(ctx, vo), r.Close())
}

func checkCreate(loc Location, co CreateOptions) error {
	sector := int64(max(co.LogicalSector, 512))
	switch {
	case !loc.Local && loc.Path == "":
		return Usagef("%s names no file; give smb://user@host/share/disk.vhdx", loc)
	case co.LogicalSector != 0 && co.LogicalSector != 512 && co.LogicalSector != 4096, co.PhysicalSector != 0 && co.PhysicalSector != 512 && co.PhysicalSector != 4096:
		return Usagef("sectors have 512 or 4096 bytes")
	case co.PhysicalSector != 0 && co.PhysicalSector < co.LogicalSector:
		return Usagef("the physical sector cannot be smaller than the logical one")
	case co.Size == 0:
		return Usagef("a disk needs at least one sector; give a size such as 10G")
	case co.Size < 0 || co.Size%sector != 0:
		return Usagef("a disk of %d bytes is not a whole number of sectors of %d bytes", co.Size, sector)
	case co.Size > 64<<40:
		return Usagef("a VHDX holds at most 64 TiB")
	case co.BlockSize != 0 && (co.BlockSize < 1<<20 || co.BlockSize > 256<<20 || co.BlockSize&(co.BlockSize-1) != 0):
		return Usagef("the block size must be a power of two from 1M to 256M")
	}
	return nil
}

func (r *Remote) create(ctx context.Context, vo vhdx.CreateOptions) error {
	return r.createWith(ctx, vo.Overwrite, func(b vhdx.Backing) error { return vhdx.Create(ctx, b, vo) })
}

// createWith makes the file, unless it may be there already, and lets fill make an image of it.
func (r *Remote) createWith(ctx context.Context, overwrite bool, fill func(vhdx.Backing) error) error {
	disposition := wire.FileCreate
	if overwrite {
		disposition = wire.FileOpenIf
	}
	f, err := r.tree().Open(ctx, r.loc.Path, client.OpenOptions{
		Access:      wire.AccessReadData | wire.AccessWriteData | wire.AccessAppendData | wire.AccessReadAttributes | wire.AccessWriteAttributes | wire.AccessDelete,
		Disposition: disposition, Options: wire.OptNonDirectoryFile,
	})
	if err != nil {
		return explainCreate(r.loc, err)
	}
	err = fill(backing{f})
	if err != nil {
		err = explainCreate(r.loc, err)
		if !overwrite {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
			err = errors.Join(err, f.SetDelete(clean, true))
			cancel()
		}
	}
	return errors.Join(err, f.Close())
}

func explainCreate(loc Location, err error) error {
	switch class := Classify(err); class {
	case ClassExists:
		return &Error{class, fmt.Sprintf("%s exists already; choose another name or remove it first", loc), err}
	case ClassNotFound:
		return &Error{class, fmt.Sprintf("the directory of %s does not exist; make it first", loc), err}
	}
	return explainOpen(loc, err)
}

// Report is what Check found.
type Report struct{ vhdx.Report }

// Damaged says that data are lost or at risk.
func (r *Report) Damaged() bool { return r.State == vhdx.StateCorrupt }

// Lines says the findings in words, one a line.
func (r *Report) Lines() []string {
	var out []string
	for _, f := range r.Findings {
		at := ""
		if f.Offset >= 0 {
			at = fmt.Sprintf(" at offset %d", f.Offset)
		}
		line := fmt.Sprintf("%v: %s%s: %s", f.Severity, f.Structure, at, f.Message)
		switch {
		case f.Repaired:
			line += " (repaired)"
		case f.Advice != "":
			line += "; " + f.Advice
		}
		out = append(out, line)
	}
	if r.MoreFindings > 0 {
		out = append(out, fmt.Sprintf("and %d more findings", r.MoreFindings))
	}
	if r.LeakedBytes > 0 {
		out = append(out, fmt.Sprintf("note: %d bytes of the file are not used by anything", r.LeakedBytes))
	}
	if r.State == vhdx.StateDirty {
		out = append(out, "note: the log holds changes that the next writer replays")
	}
	return out
}

// Check examines the image at loc without changing it.
func Check(ctx context.Context, loc Location, o Options) (*Report, error) {
	if loc.Local {
		f, err := vhdx.OpenOSFile(loc.Path, true)
		if err != nil {
			return nil, explainOpen(loc, err)
		}
		// What is being written looks damaged.
		if err := f.Lock(ctx, false); err != nil {
			return nil, errors.Join(explainOpen(loc, err), f.Close())
		}
		return checkBacking(ctx, loc, f)
	}
	if loc.Path == "" {
		return nil, Usagef("%s names no file; give smb://user@host/share/disk.vhdx", loc)
	}
	r, err := Connect(ctx, loc, o)
	if err != nil {
		return nil, err
	}
	f, err := r.openFile(ctx, false, nil)
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	rep, err := checkBacking(ctx, loc, backing{f})
	return rep, errors.Join(err, r.Close())
}

func checkBacking(ctx context.Context, loc Location, b vhdx.Backing) (*Report, error) {
	rep, err := vhdx.Check(ctx, b)
	if err = errors.Join(err, b.Close()); err != nil {
		return nil, explainImage(loc, err)
	}
	return &Report{rep}, nil
}
