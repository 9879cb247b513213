package bridge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vdbridge/client"
	"vdbridge/client/link"
	"vdbridge/rsvd"
	"vdbridge/vhdx"
)

// How long a server is asked to keep an open without us. An image file that is kept for us is closed to everybody else.
const (
	sharedTimeout = 5 * time.Minute
	imageTimeout  = time.Minute
)

// recheck is how often at most a server is asked whether we are still shut out, because of requests that were refused.
const recheck = 200 * time.Millisecond

// protectShared lets a shared disk outlive its connection, if that is what is to be done.
func (d *Disk) protectShared(ctx context.Context) error {
	if !d.remote.onLoss.Holds() {
		d.file.Protect(link.Hooks{Alive: ignore})
		return nil
	}
	if err := d.shared.Remember(ctx); err != nil {
		return err
	}
	d.file.Protect(link.Hooks{
		Verify: func(ctx context.Context, h link.Handle, kept bool) error {
			err := d.shared.Recover(ctx, h, h.Reply().Contexts, kept)
			switch {
			case errors.Is(err, rsvd.ErrShutOut):
				return &link.FencedError{Err: err}
			case errors.Is(err, rsvd.ErrOtherDisk):
				return &link.FinalError{Err: err}
			}
			return err
		},
		Alive: func(ctx context.Context) error {
			return errors.Join(d.shared.CheckConnection(ctx), d.lookAround(ctx))
		},
	})
	return nil
}

func ignore(context.Context) error { return nil }

// lookAround asks how we stand with a shared disk, and shuts us out, or lets us in again, as the answer is.
func (d *Disk) lookAround(ctx context.Context) error {
	if d.initiator == nil {
		return nil
	}
	_, err := d.shared.Standing(ctx)
	switch {
	case err == nil:
		d.file.Unfence()
	case errors.Is(err, rsvd.ErrShutOut):
		d.file.Fence(err)
	}
	return err
}

// admitted is called before a request that changes something, when we are shut out: it may have been settled meanwhile.
func (d *Disk) admitted(ctx context.Context) {
	if d.shared == nil || !d.looking.CompareAndSwap(false, true) {
		return
	}
	defer d.looking.Store(false)
	if time.Since(time.Unix(0, d.looked.Load())) > recheck {
		_ = d.lookAround(ctx)
		d.looked.Store(time.Now().UnixNano())
	}
}

// protectImage lets the image file outlive its connection, if that is what is to be done.
func (d *Disk) protectImage(ctx context.Context) error {
	if !d.remote.onLoss.Holds() {
		d.file.Protect(link.Hooks{Alive: ignore})
		return nil
	}
	was, err := d.file.Stat(ctx)
	if err != nil {
		return err
	}
	d.file.Protect(link.Hooks{Verify: func(ctx context.Context, h link.Handle, kept bool) error {
		now, err := h.Stat(ctx)
		if err != nil {
			return err
		}
		if err = sameFile(&was, &now); err == nil {
			err = d.image.Unchanged(ctx, h)
		}
		if errors.Is(err, vhdx.ErrChanged) {
			return &link.FinalError{Err: fmt.Errorf("%s cannot be used any further, as %w: end this attachment, look at the image, and start again", d.loc, err)}
		}
		return err
	}})
	return nil
}

// protectParent does the same for a parent.
func (r *Remote) protectParent(ctx context.Context, f *link.File, write bool) error {
	return r.protectFile(ctx, f, write, -1)
}

// protectRaw does the same for a raw image. It bears no mark of who has written to it: if the server has not kept the open, whoever wrote in between is not seen.
func (r *Remote) protectRaw(ctx context.Context, f *link.File, write bool, size int64) error {
	return r.protectFile(ctx, f, write, size)
}

// protectFile lets a file outlive its connection. It must be the same file afterwards; one that is only read must not have been changed by anybody; and it must have
// size bytes, unless that is -1.
func (r *Remote) protectFile(ctx context.Context, f *link.File, write bool, size int64) error {
	if !r.onLoss.Holds() {
		f.Protect(link.Hooks{Alive: ignore})
		return nil
	}
	was, err := f.Stat(ctx)
	if err != nil {
		return err
	}
	f.Protect(link.Hooks{Verify: func(ctx context.Context, h link.Handle, _ bool) error {
		now, err := h.Stat(ctx)
		if err != nil {
			return err
		}
		err = sameFile(&was, &now)
		if err == nil && (!write && (was.Size != now.Size || !was.Written.Equal(now.Written)) || size >= 0 && now.Size != size) {
			err = vhdx.ErrChanged
		}
		if err != nil {
			return &link.FinalError{Err: fmt.Errorf("%s cannot be used any further, as of its file %s: %w", r.loc, f.Name(), err)}
		}
		return nil
	}})
	return nil
}

// sameFile says whether a file is still the one that it was.
func sameFile(was, now *client.FileInfo) error {
	if was.FileID != 0 && now.FileID != 0 && was.FileID != now.FileID || !was.Created.Equal(now.Created) {
		return fmt.Errorf("%w: it is another file", vhdx.ErrChanged)
	}
	return nil
}

// GiveUp makes requests that wait for a lost server fail at once, from now on. It is for the end.
func (d *Disk) GiveUp() {
	if d.remote != nil {
		d.remote.link.GiveUp()
	}
}
