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
	size = min(size, f.t.sess.c.neg.maxTransact, creditBytes) // such a request always costs one credit
	a := attempt{repeat: always}
	for {
		b, err := f.queryInfo(ctx, &a, wire.QueryInfoRequest{
			InfoType: infoType, FileInfoClass: class, OutputBufferLength: uint32(size), AdditionalInformation: additional, FileID: f.id,
		})
		if err == nil {
			return b, nil
		}
		if err = a.again(ctx, err); err != nil {
			return b, f.opError("query", err)
		}
	}
}

func (f *File) queryInfo(ctx context.Context, a *attempt, q wire.QueryInfoRequest) ([]byte, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	r := f.request(wire.CmdQueryInfo, a, int(q.OutputBufferLength))
	r.out = q.Append(r.out)
	if err := a.exchange(ctx, r, 1); err != nil {
		return nil, err
	}
	defer r.unref()
	st := ntstatus.Status(r.h.Status)
	if st != ntstatus.Success && st != ntstatus.BufferOverflow {
		return nil, st
	}
	v, err := wire.ParseOutputResponse(r.msg)
	if err == nil && len(v.Buffer) > int(q.OutputBufferLength) {
		err = fmt.Errorf("QUERY_INFO with room for %d bytes got %d", q.OutputBufferLength, len(v.Buffer))
	}
	if err != nil {
		return nil, a.fail(err)
	}
	return slices.Clone(v.Buffer), st.Err()
}

// SetInfo sets an information class. [MS-SMB2] 2.2.39
func (f *File) SetInfo(ctx context.Context, infoType, class uint8, additional uint32, buf []byte) error {
	const op = "set"
	if most := min(f.t.sess.c.neg.maxTransact, creditBytes); len(buf) > most {
		return wrap(op, f.path(), fmt.Errorf("%w: %d bytes, at most %d", errTooLarge, len(buf), most))
	}
	a := attempt{repeat: repeatSet(infoType, class), file: true, f: f}
	err := f.check()
	for err == nil {
		r := f.request(wire.CmdSetInfo, &a, len(buf))
		q := wire.SetInfoRequest{InfoType: infoType, FileInfoClass: class, AdditionalInformation: additional, FileID: f.id, Buffer: buf}
		r.out = q.Append(r.out)
		err = a.exchange(ctx, r, 1)
		if err == nil {
			err = a.simple(r, wire.ParseSetInfoResponse)
		}
		if err == nil {
			return nil
		}
		err = a.again(ctx, err)
	}
	return opError(op, f.path(), err)
}

// repeatSet says whether setting the class twice is the same as once. A rename or link that is done finds its own result in the way.
func repeatSet(infoType, class uint8) repeat {
	if infoType == wire.InfoFile {
		switch class {
		case fscc.FileBasicInformation, fscc.FileEndOfFileInformation, fscc.FileAllocationInformation, fscc.FileDispositionInformation:
			return always
		}
	}
	return never
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
	a := attempt{repeat: never} // the server goes on from where it was
	for {
		list, err := f.queryDirectoryOnce(ctx, &a, pattern, flags)
		if err == nil {
			return list, nil
		}
		if err = a.again(ctx, err); err != nil {
			return nil, opError(op, f.path(), err)
		}
	}
}

func (f *File) queryDirectoryOnce(ctx context.Context, a *attempt, pattern string, flags uint8) ([]fscc.DirEntry, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	size := min(dirBuffer, f.t.sess.c.neg.maxTransact)
	r := f.request(wire.CmdQueryDirectory, a, size)
	q := wire.QueryDirectoryRequest{
		InfoClass: fscc.FileIdBothDirectoryInformation, Flags: flags, FileID: f.id, OutputBufferLength: uint32(size), Pattern: pattern,
	}
	r.out = q.Append(r.out)
	if err := a.exchange(ctx, r, credits(size)); err != nil {
		return nil, err
	}
	defer r.unref()
	switch st := ntstatus.Status(r.h.Status); st {
	case ntstatus.Success:
	case ntstatus.NoMoreFiles, ntstatus.NoSuchFile:
		return nil, nil
	default:
		return nil, st
	}
	v, err := wire.ParseOutputResponse(r.msg)
	if err == nil && len(v.Buffer) > size {
		err = fmt.Errorf("QUERY_DIRECTORY with room for %d bytes got %d", size, len(v.Buffer))
	}
	if err != nil || len(v.Buffer) == 0 {
		if err == nil {
			return nil, nil
		}
		return nil, a.fail(err)
	}
	list, err := fscc.ParseIDBothDirectory(v.Buffer)
	if err != nil {
		return nil, a.fail(err)
	}
	return list, nil
}

// malformed is for output that makes no sense.
func (f *File) malformed(op string, err error) error { return wrap(op, f.path(), protocolError(err)) }

// SetSparse makes the file sparse, or not, so that zeros need no room. [MS-FSCC] 2.3.83
func (f *File) SetSparse(ctx context.Context, sparse bool) error {
	in := []byte{0}
	if sparse {
		in[0] = 1
	}
	_, err := f.IoctlIdempotent(ctx, wire.FsctlSetSparse, in, nil, nil, nil)
	return err
}

// ZeroRange makes n bytes from off read as zeros. In a sparse file their room is given back. It does not extend the file. [MS-FSCC] 2.3.85
func (f *File) ZeroRange(ctx context.Context, off, n int64) error {
	_, err := f.IoctlIdempotent(ctx, wire.FsctlSetZeroData, fscc.AppendZeroData(nil, fscc.ZeroData{FileOffset: off, BeyondFinalZero: off + n}), nil, nil, nil)
	return err
}

// Trim tells the server that the contents of the ranges are not needed any more. [MS-FSCC] 2.3.13
func (f *File) Trim(ctx context.Context, ranges ...fscc.Range) error {
	_, err := f.IoctlIdempotent(ctx, wire.FsctlFileLevelTrim, fscc.AppendTrim(nil, ranges), nil, make([]byte, 4), nil)
	return err
}

// AllocatedRanges returns the ranges within n bytes from off that may hold something else than zeros, in ascending order. [MS-FSCC] 2.3.51
func (f *File) AllocatedRanges(ctx context.Context, off, n int64) ([]fscc.Range, error) {
	var all []fscc.Range
	end := off + n
	for off < end {
		out := make([]byte, 4096*16)
		m, err := f.IoctlIdempotent(ctx, wire.FsctlQueryAllocatedRanges, fscc.AppendRange(nil, fscc.Range{Offset: off, Length: end - off}), nil, out, nil)
		more := isStatus(err, ntstatus.BufferOverflow)
		if err != nil && !more {
			return all, err
		}
		list, err := fscc.ParseRanges(out[:m])
		if err != nil {
			return all, f.malformed("query ranges", err)
		}
		all = append(all, list...)
		if !more || len(list) == 0 {
			break
		}
		last := list[len(list)-1]
		next := last.Offset + last.Length
		if next <= off {
			return all, f.malformed("query ranges", fmt.Errorf("ranges do not advance beyond %d", off))
		}
		off = next
	}
	return all, nil
}
