package server

import (
	"fmt"
	"sync"
	"time"

	"vdbridge/smb/crypt"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/transport"
	"vdbridge/smb/wire"
)

// work is one received message, which is one request or a compound, and the reply to it. It is pooled; it lives until the reply was written.
type work struct {
	c         *conn
	buf       *buffer  // as received
	msg       []byte   // the SMB2 message in buf, decrypted
	transform *session // whose keys it came encrypted with; nil if in the clear
	first     wire.Command
	head      wire.Header // of the first request
	ids       int         // requests of the compound
	orphan    bool        // the first request is a related one
	admitted  bool        // in the ring of the connection
	cost      int64
	outSize   int // of the reply, as far as the request tells; counted in cost from arrival on

	out    *buffer              // reply: room for a transform header, then the messages
	parts  [maxInlineParts]part // where the replies in out begin
	extra  []part
	nparts int
	sealBy *session // encrypts the reply
	seg    [1][]byte
	hash   *crypt.Preauth // takes up the reply as it is sent

	req request
}

const maxInlineParts = 8

// part is one reply of a compound.
type part struct {
	at   int           // of its header in out
	sign *crypt.Signer // signs it; nil for not at all
}

// request is the request that is being worked on: the only one of a work, or one after the other of a compound.
type request struct {
	w      *work
	c      *conn
	hdr    wire.Header
	msg    []byte // from its header to its end, padding included
	sess   *session
	signer *crypt.Signer // of the session on this connection
	tree   *tree
	last   bool // of its compound
	rel    bool // a related request, not the first one

	// chainFile and chainErr are what related requests get from the one before.
	chainFile  wire.FileID
	chainOpen  bool // chainFile is set
	chainError ntstatus.Status

	replyAt  int  // of the reply's header in w.out
	mustSign bool // the reply is signed even if the request was not
	keepBody bool // the body is sent with a status that is not success
	op       *pendingOp
	file     *open         // acquired; released when the request ends
	counted  bool          // in file.sequence, with the ChannelSequence of hdr
	granted  []*oplock     // that the replies of the message tell the client of
	wake     chan struct{} // closed by CANCEL, if the request waits for another client; under conn.mu
	early    *open         // acquired on arrival, so that a CLOSE that comes after the request cannot overtake it

	// Of the connection's ring, under conn.mu.
	next, prev *request
	firstID    uint64
	tick       uint32
	asyncID    uint64
	interim    bool // the janitor has sent an interim reply
	cancelled  bool
}

var workPool = sync.Pool{New: func() any {
	w := &work{}
	w.req.w = w
	return w
}}

// getWork returns a work with room for n received bytes.
func getWork(c *conn, n int) *work {
	w := workPool.Get().(*work)
	w.c = c
	w.req.c = c
	w.buf = getBuffer(n)
	w.addCost(int64(cap(w.buf.b)))
	return w
}

func (w *work) addCost(n int64) {
	w.cost += n
	w.c.memory.add(n)
	w.c.srv.memory.add(n)
}

// Release implements transport.Releaser: the reply was written, or never will be.
func (w *work) Release() {
	w.c.queued.Add(-1)
	w.c.released.Add(1)
	w.free()
}

func (w *work) free() {
	w.c.memory.sub(w.cost)
	w.c.srv.memory.sub(w.cost)
	w.buf.free()
	w.out.free()
	w.c, w.buf, w.out, w.msg, w.transform, w.sealBy = nil, nil, nil, nil, nil, nil
	w.outSize = 0
	w.ids, w.cost, w.nparts, w.orphan, w.admitted = 0, 0, 0, false, false
	clear(w.parts[:])
	clear(w.extra)
	w.extra = w.extra[:0] // at most as many as one compound has
	w.seg[0] = nil
	w.hash = nil
	r := &w.req
	*r = request{w: w}
	workPool.Put(w)
}

// abandon drops a work that was not noted as running.
func (w *work) abandon() { w.free() }

// open decrypts the message.
func (w *work) open() error {
	msg, err := w.transform.sealer.Open(w.buf.b)
	if err != nil {
		return err
	}
	w.msg = msg
	if le.Uint32(msg) == wire.ProtocolTransform {
		return fmt.Errorf("encrypted message inside an encrypted message: %w", errProtocol)
	}
	return nil
}

