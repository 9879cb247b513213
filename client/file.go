package client

import (
	"context"
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
	id     wire.FileID
	name   string // as on the wire
	reply  wire.CreateResponse
	opts   OpenOptions // as asked for, without pointers of the caller
	base   uint16      // the channel sequence of requests on this open is that of the session and this
	closed atomic.Bool
	// successor is the File that Reopen has made of this one.
	successor atomic.Pointer[File]

	settling chan struct{} // capacity 1: held by settle
	settled  atomic.Uint32 // the channel sequence at which nothing older was under way, or unsettled
	lasting  Durability    // Session.mu guards it, once the file is open
	held     held

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
	f := t.file(clean)
	a := attempt{repeat: never}
	contexts, err := f.ask(opts, &a)
	if err != nil {
		return nil, wrap(op, t.full(clean), err)
	}
	return f.create(ctx, op, wire.ImpersonationImpersonation, contexts, a)
}

func (t *Tree) file(name string) *File {
	return &File{t: t, name: name, settling: make(chan struct{}, 1)}
}

// create sends CREATE with what is in f.opts, and these contexts, until it is done or refused.
func (f *File) create(ctx context.Context, op string, impersonation uint32, contexts []wire.CreateContext, a attempt) (*File, error) {
	t, o := f.t, &f.opts
	q := wire.CreateRequest{
		OplockLevel: o.Oplock, Impersonation: impersonation, DesiredAccess: o.Access,
		FileAttributes: o.Attributes, ShareAccess: o.Share, Disposition: o.Disposition, Options: o.Options,
		Name: f.name, Contexts: contexts,
	}
	for {
		r := f.request(wire.CmdCreate, &a, 0)
		r.out = q.Append(r.out)
		err := a.exchange(ctx, r, 1)
		if err == nil {
			if f.settled.Load() != unsettled { // it is new
				f.settled.Store(uint32(r.seq))
			}
			err = a.simple(r, f.created)
		}
		if err == nil {
			break
		}
		if err = a.again(ctx, err); err == nil {
			continue
		}
		if st, ok := err.(ntstatus.Status); ok {
			return nil, &Error{Op: op, Path: t.full(f.name), Status: st, Hint: openHint(st)}
		}
		return nil, wrap(op, t.full(f.name), err)
	}
	f.separate = o.Separate || t.sess.c.cfg.MaxCompound <= 1
	if err := f.granted(); err != nil {
		return nil, err
	}
	return f, nil
}

// created takes over the reply to the CREATE.
func (f *File) created(msg []byte) error {
	v, err := wire.ParseCreateResponse(msg)
	if err != nil {
		return err
	}
	for i := range v.Contexts {
		v.Contexts[i].Data = append([]byte(nil), v.Contexts[i].Data...) // they lie in pooled memory
	}
	f.id, f.reply = v.FileID, v
	return nil
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
func (f *File) check() error {
	if f.closed.Load() {
		return errClosedFile
	}
	return nil
}

// Close closes the file. Requests in flight may fail because of it. A second Close does nothing.
func (f *File) Close() error {
	if f.closed.Swap(true) {
		return nil
	}
	f.forget()
	ctx, cancel := context.WithTimeout(context.Background(), 4*closeTimeout)
	defer cancel()
	if err := f.t.sess.closeFile(ctx, f.t.id, f.t.seal, f.id, f.base); err != nil {
		return wrap("close", f.path(), err)
	}
	return nil
}

func (s *Session) closeFile(ctx context.Context, tree uint32, seal bool, id wire.FileID, base uint16) error {
	a := attempt{repeat: always}
	for {
		r := s.request(wire.CmdClose, tree, seal, &a)
		r.base = base
		q := wire.CloseRequest{FileID: id}
		r.out = q.Append(r.out)
		err := a.exchange(ctx, r, 1)
		if err == nil {
			err = a.simple(r, func(msg []byte) error {
				_, err := wire.ParseCloseResponse(msg)
				return err
			})
		}
		if err == nil || err == ntstatus.FileClosed && a.flags&wire.FlagReplayOperation != 0 { // the first one did it
			return nil
		}
		if err = a.again(ctx, err); err != nil {
			return err
		}
	}
}

// Flush makes everything durable whose write has returned before. [MS-SMB2] 2.2.17
func (f *File) Flush(ctx context.Context) error {
	err := f.check()
	a := attempt{repeat: always}
	for err == nil {
		r := f.request(wire.CmdFlush, &a, 0)
		q := wire.FlushRequest{FileID: f.id}
		r.out = q.Append(r.out)
		err = a.exchange(ctx, r, 1)
		if err == nil {
			err = a.simple(r, wire.ParseEmptyResponse)
		}
		if err == nil {
			return nil
		}
		err = a.again(ctx, err)
	}
	return opError("flush", f.path(), err)
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
