package bridge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"vdbridge/vhdx"
	"vdbridge/vhdx/vhd"
)

// openVHD opens a legacy image, which is always read-only.
func openVHD(ctx context.Context, loc Location, o Options) (*Disk, error) {
	if o.Mode == ModeRSVD {
		return nil, Usagef("%s is a .vhd; a shared disk (--mode rsvd) is a .vhdx", loc)
	}
	if loc.Local {
		d, err := vhd.OpenFile(ctx, loc.Path, vhd.Options{Logger: o.Logger})
		if err != nil {
			return nil, explainVHD(loc, err)
		}
		return newDisk(d, loc, ModeFile, o.logger()), nil
	}
	r, err := Connect(ctx, loc, o)
	if err != nil {
		return nil, err
	}
	f, err := r.openFile(ctx, false, nil)
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	img, err := vhd.Open(ctx, backing{f}, vhd.Options{Logger: o.Logger, Resolver: r.parents(loc.Path), Name: loc.Path})
	if err != nil {
		return nil, errors.Join(explainVHD(loc, err), f.Close(), r.Close())
	}
	d := newDisk(img, loc, ModeFile, o.logger())
	d.remote = r
	return d, nil
}

func explainVHD(loc Location, err error) error {
	if errors.Is(err, vhd.ErrNotVHD) {
		return &Error{ClassCorrupt, fmt.Sprintf("%s is not a VHD image; if it is a disk as it is, say --format raw", loc), err}
	}
	return explainImage(loc, err)
}

// openForChange opens the image itself, for this host alone, to change its shape.
func openForChange(ctx context.Context, loc Location, o Options) (*Disk, error) {
	if f := formatOf(loc); f == FormatVHD || f == FormatRaw {
		return nil, &Error{ClassUnsupported, fmt.Sprintf("%s is no .vhdx; 'vdbridge convert' makes one of it", loc), errors.ErrUnsupported}
	}
	o.Mode, o.ReadOnly = ModeFile, false
	return Open(ctx, loc, o)
}

// Compact makes the file of an image as small as it can be, and says how large it was and is. With findZeros it also gives back blocks that hold only zeros. A cancelled ctx leaves a sound image with a part of
// the work done.
func Compact(ctx context.Context, loc Location, o Options, findZeros bool, progress func(done, total int64)) (before, after int64, err error) {
	d, err := openForChange(ctx, loc, o)
	if err != nil {
		return 0, 0, err
	}
	before = d.image.Info().FileSize
	err = d.image.Compact(ctx, vhdx.CompactOptions{FindZeros: findZeros, Progress: progress})
	after = d.image.Info().FileSize
	return before, after, errors.Join(explainShape(loc, err), d.Close())
}

// Resize changes the size of the disk in an image. With discard data behind the new end may be cut off.
func Resize(ctx context.Context, loc Location, o Options, size int64, discard bool) (before int64, err error) {
	if size <= 0 || size > 64<<40 {
		return 0, Usagef("a disk has one sector to 64 TiB")
	}
	d, err := openForChange(ctx, loc, o)
	if err != nil {
		return 0, err
	}
	before = d.image.Size()
	logical, _, _, _ := d.BlockSizes()
	if size%int64(logical) != 0 {
		return before, errors.Join(Usagef("a disk of %d bytes is not a whole number of sectors of %d bytes", size, logical), d.Close())
	}
	err = d.image.Resize(ctx, size, vhdx.ResizeOptions{Discard: discard})
	return before, errors.Join(explainShape(loc, err), d.Close())
}

// Merge copies what a differencing image has into its parent, and says where that is. The child stays; it is of no use any more if that has succeeded.
func Merge(ctx context.Context, loc Location, o Options, progress func(done, total int64)) (parent string, err error) {
	mo := vhdx.MergeOptions{Logger: o.Logger, Progress: progress}
	if loc.Local {
		parent, err = vhdx.MergeFile(ctx, loc.Path, false, mo)
		return parent, explainShape(loc, err)
	}
	r, err := Connect(ctx, loc, o)
	if err != nil {
		return "", err
	}
	f, err := r.openFile(ctx, true, nil)
	if err != nil {
		return "", errors.Join(err, r.Close())
	}
	mo.Resolver, mo.Name = r.parents(loc.Path), loc.Path
	parent, err = vhdx.Merge(ctx, backing{f}, mo)
	return parent, errors.Join(explainShape(loc, err), r.Close())
}

// explainShape makes the sentence for a change of shape that failed.
func explainShape(loc Location, err error) error {
	var be *Error
	switch {
	case err == nil || errors.As(err, &be):
		return err
	case errors.Is(err, context.Canceled):
		return &Error{ClassInterrupted, "interrupted; the image is sound, and the same command goes on", err}
	case errors.Is(err, vhdx.ErrDataLoss):
		return &Error{ClassUsage, fmt.Sprintf("%s would lose data: what is to be cut off is in use; shrink file systems and partitions first, or say --discard", loc), err}
	case errors.Is(err, vhdx.ErrUnsupported):
		return &Error{ClassUnsupported, fmt.Sprintf("%s: %v", loc, err), err}
	}
	return explainImage(loc, err)
}

