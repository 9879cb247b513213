package vhdx

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// DefaultChildBlockSize is the block size of a differencing disk: a small one, as the disk is there to hold few changes.
const DefaultChildBlockSize = 2 * mib

// ChildOptions describe a new differencing disk. The zero value takes everything from the parent but the block size.
type ChildOptions struct {
	Size           int64 // bytes; 0 means that of the parent, less is not allowed
	BlockSize      int64 // 0 means 2 MiB
	PhysicalSector int   // 0 means that of the parent
	LogSize        int64
	DataWriteGUID  GUID
	Creator        string
	Overwrite      bool // as in CreateOptions
	// Parent says where the parent is, seen from the child; one path is needed. The linkage is filled in.
	Parent ParentLocator
}

// CreateChild makes a differencing disk over an open parent in an empty file. No data is copied: it takes as long as creating an empty image. Like
// [Create] it leaves the file open and the caller's.
//
// The parent must not be written to any more. If it is open for writing, everything that was written before is made durable; a write after that
// gives it another DataWriteGuid, so that the child will refuse it. Metadata items of the virtual disk, such as its ID, are copied ([MS-VHDX] 2.6.1.2).
func CreateChild(ctx context.Context, b Backing, parent *Disk, o ChildOptions) error {
	guid, err := parent.seal(ctx)
	if err != nil {
		return fmt.Errorf("create a differencing image: %w", err)
	}
	co := CreateOptions{
		Size: o.Size, BlockSize: o.BlockSize, LogicalSector: int(parent.params.logical), PhysicalSector: o.PhysicalSector, LogSize: o.LogSize,
		VirtualDiskID: parent.params.id, DataWriteGUID: o.DataWriteGUID, Creator: o.Creator, Overwrite: o.Overwrite,
	}
	if co.Size == 0 {
		co.Size = parent.geo.size
	}
	if co.Size < parent.geo.size {
		return fmt.Errorf("create a differencing image: its size %d is below the %d bytes of its parent", co.Size, parent.geo.size)
	}
	if co.BlockSize == 0 {
		co.BlockSize = DefaultChildBlockSize
	}
	if co.PhysicalSector == 0 {
		co.PhysicalSector = int(parent.params.physical)
	}
	l := o.Parent
	l.Linkage, l.Linkage2 = guid, GUID{}
	co.parent = &l
	if co.extra, err = parent.diskItems(ctx); err != nil {
		return fmt.Errorf("create a differencing image: %w", err)
	}
	return Create(ctx, b, co)
}

// seal makes everything durable and returns the DataWriteGuid that belongs to it. The next write changes the GUID.
func (d *Disk) seal(ctx context.Context) (GUID, error) {
	if d.readOnly {
		c, err := d.gate.enter(ctx, 0)
		if err != nil {
			return GUID{}, err
		}
		defer d.gate.leave(c)
		return d.info.DataWriteGUID, nil
	}
	if err := d.gate.shut(ctx, false); err != nil {
		return GUID{}, err
	}
	defer d.gate.open()
	if d.session.began.Load() {
		if err := d.commit.sync(ctx); err != nil {
			return GUID{}, err
		}
		d.session.began.Store(false)
	}
	return d.session.header().dataWriteGUID, nil
}

// diskItems reads the metadata items that belong to the virtual disk rather than to the file, besides those that every image has.
func (d *Disk) diskItems(ctx context.Context) ([]metaItem, error) {
	var out []metaItem
	for _, e := range d.meta {
		if !e.disk || !e.user && isKnownItem(e.id) {
			continue
		}
		v := make([]byte, e.length)
		if err := readFull(ctx, d.file, v, d.layout.meta.off+int64(e.offset)); err != nil {
			return nil, fmt.Errorf("read the metadata: %w", err)
		}
		out = append(out, metaItem{e, v})
	}
	return out, nil
}

func isKnownItem(id GUID) bool {
	for _, k := range knownItems {
		if k.id == id {
			return true
		}
	}
	return false
}

// CreateChildFile makes a differencing disk in a new local file over a parent in another one. If o.Parent has no path it gets the relative one.
func CreateChildFile(ctx context.Context, path, parent string, o ChildOptions) error {
	p, err := OpenFile(ctx, parent, Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer func() { _ = p.Close() }()
	if len(o.Parent.paths()) == 0 {
		if o.Parent, err = RelativeLocator(path, parent); err != nil {
			return err
		}
	}
	return createFile(ctx, path, o.Overwrite, func(b Backing) error { return CreateChild(ctx, b, p, o) })
}

// createFile makes a local file and fills it; when that fails, a file that it made is removed.
func createFile(ctx context.Context, path string, overwrite bool, fill func(Backing) error) error {
	flag := os.O_RDWR | os.O_CREATE
	if !overwrite {
		flag |= os.O_EXCL
	}
	f, err := os.OpenFile(path, flag, 0o666)
	if err != nil {
		return err
	}
	b := NewOSFile(f)
	err = b.Lock(ctx, true)
	locked := err == nil
	if locked {
		err = fill(b)
	}
	if cerr := b.Close(); err == nil {
		err = cerr
	}
	if err == nil && !overwrite { // the name must be there after a power loss, too, as others will refer to it
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		if !overwrite && locked {
			_ = os.Remove(path)
		}
		return fmt.Errorf("create %s: %w", path, err)
	}
	return nil
}

// syncDir makes the names in a folder durable, where the system can.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return nil // it may be closed to us; the file is ours all the same
	}
	_ = d.Sync()
	return d.Close()
}
