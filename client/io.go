package client

import (
	"context"
	"errors"
	"fmt"
	"io"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

const (
	// creditBytes is how many bytes of payload one credit pays for. [MS-SMB2] 3.1.5.2
	creditBytes = 64 << 10
	// pipeline is how many requests of one large read or write are in flight at once.
	pipeline = 8
)

// credits returns the charge for n bytes of payload.
func credits(n int) int {
	if n <= creditBytes {
		return 1
	}
	return (n + creditBytes - 1) / creditBytes
}

func isStatus(err error, s ntstatus.Status) bool { return errors.Is(err, s) }

// part is one request of a read or write.
type part struct {
	r   *request
	buf []byte // what it reads or writes
	off int64
	a   attempt
}

// startRead sends a READ for as much of p as one request can fetch.
func (f *File) startRead(ctx context.Context, p []byte, off int64) (part, error) {
	return f.sendRead(ctx, p, off, attempt{repeat: always})
}

// sendRead is startRead, for the first time or again.
func (f *File) sendRead(ctx context.Context, p []byte, off int64, a attempt) (part, error) {
	for {
		r := f.request(wire.CmdRead, &a, len(p))
		r.direct = true
		r.dst1 = p
		err := r.acquire(ctx, credits(len(p)), true)
		if err == nil {
			a.sent = true
			p = p[:min(len(p), r.charge*creditBytes)]
			q := wire.ReadRequest{
				Padding: wire.HeaderSize + wire.ReadResponseFixed, Length: uint32(len(p)), Offset: uint64(off), FileID: f.id,
			}
			r.out = q.Append(r.out)
			r.joinable = len(p) <= joinLimit && !f.separate
			r.send()
			return part{r, p, off, a}, nil
		}
		r.unref()
		if err = a.again(ctx, err); err != nil {
			return part{}, err
		}
	}
}

// finishRead waits for the reply and returns how many bytes of the part were read.
func (f *File) finishRead(ctx context.Context, t *part) (int, error) {
	for {
		n, err := f.readReply(ctx, t)
		if err == nil || err == io.EOF {
			return n, err
		}
		if err = t.a.again(ctx, err); err == nil {
			*t, err = f.sendRead(ctx, t.buf, t.off, t.a)
		}
		if err != nil {
			return 0, err
		}
	}
}

func (f *File) readReply(ctx context.Context, t *part) (int, error) {
	r := t.r
	ok, err := r.wait(ctx)
	if !ok {
		return 0, err
	}
	defer r.unref()
	if err != nil {
		return 0, err
	}
	switch st := ntstatus.Status(r.h.Status); st {
	case ntstatus.Success, ntstatus.BufferOverflow:
	case ntstatus.EndOfFile:
		return 0, io.EOF
	default:
		return 0, st
	}
	if r.msg == nil {
		if r.n > len(t.buf) {
			return 0, t.a.fail(fmt.Errorf("READ of %d bytes got %d", len(t.buf), r.n))
		}
		return r.n, nil
	}
	v, err := wire.ParseReadResponse(r.msg, len(r.msg))
	if err == nil && int64(v.DataLength) > int64(len(t.buf)) {
		err = fmt.Errorf("READ of %d bytes got %d", len(t.buf), v.DataLength)
	}
	if err != nil {
		return 0, t.a.fail(err)
	}
	if v.DataLength == 0 {
		return 0, io.EOF
	}
	return copy(t.buf, r.msg[v.DataOffset:int(v.DataOffset)+int(v.DataLength)]), nil
}

// ReadAt reads len(p) bytes at off. As io.ReaderAt has it, fewer bytes come with an error, which is io.EOF at the end of the file.
// Large reads are split, and several requests are in flight at once.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := f.readAt(ctx, p, off)
	if err != nil && err != io.EOF {
		err = f.opError("read", err)
	}
	return n, err
}

