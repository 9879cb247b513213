package vhdx

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// MergeParentOptions say how the parent of a disk is taken out of its chain.
type MergeParentOptions struct {
	// Parent says where the grandparent is, seen from the disk, which becomes its parent. The linkage is filled in. For local files that were opened by
	// OpenFile it may be left empty.
	Parent   ParentLocator
	Progress Progress
}

// MergeParent takes the parent of a disk out of its chain while the disk is in use: what the parent has is copied into the grandparent, and that becomes the
// parent of the disk. The file of the old parent stays as it is and can be removed, if no other disk needs it. Requests wait only when the files are
// opened anew, at the beginning and at the end.
//
// The disk shows the same at every moment, also after a crash or a cancel in the middle; calling it again finishes the work. Both images must not be in use elsewhere, as the
// parents of other disks that are open are: that is an [ErrInUse], and nothing was done. Other children of the grandparent are lost, as with every change of it.
//
// If the files cannot be opened again at the end, which only happens when somebody takes them away, the disk goes on without a parent, and reads of
// what only that has fail; opening the disk anew mends that.
func (d *Disk) MergeParent(ctx context.Context, o MergeParentOptions) error {
	select {
	case d.working <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-d.working }()
	if err := d.mergeParent(ctx, &o); err != nil {
		return fmt.Errorf("merge the parent: %w", err)
	}
	return nil
}

func (d *Disk) mergeParent(ctx context.Context, o *MergeParentOptions) error {
	if d.readOnly {
		return ErrReadOnly
	}
	parent := d.Parent()
	if parent == nil || parent.Parent() == nil {
		return fmt.Errorf("the disk has no parent with a parent: %w", ErrUnsupported)
	}
	middle, base := parent.Info().Name, parent.Parent().Info().Name
	if len(o.Parent.paths()) == 0 {
		if _, ok := d.opts.Resolver.(FileResolver); !ok {
			return errors.New("no path to the new parent was given")
		}
		l, err := RelativeLocator(d.opts.Name, base)
		if err != nil {
			return err
		}
		o.Parent = l
	}
	if !slices.Contains(d.opts.Resolver.Places(&o.Parent), base) {
		return fmt.Errorf("the paths %q do not lead to %s, which is to be the new parent", o.Parent.paths(), base)
	}
	var c, p *Disk
	// The begin changes the locator of the parent, which nobody reads, and the size of the grandparent, which nobody may read meanwhile.
	err := d.exclusive(ctx, false, func() (err error) {
		if err := d.dropParent(); err != nil {
			return err
		}
		if c, p, err = d.openPair(ctx, middle); err == nil {
			if err = mergeBegin(ctx, c, p); err == nil {
				c.parent = p
				d.setParent(c)
				return nil
			}
			err = errors.Join(err, c.Close(), p.Close())
		}
		return errors.Join(err, d.findParent(context.WithoutCancel(ctx)))
	})
	if err != nil {
		return err
	}
	// What is read of the grandparent meanwhile is what the parent does not have, and that does not change.
	err = copyOwn(ctx, c, p, o.Progress)
	end := context.WithoutCancel(ctx)
	return errors.Join(err, d.exclusive(end, false, func() error {
		merr := err
		if merr == nil {
			merr = mergeEnd(end, c, p)
		}
		guid := p.session.header().dataWriteGUID
		if merr = errors.Join(merr, d.dropParent()); merr == nil {
			l := o.Parent
			l.Linkage, l.Linkage2 = guid, GUID{}
			merr = d.setLocator(end, l)
		}
		merr = errors.Join(merr, d.findParent(end))
		if err != nil && merr == err {
			return nil // said already
		}
		return merr
	}))
}

// openPair opens the parent in a place and its parent, both for writing.
func (d *Disk) openPair(ctx context.Context, place string) (c, p *Disk, err error) {
	f, next, err := d.opts.Resolver.Open(ctx, place, true)
	if err != nil {
		return nil, nil, err
	}
	o := Options{Resolver: next, Name: place, Logger: d.log, detached: true}
	if c, err = Open(ctx, f, o); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("parent %s: %w", place, err), f.Close())
	}
	if g := c.session.header().dataWriteGUID; !d.locator.Matches(g) {
		err = &ChainError{Child: d.opts.Name, Kind: ErrParentChanged, Reason: fmt.Sprintf("%s has the data %s now", place, g)}
	} else {
		line := []ancestor{{d.opts.Name, d.session.header().fileWriteGUID}, {place, c.session.header().fileWriteGUID}}
		p, err = openParent(ctx, c.Locator(), &o, line, true)
	}
	if err != nil {
		return nil, nil, errors.Join(err, c.Close())
	}
	return c, p, nil
}

// dropParent closes the parents. Nobody is inside.
func (d *Disk) dropParent() error {
	p := d.parent
	d.setParent(nil)
	if p == nil {
		return nil
	}
	return p.Close()
}

// findParent opens the parents as opening the disk does.
func (d *Disk) findParent(ctx context.Context) error {
	if d.parent != nil {
		return nil
	}
	line := []ancestor{{d.opts.Name, d.session.header().fileWriteGUID}}
	p, err := openParent(ctx, d.locator, &d.opts, line, false)
	if err != nil {
		return fmt.Errorf("the disk has lost its parent: %w", err)
	}
	d.setParent(p)
	return nil
}

// setParent changes what the disk reads from. Nobody is inside.
func (d *Disk) setParent(p *Disk) {
	d.infoMu.Lock()
	defer d.infoMu.Unlock()
	d.parent = p
	i := *d.info.Parent
	if i.Place = ""; p != nil {
		i.Place = p.info.Name
	}
	d.info.Parent = &i
}
