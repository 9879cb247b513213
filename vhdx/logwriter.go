package vhdx

import (
	"context"
	"errors"
	"fmt"
)

// logWriter appends entries to the log. One commit at a time uses it.
//
// The space from the tail that the newest durable entry names up to the head must not be overwritten: a replay may need it. It shrinks when a newer
// entry with a younger tail is durable, and an entry may name a younger tail when the updates of the older ones are durable in their
// final places.
type logWriter struct {
	b   Backing
	log extent
	bat extent
	s   *session

	started bool
	guid    GUID
	seq     uint64 // of the next entry
	head    int64  // where the next entry goes
	used    int64  // bytes before head that must not be overwritten: from the tail of the newest durable entry
	pending int64  // bytes before head: from the oldest entry whose updates are not known to be durable in place
	laps    int    // how often the head came round
	buf     []byte
}

// maxEntrySectors bounds one entry, for the buffer that it is built in.
const maxEntrySectors = 128

// start puts the log into use. An entry that replays nothing is there before the header names its GUID, so that at no moment the
// log is in use without a valid entry.
func (w *logWriter) start(ctx context.Context, fileSize, lastOffset int64) error {
	if w.started {
		return nil
	}
	if err := w.reserve(ctx); err != nil {
		return err
	}
	w.guid, w.seq, w.head, w.used, w.pending = NewGUID(), 1, 0, 0, 0
	if err := w.append(ctx, nil, fileSize, lastOffset); err != nil {
		return err
	}
	if err := w.b.Flush(ctx); err != nil {
		return err
	}
	w.advance(logSector)
	w.checkpointed() // it changes nothing
	if err := w.s.setLog(ctx, w.guid); err != nil {
		return err
	}
	w.started = true
	return nil
}

// maxReserved is the largest block allocation table that is reserved; that of a huge image would cost more than it is worth.
const maxReserved = 16 << 20

// reserve makes sure that a file system which runs full does not keep us from committing: the log and the block allocation table are often
// holes in a sparse file. Blocks that have their place can then be flushed, and blocks be given back, with no space left at all.
func (w *logWriter) reserve(ctx context.Context) error {
	a, ok := w.b.(Allocator)
	if !ok {
		return nil
	}
	for _, r := range []extent{w.log, w.bat} {
		if r.n == 0 || r.n > maxReserved {
			continue
		}
		if err := a.Allocate(ctx, r.off, r.n); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return fmt.Errorf("reserve space for the log and the block allocation table: %w", err)
		}
	}
	return nil
}

// room is how many updates fit into an entry that is written now without touching what must be kept, at most n. An entry does not cross the
// end of the log: it fills the rest, and the remainder of the updates goes into another one. ok is false if a checkpoint is needed first.
func (w *logWriter) room(n int) (updates int, ok bool) {
	sectors := min(w.log.n-w.head, w.log.n-w.used-logSector, maxEntrySectors*logSector) / logSector
	if sectors < 1 {
		return 0, false
	}
	k := min(int64(n), maxUpdates(sectors))
	if k == 0 && w.log.n-w.head > logSector {
		return 0, false // no room, and not because the end is near
	}
	return int(k), true
}

// append writes an entry at the head; it becomes part of the log by advance, once it is durable.
func (w *logWriter) append(ctx context.Context, updates []logUpdate, fileSize, lastOffset int64) error {
	n := entryLen(len(updates))
	if int64(len(w.buf)) < n {
		w.buf = make([]byte, max(n, 64*kib))
	}
	tail := w.head - w.pending
	if tail < 0 {
		tail += w.log.n
	}
	h := logHeader{
		tail: uint32(tail), sequence: w.seq, guid: w.guid,
		flushedFileSize: uint64(fileSize / mib * mib), lastFileSize: uint64(roundUp(lastOffset, mib)),
	}
	encodeLogEntry(w.buf[:n], h, updates)
	if err := writeFull(ctx, w.b, w.buf[:n], w.log.off+w.head); err != nil {
		return fmt.Errorf("write the log: %w", err)
	}
	return nil
}

// advance takes an entry of n bytes into the log that is durable now, and with it the updates of every older one, which were written to their
// places before the flush that made it so.
func (w *logWriter) advance(n int64) {
	w.used = w.pending + n
	w.pending = n
	if w.head += n; w.head >= w.log.n {
		w.head, w.laps = w.head-w.log.n, w.laps+1
	}
	w.seq++
}

// checkpointed says that the updates of every entry so far are durable in place: the next entry may name itself as the tail.
func (w *logWriter) checkpointed() { w.pending = 0 }
