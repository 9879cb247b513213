package rsvd

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"vdbridge/scsi"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/tunnel"
	"vdbridge/smb/wire"
)

// fake is an SMB open of a small shared disk. It is written from the layouts of MS-RSVD by offsets, not with the codecs under test. What a test
// sets in the hooks comes before the normal behaviour.
type fake struct {
	mu    sync.Mutex
	data  []byte
	log   []string // what was asked, in order
	quiet bool     // do not note, for tests that count allocations

	sector  uint32
	fua     bool
	prov    bool // UNMAP and WRITE SAME
	senseAt int  // where data begin in a SCSI reply: 36, or 16 to 35

	onIO    func(op string, off int64) error       // READ, WRITE, FLUSH
	onSCSI  func(cdb []byte) *scsiReply            // nil: as usual
	onOp    func(op tunnel.OpCode) ntstatus.Status // tunnel status other than 0
	onIoctl func(code uint32, in []byte) error     // SMB status
	sense   map[byte]scsiReply                     // stored
	closed  atomic.Int32
	padIn   bool   // refuses data-in requests without as many bytes as they ask for
	padBulk bool   // only those for more than 4096 bytes
	emptyIn bool   // answers them with nothing
	zeros   int    // bytes that came with data-in requests
	size    uint64 // what INITIAL_INFO says; 0: len(data)
	version uint32
}

type scsiReply struct {
	status byte
	srb    byte // 0: 1
	sense  []byte
	data   []byte
}

func newFake(size int) *fake {
	return &fake{data: make([]byte, size), sector: 512, fua: true, prov: true, senseAt: 36, version: 1}
}

func (f *fake) note(format string, args ...any) {
	f.log = append(f.log, fmt.Sprintf(format, args...))
}

func (f *fake) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.quiet {
		f.note("READ %d@%d", len(p), off)
	}
	if f.onIO != nil {
		if err := f.onIO("READ", off); err != nil {
			return 0, err
		}
	}
	return copy(p, f.data[off:]), nil
}

func (f *fake) WriteAt(_ context.Context, p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.quiet {
		f.note("WRITE %d@%d", len(p), off)
	}
	if f.onIO != nil {
		if err := f.onIO("WRITE", off); err != nil {
			return 0, err
		}
	}
	return copy(f.data[off:], p), nil
}

func (f *fake) Flush(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.note("FLUSH")
	if f.onIO != nil {
		return f.onIO("FLUSH", 0)
	}
	return nil
}

func (f *fake) Close() error { f.closed.Add(1); return nil }

func (f *fake) Ioctl(_ context.Context, code uint32, in1, in2, out1, out2 []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var in []byte
	if f.quiet {
		in = in1 // the data are looked at in in2
	} else {
		in = append(append(in, in1...), in2...)
	}
	if f.onIoctl != nil {
		if err := f.onIoctl(code, in); err != nil {
			return 0, err
		}
	}
	if code == 0x90300 {
		return copy(out1, []byte{1, 0, 0, 0, 3, 0, 0, 0}), nil
	}
	if code != 0x90304 || len(in) < 16 {
		return 0, ntstatus.InvalidDeviceRequest
	}
	op := tunnel.OpCode(binary.LittleEndian.Uint32(in))
	copy(out1, in[:16])
	if f.onOp != nil {
		if s := f.onOp(op); s != 0 {
			binary.LittleEndian.PutUint32(out1[4:], uint32(s))
			return 16, nil
		}
	}
	if op == tunnel.OpSCSI {
		return f.scsi(in, in2, out1, out2)
	}
	f.note("%v", op)
	b := out1[16:]
	switch op {
	case tunnel.OpGetInitialInfo:
		clear(b[:24])
		binary.LittleEndian.PutUint32(b, f.version)
		binary.LittleEndian.PutUint32(b[4:], f.sector)
		binary.LittleEndian.PutUint32(b[8:], 4096)
		size := f.size
		if size == 0 {
			size = uint64(len(f.data))
		}
		binary.LittleEndian.PutUint64(b[16:], size)
		return 40, nil
	case tunnel.OpCheckConnectionStatus:
		return 16, nil
	case tunnel.OpSRBStatus:
		r, ok := f.sense[in[16]]
		if !ok {
			binary.LittleEndian.PutUint32(out1[4:], uint32(ntstatus.SVHDXErrorNotAvailable))
			return 16, nil
		}
		b[0], b[1], b[2], b[3] = in[16], r.srb|0x80, r.status, byte(len(r.sense))
		return 20 + copy(b[4:], r.sense), nil
	case tunnel.OpValidateDisk:
		b[0] = 1
		return 17, nil
	case tunnel.OpGetDiskInfo:
		clear(b[:56])
		b[0], b[4], b[28], b[29] = 3, 3, 1, 1
		return 72, nil
	}
	binary.LittleEndian.PutUint32(out1[4:], uint32(ntstatus.InvalidParameter))
	return 16, nil
}