// run works on all requests of the message, one after the other, and sends the replies. An error ends the connection.
func (w *work) run() error {
	c := w.c
	r := &w.req
	msg := w.msg
	w.sealBy = w.transform
	w.beginReply(&r.hdr)
	var failed error
	for i := 0; ; i++ {
		h, err := wire.ParseHeader(msg)
		if err != nil {
			failed = err // cannot be: admit has parsed it
			break
		}
		r.hdr = h
		r.last = h.NextCommand == 0
		r.rel = i > 0 && h.Flags&wire.FlagRelated != 0
		r.msg = msg
		if !r.last {
			r.msg = msg[:h.NextCommand:h.NextCommand]
		}
		r.startReply(i > 0)
		var st ntstatus.Status
		st, failed = r.handle()
		r.releaseOpens()
		if failed != nil {
			break
		}
		if r.op != nil {
			// It was the last one: the reply made here is the interim one.
			r.finishReply(ntstatus.Pending)
			break
		}
		r.finishReply(st)
		if r.last {
			break
		}
		msg = msg[h.NextCommand:]
	}
	c.mu.Lock()
	op := r.op
	interim, asyncID := r.interim, r.asyncID
	c.forget(r)
	c.mu.Unlock()
	if granted := r.granted; granted != nil {
		defer func() {
			for _, k := range granted {
				k.announce()
			}
		}()
	}
	if failed != nil {
		w.free()
		return failed
	}
	if interim {
		// The janitor's interim reply must go first; this is the final one, or a second interim one that is not needed.
		c.waitForInterim()
		if op != nil {
			w.free()
			op.arm()
			return nil
		}
		b := w.out.b[w.parts[0].at:]
		le.PutUint16(b[14:], 0)
		le.PutUint32(b[16:], le.Uint32(b[16:])|wire.FlagAsync)
		le.PutUint64(b[32:], asyncID)
	}
	r.op = nil
	w.send()
	if op != nil {
		op.arm()
	}
	return nil
}

// waitForInterim returns when the interim replies that are being made are queued.
func (c *conn) waitForInterim() {
	c.interimMu.Lock()
	defer c.interimMu.Unlock()
}

func (r *request) releaseOpens() {
	if r.file != nil {
		if r.counted {
			r.file.sequence.leave(uint16(r.hdr.Status))
			r.counted = false
		}
		r.file.release()
		r.file = nil
	}
	if r.early != nil {
		r.early.release()
		r.early = nil
	}
}

// fileIDAt is where the bodies of requests have their FileId; 0 for those that have none.
var fileIDAt = [...]uint8{wire.CmdClose: 8, wire.CmdFlush: 8, wire.CmdRead: 16, wire.CmdWrite: 16, wire.CmdLock: 8, wire.CmdIoctl: 8,
	wire.CmdQueryDirectory: 8, wire.CmdChangeNotify: 8, wire.CmdQueryInfo: 24, wire.CmdSetInfo: 16, wire.CmdOplockBreak: 8}

// acquireEarly acquires the open of the first request. Whether the client may use it is checked when the request runs.
func (w *work) acquireEarly() {
	at := fileIDAt[w.first]
	b := w.msg[wire.HeaderSize:]
	if at == 0 || len(b) < int(at)+16 {
		return
	}
	ch := w.c.channel(w.head.SessionID)
	if ch == nil {
		return
	}
	sn := ch.sn
	sn.mu.RLock()
	o := sn.opens[le.Uint64(b[at+8:])]
	sn.mu.RUnlock()
	if o == nil || o.ending.Load() || !o.acquire() {
		return
	}
	w.req.early = o
	if w.first == wire.CmdClose {
		o.ending.Store(true)
	}
}

// beginReply gets a buffer for the reply.
func (w *work) beginReply(h *wire.Header) {
	w.out = getBuffer(max(w.outSize, smallReply))
	w.out.b = w.out.b[:crypt.SealRoom]
	w.nparts = 0
}

const smallReply = 768

