package bridge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"vdbridge/client"
	nbdclient "vdbridge/nbd/client"
	"vdbridge/smb/fscc"
	"vdbridge/smb/wire"
	"vdbridge/vhdx"
)

// Endpoint is one end of a copy: a file, or an NBD export.
type Endpoint struct {
	Loc Location
	NBD string // the URI; "" for a file
}

// ParseEndpoint understands what ParseLocation does, and the URIs of NBD.
func ParseEndpoint(s string) (Endpoint, error) {
	if nbdclient.IsURI(s) {
		if _, err := nbdclient.ParseURI(s); err != nil {
			return Endpoint{}, Usagef("%v", err)
		}
		return Endpoint{NBD: s}, nil
	}
	l, err := ParseLocation(s)
	if err == nil && !l.Local && l.Path == "" {
		err = Usagef("%s names no file; give smb://user@host/share/disk.vhdx", l)
	}
	return Endpoint{Loc: l}, err
}

// String is the URI or the location.
func (e Endpoint) String() string {
	if e.NBD != "" {
		return e.NBD
	}
	return e.Loc.String()
}

const nbdConnections = 4

func (e Endpoint) openNBD(ctx context.Context, readOnly bool) (backend, error) {
	d, err := nbdclient.Open(ctx, e.NBD, nbdclient.Options{ReadOnly: readOnly, Connections: nbdConnections})
	if err != nil {
		class := ClassConnection
		if ctx.Err() != nil {
			class = ClassInterrupted
		}
		return nil, &Error{class, fmt.Sprintf("the NBD export cannot be opened: %v", err), err}
	}
	if !readOnly && d.ReadOnly() {
		return nil, errors.Join(&Error{ClassReadOnly, fmt.Sprintf("%s is read-only", e), syscall.EROFS}, d.Close())
	}
	return d, nil
}

func (e Endpoint) openSource(ctx context.Context, o CopyOptions) (backend, error) {
	if e.NBD != "" {
		return e.openNBD(ctx, true)
	}
	opts := o.Opts
	opts.ReadOnly = true
	return OpenFormat(ctx, e.Loc, opts, o.From)
}

// destinationFormat is what a new file becomes.
func (e Endpoint) destinationFormat(o CopyOptions) (Format, error) {
	f := o.To
	if f == FormatAuto {
		f = formatOf(e.Loc)
	}
	switch f {
	case FormatVHDX, FormatRaw:
		return f, nil
	case FormatVHD:
		return "", &Error{ClassUnsupported, fmt.Sprintf("%s would be a .vhd, which can be read but not made: copy to a .vhdx", e), errors.ErrUnsupported}
	}
	return "", Usagef("the name of %s does not tell what to make of it: choose a name that ends in .vhdx, .raw or .img, or say --format", e)
}

// openDestination opens what is copied to. fresh says that it reads as zeros where nothing was written.
func (e Endpoint) openDestination(ctx context.Context, size int64, o CopyOptions) (d backend, fresh bool, err error) {
	if e.NBD != "" {
		if d, err = e.openNBD(ctx, false); err != nil {
			return nil, false, err
		}
		empty, err := isEmpty(ctx, d)
		if err == nil && !empty && !o.Force && !o.Resume {
			err = &Error{ClassExists, fmt.Sprintf("%s may hold something; say --force to overwrite it", e), syscall.EEXIST}
		}
		if err != nil {
			return nil, false, errors.Join(err, d.Close())
		}
		return d, empty && !o.Resume, nil
	}
	opts := o.Opts
	opts.ReadOnly = false
	if e.Loc.Local {
		if st, err := os.Stat(e.Loc.Path); err == nil && st.Mode()&fs.ModeDevice != 0 {
			if !o.Force && !o.Resume {
				return nil, false, &Error{ClassExists, fmt.Sprintf("%s is a device; say --force to overwrite what is on it", e), syscall.EEXIST}
			}
			d, err := OpenFormat(ctx, e.Loc, opts, FormatRaw)
			return diskOrNil(d, err), false, err
		}
	}
	format, err := e.destinationFormat(o)
	if err != nil {
		return nil, false, err
	}
	if opts.Mode == ModeAuto {
		opts.Mode = ModeFile // nobody else looks at what is half there
	}
	if !o.Resume {
		if format == FormatVHDX {
			co := o.Create
			sector := int64(max(co.LogicalSector, 512))
			co.Size = (size + sector - 1) / sector * sector
			co.Overwrite = o.Force
			err = Create(ctx, e.Loc, o.Opts, co)
		} else {
			err = createRaw(ctx, e.Loc, o.Opts, size, o.Force)
		}
		if err != nil {
			if Classify(err) == ClassExists {
				err = &Error{ClassExists, fmt.Sprintf("%s exists already; say --force to overwrite it, or --resume to go on with a copy that was interrupted", e), err}
			}
			return nil, false, err
		}
	}
	disk, err := OpenFormat(ctx, e.Loc, opts, format)
	return diskOrNil(disk, err), true, err
}

// diskOrNil keeps a nil *Disk from becoming a backend that is not nil.
func diskOrNil(d *Disk, err error) backend {
	if err != nil {
		return nil
	}
	return d
}

// isEmpty says whether a disk is known to be nothing but zeros.
func isEmpty(ctx context.Context, d backend) (bool, error) {
	empty := true
	err := d.Extents(ctx, 0, d.Size(), func(_ int64, _, zero bool) bool {
		empty = empty && zero
		return empty
	})
	return empty, err
}