func (f *File) readAt(ctx context.Context, p []byte, off int64) (int, error) {
	if f.closed.Load() {
		return 0, errClosedFile
	}
	if off < 0 {
		return 0, errNegativeOffset
	}
	if len(p) == 0 {
		return 0, nil
	}
	size := f.readSize(len(p))
	if len(p) > size {
		return f.readMany(ctx, p, off, size)
	}
	t, err := f.startRead(ctx, p, off)
	if err != nil {
		return 0, err
	}
	n, err := f.finishRead(ctx, &t)
	if err != nil || n == len(p) {
		return n, err
	}
	return f.readRest(ctx, p, off, n)
}

// readRest reads p[n:] after a short reply, one request after another, until the end of the file.
func (f *File) readRest(ctx context.Context, p []byte, off int64, n int) (int, error) {
	for n < len(p) {
		t, err := f.startRead(ctx, p[n:min(len(p), n+f.t.sess.c.neg.maxRead)], off+int64(n))
		if err != nil {
			return n, err
		}
		m, err := f.finishRead(ctx, &t)
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// readSize returns how many bytes to ask for at a time in a read of n bytes.
func (f *File) readSize(n int) int { return f.t.sess.c.neg.maxRead }

// readMany reads p in parts of size bytes, several at once.
func (f *File) readMany(ctx context.Context, p []byte, off int64, size int) (int, error) {
	var ring [pipeline]part
	head, count := 0, 0
	issued, done := 0, 0
	for done < len(p) {
		var err error
		for issued < len(p) && count < pipeline {
			var t part
			t, err = f.startRead(ctx, p[issued:min(issued+size, len(p))], off+int64(issued))
			if err != nil {
				break
			}
			ring[(head+count)%pipeline] = t
			count++
			issued += len(t.buf)
		}
		if err == nil {
			t := &ring[head]
			head, count = (head+1)%pipeline, count-1
			var n int
			p := t.buf // which may shrink when the request is sent again
			n, err = f.finishRead(ctx, t)
			if err == nil && n < len(p) {
				n, err = f.readRest(ctx, p, off+int64(done), n)
			}
			done += n
		}
		if err != nil {
			for ; count > 0; count-- {
				ring[head].r.discard()
				head = (head + 1) % pipeline
			}
			return done, err
		}
	}
	return done, nil
}

// discard gives up a request that was sent.
func (r *request) discard() {
	if r.abandon() {
		return
	}
	<-r.done
	if r.in1 != nil || r.in2 != nil {
		r.awaitSent()
	}
	r.unref()
}

// startWrite sends a WRITE of as much of p as one request can take.
func (f *File) startWrite(ctx context.Context, p []byte, off int64, flags uint32) (part, error) {
	return f.sendWrite(ctx, p, off, flags, attempt{repeat: always, file: true, f: f})
}

// sendWrite is startWrite, for the first time or again.
func (f *File) sendWrite(ctx context.Context, p []byte, off int64, flags uint32, a attempt) (part, error) {
	for {
		r := f.request(wire.CmdWrite, &a, len(p))
		err := r.acquire(ctx, credits(len(p)), true)
		if err == nil {
			a.sent = true
			p = p[:min(len(p), r.charge*creditBytes)]
			q := wire.WriteRequest{Length: uint32(len(p)), Offset: uint64(off), FileID: f.id, Flags: flags}
			r.out = q.Append(r.out)
			r.payload(p, nil)
			r.joinable = len(p) <= joinLimit && !f.separate
			r.send()
			return part{r, p, off, a}, nil
		}
		r.unref()
		if err = a.again(ctx, err); err != nil {
			return part{}, err
		}
	}
}

// finishWrite waits for the reply and returns how many bytes of the part were written.
func (f *File) finishWrite(ctx context.Context, t *part, flags uint32) (int, error) {
	for {
		n, err := f.writeReply(ctx, t)
		if err == nil {
			return n, nil
		}
		if err = t.a.again(ctx, err); err == nil {
			*t, err = f.sendWrite(ctx, t.buf, t.off, flags, t.a)
		}
		if err != nil {
			return 0, err
		}
	}
}

func (f *File) writeReply(ctx context.Context, t *part) (int, error) {
	r := t.r
	ok, err := r.wait(ctx)
	if !ok {
		return 0, err
	}
	defer r.unref()
	if err != nil {
		return 0, err
	}
	if st := ntstatus.Status(r.h.Status); st != ntstatus.Success {
		return 0, st
	}
	v, err := wire.ParseWriteResponse(r.msg)
	if err == nil && int64(v.Count) > int64(len(t.buf)) {
		err = fmt.Errorf("WRITE of %d bytes wrote %d", len(t.buf), v.Count)
	}
	if err != nil {
		return 0, t.a.fail(err)
	}
	if v.Count == 0 {
		return 0, io.ErrShortWrite
	}
	return int(v.Count), nil
}

// WriteAt writes p at off. Fewer bytes come with an error; bytes beyond those may have been written all the same. Large writes are split, and
// several requests are in flight at once. What is written is durable after Flush.
func (f *File) WriteAt(ctx context.Context, p []byte, off int64) (int, error) {
	return f.write(ctx, p, off, 0)
}

// WriteAtFUA is WriteAt that returns when the data are durable. [MS-SMB2] 2.2.21, SMB2_WRITEFLAG_WRITE_THROUGH
func (f *File) WriteAtFUA(ctx context.Context, p []byte, off int64) (int, error) {
	if f.t.sess.c.neg.dialect < wire.Dialect210 {
		n, err := f.write(ctx, p, off, 0)
		if err == nil {
			err = f.Flush(ctx)
		}
		return n, err
	}
	return f.write(ctx, p, off, wire.WriteFlagWriteThrough)
}

func (f *File) write(ctx context.Context, p []byte, off int64, flags uint32) (int, error) {
	n, err := f.writeAt(ctx, p, off, flags)
	if err != nil {
		err = f.opError("write", err)
	}
	return n, err
}

func (f *File) writeAt(ctx context.Context, p []byte, off int64, flags uint32) (int, error) {
	if f.closed.Load() {
		return 0, errClosedFile
	}
	if off < 0 {
		return 0, errNegativeOffset
	}
	if len(p) == 0 {
		return 0, nil
	}
	size := f.writeSize(len(p))
	if len(p) > size {
		return f.writeMany(ctx, p, off, size, flags)
	}
	t, err := f.startWrite(ctx, p, off, flags)
	if err != nil {
		return 0, err
	}
	n, err := f.finishWrite(ctx, &t, flags)
	if err != nil || n == len(p) {
		return n, err
	}
	return f.writeRest(ctx, p, off, n, flags)
}

// writeRest writes p[n:] after a short write, one request after another.
func (f *File) writeRest(ctx context.Context, p []byte, off int64, n int, flags uint32) (int, error) {
	for n < len(p) {
		t, err := f.startWrite(ctx, p[n:min(len(p), n+f.t.sess.c.neg.maxWrite)], off+int64(n), flags)
		if err != nil {
			return n, err
		}
		m, err := f.finishWrite(ctx, &t, flags)
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// writeSize returns how many bytes to send at a time in a write of n bytes.
func (f *File) writeSize(n int) int { return f.t.sess.c.neg.maxWrite }

// writeMany writes p in parts of size bytes, several at once.
func (f *File) writeMany(ctx context.Context, p []byte, off int64, size int, flags uint32) (int, error) {
	var ring [pipeline]part
	head, count := 0, 0
	issued, done := 0, 0
	for done < len(p) {
		var err error
		for issued < len(p) && count < pipeline {
			var t part
			t, err = f.startWrite(ctx, p[issued:min(issued+size, len(p))], off+int64(issued), flags)
			if err != nil {
				break
			}
			ring[(head+count)%pipeline] = t
			count++
			issued += len(t.buf)
		}
		if err == nil {
			t := &ring[head]
			head, count = (head+1)%pipeline, count-1
			var n int
			p := t.buf // which may shrink when the request is sent again
			n, err = f.finishWrite(ctx, t, flags)
			if err == nil && n < len(p) {
				n, err = f.writeRest(ctx, p, off+int64(done), n, flags)
			}
			done += n
		}
		if err != nil {
			for ; count > 0; count-- {
				ring[head].r.discard()
				head = (head + 1) % pipeline
			}
			return done, err
		}
	}
	return done, nil
}

// Ioctl sends a file system control with the input in1 followed by in2, and puts the output into out1, then out2. It returns how many
// bytes of output came. With STATUS_BUFFER_OVERFLOW there are both output and an error. [MS-SMB2] 2.2.31
func (f *File) Ioctl(ctx context.Context, code uint32, in1, in2, out1, out2 []byte) (int, error) {
	return f.control(ctx, never, code, in1, in2, out1, out2)
}

// IoctlIdempotent is Ioctl for controls that do no harm when they are executed twice in a row. When their channel is lost, they are sent again on another
// one. Others fail then, with an error that matches ErrConnectionLost and ErrOutcomeUnknown.
func (f *File) IoctlIdempotent(ctx context.Context, code uint32, in1, in2, out1, out2 []byte) (int, error) {
	return f.control(ctx, always, code, in1, in2, out1, out2)
}

func (f *File) control(ctx context.Context, rep repeat, code uint32, in1, in2, out1, out2 []byte) (int, error) {
	a := attempt{repeat: rep, file: true, f: f}
	for {
		n, err := f.ioctl(ctx, &a, code, in1, in2, out1, out2)
		if err == nil {
			return n, nil
		}
		if err = a.again(ctx, err); err != nil {
			return n, f.opError("control", err)
		}
	}
}

func (f *File) ioctl(ctx context.Context, a *attempt, code uint32, in1, in2, out1, out2 []byte) (int, error) {
	if f.closed.Load() {
		return 0, errClosedFile
	}
	in, out := len(in1)+len(in2), len(out1)+len(out2)
	if most := f.t.sess.c.neg.maxTransact; in > most || out > most {
		return 0, fmt.Errorf("%w: %d bytes in, %d out, at most %d", errTooLarge, in, out, most)
	}
	r := f.request(wire.CmdIoctl, a, in+out)
	q := wire.IoctlRequest{
		CtlCode: code, FileID: f.id, InputCount: uint32(in), MaxOutputResponse: uint32(out), Flags: wire.IoctlFlagIsFsctl,
	}
	r.out = q.Append(r.out)
	r.payload(in1, in2)
	r.direct = true
	r.dst1, r.dst2 = out1, out2
	r.joinable = in <= joinLimit && out <= joinLimit && !f.separate
	if err := a.exchange(ctx, r, credits(max(in, out))); err != nil {
		return 0, err
	}
	defer r.unref()
	st := ntstatus.Status(r.h.Status)
	if st != ntstatus.Success && st != ntstatus.BufferOverflow {
		return 0, st
	}
	if r.msg == nil {
		return r.n, st.Err()
	}
	v, err := wire.ParseIoctlResponse(r.msg)
	if err != nil && st == ntstatus.BufferOverflow {
		if _, e := wire.ParseErrorResponse(r.msg); e == nil {
			return 0, st // a warning in the form of an error, without output
		}
	}
	if err == nil && len(v.Output) > out {
		err = fmt.Errorf("IOCTL with room for %d bytes got %d", out, len(v.Output))
	}
	if err != nil {
		return 0, a.fail(err)
	}
	n := copy(out1, v.Output)
	return n + copy(out2, v.Output[n:]), st.Err()
}

var (
	errClosedFile     = errClosed()
	errNegativeOffset = errors.New("offset is negative")
)

func (f *File) opError(op string, err error) error { return opError(op, f.path(), err) }
