package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync/atomic"

	"vdbridge/smb/fscc"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// Tree is a connection to a share.
type Tree struct {
	sess   *Session
	id     uint32
	path   string // \\server\share
	info   wire.TreeConnectResponse
	seal   bool
	closed atomic.Bool
}

// Tree connects to a share of the server, by its bare name. [MS-SMB2] 3.2.4.2.4
func (s *Session) Tree(ctx context.Context, share string) (*Tree, error) {
	const op = "connect to share"
	c := s.c
	share = strings.Trim(share, `\/`)
	t := &Tree{sess: s, path: `\\` + c.server + `\` + share}
	if share == "" || strings.ContainsAny(share, `\/`) {
		return nil, wrap(op, t.path, errors.New("the share needs a name without slashes"))
	}
	if s.closed.Load() {
		return nil, wrap(op, t.path, fs.ErrClosed)
	}
	a := attempt{repeat: always} // a second tree that nobody knows of does no harm
	for {
		err := t.connect(ctx, &a)
		if err == nil {
			break
		}
		if err = a.again(ctx, err); err == nil {
			continue
		}
		if st, ok := err.(ntstatus.Status); ok {
			return nil, &Error{Op: op, Path: t.path, Status: st, Hint: shareHint(st)}
		}
		return nil, wrap(op, t.path, err)
	}
	if t.info.ShareFlags&wire.ShareFlagEncryptData != 0 && !s.seal {
		if s.sealer == nil {
			_ = s.disconnectTree(ctx, t.id, false)
			return nil, wrap(op, t.path, fmt.Errorf("%w: the share asks for encryption, and none was agreed on", ErrUnsupportedServer))
		}
		t.seal = true
	}
	s.mu.Lock()
	s.trees[t] = true
	s.mu.Unlock()
	if c.mustValidate(s) {
		if err := s.validateNegotiate(ctx, a.ch, t); err != nil {
			_ = t.disconnect(ctx)
			return nil, err
		}
	}
	return t, nil
}

// connect sends the request of an attempt and takes over the reply.
func (t *Tree) connect(ctx context.Context, a *attempt) error {
	s := t.sess
	r := s.request(wire.CmdTreeConnect, 0, false, a)
	// SMB 3.1.1 wants this request protected even where others need not be: it is what makes tampering with the negotiation visible.
	r.sign = !r.seal && s.signer != nil
	q := wire.TreeConnectRequest{Path: t.path}
	r.out = q.Append(r.out)
	if err := a.exchange(ctx, r, 1); err != nil {
		return err
	}
	t.id = r.h.TreeID
	return a.simple(r, func(msg []byte) (err error) {
		t.info, err = wire.ParseTreeConnectResponse(msg)
		return err
	})
}

func shareHint(s ntstatus.Status) string {
	switch s {
	case ntstatus.BadNetworkName:
		return "there is no such share on the server"
	case ntstatus.AccessDenied:
		return "the user may not use this share, or the share asks for encryption"
	}
	return ""
}

// Session returns the session of the tree.
func (t *Tree) Session() *Session { return t.sess }

// Path returns the share as \\server\share.
func (t *Tree) Path() string { return t.path }

// Share returns what the server says about the share: type, flags, capabilities and the user's maximal access.
func (t *Tree) Share() wire.TreeConnectResponse { return t.info }

// Sealed says whether everything on the share is encrypted.
func (t *Tree) Sealed() bool { return t.seal || t.sess.seal }

// Close disconnects from the share. Files that are still open are closed by the server.
func (t *Tree) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return t.disconnect(ctx)
}

func (t *Tree) disconnect(ctx context.Context) error {
	if t.closed.Swap(true) {
		return nil
	}
	t.sess.mu.Lock()
	delete(t.sess.trees, t)
	t.sess.mu.Unlock()
	return t.sess.disconnectTree(ctx, t.id, t.seal)
}

func (s *Session) disconnectTree(ctx context.Context, id uint32, seal bool) error {
	return s.simple(ctx, wire.CmdTreeDisconnect, id, seal, "disconnect from share", s.c.server)
}

// full returns the path of a file for messages.
func (t *Tree) full(name string) string {
	if name == "" {
		return t.path
	}
	return t.path + `\` + name
}

// cleanName brings a name into the form that the wire wants: separated by backslashes, without a leading one.
func cleanName(name string) (string, error) {
	name = strings.Trim(strings.ReplaceAll(name, "/", `\`), `\`)
	if strings.ContainsRune(name, 0) {
		return "", ntstatus.ObjectNameInvalid
	}
	if len(wire.AppendName(nil, name)) > maxName {
		return "", ntstatus.NameTooLong
	}
	return name, nil
}

// maxName is the longest path in bytes, as Windows has it.
const maxName = 32767 * 2

// Mkdir makes a directory.
func (t *Tree) Mkdir(ctx context.Context, name string) error {
	f, err := t.open(ctx, "make directory", name, OpenOptions{
		Access: wire.AccessReadAttributes, Share: ShareAll,
		Disposition: wire.FileCreate, Options: wire.OptDirectoryFile, Attributes: fscc.AttrDirectory,
	})
	if err != nil {
		return err
	}
	return f.Close()
}

// Remove deletes a file or an empty directory.
func (t *Tree) Remove(ctx context.Context, name string) error {
	f, err := t.open(ctx, "remove", name, OpenOptions{
		Access: wire.AccessDelete | wire.AccessReadAttributes, Share: ShareAll,
		Disposition: wire.FileOpen, Options: wire.OptOpenReparsePoint,
	})
	if err != nil {
		return err
	}
	err = f.SetInfo(ctx, wire.InfoFile, fscc.FileDispositionInformation, 0, fscc.AppendDisposition(nil, true))
	return errors.Join(err, f.Close())
}

// Rename moves a file or directory within the share. With replace, an existing file of the new name is replaced.
func (t *Tree) Rename(ctx context.Context, from, to string, replace bool) error {
	f, err := t.open(ctx, "rename", from, OpenOptions{
		Access: wire.AccessDelete | wire.AccessReadAttributes, Share: ShareAll,
		Disposition: wire.FileOpen, Options: wire.OptOpenReparsePoint,
	})
	if err != nil {
		return err
	}
	return errors.Join(f.Rename(ctx, to, replace), f.Close())
}

// Stat returns what the server says about a file or directory.
func (t *Tree) Stat(ctx context.Context, name string) (FileInfo, error) {
	f, err := t.open(ctx, "stat", name, OpenOptions{Access: wire.AccessReadAttributes, Share: ShareAll, Disposition: wire.FileOpen})
	if err != nil {
		return FileInfo{}, err
	}
	v, err := f.Stat(ctx)
	return v, errors.Join(err, f.Close())
}

// FSInfo describes the file system of a share. Sizes are bytes.
type FSInfo struct {
	Total, Free, Available int64 // Available is what this user may use
	UnitSize               int64 // of allocation
	SectorSize             int64
	PhysicalSectorSize     int64 // 0: not known
	Attributes             uint32
	MaxName                int // characters of a name
	Type, Label            string
	SerialNumber           uint32
}

// FSInfo asks for the size and kind of the file system. Servers differ in what they tell beyond the size; the rest may be zero.
func (t *Tree) FSInfo(ctx context.Context) (FSInfo, error) {
	const op = "query file system"
	var v FSInfo
	f, err := t.open(ctx, op, "", OpenOptions{
		Access: wire.AccessReadAttributes, Share: ShareAll, Disposition: wire.FileOpen, Options: wire.OptDirectoryFile,
	})
	if err != nil {
		return v, err
	}
	defer f.Close()
	b, err := f.QueryInfo(ctx, wire.InfoFileSystem, fscc.FileFsFullSizeInformation, 0, 32)
	if err != nil {
		return v, err
	}
	size, err := fscc.ParseFSFullSizeInfo(b)
	if err != nil {
		return v, wrap(op, t.path, protocolError(err))
	}
	v.SectorSize = int64(size.BytesPerSector)
	v.UnitSize = int64(size.SectorsPerUnit) * v.SectorSize
	v.Total, v.Free, v.Available = size.TotalUnits*v.UnitSize, size.ActualAvailableUnits*v.UnitSize, size.CallerAvailableUnits*v.UnitSize
	if b, err = f.QueryInfo(ctx, wire.InfoFileSystem, fscc.FileFsAttributeInformation, 0, 512); err == nil {
		if a, err := fscc.ParseFSAttributeInfo(b); err == nil {
			v.Attributes, v.MaxName, v.Type = a.Attributes, int(a.MaxNameLength), a.Name
		}
	}
	if b, err = f.QueryInfo(ctx, wire.InfoFileSystem, fscc.FileFsVolumeInformation, 0, 512); err == nil {
		if a, err := fscc.ParseFSVolumeInfo(b); err == nil {
			v.Label, v.SerialNumber = a.Label, a.SerialNumber
		}
	}
	if b, err = f.QueryInfo(ctx, wire.InfoFileSystem, fscc.FileFsSectorSizeInformation, 0, 28); err == nil {
		if a, err := fscc.ParseFSSectorSizeInfo(b); err == nil {
			v.PhysicalSectorSize = int64(a.PhysicalForPerformance)
		}
	}
	return v, t.sess.Err()
}
