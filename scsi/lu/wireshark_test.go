package lu

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vdbridge/scsi"
	"vdbridge/scsi/lu/lutest"
)

// iscsiCapture writes a capture in which commands and replies travel as iSCSI PDUs (RFC 7143 11.3, 11.4, 11.7), since Wireshark knows SCSI there.
type iscsiCapture struct {
	file []byte
	seq  [2]uint32 // of the initiator, of the target
	task uint32
}

func newISCSICapture() *iscsiCapture {
	b := binary.LittleEndian.AppendUint32(nil, 0xA1B2C3D4)
	b = append(b, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0)
	return &iscsiCapture{file: binary.LittleEndian.AppendUint32(b, 101), seq: [2]uint32{1000, 1000}} // raw IPv4
}

func (c *iscsiCapture) packet(from int, payload []byte) {
	be, le := binary.BigEndian, binary.LittleEndian
	p := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, byte(1 + from), 10, 0, 0, byte(2 - from)}
	ports := [2]uint16{40000, 3260}
	p = be.AppendUint16(p, ports[from])
	p = be.AppendUint16(p, ports[1-from])
	p = be.AppendUint32(p, c.seq[from])
	p = be.AppendUint32(p, c.seq[1-from])
	p = append(p, 0x50, 0x18, 0xFF, 0xFF, 0, 0, 0, 0)
	p = append(p, payload...)
	be.PutUint16(p[2:], uint16(len(p)))
	c.seq[from] += uint32(len(payload))
	c.file = le.AppendUint32(c.file, c.task)
	c.file = le.AppendUint32(c.file, 0)
	c.file = le.AppendUint32(c.file, uint32(len(p)))
	c.file = le.AppendUint32(c.file, uint32(len(p)))
	c.file = append(c.file, p...)
}

// pdu makes a basic header segment with its data, padded.
func (c *iscsiCapture) pdu(op, flags, status byte, data []byte) []byte {
	h := make([]byte, 48)
	h[0], h[1], h[3] = op, flags, status
	h[5], h[6], h[7] = byte(len(data)>>16), byte(len(data)>>8), byte(len(data))
	binary.BigEndian.PutUint32(h[16:], c.task)
	h = append(h, data...)
	return append(h, make([]byte, -len(h)&3)...)
}

func (c *iscsiCapture) command(n *Nexus, cdb scsi.CDB, out []byte) {
	c.task++
	r, in := run(n, cdb, out...)
	flags := byte(0x81)
	if len(out) > 0 {
		flags |= 0x20
	} else {
		flags |= 0x40
	}
	p := c.pdu(0x01, flags, 0, out)
	binary.BigEndian.PutUint32(p[20:], uint32(max(len(out), len(in))))
	binary.BigEndian.PutUint32(p[24:], c.task)
	copy(p[32:], cdb[:])
	c.packet(0, p)
	if r.Status == scsi.Good && len(in) > 0 {
		p = c.pdu(0x25, 0x81, byte(r.Status), in)
		binary.BigEndian.PutUint32(p[20:], 0xFFFFFFFF)
		c.packet(1, p)
		return
	}
	var sense []byte
	if r.Status == scsi.CheckCondition {
		sense = r.Sense.AppendFixed([]byte{0, scsi.FixedSenseSize})
	}
	c.packet(1, c.pdu(0x21, 0x80, byte(r.Status), sense))
}

