package rsvd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vdbridge/scsi"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/tunnel"
)

// scsiOverhead is what surrounds the data of a SCSI operation, the same in both directions.
const scsiOverhead = tunnel.HeaderSize + tunnel.SCSIRequestSize

// maxSCSIData bounds one SCSI operation, whatever the server allows: 8 MiB is where larger requests stop to be faster.
const maxSCSIData = 8 << 20

// zeros go along with data-in requests. Nobody writes to it, so it takes no memory.
var zeros [maxSCSIData]byte

// call is what one SCSI operation needs beside its data. It is pooled: the way of a 4 KiB read must not allocate.
type call struct {
	req  [scsiOverhead]byte
	rep  [scsiOverhead]byte
	cdb  scsi.CDB
	bare bool // wanted: a data-in request without zeros, however small
	lean bool // the last exchange was a data-in request without zeros
}

// smallIn is up to how many bytes of data-in a request always carries zeros: so few cost nothing, and it is what every server knows.
const smallIn = 512

// SRB flags as Windows sends them with the direction. Servers only echo them. [MS-RSVD] 2.2.4.7
const srbFlags = tunnel.SRBFlagQueueActionEnable | tunnel.SRBFlagDisableSynchTransfer | tunnel.SRBFlagNoQueueFreeze | tunnel.SRBFlagPortAllocSense

// exchange sends the CDB that stands in c, with the data out, and receives data into in; one of them is empty. It returns the bytes
// received. An *Error says that the operation did not get to the disk; a *scsi.Error is what the disk said.
func (d *Disk) exchange(ctx context.Context, c *call, out, in []byte) (int, error) {
	if d.closed.Load() {
		return 0, ErrClosed
	}
	r := tunnel.SCSIRequest{CDBLength: uint8(c.cdb.Len()), SenseLength: tunnel.MaxSense, CDB: c.cdb}
	switch {
	case len(out) > 0:
		r.Disposition, r.SRBFlags, r.DataTransferLength = tunnel.DispositionOut, srbFlags|tunnel.SRBFlagDataOut, uint32(len(out))
	case len(in) > 0:
		r.Disposition, r.SRBFlags, r.DataTransferLength = tunnel.DispositionIn, srbFlags|tunnel.SRBFlagDataIn, uint32(len(in))
		// DataBuffer has DataTransferLength bytes in a request, whatever the direction: Microsoft's tests send zeros, and Wireshark takes a request
		// without them for malformed. [MS-RSVD] 2.2.4.7. A server has no use for them, and refuses only more than that (3.2.5.5.5), so bulk
		// reads are sent without, to a server that is known to take it.
		if c.lean = c.bare || len(in) > smallIn && d.bareIn.Load(); !c.lean {
			out = zeros[:min(len(in), len(zeros))]
		}
	default:
		r.Disposition, r.SRBFlags = tunnel.DispositionNone, srbFlags
	}
	h := tunnel.RequestHeader{Op: tunnel.OpSCSI, RequestID: d.requestID.Add(1)}
	r.Append(h.Append(c.req[:0]))
	got, err := d.control(ctx, kindOfCDB(&c.cdb), c.req[:], out, c.rep[:], in)
	if err != nil {
		return 0, wrap("SCSI", err)
	}
	if got > len(c.rep)+len(in) {
		return 0, fmt.Errorf("SCSI: %w: a reply of %d bytes where %d were allowed", ErrProtocol, got, len(c.rep)+len(in))
	}
	head := c.rep[:min(got, len(c.rep))]
	if err := checkHeader(head, tunnel.OpSCSI, h.RequestID); err != nil {
		return 0, err
	}
	total := got - tunnel.HeaderSize
	rep, off, err := tunnel.ParseSCSIResponseHead(head[tunnel.HeaderSize:], total)
	if err != nil {
		return 0, malformed(tunnel.OpSCSI, err)
	}
	// An underrun of data-in shows in the number of bytes. Of data-out it would mean that not all was written. A status of 0 is what an example
	// of the specification has for success.
	good := rep.SRBStatus == tunnel.SRBSuccess || rep.SRBStatus == tunnel.SRBPending || rep.SRBStatus == tunnel.SRBDataOverrun && len(in) > 0
	if rep.SCSIStatus != 0 || !good {
		return 0, d.scsiError(c.cdb.Op(), rep.SCSIStatus, rep.SRBStatus, rep.Sense[:min(int(rep.SenseLength), len(rep.Sense))])
	}
	data := int(rep.DataTransferLength)
	if len(in) == 0 {
		return 0, nil
	}
	if data > len(in) {
		return 0, fmt.Errorf("SCSI: %w: %d bytes of data where %d were asked for", ErrProtocol, data, len(in))
	}
	if k := scsiOverhead - tunnel.HeaderSize - off; k > 0 {
		// The sense area was shorter than 20 bytes, so the data begin in the head.
		k = min(k, data)
		copy(in[k:data], in)
		copy(in, head[tunnel.HeaderSize+off:tunnel.HeaderSize+off+k])
	}
	return data, nil
}

