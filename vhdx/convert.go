package vhdx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// A Source is what an image is made from: a [*Disk] with its chain, a [*Raw], or any other disk.
type Source interface {
	Read(ctx context.Context, p []byte, off int64) error
	Extents(ctx context.Context, off, n int64, yield func(n int64, hole, zero bool) bool) error
	Size() int64
	BlockSizes() (logical, physical, optimal, maxTransfer int)
}

// ConvertOptions say what to make.
type ConvertOptions struct {
	// Raw makes a raw image: the bytes of the disk and nothing else. Otherwise it becomes a VHDX.
	Raw bool
	// Create describes the VHDX. Size 0 is that of the source, a larger one adds zeros; sectors of 0 are those of the source.
	Create CreateOptions
	// Parent makes it a differencing disk over this one: only what differs is stored. Child describes it, and Create is not used.
	Parent   *Disk
	Child    ChildOptions
	Progress Progress
}

// convertStep is how much is read and written at once, by each of convertWorkers.
const (
	convertStep    = 2 * mib
	convertWorkers = 4
	convertGrain   = 64 * kib // zeros of that length are left out
)

// Convert copies a disk into an image in an empty file, and makes it durable. What reads as zeros takes no space, unless the image is to be fixed. The
// destination stays open and the caller's; after an error it holds a part, and is of no use. The source must not be written to meanwhile.
func Convert(ctx context.Context, dst Backing, src Source, o ConvertOptions) error {
	if err := convert(ctx, dst, src, &o); err != nil {
		return fmt.Errorf("convert: %w", err)
	}
	return nil
}

// borrowed is a file that a disk does not close or lock, as it is somebody else's.
type borrowed struct{ Backing }

func (borrowed) Close() error { return nil }

// PunchHole is that of the file, if it has one.
func (b borrowed) PunchHole(ctx context.Context, off, n int64) error {
	if h, ok := b.Backing.(HolePuncher); ok {
		return h.PunchHole(ctx, off, n)
	}
	return errors.ErrUnsupported
}

// ZeroRange is that of the file, if it has one.
func (b borrowed) ZeroRange(ctx context.Context, off, n int64) error {
	if z, ok := b.Backing.(Zeroer); ok {
		return z.ZeroRange(ctx, off, n)
	}
	return errors.ErrUnsupported
}

func convert(ctx context.Context, dst Backing, src Source, o *ConvertOptions) error {
	size, total := src.Size(), int64(0)
	if err := src.Extents(ctx, 0, size, func(n int64, _, zero bool) bool {
		if !zero {
			total += n
		}
		return true
	}); err != nil {
		return err
	}
	if o.Raw {
		if n, err := dst.Size(ctx); err != nil || n != 0 {
			if err == nil {
				err = ErrNotEmpty
			}
			return err
		}
		if err := dst.Truncate(ctx, size); err != nil {
			return err
		}
		put := func(ctx context.Context, p []byte, off int64) error { return writeFull(ctx, dst, p, off) }
		if err := copyData(ctx, src, nil, put, total, o.Progress); err != nil {
			return err
		}
		return dst.Flush(ctx)
	}
	logical, physical, _, _ := src.BlockSizes()
	if o.Parent != nil {
		if int64(logical) != o.Parent.params.logical {
			return fmt.Errorf("the disk has sectors of %d bytes, the parent %d: %w", logical, o.Parent.params.logical, ErrUnsupported)
		}
		if o.Child.Size == 0 {
			o.Child.Size = size
		}
		if err := CreateChild(ctx, dst, o.Parent, o.Child); err != nil {
			return err
		}
	} else {
		c := o.Create
		if c.Size == 0 {
			c.Size = size
		}
		if c.Size < size {
			return fmt.Errorf("an image of %d bytes cannot hold the disk of %d bytes: %w", c.Size, size, ErrRange)
		}
		if c.LogicalSector == 0 {
			c.LogicalSector = logical
		}
		if c.PhysicalSector == 0 && physical >= c.LogicalSector && (physical == 512 || physical == 4096) {
			c.PhysicalSector = physical
		}
		if err := Create(ctx, dst, c); err != nil {
			return err
		}
	}
	// The child is written without its parent: every write is of what differs, and none of a part of a sector.
	d, err := Open(ctx, borrowed{dst}, Options{detached: true})
	if err != nil {
		return err
	}
	var than Source
	if o.Parent != nil {
		than = o.Parent
	}
	put := func(ctx context.Context, p []byte, off int64) error { return d.Write(ctx, p, off, false) }
	return errors.Join(copyData(ctx, src, than, put, total, o.Progress), d.Close())
}

