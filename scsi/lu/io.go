package lu

import (
	"bytes"
	"context"

	"vdbridge/scsi"
)

const (
	// bufferSize is the piece in which commands work that touch more of the disk than they carry data: VERIFY, WRITE SAME.
	bufferSize = 1 << 20
	// maxBuffers bounds how many such pieces a unit uses at once.
	maxBuffers = 16
	// maxCompareAndWrite bounds COMPARE AND WRITE, in blocks.
	maxCompareAndWrite = 128
	// maxUnmapDescriptors bounds UNMAP.
	maxUnmapDescriptors = 256
	// maxWriteSameBytes bounds one WRITE SAME, since the blocks are locked until it has ended.
	maxWriteSameBytes = 4 << 30
)

// capacity returns the number of blocks.
func (l *LU) capacity() uint64 { return uint64(l.disk.Size() / l.bs) }

// maxTransfer returns the largest transfer of READ and WRITE in bytes; 0 is unlimited.
func (l *LU) maxTransfer() int {
	_, _, _, m := l.disk.BlockSizes()
	if m == 0 || l.opt.MaxTransfer != 0 && l.opt.MaxTransfer < m {
		m = l.opt.MaxTransfer
	}
	return m
}

// checkRange verifies that blocks exist.
func (l *LU) checkRange(lba, blocks uint64) (Result, bool) {
	size := l.capacity()
	if lba > size {
		return outOfRange(lba), false
	}
	if blocks > size-lba {
		return outOfRange(size), false
	}
	return Result{}, true
}

// parseTransfer decodes and checks the CDB of a command with a range.
func (n *Nexus) parseTransfer(cdb []byte) (t scsi.Transfer, r Result, ok bool) {
	t, err := scsi.ParseTransfer(cdb)
	if err != nil {
		return t, malformedCDB(), false
	}
	if t.Protect != 0 { // the disk has no protection information
		return t, badCDBBit(1, 7), false
	}
	if r, ok := n.lu.checkRange(t.LBA, uint64(t.Blocks)); !ok {
		return t, r, false
	}
	return t, Result{}, true
}

// lengthField is where the number of blocks is in the CDB.
func lengthField(op scsi.OpCode) int {
	switch op.CDBLen() {
	case 6:
		return 4
	case 10:
		return 7
	case 12:
		return 6
	}
	return 10
}

// checkTransfer verifies the size of READ and WRITE.
func (n *Nexus) checkTransfer(t *scsi.Transfer) (size int64, r Result, ok bool) {
	size = int64(t.Blocks) * n.lu.bs
	if m := n.lu.maxTransfer(); m != 0 && size > int64(m) {
		return 0, badCDBField(lengthField(t.Op)), false
	}
	return size, Result{}, true
}

func (n *Nexus) readCommand(ctx context.Context, tk ticket, cdb, _, in []byte) Result {
	t, r, ok := n.parseTransfer(cdb)
	if !ok {
		return r
	}
	size, r, ok := n.checkTransfer(&t)
	if !ok {
		return r
	}
	if size > int64(len(in)) {
		r = badCDBField(lengthField(t.Op))
		r.Want = int(size)
		return r
	}
	r = n.read(ctx, tk, in[:size], int64(t.LBA)*n.lu.bs)
	if r.Status == scsi.Good {
		r.N, r.Want = int(size), int(size)
	}
	return r
}

func (n *Nexus) writeCommand(ctx context.Context, tk ticket, cdb, out, _ []byte) Result {
	t, r, ok := n.parseTransfer(cdb)
	if !ok {
		return r
	}
	size, r, ok := n.checkTransfer(&t)
	if !ok {
		return r
	}
	if size != int64(len(out)) {
		return badCDBField(lengthField(t.Op))
	}
	return n.write(ctx, tk, out, int64(t.LBA)*n.lu.bs, t.FUA)
}

// abortedResult is for commands that another initiator has aborted. (The control mode page says TAS.)
var abortedResult = Result{Status: scsi.TaskAborted}

// enter takes the lock on a range for an admitted command.
func (n *Nexus) enter(ctx context.Context, tk ticket, exclusive bool, off, size int64) (*lockRequest, Result) {
	q := n.lu.locks.newRequest(exclusive)
	q.add(off, size)
	return q, n.acquire(ctx, tk, q)
}

// acquire waits for a lock. The request is gone unless the result is GOOD.
func (n *Nexus) acquire(ctx context.Context, tk ticket, q *lockRequest) Result {
	if err := n.lu.locks.acquire(ctx, q); err != nil {
		return cancelled(err)
	}
	if n.i.aborted(tk) {
		n.lu.locks.release(q)
		return abortedResult
	}
	return Result{}
}

func (n *Nexus) read(ctx context.Context, tk ticket, p []byte, off int64) Result {
	if len(p) == 0 {
		return Result{}
	}
	q, r := n.enter(ctx, tk, false, off, int64(len(p)))
	if r.Status != scsi.Good {
		return r
	}
	err := n.lu.disk.Read(ctx, p, off)
	n.lu.locks.release(q)
	if err != nil {
		return diskError(err, false, uint64(off/n.lu.bs))
	}
	return Result{}
}

