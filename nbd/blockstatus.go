package nbd

import (
	"encoding/binary"
	"fmt"
	"syscall"
)

// blockStatus answers BLOCK_STATUS with one chunk for each context.
func (c *conn) blockStatus(r *request) error {
	contexts, length := c.contexts, r.length
	if r.flags&cmdFlagPayloadLen != 0 {
		var err error
		if contexts, length, err = c.filterContexts(r); err != nil {
			return err
		}
	}
	for i, m := range contexts {
		flags := uint16(0)
		if i == len(contexts)-1 {
			flags = replyFlagDone
		}
		if err := c.statusChunk(r, m, int64(length), flags); err != nil {
			return fmt.Errorf("%s: %w", m.Name(), err)
		}
	}
	return nil
}

// filterContexts decodes the payload of a BLOCK_STATUS request: a length and the numbers of the contexts to report.
func (c *conn) filterContexts(r *request) ([]activeContext, uint64, error) {
	b := r.payload
	if len(b) < 12 || len(b)%4 != 0 || len(b) > 8+4*maxFiltering {
		return nil, 0, &protoError{syscall.EINVAL, "the BLOCK_STATUS payload is malformed"}
	}
	length := binary.BigEndian.Uint64(b)
	if err := c.checkRange(r.cmd, r.offset, length, false); err != nil {
		return nil, 0, err
	}
	var found []activeContext
	for b = b[8:]; len(b) > 0; b = b[4:] {
		id := binary.BigEndian.Uint32(b)
		hit := false
		for _, m := range c.contexts {
			if m.id == id {
				found = append(found, m)
				hit = true
			}
		}
		for _, m := range found[:max(0, len(found)-1)] {
			hit = hit && m.id != id
		}
		if !hit {
			return nil, 0, &protoError{syscall.EINVAL, fmt.Sprintf("metadata context %d is unknown or asked for twice", id)}
		}
	}
	return found, length, nil
}

// statusChunk appends one chunk with the status of the n bytes from r.offset.
func (c *conn) statusChunk(r *request, m activeContext, n int64, chunkFlags uint16) error {
	extended := c.style == styleExtended
	typ, limit := uint16(replyTypeBlockStatus), int64(1<<32)-int64(max(c.block, 4096))
	if extended {
		typ, limit = replyTypeBlockStatusExt, maxTransmissionSize
	}
	start := len(r.head)
	head := appendChunk(r.head, c.style, chunkFlags, typ, r.cookie, r.offset, 0)
	body := len(head)
	head = binary.BigEndian.AppendUint32(head, m.id)
	if extended {
		head = binary.BigEndian.AppendUint32(head, 0) // the count, below
	}
	count := 0
	var run int64 // a run that is not written yet, with its flags
	var runFlags uint32
	put := func() {
		if extended {
			head = binary.BigEndian.AppendUint64(head, uint64(run))
			head = binary.BigEndian.AppendUint64(head, uint64(runFlags))
		} else {
			head = binary.BigEndian.AppendUint32(head, uint32(run))
			head = binary.BigEndian.AppendUint32(head, runFlags)
		}
		count++
		run = 0
	}
	most := maxExtents
	if r.flags&cmdFlagReqOne != 0 {
		most = 1
	}
	left := n
	err := m.Status(c.ctx, int64(r.offset), n, func(k int64, flags uint32) bool {
		k = min(k, left)
		left -= k
		if run > 0 && flags != runFlags {
			if put(); count == most {
				return false
			}
		}
		for runFlags = flags; run+k > limit; {
			k -= limit - run
			run = limit
			if put(); count == most {
				return false
			}
		}
		run += k
		return left > 0
	})
	if err == nil && run > 0 && count < most {
		put()
	}
	r.head = head
	switch {
	case err != nil:
		return err
	case count == 0:
		return fmt.Errorf("the disk reported no extents: %w", syscall.EIO)
	}
	size := len(head) - body
	if extended {
		binary.BigEndian.PutUint32(head[body+4:], uint32(count))
		binary.BigEndian.PutUint64(head[start+24:], uint64(size))
	} else {
		binary.BigEndian.PutUint32(head[start+16:], uint32(size))
	}
	return nil
}
