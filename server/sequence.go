package server

import (
	"sync/atomic"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// channelSequence keeps requests that were sent again from being overtaken by their first selves: Open.ChannelSequence in bits 48 to 63, the requests
// that run with older ones (OutstandingPreRequestCount) in bits 24 to 47, those that run with this one (OutstandingRequestCount) in bits 0 to 23.
// [MS-SMB2] 3.3.1.10
type channelSequence struct{ v atomic.Uint64 }

const (
	countBits = 24
	countMask = 1<<countBits - 1
)

func (s *channelSequence) set(number uint16) { s.v.Store(uint64(number) << (2 * countBits)) }

// enter decides about a request with this number, and counts it if counted is true. A request that changes something must not be done if ok is
// false: it comes too late, or too early, as older ones are still running. [MS-SMB2] 3.3.5.2.10
func (s *channelSequence) enter(number uint16, replay bool) (counted, ok bool) {
	for {
		v := s.v.Load()
		current, older, now := uint16(v>>(2*countBits)), v>>countBits&countMask, v&countMask
		newer := number - current
		if newer > 0x7FFF {
			return false, false
		}
		if newer > 0 {
			older, now = older+now, 0
		}
		counted = !replay || older == 0
		if counted {
			now++
		}
		if s.v.CompareAndSwap(v, uint64(number)<<(2*countBits)|older<<countBits|now) {
			return counted, counted
		}
	}
}

// leave ends a request that was counted. [MS-SMB2] 3.3.4.1
func (s *channelSequence) leave(number uint16) {
	for {
		v := s.v.Load()
		next := v - 1
		if uint16(v>>(2*countBits)) != number {
			next = v - 1<<countBits
		}
		if s.v.CompareAndSwap(v, next) {
			return
		}
	}
}

// checkSequence verifies the ChannelSequence of a request on o. [MS-SMB2] 3.3.5.2.10
func (r *request) checkSequence(o *open) ntstatus.Status {
	if r.c.dialect < wire.Dialect300 {
		return ntstatus.Success
	}
	if e := o.durable; e != nil && r.hdr.Command != wire.CmdClose && e.replayable.Load() {
		e.replayable.Store(false)
	}
	var ok bool
	r.counted, ok = o.sequence.enter(uint16(r.hdr.Status), r.hdr.Flags&wire.FlagReplayOperation != 0)
	if !ok {
		switch r.hdr.Command {
		case wire.CmdWrite, wire.CmdSetInfo, wire.CmdIoctl:
			return ntstatus.FileNotAvailable
		}
	}
	return ntstatus.Success
}