// writable refuses changes to a read-only disk, and through a read-only nexus.
func (n *Nexus) writable() (Result, bool) {
	if n.readOnly {
		return fail(scsi.NewSense(scsi.DataProtect, scsi.CodeWriteProtected)), false
	}
	return Result{}, true
}

func (n *Nexus) write(ctx context.Context, tk ticket, p []byte, off int64, fua bool) Result {
	if r, ok := n.writable(); !ok {
		return r
	}
	if len(p) == 0 {
		return Result{}
	}
	q, r := n.enter(ctx, tk, true, off, int64(len(p)))
	if r.Status != scsi.Good {
		return r
	}
	err := n.lu.disk.Write(ctx, p, off, fua || n.through)
	n.lu.locks.release(q)
	if err != nil {
		return diskError(err, true, uint64(off/n.lu.bs))
	}
	return Result{}
}

func (n *Nexus) compareAndWrite(ctx context.Context, tk ticket, cdb, out, _ []byte) Result {
	t, r, ok := n.parseTransfer(cdb)
	if !ok {
		return r
	}
	size := int(t.Blocks) * int(n.lu.bs)
	if t.Blocks > maxCompareAndWrite || len(out) != 2*size {
		return badCDBField(13)
	}
	if r, ok := n.writable(); !ok || size == 0 {
		return r
	}
	buf, r := n.lu.buffer(ctx)
	if buf == nil {
		return r
	}
	defer n.lu.giveBuffer(buf)
	off := int64(t.LBA) * n.lu.bs
	q, r := n.enter(ctx, tk, true, off, int64(size))
	if r.Status != scsi.Good {
		return r
	}
	defer n.lu.locks.release(q)
	have := (*buf)[:size]
	if err := n.lu.disk.Read(ctx, have, off); err != nil {
		return diskError(err, false, t.LBA)
	}
	if at := mismatch(have, out[:size]); at >= 0 {
		return fail(scsi.NewSense(scsi.Miscompare, scsi.CodeMiscompare).WithInfo(uint64(at)))
	}
	if err := n.lu.disk.Write(ctx, out[size:], off, t.FUA || n.through); err != nil {
		return diskError(err, true, t.LBA)
	}
	return Result{}
}

