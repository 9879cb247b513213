package vhdx

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// ring reads the log of a file as the circular buffer that it is.
type ring struct {
	b   Backing
	log extent
}

func (r *ring) read(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		off %= r.log.n
		n := min(int64(len(p)), r.log.n-off)
		if err := readFull(ctx, r.b, p[:n], r.log.off+off); err != nil {
			return fmt.Errorf("read the log: %w", err)
		}
		p, off = p[n:], off+n
	}
	return nil
}

// readFull reads all of p.
func readFull(ctx context.Context, b Backing, p []byte, off int64) error {
	n, err := b.ReadAt(ctx, p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fmt.Errorf("%d of %d bytes at offset %d: %w", n, len(p), off, io.ErrUnexpectedEOF)
	}
	return err
}

// writeFull writes all of p.
func writeFull(ctx context.Context, b Backing, p []byte, off int64) error {
	n, err := b.WriteAt(ctx, p, off)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return err
}

// logRef is a valid entry in the log.
type logRef struct {
	off, tail uint32
	length    uint32
	sequence  uint64
}

// logScan is the result of looking for the active sequence.
type logScan struct {
	active  []logRef // tail to head; empty: nothing to replay
	head    logHeader
	traces  int // sectors that begin like an entry with our GUID, valid or not
	invalid int // of these, those that are not valid
}

// scanWork bounds the bytes that a hostile log can make us check, in multiples of its size.
const scanWork = 8

// scanLog finds the active sequence: the newest run of valid entries that contains the tail of its last one. [MS-VHDX] 2.3.3
//
// Each entry is validated once, in order of place, then the runs are joined around the end of the ring; that finds what the search of the
// specification finds, in linear time.
func scanLog(ctx context.Context, r *ring, guid GUID) (logScan, error) {
	var s logScan
	var all []logRef
	budget := scanWork*r.log.n + mib
	buf := make([]byte, min(r.log.n, mib))
	entry := make([]byte, 64*kib)
	next := int64(0) // entries do not begin inside another valid one
	for base := int64(0); base < r.log.n; base += int64(len(buf)) {
		chunk := buf[:min(int64(len(buf)), r.log.n-base)]
		if err := r.read(ctx, chunk, base); err != nil {
			return s, err
		}
		for i := 0; i < len(chunk); i += logSector {
			off := base + int64(i)
			b := chunk[i:]
			if off < next || string(b[:4]) != logEntrySignature || GUID(b[32:48]) != guid {
				continue
			}
			s.traces++
			ref, err := checkEntry(ctx, r, off, guid, entry, &budget)
			switch {
			case err == nil:
				all = append(all, ref)
				next = off + int64(ref.length)
			case budget < 0:
				return s, corrupt("log", r.log.off, "its entries overlap beyond measure")
			case errors.Is(err, ErrCorrupt):
				s.invalid++
			default:
				return s, err
			}
		}
	}
	s.active = activeSequence(all, r.log.n)
	if len(s.active) > 0 {
		var sector [logHeaderSize]byte
		if err := r.read(ctx, sector[:], int64(s.active[len(s.active)-1].off)); err != nil {
			return s, err
		}
		s.head, _ = decodeLogHeader(sector[:], r.log.n)
	}
	return s, nil
}

// activeSequence picks, from the valid entries in order of place, the entries from the tail to the head of the active sequence.
func activeSequence(all []logRef, logLen int64) []logRef {
	n := len(all)
	if n == 0 {
		return nil
	}
	follows := func(a, b logRef) bool { // b was written directly after a
		return (int64(a.off)+int64(a.length))%logLen == int64(b.off) && b.sequence == a.sequence+1
	}
	// A run that crosses the end of the ring begins before index 0: start behind a break.
	start := 0
	for i := range n {
		if !follows(all[(i+n-1)%n], all[i]) {
			start = i
			break
		}
	}
	var best []logRef
	for i := 0; i < n; {
		run := []logRef{all[(start+i)%n]}
		for i++; i < n && follows(run[len(run)-1], all[(start+i)%n]); i++ {
			run = append(run, all[(start+i)%n])
		}
		head := run[len(run)-1]
		if len(best) > 0 && best[len(best)-1].sequence >= head.sequence {
			continue
		}
		for k := len(run) - 1; k >= 0; k-- {
			if run[k].off == head.tail {
				best = run[k:]
				break
			}
		}
	}
	return best
}

// checkEntry validates the entry at off in the ring. buf is scratch. An entry that is not valid is an ErrCorrupt.
func checkEntry(ctx context.Context, r *ring, off int64, guid GUID, buf []byte, budget *int64) (logRef, error) {
	w := entryWalk{ring: r, off: off, buf: buf, budget: budget}
	if err := w.open(ctx); err != nil {
		return logRef{}, err
	}
	if w.h.guid != guid {
		return logRef{}, corrupt("log", off, "an entry of another session")
	}
	if err := w.each(ctx, nil); err != nil {
		return logRef{}, err
	}
	return logRef{uint32(off), w.h.tail, w.h.entryLength, w.h.sequence}, nil
}

// entryWalk goes through one entry in pieces, whatever its size.
type entryWalk struct {
	ring   *ring
	off    int64
	buf    []byte
	budget *int64
	h      logHeader
}

func (w *entryWalk) take(ctx context.Context, p []byte, at int64) error {
	if w.budget != nil {
		if *w.budget -= int64(len(p)); *w.budget < 0 {
			return corrupt("log", w.off, "too much to check")
		}
	}
	return w.ring.read(ctx, p, w.off+at)
}

func (w *entryWalk) open(ctx context.Context) error {
	var b [logHeaderSize]byte
	if err := w.take(ctx, b[:], 0); err != nil {
		return err
	}
	var err error
	w.h, err = decodeLogHeader(b[:], w.ring.log.n)
	return err
}