// copyData copies all data of src, and zeros where they hide something of than.
func copyData(ctx context.Context, src, than Source, put func(context.Context, []byte, int64) error, total int64, progress Progress) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	type piece struct{ off, n int64 }
	work := make(chan piece)
	done := make(chan int64, convertWorkers)
	var wg sync.WaitGroup
	for range convertWorkers {
		wg.Go(func() {
			buf, other := make([]byte, convertStep), []byte(nil)
			if than != nil {
				other = make([]byte, convertStep)
			}
			for p := range work {
				if err := copyPiece(ctx, src, than, put, buf[:p.n], other, p.off); err != nil {
					cancel(err)
				}
				done <- p.n
			}
		})
	}
	counted := make(chan struct{})
	go func() {
		defer close(counted)
		sum := int64(0)
		for n := range done {
			sum += n
			progress.report(min(sum, total), total)
		}
	}()
	size := src.Size()
	at := int64(0)
	err := src.Extents(ctx, 0, size, func(n int64, _, zero bool) bool {
		for end := at + n; at < end && ctx.Err() == nil; {
			k := min(convertStep-at%convertStep, end-at)
			if !zero || than != nil {
				select {
				case work <- piece{at, k}:
				case <-ctx.Done():
					return false
				}
			}
			at += k
		}
		return ctx.Err() == nil
	})
	close(work)
	wg.Wait()
	close(done)
	<-counted
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

func copyPiece(ctx context.Context, src, than Source, put func(context.Context, []byte, int64) error, buf, other []byte, off int64) error {
	if err := src.Read(ctx, buf, off); err != nil {
		return err
	}
	grain, skip := int64(convertGrain), func(a, _ []byte) bool { return isZero(a) }
	if than != nil {
		logical, _, _, _ := src.BlockSizes()
		other = other[:len(buf)]
		k := min(int64(len(buf)), max(than.Size()-off, 0))
		clear(other[k:])
		if err := than.Read(ctx, other[:k], off); err != nil {
			return err
		}
		grain, skip = int64(max(logical, 4096)), bytes.Equal
	} else {
		other = buf
	}
	for at := int64(0); at < int64(len(buf)); {
		n := min(grain, int64(len(buf))-at)
		if skip(buf[at:at+n], other[at:at+n]) {
			at += n
			continue
		}
		for at+n < int64(len(buf)) { // what follows and is to be written, too, goes along
			k := min(grain, int64(len(buf))-at-n)
			if skip(buf[at+n:at+n+k], other[at+n:at+n+k]) {
				break
			}
			n += k
		}
		if err := put(ctx, buf[at:at+n], off+at); err != nil {
			return err
		}
		at += n
	}
	return nil
}

// ConvertFile converts a disk into a new local file. It gets its name when it is complete: a crash or an error leaves nothing under it.
func ConvertFile(ctx context.Context, path string, src Source, o ConvertOptions) error {
	if _, err := os.Lstat(path); err == nil {
		return &os.PathError{Op: "convert", Path: path, Err: os.ErrExist}
	}
	part := path + ".part"
	if err := os.Remove(part); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := createFile(ctx, part, false, func(b Backing) error { return Convert(ctx, b, src, o) }); err != nil {
		return err
	}
	err := os.Link(part, path) // unlike a rename it replaces nothing that came meanwhile
	switch {
	case err == nil:
		return removeFile(part)
	case !errors.Is(err, os.ErrExist): // a file system without links
		if err = os.Rename(part, path); err == nil {
			return syncDir(filepath.Dir(path))
		}
	}
	_ = os.Remove(part)
	return fmt.Errorf("convert: %w", err)
}