// scsiError makes the error of a command that the disk did not carry out.
func (d *Disk) scsiError(op scsi.OpCode, status, srb byte, sense []byte) error {
	if status == 0 {
		// The storage below the unit failed without a word of SCSI. [MS-RSVD] 2.2.5
		st := ntstatus.IODeviceError
		switch srb {
		case tunnel.SRBInvalidRequest:
			st = ntstatus.InvalidDeviceRequest
		case tunnel.SRBNoDevice, tunnel.SRBSelectionTimeout:
			st = ntstatus.NoSuchDevice
		}
		return &Error{Op: fmt.Sprintf("%v: SRB status %#02x", op, srb), Status: st, Tunnel: true}
	}
	e := &scsi.Error{Op: op, Status: scsi.Status(status)}
	switch e.Status {
	case scsi.ReservationConflict:
		return &conflictError{e}
	case scsi.CheckCondition:
		s, err := scsi.ParseSense(sense)
		if err != nil {
			e.Err = err
		}
		e.Sense = s
	}
	return e
}

// run is exchange with what a good initiator does by itself: it repeats commands that met a unit attention or a busy unit, and changes over
// to the way in which the server wants data-in requests.
func (d *Disk) run(ctx context.Context, c *call, out, in []byte, change bool) (int, error) {
	for attempt := 0; ; attempt++ {
		got, err := d.exchange(ctx, c, out, in)
		if err == nil {
			return got, nil
		}
		if len(in) > 0 && c.lean && wantsPadding(err) {
			if d.bareIn.CompareAndSwap(true, false) {
				d.log.Info("the server wants zeros with data-in requests", "path", d.path, "err", err)
			}
			continue // with zeros
		}
		if again, err := d.recover(ctx, err, attempt, change); !again {
			return got, err
		}
	}
}

// wantsPadding says that the server may have refused a data-in request because it came without a DataBuffer.
func wantsPadding(err error) bool {
	s, ok := ntstatus.Of(err)
	return ok && (s == ntstatus.InvalidParameter || s == ntstatus.InfoLengthMismatch || s == ntstatus.BufferTooSmall)
}

// probeBare finds out whether the server answers a data-in request that has no DataBuffer just as one that has: by INQUIRY, which is always allowed and
// changes nothing. Whatever speaks against it leaves the zeros where they are.
func (d *Disk) probeBare(ctx context.Context) {
	const n = 36
	var with, without [n]byte
	a, err := d.command(ctx, scsi.Inquiry(n), nil, with[:], false)
	if err != nil || a == 0 {
		return
	}
	c := d.calls.Get().(*call)
	defer d.calls.Put(c)
	c.cdb, c.bare = scsi.Inquiry(n), true
	b, err := d.exchange(ctx, c, nil, without[:])
	c.bare = false
	ok := err == nil && a == b && with == without
	d.bareIn.Store(ok)
	d.log.Debug("data-in requests", "path", d.path, "without_zeros", ok, "err", err)
}

// Bounds of repeating.
const (
	maxAttentions = 16 // unit attentions that may be queued for one command
	busyFirst     = time.Millisecond
	busyLast      = time.Second
	busyTries     = 30
)