// Repair checks the image at loc and puts right what can be put right without a doubt. The report is that of the check before, with what was repaired marked.
func Repair(ctx context.Context, loc Location, o Options) (*Report, error) {
	if loc.Local {
		rep, err := vhdx.RepairFile(ctx, loc.Path)
		if err != nil {
			return nil, explainShape(loc, err)
		}
		return &Report{rep}, nil
	}
	if loc.Path == "" {
		return nil, Usagef("%s names no file; give smb://user@host/share/disk.vhdx", loc)
	}
	r, err := Connect(ctx, loc, o)
	if err != nil {
		return nil, err
	}
	f, err := r.openFile(ctx, true, nil)
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	rep, err := vhdx.Repair(ctx, backing{f}, vhdx.CheckOptions{Resolver: r.parents(loc.Path), Name: loc.Path})
	if err = errors.Join(explainShape(loc, err), r.Close()); err != nil {
		return nil, err
	}
	return &Report{rep}, nil
}

// ChildOptions describe a new differencing image.
type ChildOptions struct {
	Size      int64 // 0 = that of the parent
	BlockSize int64 // 0 = 2 MiB
}

// CreateChild makes a differencing image over the one at parent, which must lie on the same machine or share, and returns the size of the disk. It is found again by the
// path from the one to the other.
func CreateChild(ctx context.Context, loc, parent Location, o Options, co ChildOptions) (size int64, err error) {
	vo := vhdx.ChildOptions{Size: co.Size, BlockSize: co.BlockSize}
	switch {
	case co.BlockSize != 0 && (co.BlockSize < 1<<20 || co.BlockSize > 256<<20 || co.BlockSize&(co.BlockSize-1) != 0):
		return 0, Usagef("the block size must be a power of two from 1M to 256M")
	case loc.Local != parent.Local || !loc.Local && (!strings.EqualFold(loc.Host, parent.Host) || loc.Port != parent.Port || !strings.EqualFold(loc.Share, parent.Share)):
		return 0, Usagef("a differencing image and its parent lie on the same machine, or on the same share")
	case !loc.Local && (loc.Path == "" || parent.Path == ""):
		return 0, Usagef("give the files of the image and of its parent, such as smb://user@host/share/disk.vhdx")
	}
	if loc.Local {
		if _, err := os.Stat(parent.Path); err != nil {
			return 0, explainOpen(parent, err)
		}
		if err := vhdx.CreateChildFile(ctx, loc.Path, parent.Path, vo); err != nil {
			if Classify(err) == ClassCorrupt {
				return 0, explainImage(parent, err)
			}
			return 0, explainCreate(loc, err)
		}
	} else if err := createRemoteChild(ctx, loc, parent, o, vo); err != nil {
		return 0, err
	}
	i, err := GetInfo(ctx, loc, Options{Credentials: o.Credentials, Kerberos: o.Kerberos, Encrypt: o.Encrypt, MinDialect: o.MinDialect, MaxDialect: o.MaxDialect, Timeout: o.Timeout, Mode: ModeFile, Logger: o.Logger})
	if err != nil {
		return 0, err
	}
	return i.Size, nil
}

func createRemoteChild(ctx context.Context, loc, parent Location, o Options, vo vhdx.ChildOptions) error {
	po := o
	po.ReadOnly, po.Mode = true, ModeFile
	p, err := Open(ctx, parent, po)
	if err != nil {
		return err
	}
	rel := relative(path.Dir(strings.ReplaceAll(loc.Path, `\`, "/")), strings.ReplaceAll(parent.Path, `\`, "/"))
	vo.Parent = vhdx.ParentLocator{RelativePath: strings.ReplaceAll(rel, "/", `\`)}
	make := func(b vhdx.Backing) error { return vhdx.CreateChild(ctx, b, p.image, vo) }
	r, err := Connect(ctx, loc, o)
	if err != nil {
		return errors.Join(err, p.Close())
	}
	return errors.Join(r.createWith(ctx, false, make), r.Close(), p.Close())
}

// relative is the way from a folder to a file, both on the same share, as the format wants it.
func relative(dir, file string) string {
	from, to := strings.Split(path.Clean("/"+dir), "/")[1:], strings.Split(path.Clean("/"+file), "/")[1:]
	if from[0] == "" {
		from = nil
	}
	for len(from) > 0 && len(to) > 1 && strings.EqualFold(from[0], to[0]) {
		from, to = from[1:], to[1:]
	}
	up := strings.Repeat("../", len(from))
	if up == "" {
		up = "./"
	}
	return up + strings.Join(to, "/")
}