// createRaw makes a new file of that size without data in it.
func createRaw(ctx context.Context, loc Location, o Options, size int64, force bool) error {
	if loc.Local {
		flag := os.O_RDWR | os.O_CREATE | os.O_EXCL
		if force {
			flag = os.O_RDWR | os.O_CREATE
		}
		f, err := os.OpenFile(loc.Path, flag, 0o666)
		if err != nil {
			return explainCreate(loc, err)
		}
		b := vhdx.NewOSFile(f)
		if err := b.Lock(ctx, true); err != nil { // before it is emptied
			return errors.Join(explainOpen(loc, err), b.Close())
		}
		if err := errors.Join(f.Truncate(0), f.Truncate(size)); err != nil {
			return errors.Join(explainCreate(loc, err), b.Close())
		}
		return b.Close()
	}
	r, err := Connect(ctx, loc, o)
	if err != nil {
		return err
	}
	oo := client.OpenOptions{
		Access: wire.AccessReadData | wire.AccessWriteData | wire.AccessAppendData | wire.AccessReadAttributes | wire.AccessWriteAttributes, Attributes: fscc.AttrNormal,
		Disposition: wire.FileCreate, Options: wire.OptNonDirectoryFile,
	}
	if force {
		oo.Disposition = wire.FileOverwriteIf
	}
	f, err := r.tree().Open(ctx, loc.Path, oo)
	if err != nil {
		return errors.Join(explainCreate(loc, err), r.Close())
	}
	_ = f.SetSparse(ctx, true) // where it can be; the copy is right without
	err = f.Truncate(ctx, size)
	return errors.Join(err, f.Close(), r.Close())
}

// checkSize looks at the finished copy once more.
func (e Endpoint) checkSize(ctx context.Context, size int64, o CopyOptions) error {
	o.From = o.To
	d, err := e.openSource(ctx, o)
	if err != nil {
		return fmt.Errorf("the copy cannot be opened: %w", err)
	}
	got := d.Size()
	if err := d.Close(); err != nil {
		return err
	}
	if got < size {
		return &Error{ClassIO, fmt.Sprintf("the copy %s has %d bytes, the source %d", e, got, size), syscall.EIO}
	}
	return nil
}

// copyNote is what is kept of a copy that was interrupted.
type copyNote struct {
	path string
	copyNoteFile
}

type copyNoteFile struct {
	Source   string `json:"source"`
	Identity string `json:"identity"` // of the source's contents, as far as it can be told
	Size     int64  `json:"size"`
	To       string `json:"to"`
	Offset   int64  `json:"offset"` // everything before it is durable
}

// note prepares the note of a copy: beside a local destination, otherwise in the state directory.
func (o *CopyOptions) note(from, to Endpoint, src backend) *copyNote {
	n := &copyNote{copyNoteFile: copyNoteFile{Source: from.key(), Identity: identityOf(from, src), Size: src.Size(), To: to.key()}}
	if to.NBD == "" && to.Loc.Local {
		if st, err := os.Stat(to.Loc.Path); err != nil || st.Mode().IsRegular() {
			n.path = to.Loc.Path + ".vdbridge-copy"
			return n
		}
	}
	dir := o.Opts.StateDir
	if dir == "" {
		dir = DefaultStateDir()
	}
	sum := sha256.Sum256([]byte(n.To))
	n.path = filepath.Join(dir, "copies", hex.EncodeToString(sum[:12])+".json")
	return n
}

func (e Endpoint) key() string {
	if e.NBD != "" {
		return e.NBD
	}
	if e.Loc.Local {
		if abs, err := filepath.Abs(e.Loc.Path); err == nil {
			return abs
		}
	}
	return e.Loc.key()
}

// identityOf tells one state of a source from another. What an NBD export or a shared disk holds cannot be told apart.
func identityOf(e Endpoint, src backend) string {
	if d, ok := src.(*Disk); ok && d.image != nil {
		i := d.image.Info()
		return fmt.Sprintf("vhdx %s %s", i.VirtualDiskID, i.DataWriteGUID)
	}
	if e.NBD == "" && e.Loc.Local {
		if st, err := os.Stat(e.Loc.Path); err == nil && st.Mode().IsRegular() {
			return fmt.Sprintf("file %d", st.ModTime().UnixNano())
		}
	}
	return ""
}

// load finds where to go on.
func (n *copyNote) load() (int64, error) {
	b, err := os.ReadFile(n.path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, &Error{ClassNotFound, fmt.Sprintf("there is no interrupted copy to %s that could go on; leave --resume out", n.To), err}
	}
	var old copyNoteFile
	if err == nil {
		err = json.Unmarshal(b, &old)
	}
	if err != nil {
		return 0, &Error{ClassCorrupt, fmt.Sprintf("the note of the interrupted copy, %s, cannot be read: remove it, and begin again with --force", n.path), err}
	}
	if old.Source != n.Source || old.To != n.To || old.Size != n.Size || old.Identity != n.Identity || old.Offset < 0 || old.Offset > n.Size {
		return 0, &Error{ClassUsage, fmt.Sprintf("the interrupted copy to %s was one of %s, or that has changed since: begin again with --force", n.To, old.Source), ErrUsage}
	}
	return old.Offset, nil
}

func (n *copyNote) save(offset int64) error {
	n.Offset = offset
	b, err := json.Marshal(n.copyNoteFile)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(n.path), 0o700); err != nil {
		return fmt.Errorf("note of the copy: %w", err)
	}
	if err := WriteFileDurably(n.path, append(b, '\n')); err != nil {
		return fmt.Errorf("note of the copy: %w", err)
	}
	return nil
}

func (n *copyNote) remove() error {
	if err := os.Remove(n.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
