package svhdx

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"sync"

	"vdbridge/scsi"
	"vdbridge/scsi/lu"
	"vdbridge/server"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/tunnel"
)

// An IOCTL that is sent again with the replay flag may have been executed before. For most operations that makes no difference; for some a second time is
// not the first. What the server can know: the flag; that the request has the same bytes, RequestId included, as one that came before on the same open; and
// that it is not running any more, as [MS-SMB2] 3.3.5.2.10 keeps a replayed request out while older ones run. So the last replies of such operations are
// kept with the open. A client that gives all its requests one RequestId makes its own reply before the last one unknown, which
// is why only requests with different RequestIds are remembered side by side: otherwise an equal request of long ago could be taken for this one.
//
// The memory ends with the process. For changes of reservations the logical unit has a second one that is saved with them.

// maxReplies is how many replies an open remembers.
const maxReplies = 32

// oldReply is the reply to an operation.
type oldReply struct {
	tag  lu.Tag // of the request
	done chan struct{}
	n    int // bytes of reply; valid when done is closed
	err  error
	data [headerSize + tunnel.SCSIResponseSize]byte
}

type replyRing struct {
	mu   sync.Mutex
	list []*oldReply // the oldest first
}

// once says whether a SCSI operation must not be executed twice.
func once(in []byte) bool {
	if len(in) <= 16 || in[4] == 0 { // without a CDB
		return false
	}
	op := scsi.OpCode(in[16])
	return op == scsi.OpPersistentReserveOut || op == scsi.OpCompareAndWrite
}

// scsiOnce is scsi for an operation that must not be executed twice: a replay of one that has been gets its reply.
func (o *open) scsiOnce(ctx context.Context, h tunnel.RequestHeader, in, out []byte) (int, error) {
	replay := server.IsReplay(ctx)
	tag := o.tag(h, in)
	r := &o.replies
	r.mu.Lock()
	if replay {
		if i := slices.IndexFunc(r.list, func(e *oldReply) bool { return e.tag == tag }); i >= 0 {
			e := r.list[i]
			r.mu.Unlock()
			select {
			case <-e.done:
			case <-ctx.Done():
				return 0, ntstatus.Cancelled
			}
			if len(out) < e.n {
				return 0, ntstatus.BufferTooSmall
			}
			o.s.log.Info("operation that was sent again not executed again", "path", o.d.path, "op", h.Op)
			return copy(out, e.data[:e.n]), e.err
		}
	}
	r.list = slices.DeleteFunc(r.list, func(e *oldReply) bool { return e.tag.Request == tag.Request })
	if len(r.list) >= maxReplies {
		r.list = slices.Delete(r.list, 0, 1)
	}
	e := &oldReply{tag: tag, done: make(chan struct{})}
	r.list = append(r.list, e)
	r.mu.Unlock()
	n, err := o.scsi(lu.WithTag(ctx, tag, replay), h, in, out)
	if n <= len(e.data) {
		e.n, e.err = copy(e.data[:], out[:n]), err
	}
	close(e.done)
	if n > len(e.data) || err != nil {
		// Nothing was done, or the reply is too long to keep: a replay is executed.
		r.mu.Lock()
		r.list = slices.DeleteFunc(r.list, func(x *oldReply) bool { return x == e })
		r.mu.Unlock()
	}
	return n, err
}

// tag names a request: it is another one on another open.
func (o *open) tag(h tunnel.RequestHeader, in []byte) (t lu.Tag) {
	le := binary.LittleEndian
	le.PutUint64(t.Request[:], o.id)
	le.PutUint64(t.Request[8:], h.RequestID)
	s := sha256.New()
	s.Write(t.Request[:])
	s.Write(le.AppendUint32(nil, uint32(h.Op)))
	s.Write(in)
	s.Sum(t.Sum[:0])
	return t
}