// replyEstimate says how large a reply to msg is likely to be, so that its buffer need not grow.
func replyEstimate(msg []byte) int {
	if len(msg) < wire.HeaderSize+48 || le.Uint32(msg[20:]) != 0 {
		return smallReply
	}
	body := msg[wire.HeaderSize:]
	n := uint32(0)
	switch wire.Command(le.Uint16(msg[12:])) {
	case wire.CmdRead:
		n = le.Uint32(body[4:])
	case wire.CmdIoctl:
		n = le.Uint32(body[44:])
	case wire.CmdQueryDirectory:
		n = le.Uint32(body[28:])
	}
	// More than it has paid for it does not get.
	n = min(n, 8<<20, max(1, uint32(le.Uint16(msg[6:])))<<16)
	return int(n) + overhead - crypt.SealSlack
}

// ensure makes room for n more bytes in the reply.
func (w *work) ensure(n int) {
	have := len(w.out.b)
	if have+n+crypt.SealSlack <= cap(w.out.b) {
		return
	}
	bigger := getBuffer(max(have+n, min(2*cap(w.out.b), 1<<20)))
	w.addCost(int64(cap(bigger.b)))
	copy(bigger.b, w.out.b)
	bigger.b = bigger.b[:have]
	w.out.free()
	w.out = bigger
}

// startReply begins a reply with an empty header, padding the one before it.
func (r *request) startReply(again bool) {
	w := r.w
	w.ensure(wire.HeaderSize + 128)
	b := w.out.b
	if again {
		prev := w.part(w.nparts - 1).at
		for (len(b)-prev)&7 != 0 {
			b = append(b, 0)
		}
		le.PutUint32(b[prev+20:], uint32(len(b)-prev))
	}
	r.replyAt = len(b)
	w.out.b = b[:len(b)+wire.HeaderSize]
	r.keepBody, r.mustSign = false, false
	r.op = nil
}

func (w *work) part(i int) *part {
	if i < maxInlineParts {
		return &w.parts[i]
	}
	return &w.extra[i-maxInlineParts]
}

func (w *work) addPart(p part) {
	if w.nparts < maxInlineParts {
		w.parts[w.nparts] = p
	} else {
		w.extra = append(w.extra, p)
	}
	w.nparts++
}

// body is where the handlers append the body of the reply.
func (r *request) body() []byte { return r.w.out.b }

// setBody sets what body has become.
func (r *request) setBody(b []byte) { r.w.out.b = b }

// room makes n bytes available behind the reply as it is, and returns them; commit makes them part of it. The caller must not append
// in between.
func (r *request) room(n int) []byte {
	r.w.ensure(n)
	b := r.w.out.b
	return b[len(b) : len(b)+n : len(b)+n]
}

func (r *request) commit(n int) { r.w.out.b = r.w.out.b[:len(r.w.out.b)+n] }

// resetBody drops what was appended to the body.
func (r *request) resetBody() { r.w.out.b = r.w.out.b[:r.replyAt+wire.HeaderSize] }

// finishReply writes the header of the reply, and the body of an error if st is one.
func (r *request) finishReply(st ntstatus.Status) {
	w := r.w
	if st != ntstatus.Success && !r.keepBody {
		r.resetBody()
		w.ensure(16)
		w.out.b = append(w.out.b, 9, 0, 0, 0, 0, 0, 0, 0, 0)
	}
	h := r.hdr
	h.Status = uint32(st)
	h.Flags = wire.FlagServerToRedir | h.Flags&(wire.FlagPriorityMask|wire.FlagRelated)
	h.NextCommand = 0
	h.Signature = [16]byte{}
	r.c.mu.Lock()
	h.Credits = r.c.grant(&r.hdr)
	r.c.mu.Unlock()
	if r.op != nil {
		h.Flags |= wire.FlagAsync
		h.AsyncID = r.op.asyncID
	}
	if r.sess != nil {
		h.SessionID = r.sess.id
	}
	if r.tree != nil && h.Command != wire.CmdTreeDisconnect {
		h.TreeID = r.tree.id
	}
	h.Put(w.out.b[r.replyAt:])
	p := part{at: r.replyAt}
	if w.transform == nil && r.signer != nil && (r.mustSign || r.hdr.Flags&wire.FlagSigned != 0) && r.op == nil {
		p.sign = r.signer
	}
	w.addPart(p)
	if h.Command == wire.CmdCreate {
		// Requests that need the file of a CREATE that failed, fail as it did. After other failures the file is still there.
		r.chainError = ntstatus.Success
		if st.IsError() {
			r.chainError = st
		}
	}
}

