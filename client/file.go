package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"
	"time"

	"vdbridge/smb/fscc"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// ShareAll lets others read, write and delete while a file is open.
const ShareAll = wire.ShareRead | wire.ShareWrite | wire.ShareDelete

// OpenOptions are the parameters of a CREATE, with the constants of package wire. The zero value of Disposition is FileSupersede, so it must always be
// set. [MS-SMB2] 2.2.13
type OpenOptions struct {
	Access      uint32
	Share       uint32
	Disposition uint32
	Options     uint32
	Attributes  uint32 // of a new file
	Oplock      uint8
	Contexts    []wire.CreateContext
	// Durable, if not nil, asks for an open that outlives its session. An oplock or lease that this needs is asked for without asking here. Needs SMB 3.
	Durable *DurableRequest
	// AppInstance, if not nil, names the application. Needs SMB 3.
	AppInstance *AppInstance
	// Lease, if not nil, asks for a lease, in the place of Oplock. It is given up as soon as the server wants it back.
	Lease *LeaseRequest
	// Separate sends each request as a message of its own: see Config.MaxCompound. It is for files whose server is known not to gain
	// by compounds.
	Separate bool
}

// File is an open file, directory or pipe. All methods may be called at the same time.
type File struct {
	t      *Tree
	c      *Conn
	id     wire.FileID
	name   string // as on the wire
	reply  wire.CreateResponse
	closed atomic.Bool

	separate bool // no compounds
}

// Open opens a file. The name is relative to the share; slashes and backslashes both separate.
func (t *Tree) Open(ctx context.Context, name string, opts OpenOptions) (*File, error) {
	return t.open(ctx, "open", name, opts)
}

func (t *Tree) open(ctx context.Context, op, name string, opts OpenOptions) (*File, error) {
	clean, err := cleanName(name)
	if err != nil {
		return nil, statusError(op, t.full(shorten(name)), err.(ntstatus.Status))
	}
	if t.closed.Load() {
		return nil, wrap(op, t.full(clean), fs.ErrClosed)
	}
	if opts.Durable != nil || opts.AppInstance != nil || opts.Lease != nil {
		return nil, wrap(op, t.full(clean), errors.ErrUnsupported)
	}
	q := wire.CreateRequest{
		OplockLevel: opts.Oplock, Impersonation: wire.ImpersonationImpersonation, DesiredAccess: opts.Access,
		FileAttributes: opts.Attributes, ShareAccess: opts.Share, Disposition: opts.Disposition, Options: opts.Options,
		Name: clean, Contexts: opts.Contexts,
	}
	r := t.request(wire.CmdCreate)
	r.out = q.Append(r.out)
	ok, err := r.roundTrip(ctx, 1)
	if !ok {
		return nil, wrap(op, t.full(clean), err)
	}
	defer r.unref()
	if err != nil {
		return nil, wrap(op, t.full(clean), err)
	}
	if st := ntstatus.Status(r.h.Status); st != ntstatus.Success {
		return nil, &Error{Op: op, Path: t.full(clean), Status: st, Hint: openHint(st)}
	}
	v, err := wire.ParseCreateResponse(r.msg)
	if err != nil {
		return nil, t.c.malformed(op, t.full(clean), err)
	}
	for i := range v.Contexts {
		v.Contexts[i].Data = append([]byte(nil), v.Contexts[i].Data...) // they lie in pooled memory
	}
	return &File{t: t, c: t.c, id: v.FileID, name: clean, reply: v, separate: opts.Separate || t.c.cfg.MaxCompound <= 1}, nil
}

// shorten keeps a name that is too long from filling the screen.
func shorten(name string) string {
	if len(name) > 80 {
		return name[:80] + "…"
	}
	return name
}

func openHint(s ntstatus.Status) string {
	switch s {
	case ntstatus.SharingViolation:
		return "it is open elsewhere in a way that excludes this"
	case ntstatus.StoppedOnSymlink:
		return "the path leads through a symbolic link, which is not followed; open its target"
	case ntstatus.PathNotCovered:
		return "the path is in a DFS namespace; name the server that holds it"
	}
	return ""
}

// Name returns the name relative to the share, separated by backslashes.
func (f *File) Name() string { return f.name }

// Tree returns the tree of the file.
func (f *File) Tree() *Tree { return f.t }

// Reply returns the server's reply to the open: action, times, sizes and attributes as they were then, and create contexts.
func (f *File) Reply() wire.CreateResponse { return f.reply }

// Context returns the data of the create context with that name in the reply to the open.
func (f *File) Context(name string) ([]byte, bool) {
	for _, x := range f.reply.Contexts {
		if x.Name == name {
			return x.Data, true
		}
	}
	return nil, false
}

func (f *File) path() string { return f.t.full(f.name) }

// check returns an error when the file is closed.
func (f *File) check(op string) error {
	if f.closed.Load() {
		return wrap(op, f.path(), fs.ErrClosed)
	}
	return nil
}

// Close closes the file. Requests in flight may fail because of it. A second Close does nothing.
func (f *File) Close() error {
	if f.closed.Swap(true) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*closeTimeout)
	defer cancel()
	if err := f.t.sess.closeFile(ctx, f.t.id, f.t.seal, f.id); err != nil {
		return wrap("close", f.path(), err)
	}
	return nil
}