// mismatch returns the index of the first byte that differs, or -1.
func mismatch(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// buffer waits for one of the unit's buffers. It is taken before any lock of a range, so that nobody who has a lock waits for a buffer.
func (l *LU) buffer(ctx context.Context) (*[]byte, Result) {
	select {
	case l.bufSlots <- struct{}{}:
		return l.bufs.Get().(*[]byte), Result{}
	case <-ctx.Done():
		return nil, cancelled(context.Cause(ctx))
	}
}

func (l *LU) giveBuffer(b *[]byte) {
	l.bufs.Put(b)
	<-l.bufSlots
}

// verify is VERIFY. SBC-3 5.28. Each piece is compared by itself; the whole is not atomic.
func (n *Nexus) verify(ctx context.Context, tk ticket, cdb, out, _ []byte) Result {
	t, r, ok := n.parseTransfer(cdb)
	if !ok {
		return r
	}
	size := int64(t.Blocks) * n.lu.bs
	want := int64(0)
	switch t.Check {
	case scsi.CheckMedium:
	case scsi.CheckData:
		want = size
	case scsi.CheckSame:
		want = min(n.lu.bs, size)
	default:
		return badCDBBit(1, 2)
	}
	if want != 0 && want != int64(len(out)) {
		return badCDBField(lengthField(t.Op))
	}
	buf, r := n.lu.buffer(ctx)
	if buf == nil {
		return r
	}
	defer n.lu.giveBuffer(buf)
	for done := int64(0); done < size; {
		p := (*buf)[:min(size-done, bufferSize)]
		off := int64(t.LBA)*n.lu.bs + done
		if n.i.aborted(tk) {
			return abortedResult
		}
		if r := n.read(ctx, tk, p, off); r.Status != scsi.Good {
			return r
		}
		at := -1
		switch t.Check {
		case scsi.CheckData:
			at = mismatch(p, out[done:done+int64(len(p))])
		case scsi.CheckSame:
			for i := 0; i < len(p) && at < 0; i += len(out) {
				if m := mismatch(p[i:i+len(out)], out); m >= 0 {
					at = i + m
				}
			}
		}
		if at >= 0 {
			return fail(scsi.NewSense(scsi.Miscompare, scsi.CodeMiscompare).WithInfo(uint64(done) + uint64(at)))
		}
		done += int64(len(p))
	}
	return Result{}
}

// synchronize is SYNCHRONIZE CACHE. SBC-3 5.22. The whole disk is flushed, before the status even if IMMED asks for an early one.
func (n *Nexus) synchronize(ctx context.Context, _ ticket, cdb, _, _ []byte) Result {
	t, r, ok := n.parseTransfer(cdb)
	if !ok {
		return r
	}
	return n.flush(ctx, t.LBA)
}

func (n *Nexus) flush(ctx context.Context, lba uint64) Result {
	if err := n.lu.disk.Flush(ctx); err != nil {
		return diskError(err, true, lba)
	}
	return Result{}
}

// settle ends a command that has changed blocks in many pieces.
func (n *Nexus) settle(ctx context.Context) Result {
	if !n.through {
		return Result{}
	}
	return n.flush(ctx, 0)
}

// startStop is START STOP UNIT. SBC-3 5.20. The unit has no motor, and cannot be stopped for all because one asks; stopping flushes.
func (n *Nexus) startStop(ctx context.Context, _ ticket, cdb, _, _ []byte) Result {
	c, err := scsi.ParseStartStopCDB(cdb)
	switch {
	case err != nil:
		return malformedCDB()
	case c.LoadEject:
		return badCDBBit(4, 1)
	case c.PowerCondition == 0 && !c.Start && !c.NoFlush && !n.readOnly:
		return n.flush(ctx, 0)
	}
	return Result{}
}

// unmap is UNMAP. SBC-3 5.25. All ranges are locked together.
func (n *Nexus) unmap(ctx context.Context, tk ticket, cdb, out, _ []byte) Result {
	c, err := scsi.ParseUnmapCDB(cdb)
	if err != nil {
		return malformedCDB()
	}
	if c.Anchor {
		return badCDBBit(1, 0)
	}
	if c.Length == 0 {
		return Result{}
	}
	if len(out) < int(c.Length) {
		return fail(scsi.NewSense(scsi.IllegalRequest, scsi.CodeParameterListLength))
	}
	ranges, err := scsi.ParseUnmapList(out[:c.Length])
	if err != nil {
		return fail(scsi.NewSense(scsi.IllegalRequest, scsi.CodeParameterListLength))
	}
	if len(ranges) > maxUnmapDescriptors {
		return paramField(2)
	}
	for _, u := range ranges {
		if r, ok := n.lu.checkRange(u.LBA, uint64(u.Blocks)); !ok {
			return r
		}
	}
	if r, ok := n.writable(); !ok {
		return r
	}
	q := n.lu.locks.newRequest(true)
	for _, u := range ranges {
		q.add(int64(u.LBA)*n.lu.bs, int64(u.Blocks)*n.lu.bs)
	}
	if r := n.acquire(ctx, tk, q); r.Status != scsi.Good {
		return r
	}
	defer n.lu.locks.release(q)
	for _, u := range ranges {
		if u.Blocks == 0 {
			continue
		}
		if n.i.aborted(tk) {
			return abortedResult
		}
		if err := n.lu.disk.Trim(ctx, int64(u.LBA)*n.lu.bs, int64(u.Blocks)*n.lu.bs); err != nil {
			return diskError(err, true, u.LBA)
		}
	}
	return n.settle(ctx)
}

// writeSame is WRITE SAME. SBC-3 5.40
func (n *Nexus) writeSame(ctx context.Context, tk ticket, cdb, out, _ []byte) Result {
	t, r, ok := n.parseTransfer(cdb)
	if !ok {
		return r
	}
	size := int64(t.Blocks) * n.lu.bs
	switch {
	case t.Anchor:
		return badCDBBit(1, 4)
	case t.Reserved:
		return badCDBBit(1, 2)
	case t.Blocks == 0 || size > maxWriteSameBytes: // WSNZ
		return badCDBField(lengthField(t.Op))
	case !t.NoData && int64(len(out)) != n.lu.bs:
		return malformedCDB()
	}
	if r, ok := n.writable(); !ok {
		return r
	}
	zero := t.NoData || allZero(out)
	var buf *[]byte
	if !zero {
		if buf, r = n.lu.buffer(ctx); buf == nil {
			return r
		}
		defer n.lu.giveBuffer(buf)
	}
	off := int64(t.LBA) * n.lu.bs
	q, r := n.enter(ctx, tk, true, off, size)
	if r.Status != scsi.Good {
		return r
	}
	defer n.lu.locks.release(q)
	if zero {
		if err := n.lu.disk.WriteZeroes(ctx, off, size, t.Unmap, n.through); err != nil {
			return diskError(err, true, t.LBA)
		}
		return Result{}
	}
	p := (*buf)[:min(size, bufferSize)]
	for i := 0; i < len(p); i += len(out) {
		copy(p[i:], out)
	}
	for done := int64(0); done < size; {
		if n.i.aborted(tk) {
			return abortedResult
		}
		p := p[:min(size-done, int64(len(p)))]
		if err := n.lu.disk.Write(ctx, p, off+done, false); err != nil {
			return diskError(err, true, uint64((off+done)/n.lu.bs))
		}
		done += int64(len(p))
	}
	return n.settle(ctx)
}

func allZero(p []byte) bool {
	for len(p) >= 8 {
		if p[0]|p[1]|p[2]|p[3]|p[4]|p[5]|p[6]|p[7] != 0 {
			return false
		}
		p = p[8:]
	}
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
