package vhdx

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
)

// MergeOptions say how a differencing disk is merged into its parent.
type MergeOptions struct {
	Resolver Resolver // finds the parent; needed
	Name     string   // of the child, for messages
	Logger   *slog.Logger
	Progress Progress
}

// Merge copies what a differencing disk has into its parent, which shows then what the child shows, and returns the place of the parent. The child is locked
// and not changed but for its locator: it stays a valid child of its parent, which has another DataWriteGuid then ([MS-VHDX] 2.6.2.6.3), and
// can be removed. Children of it are given the parent as their own with [Disk.SetParent] before. Other children of the parent are lost, as with every change of it.
//
// At every moment child and parent together show the same as before, also after a crash. Merging again finishes what a crash or a cancelled context has cut short.
// Merge closes the backing file of the child, whatever happens.
func Merge(ctx context.Context, child Backing, o MergeOptions) (place string, err error) {
	oo := Options{Resolver: o.Resolver, Name: o.Name, Logger: o.Logger, detached: true}
	c, err := Open(ctx, child, oo)
	if err != nil {
		return "", errors.Join(fmt.Errorf("merge: %w", err), child.Close())
	}
	place, err = mergeDisk(ctx, c, &oo, o.Progress)
	if err = errors.Join(err, c.Close()); err != nil {
		return place, fmt.Errorf("merge: %w", err)
	}
	return place, nil
}

func mergeDisk(ctx context.Context, c *Disk, o *Options, progress Progress) (string, error) {
	if !c.differencing() {
		return "", fmt.Errorf("the image is not a differencing disk: it has no parent to merge into: %w", ErrUnsupported)
	}
	if o.Resolver == nil {
		return "", ErrDifferencing
	}
	line := []ancestor{{o.Name, c.session.header().fileWriteGUID}}
	p, err := openParent(ctx, c.Locator(), o, line, true)
	if err != nil {
		return "", err
	}
	place := p.Info().Name
	err = errors.Join(merge(ctx, c, p, progress), p.Close())
	return place, err
}

// merge copies what c itself has into p, its parent.
func merge(ctx context.Context, c, p *Disk, progress Progress) error {
	if err := mergeBegin(ctx, c, p); err != nil {
		return err
	}
	if err := copyOwn(ctx, c, p, progress); err != nil {
		return err
	}
	return mergeEnd(ctx, c, p)
}

// mergeBegin lets the child know the parent by its new GUID, too, gives it that, and makes it large enough.
func mergeBegin(ctx context.Context, c, p *Disk) error {
	if c.params.logical != p.params.logical {
		return corrupt("metadata", c.layout.meta.off, "the sectors of the image have %d bytes, those of its parent %d", c.params.logical, p.params.logical)
	}
	l := *c.Locator()
	l.Linkage, l.Linkage2 = p.session.header().dataWriteGUID, NewGUID()
	if err := c.SetParent(ctx, l); err != nil {
		return err
	}
	if err := p.session.beginAs(ctx, l.Linkage2); err != nil {
		return err
	}
	if p.geo.size < c.geo.size {
		return p.Resize(ctx, c.geo.size, ResizeOptions{})
	}
	return nil
}

// mergeEnd makes size and metadata of the parent those of the child, and all of it durable.
func mergeEnd(ctx context.Context, c, p *Disk) error {
	if p.geo.size > c.geo.size {
		if err := p.Resize(ctx, c.geo.size, ResizeOptions{Discard: true}); err != nil {
			return err
		}
	}
	if err := mergeMetadata(ctx, c, p); err != nil {
		return err
	}
	return p.Flush(ctx)
}

// copyOwn writes to dst everything that src itself has, zeros included.
func copyOwn(ctx context.Context, src, dst *Disk, progress Progress) error {
	buf := make([]byte, mib)
	usage, err := src.Usage(ctx)
	if err != nil {
		return err
	}
	done := int64(0)
	for off := int64(0); off < src.geo.size; {
		s, err := src.spanAt(ctx, off, src.geo.size-off)
		if err != nil {
			return err
		}
		switch s.kind {
		case spanFile:
			for at := int64(0); at < s.n; {
				b := buf[:min(int64(len(buf)), s.n-at)]
				if err := src.readFile(ctx, b, s.at+at); err != nil {
					return err
				}
				if err := dst.Write(ctx, b, off+at, false); err != nil {
					return err
				}
				at += int64(len(b))
				done += int64(len(b))
				progress.report(min(done, usage.AllocatedBytes), usage.AllocatedBytes)
			}
		case spanZero, spanUnmapped:
			if err := dst.WriteZeroes(ctx, off, s.n, true, false); err != nil {
				return err
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		off += s.n
	}
	progress.report(usage.AllocatedBytes, usage.AllocatedBytes)
	return nil
}

// mergeMetadata gives the parent the metadata of the virtual disk that the child has. [MS-VHDX] 2.6.1.2
func mergeMetadata(ctx context.Context, c, p *Disk) error {
	items, err := c.diskItems(ctx)
	if err != nil {
		return err
	}
	items = append(items,
		metaItem{metaEntry{id: itemVirtualID, disk: true, req: true}, c.params.id[:]},
		metaItem{metaEntry{id: itemPhysicalSector, disk: true, req: true}, le.AppendUint32(nil, uint32(c.params.physical))})
	old, err := p.diskItems(ctx)
	if err != nil {
		return err
	}
	var remove []metaEntry
	for _, o := range old {
		if !slices.ContainsFunc(items, func(i metaItem) bool { return i.id == o.id && i.user == o.user }) {
			remove = append(remove, o.metaEntry)
		}
	}
	if len(items) == 2 && len(remove) == 0 && c.params.id == p.params.id && c.params.physical == p.params.physical {
		return nil
	}
	return p.exclusive(ctx, true, func() error {
		updates, entries, err := p.planMetadata(ctx, items, remove)
		if err != nil {
			return err
		}
		if err := p.commit.atomic(ctx, updates); err != nil {
			return err
		}
		p.meta, p.params.id, p.params.physical = entries, c.params.id, c.params.physical
		return nil
	})
}

// MergeFile merges the differencing disk in a local file into its parent. With remove the file is removed when that is done.
func MergeFile(ctx context.Context, path string, remove bool, o MergeOptions) (place string, err error) {
	f, err := OpenOSFile(path, false)
	if err != nil {
		return "", err
	}
	if o.Name == "" {
		o.Name = CanonicalFile(path)
	}
	if o.Resolver == nil {
		o.Resolver = localResolver(o.Name)
	}
	if place, err = Merge(ctx, f, o); err != nil || !remove {
		return place, err
	}
	return place, removeFile(path)
}
