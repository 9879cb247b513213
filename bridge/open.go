package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"vdbridge/client"
	"vdbridge/client/link"
	"vdbridge/rsvd"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
	"vdbridge/vhdx"
)

// Open opens the disk at loc. With ModeAuto it is a shared disk if the server has MS-RSVD, otherwise the image file, for us alone. Errors have
// a sentence for the user. Close ends everything that Open began.
func Open(ctx context.Context, loc Location, o Options) (_ *Disk, err error) {
	if loc.Local {
		return openLocal(ctx, loc, o)
	}
	if loc.Path == "" {
		return nil, Usagef("%s names no file; give smb://user@host/share/disk.vhdx", loc)
	}
	var who *Initiator
	if o.Mode != ModeFile {
		if who, err = o.initiator(loc); err != nil {
			return nil, err
		}
		if who.session != "" {
			o.last = &previousSession{who.session, o.logger()}
		}
	}
	r, err := Connect(ctx, loc, o)
	if err != nil {
		who.Release()
		return nil, err
	}
	r.who = who // also of an image that is opened as a file: nobody else may end this session in its name
	defer func() {
		if err != nil {
			_ = r.Close()
		}
	}()
	if o.Mode != ModeFile {
		d, err := r.openShared(ctx, o, who)
		if err == nil {
			return d, nil
		}
		if o.Mode == ModeRSVD || !errors.Is(err, rsvd.ErrNotSupported) {
			return nil, err
		}
		d, ierr := r.openImage(ctx, o)
		if ierr == nil {
			o.logger().Warn("the server has no shared disks, so the image file is open for this host alone", "disk", loc.String(), "reason", errors.Unwrap(err))
		}
		return d, ierr
	}
	return r.openImage(ctx, o)
}

// openShared opens the file as a shared disk, for who.
func (r *Remote) openShared(ctx context.Context, o Options, who *Initiator) (*Disk, error) {
	conn, _, _ := r.parts()
	n := conn.Info()
	var opened *link.File // the last one
	create := func(ctx context.Context, req *wire.CreateRequest) (rsvd.File, []wire.CreateContext, error) {
		opts := openOptions(req)
		// Compounds help servers whose cost is in the messages. One with shared disks executes the requests of a compound in turn, and each has a disk to wait for.
		opts.Separate = true
		if hasContext(req, wire.CreateSVHDX) {
			opts.Durable = o.durable(sharedTimeout)
		}
		f, err := r.link.Open(ctx, req.Name, opts)
		if err != nil {
			return nil, nil, err
		}
		opened = f
		return &smbFile{f, n.MaxTransact}, f.Reply().Contexts, nil
	}
	var made atomic.Pointer[Disk]
	rd, err := rsvd.Open(ctx, create, rsvd.Options{
		Path: r.loc.Path, Dialect: n.Dialect, Version: o.RSVDVersion, InitiatorID: who.ID, HostName: who.Host, IO: o.IO, ReadOnly: o.ReadOnly, Logger: o.Logger,
		PadDataIn: o.Pcap != "", // so that Wireshark reads the capture without complaint
		OnResize: func(size int64) {
			if d := made.Load(); d != nil {
				d.resized(size)
			}
		},
	})
	switch {
	case errors.Is(err, rsvd.ErrNotSupported):
		return nil, &Error{ClassUnsupported, fmt.Sprintf("%s does not offer shared virtual disks (MS-RSVD) for %s: use --mode file to open it for this host alone", r.loc.Host, r.loc), err}
	case errors.Is(err, rsvd.ErrWrongFileType):
		return nil, &Error{ClassCorrupt, fmt.Sprintf("%s is not a VHDX image that the server can share: it is of another kind, or damaged ('vdbridge check' says which)", r.loc), err}
	case err != nil && Classify(err) == ClassCorrupt:
		return nil, &Error{ClassCorrupt, fmt.Sprintf("%s is damaged, the server says (%v): 'vdbridge check' lists what is wrong; restore it from a copy", r.loc, statusText(err)), err}
	case err != nil && Classify(err) == ClassUnsupported:
		return nil, &Error{ClassUnsupported, fmt.Sprintf("the server cannot share %s (%v): it may be of a kind that it does not know, or a differencing image whose parent it does not find; 'vdbridge check' says what it is", r.loc, statusText(err)), err}
	case err != nil:
		return nil, explainOpen(r.loc, err)
	}
	d := newDisk(rd, r.loc, ModeRSVD, o.logger())
	d.remote, d.initiator, d.file = r, who, opened
	if err := d.protectShared(ctx); err != nil {
		return nil, errors.Join(explainOpen(r.loc, err), rd.Close())
	}
	made.Store(d)
	return d, nil
}

// openFile opens the file itself. Nobody else may have it open for writing, and with write nobody at all: two that interpret one image would
// destroy it.
func (r *Remote) openFile(ctx context.Context, write bool, durable *client.DurableRequest) (*link.File, error) {
	return r.openPath(ctx, r.loc.Path, write, durable)
}