func (s *Session) closeFile(ctx context.Context, tree uint32, seal bool, id wire.FileID) error {
	r := s.c.request(wire.CmdClose, s, tree)
	s.protect(r, seal)
	q := wire.CloseRequest{FileID: id}
	r.out = q.Append(r.out)
	ok, err := r.roundTrip(ctx, 1)
	if !ok {
		return err
	}
	defer r.unref()
	if err != nil {
		return err
	}
	if st := ntstatus.Status(r.h.Status); st != ntstatus.Success {
		return st
	}
	if _, err := wire.ParseCloseResponse(r.msg); err != nil {
		s.c.fail(protocolError(err))
		return s.c.Err()
	}
	return nil
}

// Flush makes everything durable whose write has returned before. [MS-SMB2] 2.2.17
func (f *File) Flush(ctx context.Context) error {
	if err := f.check("flush"); err != nil {
		return err
	}
	r := f.t.request(wire.CmdFlush)
	q := wire.FlushRequest{FileID: f.id}
	r.out = q.Append(r.out)
	ok, err := r.roundTrip(ctx, 1)
	if !ok {
		return wrap("flush", f.path(), err)
	}
	defer r.unref()
	if err != nil {
		return wrap("flush", f.path(), err)
	}
	return r.expect("flush", f.path(), wire.ParseEmptyResponse)
}

// FileInfo describes a file. Sizes are bytes.
type FileInfo struct {
	Name           string // relative to the share
	Size           int64
	AllocationSize int64
	Attributes     uint32 // fscc.Attr…
	Created        time.Time
	Accessed       time.Time
	Written        time.Time
	Changed        time.Time
	FileID         uint64 // unique on the volume, 0 if the file system has none
	Links          uint32
	DeletePending  bool
}

// IsDir says whether it is a directory.
func (i *FileInfo) IsDir() bool { return i.Attributes&fscc.AttrDirectory != 0 }

// Stat asks the server for what it knows about the file now.
func (f *File) Stat(ctx context.Context) (FileInfo, error) {
	b, err := f.QueryInfo(ctx, wire.InfoFile, fscc.FileAllInformation, 0, 4096)
	if err != nil && (len(b) == 0 || !isStatus(err, ntstatus.BufferOverflow)) {
		return FileInfo{}, err
	}
	v, err := fscc.ParseAllInfo(b)
	if err != nil {
		return FileInfo{}, wrap("stat", f.path(), protocolError(err))
	}
	return FileInfo{
		Name: f.name, Size: v.Standard.EndOfFile, AllocationSize: v.Standard.AllocationSize, Attributes: v.Basic.Attributes,
		Created: FileTime(v.Basic.CreationTime), Accessed: FileTime(v.Basic.LastAccessTime),
		Written: FileTime(v.Basic.LastWriteTime), Changed: FileTime(v.Basic.ChangeTime),
		FileID: v.FileID, Links: v.Standard.Links, DeletePending: v.Standard.DeletePending,
	}, nil
}

// Size returns the length of the file in bytes.
func (f *File) Size(ctx context.Context) (int64, error) {
	b, err := f.QueryInfo(ctx, wire.InfoFile, fscc.FileStandardInformation, 0, 24)
	if err != nil {
		return 0, err
	}
	v, err := fscc.ParseStandardInfo(b)
	if err != nil {
		return 0, wrap("size", f.path(), protocolError(err))
	}
	return v.EndOfFile, nil
}

// Truncate sets the length of the file. What is added reads as zeros.
func (f *File) Truncate(ctx context.Context, size int64) error {
	if size < 0 {
		return wrap("truncate", f.path(), fmt.Errorf("size %d is negative", size))
	}
	return f.SetInfo(ctx, wire.InfoFile, fscc.FileEndOfFileInformation, 0, fscc.AppendEndOfFile(nil, size))
}

// Rename moves the file, which must be open with delete access, to another name in the share.
func (f *File) Rename(ctx context.Context, to string, replace bool) error {
	clean, err := cleanName(to)
	if err != nil {
		return statusError("rename to", f.t.full(shorten(to)), err.(ntstatus.Status))
	}
	v := fscc.RenameInfo{ReplaceIfExists: replace, Name: clean}
	return f.SetInfo(ctx, wire.InfoFile, fscc.FileRenameInformation, 0, v.Append(nil))
}

// fileTimeEpoch is 1970 in FILETIME. [MS-DTYP] 2.3.3
const fileTimeEpoch = 116444736000000000

// FileTime converts a FILETIME, 100 ns since 1601. Zero, which servers send for "not known", becomes the zero time.
func FileTime(t uint64) time.Time {
	if t == 0 || t > 1<<62 {
		return time.Time{}
	}
	d := int64(t) - fileTimeEpoch
	return time.Unix(d/1e7, d%1e7*100)
}

// ToFileTime is the reverse of FileTime.
func ToFileTime(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(t.Unix()*1e7 + int64(t.Nanosecond())/100 + fileTimeEpoch)
}