// grant decides how many credits the reply to h grants. conn.mu is held. [MS-SMB2] 3.3.1.2
func (c *conn) grant(h *wire.Header) uint16 {
	return uint16(c.window.grant(int(h.Credits)))
}

// send signs or encrypts the reply and hands it to the sender. w must not be used afterwards.
func (w *work) send() {
	c := w.c
	b := w.out.b
	if w.sealBy != nil {
		if err := w.sealBy.sealer.Seal(b); err != nil {
			c.close(err)
			w.free()
			return
		}
	} else {
		for i := range w.nparts {
			p := w.part(i)
			if p.sign == nil {
				continue
			}
			end := len(b)
			if i+1 < w.nparts {
				end = w.part(i + 1).at
			}
			m := b[p.at:end]
			le.PutUint32(m[16:], le.Uint32(m[16:])|wire.FlagSigned)
			p.sign.Sign(m)
		}
		b = b[crypt.SealRoom:]
		if w.hash != nil {
			w.hash.Update(b)
		}
	}
	w.seg[0] = b
	c.queued.Add(1)
	_ = c.sender.Send(c.ctx, transport.Message(w.seg[:]), w) // an error ends the connection by itself
}

// interimReply makes the STATUS_PENDING reply to the request with header h. It is not signed, but encrypted if the request was. [MS-SMB2] 3.3.4.2
func (c *conn) interimReply(h *wire.Header, asyncID uint64, credits uint16, of *work) *work {
	w := getWork(c, 0)
	w.sealBy = of.transform
	w.out = getBuffer(crypt.SealRoom + wire.HeaderSize + 9)
	b := w.out.b[:crypt.SealRoom+wire.HeaderSize]
	rh := wire.Header{CreditCharge: h.CreditCharge, Status: uint32(ntstatus.Pending), Command: h.Command, Credits: credits,
		Flags:     wire.FlagServerToRedir | wire.FlagAsync | h.Flags&wire.FlagPriorityMask,
		MessageID: h.MessageID, AsyncID: asyncID, SessionID: h.SessionID}
	rh.Put(b[crypt.SealRoom:])
	w.out.b = append(b, 9, 0, 0, 0, 0, 0, 0, 0, 0)
	w.addPart(part{at: crypt.SealRoom})
	return w
}

// How inline execution is decided: inlineCredit grows with every request that was quick, and one that was slow takes it all.
const (
	inlineStart = 4
	inlineMax   = 64
	inlineSlow  = 200 * time.Microsecond
	inlineBytes = 64 << 10
)

// inlineOK says whether the reading goroutine should run w itself: when nothing else has arrived, nothing else is running, and requests like this one
// have been quick lately.
func (c *conn) inlineOK(w *work) bool {
	if w.ids != 1 || c.tc.Buffered() > 0 || c.workers.busy() {
		return false
	}
	switch w.first {
	case wire.CmdRead, wire.CmdIoctl:
		if len(w.msg) > inlineBytes || replyEstimate(w.msg) > inlineBytes {
			return false
		}
	case wire.CmdWrite:
		if len(w.msg) > inlineBytes {
			return false
		}
	case wire.CmdEcho, wire.CmdQueryInfo:
	default:
		return false
	}
	if c.inlineCredit <= 0 {
		c.inlineCredit++ // after a while it is tried again
		return false
	}
	return true
}

// runInline runs w on the reading goroutine and notes how long that took.
func (w *work) runInline() error {
	c := w.c
	begin := time.Now()
	err := w.run()
	if time.Since(begin) > inlineSlow {
		c.inlineCredit = -inlineMax
	} else if c.inlineCredit < inlineMax {
		c.inlineCredit++
	}
	return err
}
