package vhdx

import (
	"context"
	"fmt"
	"sync/atomic"
)

// session is what an open for writing changes in the headers, and when. [MS-VHDX] 2.2.2.1
type session struct {
	b     Backing
	began atomic.Bool   // FileWriteGuid and DataWriteGuid are new: data may be changed
	wrote atomic.Bool   // something was changed in this session
	sem   chan struct{} // 1 token: held while the headers are written

	// Below: under sem.
	current  header
	slot     int
	fileGUID bool // FileWriteGuid is new

	known atomic.Pointer[knownHeaders] // follows what is written
}

func newSession(b Backing, current header, slot int) *session {
	s := &session{b: b, sem: make(chan struct{}, 1), current: current, slot: slot}
	s.known.Store(&knownHeaders{current: current, slot: slot})
	return s
}

func (s *session) lock(ctx context.Context) error {
	select {
	case s.sem <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *session) unlock() { <-s.sem }

// header is a copy of the current header.
func (s *session) header() header {
	s.sem <- struct{}{}
	defer s.unlock()
	return s.current
}

// begin marks the image as changed, once for a session, before the first change of data.
func (s *session) begin(ctx context.Context) error {
	if s.began.Load() {
		return nil
	}
	return s.beginAs(ctx, NewGUID())
}

// beginAs is begin with a DataWriteGuid that the caller has chosen.
func (s *session) beginAs(ctx context.Context, guid GUID) error {
	if err := s.lock(ctx); err != nil {
		return err
	}
	defer s.unlock()
	if s.began.Load() {
		return nil
	}
	h := s.current
	h.dataWriteGUID = guid
	if err := s.update(ctx, h); err != nil {
		return err
	}
	s.wrote.Store(true)
	s.began.Store(true)
	return nil
}

// touch marks the file as changed, once for a session, before the first change of anything. Its data may stay the same.
func (s *session) touch(ctx context.Context) error {
	if err := s.lock(ctx); err != nil {
		return err
	}
	defer s.unlock()
	s.wrote.Store(true)
	if s.fileGUID {
		return nil
	}
	return s.update(ctx, s.current)
}

// update writes the header twice, once into each slot, the one that is not current first, each made durable before the next step: at every moment one
// slot is whole, and in the end both say the same. The first update of a session gives the file a new FileWriteGuid. sem is held.
func (s *session) update(ctx context.Context, h header) error {
	if !s.fileGUID {
		h.fileWriteGUID = NewGUID()
	}
	for range 2 {
		h.sequence = s.current.sequence + 1
		var b [headerSize]byte
		h.encode(b[:])
		slot := 1 - s.slot
		pending := h
		s.known.Store(&knownHeaders{s.current, s.slot, &pending})
		err := writeFull(ctx, s.b, b[:], headerOffset(slot))
		if err == nil {
			err = s.b.Flush(ctx)
		}
		if err != nil {
			return fmt.Errorf("update the header: %w", err)
		}
		s.current, s.slot, s.fileGUID = h, slot, true
		s.known.Store(&knownHeaders{current: h, slot: slot})
	}
	return nil
}

// setLog puts the log into use with a new GUID, or out of use with a zero one.
func (s *session) setLog(ctx context.Context, guid GUID) error {
	if err := s.lock(ctx); err != nil {
		return err
	}
	defer s.unlock()
	h := s.current
	h.logGUID, h.logVersion = guid, 0
	return s.update(ctx, h)
}
