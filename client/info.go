package client

import (
	"context"
	"fmt"
	"io/fs"
	"iter"
	"slices"

	"vdbridge/smb/fscc"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

func errClosed() error { return fs.ErrClosed }

// QueryInfo asks for an information class of the file or its file system and returns at most size bytes of it. With STATUS_BUFFER_OVERFLOW there are
// both bytes and an error. infoType is one of wire.InfoFile…; additional matters for security and EAs. [MS-SMB2] 2.2.37
func (f *File) QueryInfo(ctx context.Context, infoType, class uint8, additional uint32, size int) ([]byte, error) {
	const op = "query"
	if err := f.check(op); err != nil {
		return nil, err
	}
	size = min(size, f.c.neg.maxTransact, creditBytes) // such a request always costs one credit
	r := f.t.request(wire.CmdQueryInfo)
	q := wire.QueryInfoRequest{
		InfoType: infoType, FileInfoClass: class, OutputBufferLength: uint32(size), AdditionalInformation: additional, FileID: f.id,
	}
	r.out = q.Append(r.out)
	ok, err := r.roundTrip(ctx, 1)
	if !ok {
		return nil, wrap(op, f.path(), err)
	}
	defer r.unref()
	if err != nil {
		return nil, wrap(op, f.path(), err)
	}
	st := ntstatus.Status(r.h.Status)
	if st != ntstatus.Success && st != ntstatus.BufferOverflow {
		return nil, statusError(op, f.path(), st)
	}
	v, err := wire.ParseOutputResponse(r.msg)
	if err == nil && len(v.Buffer) > size {
		err = fmt.Errorf("QUERY_INFO with room for %d bytes got %d", size, len(v.Buffer))
	}
	if err != nil {
		return nil, f.c.malformed(op, f.path(), err)
	}
	b := slices.Clone(v.Buffer)
	if st != ntstatus.Success {
		return b, statusError(op, f.path(), st)
	}
	return b, nil
}

// SetInfo sets an information class. [MS-SMB2] 2.2.39
func (f *File) SetInfo(ctx context.Context, infoType, class uint8, additional uint32, buf []byte) error {
	const op = "set"
	if err := f.check(op); err != nil {
		return err
	}
	if most := min(f.c.neg.maxTransact, creditBytes); len(buf) > most {
		return wrap(op, f.path(), fmt.Errorf("%w: %d bytes, at most %d", errTooLarge, len(buf), most))
	}
	r := f.t.request(wire.CmdSetInfo)
	q := wire.SetInfoRequest{InfoType: infoType, FileInfoClass: class, AdditionalInformation: additional, FileID: f.id, Buffer: buf}
	r.out = q.Append(r.out)
	ok, err := r.roundTrip(ctx, 1)
	if !ok {
		return wrap(op, f.path(), err)
	}
	defer r.unref()
	if err != nil {
		return wrap(op, f.path(), err)
	}
	return r.expect(op, f.path(), wire.ParseSetInfoResponse)
}

// SetBasicInfo sets times and attributes; what is zero stays as it is.
func (f *File) SetBasicInfo(ctx context.Context, v fscc.BasicInfo) error {
	return f.SetInfo(ctx, wire.InfoFile, fscc.FileBasicInformation, 0, fscc.AppendBasicInfo(nil, v))
}

// SetDelete marks the file, open with delete access, to be deleted when its last open is closed, or takes the mark back.
func (f *File) SetDelete(ctx context.Context, remove bool) error {
	return f.SetInfo(ctx, wire.InfoFile, fscc.FileDispositionInformation, 0, fscc.AppendDisposition(nil, remove))
}

// dirBuffer is how many bytes of directory entries to ask for at once.
const dirBuffer = 256 << 10

// ReadDir lists the directory: entries that match pattern ("*" or "" for all), without "." and "..", in the server's order. After an error the
// iteration ends. Only one iteration of a File at a time; each starts anew. [MS-SMB2] 2.2.33
func (f *File) ReadDir(ctx context.Context, pattern string) iter.Seq2[fscc.DirEntry, error] {
	return func(yield func(fscc.DirEntry, error) bool) {
		if pattern == "" {
			pattern = "*"
		}
		flags := wire.QueryDirRestart
		for {
			list, err := f.queryDirectory(ctx, pattern, flags)
			if err != nil {
				yield(fscc.DirEntry{}, err)
				return
			}
			if len(list) == 0 {
				return
			}
			for _, e := range list {
				if e.Name == "." || e.Name == ".." {
					continue
				}
				if !yield(e, nil) {
					return
				}
			}
			flags = 0
		}
	}
}

// queryDirectory returns the next entries; none at the end.
func (f *File) queryDirectory(ctx context.Context, pattern string, flags uint8) ([]fscc.DirEntry, error) {
	const op = "list"
	if err := f.check(op); err != nil {
		return nil, err
	}
	size := min(dirBuffer, f.c.neg.maxTransact)
	r := f.t.request(wire.CmdQueryDirectory)
	q := wire.QueryDirectoryRequest{
		InfoClass: fscc.FileIdBothDirectoryInformation, Flags: flags, FileID: f.id, OutputBufferLength: uint32(size), Pattern: pattern,
	}
	r.out = q.Append(r.out)
	ok, err := r.roundTrip(ctx, credits(size))
	if !ok {
		return nil, wrap(op, f.path(), err)
	}
	defer r.unref()
	if err != nil {
		return nil, wrap(op, f.path(), err)
	}
	switch st := ntstatus.Status(r.h.Status); st {
	case ntstatus.Success:
	case ntstatus.NoMoreFiles, ntstatus.NoSuchFile:
		return nil, nil
	default:
		return nil, statusError(op, f.path(), st)
	}
	v, err := wire.ParseOutputResponse(r.msg)
	if err == nil && len(v.Buffer) > size {
		err = fmt.Errorf("QUERY_DIRECTORY with room for %d bytes got %d", size, len(v.Buffer))
	}
	if err != nil || len(v.Buffer) == 0 {
		if err == nil {
			return nil, nil
		}
		return nil, f.c.malformed(op, f.path(), err)
	}
	list, err := fscc.ParseIDBothDirectory(v.Buffer)
	if err != nil {
		return nil, f.c.malformed(op, f.path(), err)
	}
	return list, nil
}

// SetSparse makes the file sparse, or not, so that zeros need no room. [MS-FSCC] 2.3.83
func (f *File) SetSparse(ctx context.Context, sparse bool) error {
	in := []byte{0}
	if sparse {
		in[0] = 1
	}
	_, err := f.Ioctl(ctx, wire.FsctlSetSparse, in, nil, nil, nil)
	return err
}

// ZeroRange makes n bytes from off read as zeros. In a sparse file their room is given back. It does not extend the file. [MS-FSCC] 2.3.85
func (f *File) ZeroRange(ctx context.Context, off, n int64) error {
	_, err := f.Ioctl(ctx, wire.FsctlSetZeroData, fscc.AppendZeroData(nil, fscc.ZeroData{FileOffset: off, BeyondFinalZero: off + n}), nil, nil, nil)
	return err
}

// Trim tells the server that the contents of the ranges are not needed any more. [MS-FSCC] 2.3.13
func (f *File) Trim(ctx context.Context, ranges ...fscc.Range) error {
	_, err := f.Ioctl(ctx, wire.FsctlFileLevelTrim, fscc.AppendTrim(nil, ranges), nil, make([]byte, 4), nil)
	return err
}

// AllocatedRanges returns the ranges within n bytes from off that may hold something else than zeros, in ascending order. [MS-FSCC] 2.3.51
func (f *File) AllocatedRanges(ctx context.Context, off, n int64) ([]fscc.Range, error) {
	var all []fscc.Range
	end := off + n
	for off < end {
		out := make([]byte, 4096*16)
		m, err := f.Ioctl(ctx, wire.FsctlQueryAllocatedRanges, fscc.AppendRange(nil, fscc.Range{Offset: off, Length: end - off}), nil, out, nil)
		more := isStatus(err, ntstatus.BufferOverflow)
		if err != nil && !more {
			return all, err
		}
		list, err := fscc.ParseRanges(out[:m])
		if err != nil {
			return all, f.c.malformed("query ranges", f.path(), err)
		}
		all = append(all, list...)
		if !more || len(list) == 0 {
			break
		}
		last := list[len(list)-1]
		next := last.Offset + last.Length
		if next <= off {
			return all, f.c.malformed("query ranges", f.path(), fmt.Errorf("ranges do not advance beyond %d", off))
		}
		off = next
	}
	return all, nil
}
