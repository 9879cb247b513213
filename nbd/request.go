package nbd

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// request is a request in flight and then its reply: head, then data. Requests are pooled.
type request struct {
	wireRequest
	payload []byte  // what the client sent
	head    []byte  // the reply, or what precedes data
	data    []byte  // part of buf
	buf     *buffer // holds payload or data; nil if there is neither
	cost    int64   // counted against the budget
	first   [64]byte
}

var requestPool = sync.Pool{New: func() any { r := new(request); r.init(); return r }}

func getRequest() *request { return requestPool.Get().(*request) }

func (r *request) init() { r.head = r.first[:0] }

// reset gives the buffer back.
func (r *request) reset() {
	if r.buf != nil {
		r.buf.release()
	}
	r.buf, r.payload, r.data = nil, nil, nil
	r.head = r.head[:0]
	if cap(r.head) > maxHeadKept {
		r.init()
	}
}

func (r *request) release() {
	r.reset()
	requestPool.Put(r)
}

// dataBytes is the number of bytes of data that the reply may have.
func (r *request) dataBytes() int {
	if r.cmd == cmdRead {
		return int(r.length)
	}
	return 0
}

// commandFlags are the flags that each command may have. FUA is allowed on all, as the protocol wants it.
var commandFlags = [...]uint16{
	cmdRead:        cmdFlagFUA | cmdFlagDF,
	cmdWrite:       cmdFlagFUA,
	cmdDisc:        cmdFlagFUA,
	cmdFlush:       cmdFlagFUA,
	cmdTrim:        cmdFlagFUA,
	cmdCache:       cmdFlagFUA,
	cmdWriteZeroes: cmdFlagFUA | cmdFlagNoHole | cmdFlagFastZero,
	cmdBlockStatus: cmdFlagFUA | cmdFlagReqOne,
}

// check decides whether a request may be executed.
func (c *conn) check(q *wireRequest) *protoError {
	if int(q.cmd) >= len(commandFlags) {
		return &protoError{syscall.EINVAL, fmt.Sprintf("command %d is not known here", q.cmd)}
	}
	allowed := commandFlags[q.cmd]
	if c.style == styleExtended && (q.cmd == cmdWrite || q.cmd == cmdBlockStatus && c.flags&txBlockStatusPayload != 0) {
		allowed |= cmdFlagPayloadLen
	}
	if c.style == styleSimple {
		allowed &^= cmdFlagDF
	}
	if bad := q.flags &^ allowed; bad != 0 {
		return &protoError{syscall.EINVAL, fmt.Sprintf("flags %#x are not allowed with %v", bad, q.cmd)}
	}
	writes := false
	switch q.cmd {
	case cmdFlush:
		if q.offset != 0 || q.length != 0 {
			return &protoError{syscall.EINVAL, "FLUSH has no range"}
		}
		return nil
	case cmdWrite, cmdTrim, cmdWriteZeroes:
		writes = true
		if c.readOnly {
			return &protoError{syscall.EPERM, "the export is read-only"}
		}
	case cmdBlockStatus:
		if len(c.contexts) == 0 {
			return &protoError{syscall.EINVAL, "no metadata context was selected for this export"}
		}
		if q.flags&cmdFlagPayloadLen != 0 {
			return nil // the range is in the payload
		}
	}
	if q.cmd == cmdWrite && c.style == styleExtended && q.flags&cmdFlagPayloadLen == 0 {
		return &protoError{syscall.EINVAL, "WRITE without a payload"}
	}
	return c.checkRange(q.cmd, q.offset, q.length, writes)
}

