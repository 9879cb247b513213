package nbd

import (
	"time"
)

// runInline executes a request in the reader. Nothing is in flight, so c.out and the sending half of the socket are the reader's.
func (c *conn) runInline(q *wireRequest, payload int) error {
	var start time.Time
	if !c.nonBlocking {
		start = time.Now()
	}
	switch {
	case q.cmd == cmdRead && q.length <= inlineMax:
		head, n := c.style.dataHeaderSize(), int(q.length)
		if len(c.out)+head+n > cap(c.out) {
			if err := c.flush(); err != nil {
				return err
			}
		}
		at := len(c.out)
		p := c.out[at+head : at+head+n]
		hole, err := c.readDisk(p, q)
		switch {
		case err != nil:
			c.out = appendError(c.out, c.style, q, c.requestErrno(err), err.Error())
			c.logFailure(q, err)
		case hole:
			c.out = appendHole(c.out, c.style, q)
		default:
			c.out = appendDataHeader(c.out, c.style, q, n)[:at+head+n]
		}
	case q.cmd == cmdWrite && payload <= inlineMax:
		if c.w-c.r < payload {
			if err := c.fill(payload); err != nil {
				return c.readError(err, true)
			}
			if !start.IsZero() {
				start = time.Now()
			}
		}
		p := c.in[c.r : c.r+payload]
		err := c.writeDisk(p, int64(q.offset), q.flags&cmdFlagFUA != 0)
		c.r += payload
		if err != nil {
			c.out = appendError(c.out, c.style, q, c.requestErrno(err), err.Error())
			c.logFailure(q, err)
		} else {
			c.out = appendDone(c.out, c.style, q)
		}
	case c.pieces && c.nonBlocking && q.cmd == cmdWrite:
		return c.writePieces(q, payload)
	case c.pieces && q.cmd == cmdRead && q.length > readPieceBytes && c.style != styleSimple && q.flags&cmdFlagDF == 0:
		return c.readPieces(q)
	default:
		return c.runInlineLarge(q, payload)
	}
	if !c.nonBlocking {
		c.pace.note(time.Since(start), q.length)
	}
	c.collected++
	if len(c.out) >= outFlushAt || c.collected >= outFlushReplies {
		return c.flush()
	}
	return nil
}

// runInlineLarge is runInline for what needs a buffer, or is neither READ nor WRITE.
func (c *conn) runInlineLarge(q *wireRequest, payload int) error {
	r := &c.soloReq
	r.wireRequest = *q
	if err := c.receivePayload(r, payload); err != nil {
		r.reset()
		return err
	}
	start := time.Now()
	c.execute(r)
	c.pace.note(time.Since(start), q.length)
	if len(c.out)+len(r.head) > cap(c.out) {
		if err := c.flush(); err != nil {
			return err
		}
	}
	var err error
	if len(r.head) <= cap(c.out) {
		c.out = append(c.out, r.head...)
	} else {
		c.vec[0] = r.head
		err = c.tr.write(c.vec[:1])
	}
	if len(r.data) > 0 && err == nil {
		c.vec[0], c.vec[1] = c.out, r.data
		err = c.tr.write(c.vec[:2])
		c.out = c.out[:0]
	}
	c.vec = [2][]byte{}
	r.reset()
	if err == nil && len(c.out) >= outFlushAt {
		err = c.flush()
	}
	return err
}