// recover decides about a failed command: whether it was not carried out for a passing reason and may be sent again. change says that it
// changes the disk. It returns the error to report otherwise.
func (d *Disk) recover(ctx context.Context, err error, attempt int, change bool) (again bool, _ error) {
	if ctx.Err() != nil || d.closed.Load() {
		return false, err
	}
	var re *Error
	if errors.As(err, &re) {
		if key, ok := re.Status.StoredSense(); ok {
			err = d.fetchSense(ctx, re, key)
		} else if ua := attentionOfStatus(re.Status); ua != noAttention {
			return d.attend(ctx, ua, err, attempt, change)
		}
	}
	var se *scsi.Error
	if !errors.As(err, &se) {
		return false, err
	}
	switch {
	case se.Status == scsi.Busy, se.Status == scsi.TaskSetFull:
		if attempt >= busyTries {
			return false, err
		}
		t := time.NewTimer(min(busyFirst<<min(attempt, 10), busyLast))
		defer t.Stop()
		select {
		case <-t.C:
			return true, nil
		case <-ctx.Done():
			return false, err
		case <-d.done:
			return false, ErrClosed
		}
	case se.Status == scsi.CheckCondition && se.Sense.Key == scsi.UnitAttention:
		return d.attend(ctx, attentionOfSense(se), err, attempt, change)
	}
	return false, err
}

// fetchSense turns "sense data are stored under this key" into what is stored.
func (d *Disk) fetchSense(ctx context.Context, cause *Error, key byte) error {
	r, err := d.SRBStatus(ctx, key)
	if err != nil {
		d.log.Warn("the server does not give the sense data of a failed command", "op", cause.Op, "key", key, "err", err)
		return cause
	}
	if r.SCSIStatus == 0 && r.SRBStatus == tunnel.SRBSuccess {
		return cause
	}
	op := scsi.OpRead16 // what the unit executed for it
	if cause.Op == "WRITE" {
		op = scsi.OpWrite16
	}
	return fmt.Errorf("%s: %w", cause.Op, d.scsiError(op, r.SCSIStatus, r.SRBStatus, r.Sense))
}

// Execute sends any CDB of 6 to 16 bytes, with data to or from the disk (not both), and returns the bytes received. What the disk says is
// returned as it is: nothing is repeated, unit attentions included. *scsi.Error has the status and the sense data.
func (d *Disk) Execute(ctx context.Context, cdb, out, in []byte) (int, error) {
	if len(cdb) < 6 || len(cdb) > tunnel.MaxCDB {
		return 0, fmt.Errorf("SCSI: a CDB has 6 to %d bytes, not %d", tunnel.MaxCDB, len(cdb))
	}
	if len(out) > 0 && len(in) > 0 {
		return 0, errors.New("SCSI: data go one way only")
	}
	if n := max(len(out), len(in)); n > d.maxData {
		return 0, fmt.Errorf("SCSI: %d bytes of data, the server takes at most %d", n, d.maxData)
	}
	c := d.calls.Get().(*call)
	defer d.calls.Put(c)
	c.cdb = scsi.CDB{}
	copy(c.cdb[:], cdb)
	return d.exchange(ctx, c, out, in)
}

// MaxData is the most bytes of data of one Execute.
func (d *Disk) MaxData() int { return d.maxData }

// command runs a CDB off the hot path. change as in recover.
func (d *Disk) command(ctx context.Context, cdb scsi.CDB, out, in []byte, change bool) (int, error) {
	c := d.calls.Get().(*call)
	defer d.calls.Put(c)
	c.cdb = cdb
	return d.run(ctx, c, out, in, change)
}

// isUnknownCommand says that the unit does not know a command at all, or not with the bits that were set.
func isUnknownCommand(err error) bool {
	var se *scsi.Error
	if errors.As(err, &se) && se.Status == scsi.CheckCondition && se.Sense.Key == scsi.IllegalRequest {
		return se.Sense.Code() == scsi.CodeInvalidOpCode || se.Sense.Code() == scsi.CodeInvalidFieldInCDB
	}
	var re *Error
	return errors.As(err, &re) && re.Tunnel && isRefusal(re)
}