// checkRange checks a range against the size and the alignment of the export and the largest payload.
func (c *conn) checkRange(cmd command, offset, length uint64, writes bool) *protoError {
	size := uint64(c.size)
	switch {
	case length == 0:
		return &protoError{syscall.EINVAL, "the range is empty"}
	case offset > size || length > size-offset:
		e := syscall.EINVAL
		if writes && cmd != cmdTrim {
			e = syscall.ENOSPC
		}
		return &protoError{e, fmt.Sprintf("%d bytes at %d are beyond the end at %d", length, offset, size)}
	case (offset|length)&uint64(c.block-1) != 0:
		return &protoError{syscall.EINVAL, fmt.Sprintf("%d bytes at %d are not aligned to blocks of %d", length, offset, c.block)}
	case cmd <= cmdWrite && length > maxPayloadAdvertised:
		e := syscall.EINVAL
		if cmd == cmdRead && c.style != styleSimple {
			e = syscall.EOVERFLOW
		}
		return &protoError{e, fmt.Sprintf("%d bytes are more than the %d that one request may carry", length, maxPayloadAdvertised)}
	}
	return nil
}

// handOut gives a request to a worker.
func (c *conn) handOut(q *wireRequest, payload int) error {
	if err := c.flush(); err != nil {
		return err
	}
	r := getRequest()
	r.wireRequest = *q
	r.cost = requestCost
	if n := max(payload, r.dataBytes()); n > 0 {
		r.cost += bufferBytes(n)
	} else if q.cmd == cmdBlockStatus {
		r.cost += int64(len(c.contexts)) * maxExtents * 16
	}
	r.cost = min(r.cost, c.srv.cfg.ConnBytes)
	c.srv.budget.take(r.cost, c)
	if err := c.receivePayload(r, payload); err != nil {
		c.srv.budget.give(r.cost, c)
		r.release()
		return err
	}
	if err := c.tr.park(); err != nil {
		c.srv.budget.give(r.cost, c)
		r.release()
		return err
	}
	c.inflight.Add(1)
	c.mu.Lock()
	var w *worker
	if n := len(c.idle); n > 0 {
		w = c.idle[n-1]
		c.idle = c.idle[:n-1]
	}
	c.mu.Unlock()
	if w == nil {
		w = &worker{work: make(chan *request, 1)}
		c.workers.Add(1)
		go c.runWorker(w)
	}
	w.work <- r
	return nil
}

// worker executes one request at a time. It lives as long as its connection, so that its stack, once grown, stays.
type worker struct{ work chan *request }

func (c *conn) runWorker(w *worker) {
	defer c.workers.Done()
	for r := range w.work {
		start := time.Now()
		c.execute(r)
		c.pace.note(time.Since(start), r.length)
		c.reply(r) // before w is idle, as sending may take its time
		c.mu.Lock()
		keep := len(c.idle) < maxIdle && !c.ending.Load()
		if keep {
			c.idle = append(c.idle, w)
		}
		c.mu.Unlock()
		if !keep {
			return
		}
	}
}

// reply queues the reply to r, and sends it and all others that are ready unless another goroutine is doing that already.
func (c *conn) reply(r *request) {
	c.mu.Lock()
	c.pending = append(c.pending, r)
	if c.sending {
		c.mu.Unlock()
		return
	}
	c.sending = true
	if c.inflight.Load() > 1 {
		// Let those who are about to finish queue their replies too: with 64 requests of 1 ms in flight this saves a fifth of the
		// processor time.
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
	}
	for {
		batch := c.pending
		c.pending = c.spare[:0]
		broken := c.err != nil
		c.mu.Unlock()
		err := error(nil)
		if !broken {
			err = c.send(batch)
		}
		if err != nil {
			c.mu.Lock()
			c.err = err
			c.mu.Unlock()
			c.abort()
		}
		n := int32(len(batch))
		cost := int64(0)
		for i, r := range batch {
			cost += r.cost
			r.release()
			batch[i] = nil
		}
		c.mu.Lock()
		c.spare = batch
		// Under c.mu, as the reader may send by itself once nothing is in flight.
		more := len(c.pending) > 0
		c.sending = more
		left := c.inflight.Add(-n)
		if left == 0 && c.ending.Load() {
			c.cond.Broadcast()
		}
		c.mu.Unlock()
		c.srv.budget.give(cost, c)
		if left == 0 && c.srv.draining.Load() {
			c.kick()
		}
		if !more {
			return
		}
		c.mu.Lock()
	}
}

