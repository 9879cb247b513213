package vhdx

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// parentCacheBytes is the cache for BAT pages of each parent: a chain must not cost many times what one disk costs.
const parentCacheBytes = 2 * mib

// ancestor is an image that is being opened further up, to find loops.
type ancestor struct {
	name string
	id   GUID // FileWriteGuid: no two files that are in use have the same
}

// openParent finds, checks and opens the parent of an image. line are the images from the top of the chain down to the one whose parent it is.
// With write it is opened for writing, and only its own parents read-only.
func openParent(ctx context.Context, l *ParentLocator, o *Options, line []ancestor, write bool) (*Disk, error) {
	fail := &ChainError{Child: o.Name, Kind: ErrParentMissing}
	if len(line) >= MaxChain {
		fail.Kind, fail.Reason = ErrChain, fmt.Sprintf("it has more than %d images", MaxChain)
		return nil, fail
	}
	places := o.Resolver.Places(l)
	if len(places) == 0 {
		fail.Reason = fmt.Sprintf("none of its paths means anything here: %q", l.paths())
	}
	for _, place := range places {
		if slices.ContainsFunc(line, func(a ancestor) bool { return a.name == place }) {
			fail.Kind, fail.Reason = ErrChain, fmt.Sprintf("it loops: %s comes a second time", place)
			return nil, fail
		}
		f, next, err := o.Resolver.Open(ctx, place, write)
		if err != nil {
			if ctx.Err() != nil {
				return nil, err
			}
			if notThere(err) {
				fail.note(place, "there is no such file", nil)
			} else {
				fail.note(place, err.Error(), err)
			}
			continue
		}
		d, err := openPlace(ctx, f, next, place, l, o, line, write, fail)
		if d != nil {
			return d, nil
		}
		_ = f.Close()
		if err != nil {
			return nil, err
		}
	}
	return nil, fail
}

func (e *ChainError) note(place, what string, err error) {
	e.Places = append(e.Places, place+" ("+what+")")
	if e.Err == nil {
		e.Err = err
	}
}

// openPlace opens the parent in a file that was found. Without disk and error the file is not the one; that is noted.
func openPlace(ctx context.Context, f Backing, next Resolver, place string, l *ParentLocator, o *Options, line []ancestor, write bool, fail *ChainError) (*Disk, error) {
	h, err := identify(ctx, f)
	switch {
	case errors.Is(err, ErrNotVHDX):
		fail.note(place, "it is no VHDX image", nil)
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("parent %s: %w", place, err)
	case slices.ContainsFunc(line, func(a ancestor) bool { return a.id == h.fileWriteGUID }):
		return nil, &ChainError{Child: o.Name, Kind: ErrChain, Reason: fmt.Sprintf("it loops: %s comes a second time, under another name", place)}
	}
	wrong := func(g GUID) {
		fail.Kind = ErrParentChanged
		fail.note(place, fmt.Sprintf("its data are %s, the child was made for %s: it is another disk, or was written to since", g, l.Linkage), nil)
	}
	if !l.Matches(h.dataWriteGUID) {
		wrong(h.dataWriteGUID)
		return nil, nil
	}
	po := Options{ReadOnly: !write, Logger: o.Logger, BATCacheBytes: parentCacheBytes, Resolver: next, Name: place}
	d, err := open(ctx, f, po, line)
	if err != nil {
		var ce *ChainError
		if errors.As(err, &ce) {
			return nil, err
		}
		return nil, fmt.Errorf("parent %s: %w", place, err)
	}
	if !l.Matches(d.info.DataWriteGUID) { // it was written to before we had it locked
		wrong(d.info.DataWriteGUID)
		if d.parent != nil {
			_ = d.parent.Close()
		}
		return nil, nil
	}
	return d, nil
}

// identify reads the current header without locking anything.
func identify(ctx context.Context, b Backing) (header, error) {
	size, err := b.Size(ctx)
	if err != nil {
		return header{}, fmt.Errorf("size of the image: %w", err)
	}
	p := &image{file: b, fileSize: size}
	if err := p.readHeaders(ctx); err != nil {
		return header{}, err
	}
	return p.headers.h[p.headers.current], nil
}

// Parent is the parent of a differencing disk, open for reading as part of its chain; nil if it has none. It must not be closed.
// [Disk.MergeParent] exchanges it.
func (d *Disk) Parent() *Disk {
	d.infoMu.Lock()
	defer d.infoMu.Unlock()
	return d.parent
}

// Locator is a copy of the parent locator of a differencing disk; nil if it is none.
func (d *Disk) Locator() *ParentLocator {
	d.infoMu.Lock()
	defer d.infoMu.Unlock()
	if d.locator == nil {
		return nil
	}
	l := *d.locator
	return &l
}

// Chain describes the images from the disk itself up to the one without a parent.
func (d *Disk) Chain() []Info {
	var out []Info
	for ; d != nil; d = d.Parent() {
		out = append(out, d.Info())
	}
	return out
}

// ReadInfo describes an image without opening its parents, without locking it and without changing anything.
func ReadInfo(ctx context.Context, b Backing) (Info, *ParentLocator, error) {
	p, err := parseImage(ctx, b, false)
	if err != nil {
		return Info{}, nil, err
	}
	g := newGeometry(&p.params)
	i := p.info(&g)
	l, err := p.parentLocator()
	if l != nil {
		i.Parent = &ParentInfo{ParentLocator: *l}
	}
	return i, l, err
}

// parentLocator decodes the locator of a differencing image; nil for others.
func (p *image) parentLocator() (*ParentLocator, error) {
	if !p.params.hasParent {
		return nil, nil
	}
	return decodeLocator(p.params.locator, p.layout.meta.off)
}