// Wireshark decodes a conversation with the unit, finds nothing malformed, and reads the values that we meant.
func TestWireshark(t *testing.T) {
	tshark, err := exec.LookPath("tshark")
	if err != nil {
		if os.Getenv("VDBRIDGE_REQUIRE_TOOLS") == "1" {
			t.Fatal("tshark is missing (package tshark)")
		}
		t.Skip("SKIPPED: tshark is missing (package tshark); our bytes are not judged by it")
	}
	l := newLU(t, lutest.New(1<<30), Options{ID: [16]byte{1, 2}, State: &memState{}})
	a, b := l.Attach(idA, false), l.Attach(idB, false)
	c := newISCSICapture()
	c.command(a, scsi.Inquiry(255), nil)
	for _, p := range []scsi.VPDPage{scsi.VPDSupportedPages, scsi.VPDUnitSerialNumber, scsi.VPDDeviceIdentification, scsi.VPDBlockLimits,
		scsi.VPDBlockCharacteristics, scsi.VPDLogicalBlockProvisioning} {
		c.command(a, scsi.InquiryVPD(p, 255), nil)
	}
	c.command(a, scsi.TestUnitReady(), nil)
	c.command(a, scsi.ReadCapacity10(), nil)
	c.command(a, scsi.ReadCapacity16(32), nil)
	c.command(a, scsi.ReportLUNs(0, 64), nil)
	c.command(a, scsi.ModeSense6(false, 0x3F, 0, 255), nil)
	c.command(a, scsi.ModeSense10(false, false, 0x3F, 0, 255), nil)
	c.command(a, scsi.ReportOpCodes(0, false, 0, 0, 4096), nil)
	c.command(a, scsi.GetLBAStatus(0, 64), nil)
	pr := func(n *Nexus, action scsi.PROutAction, typ scsi.PRType, key, other uint64) {
		cdb, list := prOut(action, typ, key, other)
		c.command(n, cdb, list)
	}
	pr(a, scsi.PRRegister, 0, 0, 0x1122334455667788)
	pr(b, scsi.PRRegisterAndIgnore, 0, 0, 0xB0B)
	pr(a, scsi.PRReserve, scsi.WriteExclusiveRegistrantsOnly, 0x1122334455667788, 0)
	for _, action := range []scsi.PRInAction{scsi.PRReadKeys, scsi.PRReadReservation, scsi.PRReportCapabilities, scsi.PRReadFullStatus} {
		c.command(a, scsi.PersistentReserveIn(action, 1024), nil)
	}
	pr(b, scsi.PRReserve, scsi.WriteExclusive, 0xB0B, 0) // a conflict
	pr(b, scsi.PRPreempt, scsi.WriteExclusive, 0xB0B, 0x1122334455667788)
	c.command(a, scsi.Read16(0, 1, false), nil) // a unit attention
	c.command(a, scsi.RequestSense(false, 252), nil)
	c.command(b, scsi.CDB{0x04}, nil) // an unknown command
	c.command(b, scsi.Write10(5, 1, true), make([]byte, 512))
	c.command(b, scsi.SynchronizeCache10(0, 0, false), nil)
	list := scsi.AppendUnmapList(nil, scsi.UnmapRange{LBA: 1, Blocks: 2})
	c.command(b, scsi.Unmap(uint16(len(list))), list)
	c.command(b, scsi.CompareAndWrite(5, 1, false), make([]byte, 1024))
	c.command(b, scsi.WriteSame16(5, 1, true, true), nil)

	path := filepath.Join(t.TempDir(), "scsi.pcap")
	if err := os.WriteFile(path, c.file, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(tshark, "-r", path, "-V").CombinedOutput()
	if err != nil {
		t.Fatalf("tshark: %v\n%s", err, out)
	}
	text := string(out)
	for _, bad := range []string{"Malformed", "Dissector bug"} {
		if i := strings.Index(text, bad); i >= 0 {
			t.Errorf("tshark finds %q:\n%s", bad, text[max(0, i-3000):i+100])
		}
	}
	for _, want := range []string{
		"VDBRIDGE", "Virtual Disk", "LBA: 2097151", "Block size in bytes: 512", "Persistent Reserve Out", "Persistent Reserve In",
		"Reservation Key: 0000000000000b0b", "Service Action Reservation Key: 1122334455667788", "Reservation Type: Write Excl, Registrants Only (0x5)", "Status: Reservation Conflict", "Sense Key: Unit Attention", "Sense Key: Illegal Request",
		"REGISTRATIONS PREEMPTED", "Unmap", "Compare And Write", "Write Same(16)", "Synchronize Cache(10)",
	} {
		if !strings.Contains(strings.ToLower(text), strings.ToLower(want)) {
			t.Errorf("tshark does not say %q", want)
		}
	}
}