// each validates the entry and calls apply (unless nil) for every descriptor in order; data is the restored sector of a data descriptor. With apply the
// entry must have been validated before: apply runs before the checksum is known.
func (w *entryWalk) each(ctx context.Context, apply func(d logDescriptor, data []byte) error) error {
	descLen := descriptorSectors(int64(w.h.descriptors)) * logSector
	total := int64(w.h.entryLength)
	dataAt, crc, left := descLen, uint32(0), int64(w.h.descriptors)
	var data []byte // the data sectors that were read ahead
	dataBuf := w.buf[len(w.buf)/2:]
	descBuf := w.buf[:len(w.buf)/2]

	// The checksum covers the entry in order of place, the descriptors point forward; so the data sectors are summed in a pass of their own.
	for at := int64(0); at < descLen; at += int64(len(descBuf)) {
		p := descBuf[:min(int64(len(descBuf)), descLen-at)]
		if err := w.take(ctx, p, at); err != nil {
			return err
		}
		skip := 0
		if at == 0 {
			clear(p[4:8])
			skip = logHeaderSize
		}
		crc = crc32.Update(crc, castagnoli, p)
		for q := p[skip:]; len(q) >= logDescSize && left > 0; q = q[logDescSize:] {
			left--
			d, err := decodeLogDescriptor(q, w.h.sequence)
			if err != nil {
				return err
			}
			if d.zero {
				if apply != nil {
					if err := apply(d, nil); err != nil {
						return err
					}
				}
				continue
			}
			if dataAt+logSector > total {
				return corrupt("log", w.off, "an entry has fewer data sectors than data descriptors")
			}
			if apply == nil {
				dataAt += logSector
				continue
			}
			if len(data) == 0 {
				data = dataBuf[:min(int64(len(dataBuf)), total-dataAt)]
				if err := w.take(ctx, data, dataAt); err != nil {
					return err
				}
			}
			s := data[:logSector]
			data, dataAt = data[logSector:], dataAt+logSector
			if !checkDataSector(s, w.h.sequence) {
				return corrupt("log", w.off, "a data sector belongs to another entry")
			}
			d.restoreSector(s)
			if err := apply(d, s); err != nil {
				return err
			}
		}
	}
	if apply != nil {
		return nil
	}
	for at := descLen; at < total; at += int64(len(dataBuf)) {
		p := dataBuf[:min(int64(len(dataBuf)), total-at)]
		if err := w.take(ctx, p, at); err != nil {
			return err
		}
		crc = crc32.Update(crc, castagnoli, p)
		for i := int64(0); i < int64(len(p)) && at+i < dataAt; i += logSector {
			if !checkDataSector(p[i:], w.h.sequence) {
				return corrupt("log", w.off, "a data sector belongs to another entry")
			}
		}
	}
	if crc != w.h.checksum {
		return corrupt("log", w.off, "the checksum of an entry is wrong")
	}
	return nil
}

// replayTarget takes the changes that a log has for a file.
type replayTarget interface {
	writeSector(ctx context.Context, off int64, data []byte) error
	zero(ctx context.Context, off, n int64) error
	grow(ctx context.Context, size int64) error
}

// replayLog applies the active sequence.
func replayLog(ctx context.Context, r *ring, s *logScan, t replayTarget) error {
	buf := make([]byte, 64*kib)
	for _, ref := range s.active {
		w := entryWalk{ring: r, off: int64(ref.off), buf: buf}
		if err := w.open(ctx); err != nil {
			return err
		}
		err := w.each(ctx, func(d logDescriptor, data []byte) error {
			n := int64(logSector)
			if d.zero {
				n = int64(d.n)
			}
			x := extent{int64(d.off), n}
			switch {
			case d.off > maxFileSize || d.n > maxFileSize || x.end() > maxFileSize:
				return corrupt("log", r.log.off+int64(ref.off), "an update of %d bytes at %d is out of any bounds", uint64(n), d.off)
			case x.off < region1Offset:
				return corrupt("log", r.log.off+int64(ref.off), "an update at %d would change the headers", x.off)
			case x.overlaps(r.log):
				return corrupt("log", r.log.off+int64(ref.off), "an update at %d would change the log itself", x.off)
			}
			if d.zero {
				return t.zero(ctx, x.off, x.n)
			}
			return t.writeSector(ctx, x.off, data)
		})
		if err != nil {
			return fmt.Errorf("replay the log: %w", err)
		}
	}
	if s.head.lastFileSize > maxFileSize {
		return corrupt("log", r.log.off, "the newest entry says that the file has %d bytes", s.head.lastFileSize)
	}
	if err := t.grow(ctx, int64(s.head.lastFileSize)); err != nil {
		return fmt.Errorf("replay the log: grow the file: %w", err)
	}
	return nil
}

// findLog scans the log of header h and judges the outcome against the rest of the file.
func findLog(ctx context.Context, b Backing, h *header, fileSize int64) (*ring, logScan, error) {
	r := &ring{b, extent{int64(h.logOffset), int64(h.logLength)}}
	s, err := scanLog(ctx, r, h.logGUID)
	if err != nil {
		return r, s, err
	}
	if len(s.active) == 0 {
		if s.traces == 0 {
			return r, s, nil // the writer died between the header and its first entry: nothing was changed through the log
		}
		return r, s, corrupt("log", r.log.off, "it is in use, but none of its %d entries is valid and complete", s.traces)
	}
	if uint64(fileSize) < s.head.flushedFileSize {
		return r, s, corrupt("file", -1, "it has %d bytes where the log says at least %d: it was truncated", fileSize, s.head.flushedFileSize)
	}
	return r, s, nil
}