func (r *Remote) openPath(ctx context.Context, path string, write bool, durable *client.DurableRequest) (*link.File, error) {
	oo := client.OpenOptions{
		Access: wire.AccessReadData | wire.AccessReadAttributes | wire.AccessReadControl, Share: wire.ShareRead,
		Disposition: wire.FileOpen, Options: wire.OptNonDirectoryFile | wire.OptRandomAccess,
	}
	if write {
		oo.Access |= wire.AccessWriteData | wire.AccessAppendData | wire.AccessWriteAttributes
		oo.Share = 0
	}
	oo.Durable = durable
	f, err := r.link.Open(ctx, path, oo)
	if err != nil {
		loc := r.loc
		loc.Path = path
		return nil, explainOpen(loc, err)
	}
	return f, nil
}

func (r *Remote) openImage(ctx context.Context, o Options) (*Disk, error) {
	f, err := r.openFile(ctx, !o.ReadOnly, o.durable(imageTimeout))
	if err != nil {
		return nil, err
	}
	img, err := vhdx.Open(ctx, backing{f}, vhdx.Options{ReadOnly: o.ReadOnly, Logger: o.Logger, Resolver: r.parents(r.loc.Path), Name: r.loc.Path})
	if err != nil {
		return nil, errors.Join(explainImage(r.loc, err), f.Close())
	}
	d := newDisk(img, r.loc, ModeFile, o.logger())
	d.remote, d.file = r, f
	if err := d.protectImage(ctx); err != nil {
		return nil, errors.Join(explainOpen(r.loc, err), img.Close())
	}
	return d, nil
}

func openLocal(ctx context.Context, loc Location, o Options) (*Disk, error) {
	if o.Mode == ModeRSVD {
		return nil, Usagef("%s is a local file; a shared disk (--mode rsvd) is on a server", loc)
	}
	img, err := vhdx.OpenFile(ctx, loc.Path, vhdx.Options{ReadOnly: o.ReadOnly, Logger: o.Logger})
	if err != nil {
		return nil, explainImage(loc, err)
	}
	return newDisk(img, loc, ModeFile, o.logger()), nil
}

// explainImage makes the sentence for an image that cannot be interpreted.
func explainImage(loc Location, err error) error {
	var corrupt *vhdx.CorruptError
	switch {
	case errors.Is(err, vhdx.ErrNotVHDX):
		return &Error{ClassCorrupt, fmt.Sprintf("%s is not a VHDX image; 'qemu-img convert -O vhdx' makes one of images of other kinds", loc), err}
	case errors.Is(err, vhdx.ErrParentMissing):
		return &Error{ClassNotFound, fmt.Sprintf("%s is a differencing image, and its parent is not there: put it where it was, or beside the image (%v)", loc, err), err}
	case errors.Is(err, vhdx.ErrParentChanged):
		return &Error{ClassCorrupt, fmt.Sprintf("%s is a differencing image, and what lies in the place of its parent is not what it was made for: put the right one back (%v)", loc, err), err}
	case errors.Is(err, vhdx.ErrChain):
		return &Error{ClassCorrupt, fmt.Sprintf("the parents of %s are not sound (%v)", loc, err), err}
	case errors.As(err, &corrupt):
		return &Error{ClassCorrupt, fmt.Sprintf("%s is damaged (%v): 'vdbridge check' lists what is wrong; restore it from a copy", loc, corrupt), err}
	case errors.Is(err, vhdx.ErrCorrupt):
		return &Error{ClassCorrupt, fmt.Sprintf("%s is damaged: %v", loc, err), err}
	}
	return explainOpen(loc, err)
}

// AttachmentFor settles which initiator a command acts for that changes reservations: the one named; or else the only one that runs on this
// host for the disk; or else the only one known. alone says that no running process is that initiator.
func AttachmentFor(loc Location, o *Options) (alone bool, err error) {
	if o.InitiatorID != nil {
		return false, nil
	}
	dir := o.StateDir
	if dir == "" {
		dir = DefaultStateDir()
	}
	if o.Attachment == "" {
		known, err := KnownInitiators(dir, loc)
		if err != nil {
			return false, err
		}
		if running := slices.DeleteFunc(slices.Clone(known), func(k KnownInitiator) bool { return !k.Running }); len(running) > 0 {
			known = running
		}
		switch len(known) {
		case 0:
			o.Attachment = "pr"
		case 1:
			o.Attachment = known[0].Name
		default:
			var names []string
			for _, k := range known {
				names = append(names, strconv.Quote(k.Name))
			}
			return false, Usagef("this host has several initiators for %s: say which with --initiator NAME (%s)", loc, strings.Join(names, ", "))
		}
	}
	i, err := AcquireInitiator(dir, loc, o.Attachment, false)
	var busy *InitiatorBusyError
	if errors.As(err, &busy) {
		o.ShareInitiator = true
		return false, nil
	}
	if err != nil {
		return false, err
	}
	i.Release()
	return true, nil
}

// statusText is the status inside err, for sentences that say the rest themselves.
func statusText(err error) string {
	if s, ok := ntstatus.Of(err); ok {
		return s.String()
	}
	return rootCause(err).Error()
}
