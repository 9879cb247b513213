package nbd

import (
	"encoding/binary"
	"errors"
	"os"
	"time"
)

// A large request that is executed inline on a local socket moves in pieces: while the disk copies one, the kernel takes in or hands over the next, and
// the memory that both sides copy through stays in the processor's cache. Over a unix socket this saves a fifth of the
// processor time of a request of 1 MiB; over TCP, which has large buffers of its own, it costs some.
//
// A READ goes in pieces on every disk that is fast. A WRITE does so only on a disk that says that it never blocks, one in memory: when the connection
// dies in the middle of the payload, the part that has arrived is on the disk. That write was never acknowledged and NBD promises nothing about it, but
// on a disk that outlives us we keep the better habit that half a payload is never executed. Pieces end on multiples of
// pieceAlign on the disk, so no physical block is torn.
const (
	writePieceBytes = 64 << 10  // at least this much is written at once
	readPieceBytes  = 256 << 10 // this much is read at once; with less, the client is woken too often
	pieceAlign      = 4096
)

// pieceOf is how much of the left bytes at off a piece of at most n bytes takes; it ends on a multiple of the alignment.
func (c *conn) pieceOf(off uint64, n, left int) int {
	if n >= left {
		return left
	}
	return n - int((off+uint64(n))%uint64(max(pieceAlign, c.block)))
}

// tooSlow reports that a disk which is not known to be fast took d for a piece of n bytes: more calls would only make it worse.
func (c *conn) tooSlow(d time.Duration, n int) bool {
	return !c.nonBlocking && d > paceLong+time.Duration(n/4)
}

// writePieces executes a WRITE inline while its payload arrives. An error does not end the receiving: the rest is taken and forgotten.
func (c *conn) writePieces(q *wireRequest, payload int) error {
	off, left, fua := q.offset, payload, q.flags&cmdFlagFUA != 0
	var failed error
	for left > 0 {
		if err := c.fillPayload(min(left, max(writePieceBytes, 2*c.block))); err != nil {
			return err
		}
		p := c.in[c.r : c.r+c.pieceOf(off, c.w-c.r, left)]
		c.r += len(p)
		if failed == nil {
			failed = c.writeDisk(p, int64(off), fua)
		}
		off += uint64(len(p))
		left -= len(p)
	}
	if failed != nil {
		c.out = appendError(c.out, c.style, q, c.requestErrno(failed), failed.Error())
		c.logFailure(q, failed)
	} else {
		c.out = appendDone(c.out, c.style, q)
	}
	c.collected++
	if len(c.out) >= outFlushAt || c.collected >= outFlushReplies {
		return c.flush()
	}
	return nil
}

// fillPayload receives until n bytes of the payload of a request that was admitted are buffered, n ≤ inBytes, even when the server is closing.
func (c *conn) fillPayload(n int) error {
	if len(c.in)-c.r < n {
		c.w = copy(c.in, c.in[c.r:c.w])
		c.r = 0
	}
	for c.w-c.r < n {
		if err := c.flush(); err != nil {
			return err
		}
		if c.r == c.w {
			c.r, c.w = 0, 0
		}
		m, err := c.tr.read(c.in[c.w:], c.calm())
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.tr.unkick()
			continue
		}
		if err != nil {
			return c.readError(err, true)
		}
		c.w += m
	}
	return nil
}

// readPieces executes a READ inline and answers it in chunks, as structured replies allow. A failure half-way makes the last chunk an error, which is
// why simple replies cannot do this.
func (c *conn) readPieces(q *wireRequest) error {
	r := &c.soloReq
	defer r.reset()
	p := *q // the piece
	off, left := q.offset, int(q.length)
	hole := 0 // bytes before off that are a hole and not told yet
	var spent time.Duration
	slow := false
	for left > 0 {
		n := left
		if !slow {
			n = c.pieceOf(off, max(readPieceBytes, 2*c.block), left)
		}
		if r.buf != nil && len(r.buf.b) < n {
			r.reset()
		}
		if r.buf == nil {
			r.buf = getBuffer(n)
		}
		p.offset, p.length = off, uint64(n)
		start := time.Now()
		empty, err := c.readDisk(r.buf.b[:n], &p)
		d := time.Since(start)
		spent += d
		slow = c.tooSlow(d, n)
		if err != nil {
			c.pace.note(spent, q.length)
			c.out = appendError(c.out, c.style, q, c.requestErrno(err), err.Error())
			c.logFailure(q, err)
			return c.flush()
		}
		off += uint64(n)
		left -= n
		if empty {
			hole += n
		}
		if hole > 0 && (!empty || left == 0) {
			at := off - uint64(hole)
			if !empty {
				at -= uint64(n)
			}
			c.out = appendChunk(c.out, c.style, doneIf(left == 0 && empty), replyTypeOffsetHole, q.cookie, q.offset, 12)
			c.out = binary.BigEndian.AppendUint64(c.out, at)
			c.out = binary.BigEndian.AppendUint32(c.out, uint32(hole))
			hole = 0
		}
		if empty {
			continue
		}
		c.out = appendChunk(c.out, c.style, doneIf(left == 0), replyTypeOffsetData, q.cookie, q.offset, uint32(n)+8)
		c.out = binary.BigEndian.AppendUint64(c.out, p.offset)
		c.vec[0], c.vec[1] = c.out, r.buf.b[:n]
		err = c.tr.write(c.vec[:2])
		c.vec = [2][]byte{}
		c.out = c.out[:0]
		c.collected = 0
		if err != nil {
			return err
		}
	}
	c.pace.note(spent, q.length)
	if len(c.out) >= outFlushAt {
		return c.flush()
	}
	return nil
}

func doneIf(last bool) uint16 {
	if last {
		return replyFlagDone
	}
	return 0
}