// send writes the replies to the socket.
func (c *conn) send(batch []*request) error {
	vec := c.sendVec[:0]
	for _, r := range batch {
		vec = append(vec, r.head)
		if len(r.data) > 0 {
			vec = append(vec, r.data)
		}
	}
	c.sendVec = vec
	err := c.tr.write(vec)
	clear(vec)
	return err
}

// execute does what the request asks for and makes the reply.
func (c *conn) execute(r *request) {
	err := c.perform(r)
	if err == nil {
		return
	}
	errno := c.requestErrno(err)
	if errors.Is(err, errNotFast) {
		errno = nbdENOTSUP
	} else {
		c.logFailure(&r.wireRequest, err)
	}
	r.data = nil
	r.head = appendError(r.head[:0], c.style, &r.wireRequest, errno, err.Error())
}

// logFailure logs what the disk could not do, at most once a second for a connection: a disk that fails, fails often.
func (c *conn) logFailure(q *wireRequest, err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	now, last := time.Now().UnixNano(), c.logged.Load()
	if now-last < int64(time.Second) || !c.logged.CompareAndSwap(last, now) {
		c.unlogged.Add(1)
		return
	}
	c.log.Warn("nbd: request failed", "command", q.cmd.String(), "offset", q.offset, "length", q.length, "err", err,
		"more not logged", c.unlogged.Swap(0))
}

var errNotFast = errors.New("zeroing is not faster than writing here")

func (c *conn) perform(r *request) error {
	q := &r.wireRequest
	off, n := int64(q.offset), int64(q.length)
	fua := q.flags&cmdFlagFUA != 0
	d := c.export.Disk
	var err error
	switch q.cmd {
	case cmdRead:
		p := r.buf.b[:n]
		var hole bool
		if hole, err = c.readDisk(p, q); err != nil {
			return err
		}
		if hole {
			r.head = appendHole(r.head, c.style, q)
		} else {
			r.head = appendDataHeader(r.head, c.style, q, len(p))
			r.data = p
		}
		return nil
	case cmdWrite:
		err = c.writeDisk(r.payload, off, fua)
	case cmdFlush:
		err = d.Flush(c.ctx)
	case cmdTrim:
		if err = d.Trim(c.ctx, off, n); err == nil && fua {
			err = d.Flush(c.ctx)
		}
	case cmdCache:
		if c.cacher != nil {
			err = c.cacher.Cache(c.ctx, off, n)
		}
	case cmdWriteZeroes:
		if q.flags&cmdFlagFastZero != 0 && !c.fastZero {
			return errNotFast
		}
		err = d.WriteZeroes(c.ctx, off, n, q.flags&cmdFlagNoHole == 0, fua)
	case cmdBlockStatus:
		return c.blockStatus(r)
	}
	if err != nil {
		return err
	}
	r.head = appendDone(r.head, c.style, q)
	return nil
}

// readDisk reads what q asks for into p, in pieces if the disk has a limit.
func (c *conn) readDisk(p []byte, q *wireRequest) (hole bool, err error) {
	off := int64(q.offset)
	if c.maxTransfer == 0 || len(p) <= c.maxTransfer {
		if c.holes != nil {
			return c.holes.ReadHole(c.ctx, p, off)
		}
		return false, c.export.Disk.Read(c.ctx, p, off)
	}
	for len(p) > 0 {
		n := min(len(p), c.maxTransfer)
		if err := c.export.Disk.Read(c.ctx, p[:n], off); err != nil {
			return false, err
		}
		p, off = p[n:], off+int64(n)
	}
	return false, nil
}

// writeDisk writes p, in pieces if the disk has a limit.
func (c *conn) writeDisk(p []byte, off int64, fua bool) error {
	for c.maxTransfer > 0 && len(p) > c.maxTransfer {
		if err := c.export.Disk.Write(c.ctx, p[:c.maxTransfer], off, fua); err != nil {
			return err
		}
		p, off = p[c.maxTransfer:], off+int64(c.maxTransfer)
	}
	return c.export.Disk.Write(c.ctx, p, off, fua)
}