func (f *fake) scsi(in, in2, out1, out2 []byte) (int, error) {
	cdb := in[32 : 32+int(in[20])]
	want := int(binary.LittleEndian.Uint32(in[28:]))
	data := in[52:]
	if f.quiet {
		data = in2
	}
	bare := in[22] == 1 && len(data) != want
	if in[22] == 1 {
		f.zeros += len(data)
	}
	if bare && (f.padIn || f.padBulk && want > 4096) {
		binary.LittleEndian.PutUint32(out1[4:], uint32(ntstatus.InvalidParameter))
		return 16, nil
	}
	if !f.quiet {
		f.note("%s", scsi.CommandName(cdb))
	}
	var r scsiReply
	if x := f.script(cdb); x != nil {
		r = *x
	} else {
		r = f.unit(cdb, data, want, out2)
	}
	if bare && f.emptyIn {
		r.data = nil
	}
	if r.srb == 0 {
		r.srb = 1
	}
	n := f.senseAt
	head := make([]byte, 0, 52)
	if f.quiet {
		head = out1[16:16]
	}
	head = append(head, byte(n), 0, r.srb, r.status, in[20], byte(min(n-16, 20)), in[22], 0)
	head = append(head, in[24:28]...)
	head = binary.LittleEndian.AppendUint32(head, uint32(len(r.data)))
	for len(head) < n {
		head = append(head, 0)
	}
	copy(head[16:n], r.sense)
	if f.quiet && n == 36 {
		return 52 + len(r.data), nil // the data are in place
	}
	head = append(head, r.data...)
	k := copy(out1[16:], head)
	return 16 + k + copy(out2, head[k:]), nil
}

func (f *fake) script(cdb []byte) *scsiReply {
	if f.onSCSI == nil {
		return nil
	}
	return f.onSCSI(cdb)
}

func checkCondition(k scsi.Key, c scsi.Code) *scsiReply {
	return &scsiReply{status: 2, srb: 4, sense: scsi.NewSense(k, c).AppendFixed(nil)}
}

// unit is a small logical unit.
func (f *fake) unit(cdb, data []byte, want int, place []byte) scsiReply {
	be := binary.BigEndian
	sector := int64(f.sector)
	switch scsi.OpCode(cdb[0]) {
	case scsi.OpServiceActionIn16:
		switch cdb[1] {
		case 0x10:
			c := scsi.Capacity{LastLBA: uint64(len(f.data))/uint64(sector) - 1, BlockLength: f.sector, ReadZeros: f.prov}
			return scsiReply{data: c.Append16(nil)[:want]}
		}
	case scsi.OpInquiry:
		if cdb[1]&1 == 0 {
			return scsiReply{data: (&scsi.InquiryData{Vendor: "fake"}).Append(nil)[:min(want, 36)]}
		}
		switch scsi.VPDPage(cdb[2]) {
		case scsi.VPDBlockLimits:
			l := scsi.BlockLimits{MaxUnmapBlocks: 64, MaxWriteSame: 32}
			if !f.prov {
				l = scsi.BlockLimits{}
			}
			return scsiReply{data: l.Append(nil)}
		case scsi.VPDLogicalBlockProvisioning:
			p := scsi.LogicalBlockProvisioning{Unmap: f.prov, WriteSame16: f.prov, ReadZeros: f.prov}
			return scsiReply{data: p.Append(nil)}
		}
	case scsi.OpModeSense6:
		m := scsi.ModeData{DPOFUA: f.fua}
		return scsiReply{data: m.Append6(nil)}
	case scsi.OpRead16:
		off := int64(be.Uint64(cdb[2:])) * sector
		n := int64(be.Uint32(cdb[10:])) * sector
		if f.quiet {
			return scsiReply{data: place[:copy(place[:n], f.data[off:])]}
		}
		return scsiReply{data: f.data[off : off+n]}
	case scsi.OpWrite16:
		copy(f.data[int64(be.Uint64(cdb[2:]))*sector:], data)
		return scsiReply{}
	case scsi.OpSynchronizeCache16, scsi.OpSynchronizeCache10, scsi.OpPersistentReserveOut:
		return scsiReply{}
	case scsi.OpUnmap, scsi.OpWriteSame16:
		if !f.prov {
			break
		}
		var off, n int64
		if scsi.OpCode(cdb[0]) == scsi.OpUnmap {
			off, n = int64(be.Uint64(data[8:])), int64(be.Uint32(data[16:]))
		} else {
			off, n = int64(be.Uint64(cdb[2:])), int64(be.Uint32(cdb[10:]))
		}
		clear(f.data[off*sector : (off+n)*sector])
		return scsiReply{}
	case scsi.OpRequestSense:
		return scsiReply{data: scsi.Sense{}.AppendFixed(nil)}
	}
	return *checkCondition(scsi.IllegalRequest, scsi.CodeInvalidOpCode)
}

// count says how often an entry of the log is what.
func (f *fake) count(what string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.log {
		if l == what {
			n++
		}
	}
	return n
}

var testInitiator = [16]byte{1, 2, 3}

// openFake opens f as a server of its version does, with the response context that belongs to it.
func openFake(t testing.TB, f *fake, o Options) *Disk {
	t.Helper()
	o.Path = `dir\disk.vhdx`
	if o.InitiatorID == [16]byte{} {
		o.InitiatorID = testInitiator
	}
	d, err := Open(context.Background(), func(_ context.Context, req *wire.CreateRequest) (File, []wire.CreateContext, error) {
		if req.Contexts[0].Data[0] > byte(f.version) {
			return nil, nil, ntstatus.InvalidParameter
		}
		return f, []wire.CreateContext{req.Contexts[0]}, nil
	}, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	f.mu.Lock()
	f.log = nil
	f.mu.Unlock()
	return d
}
