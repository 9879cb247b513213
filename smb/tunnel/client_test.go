package tunnel

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"vdbridge/smb/ntstatus"
)

// unhex reads the dumps of ms-rsvd.md section 15: blanks are ignored, and total fills up with zeros.
func unhex(t testing.TB, s string, total int) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return append(b, make([]byte, total-len(b))...)
}

const (
	v1Context = `01 00 00 00 01 00 00 00 07 77 0d 20 1f 27 40 83
		45 79 d4 6f 5a c4 3b 73 00 00 00 00 01 00 00 00 1e 87 c7 1e 00 00 00 00 10 00 63 00 6c 00 69 00
		65 00 6e 00 74 00 30 00 31 00`
	v2Context = `02 00 00 00 01 00 00 00 72 d6 ba 68 73 2a d8 4c
		9f 58 6a 4b 67 23 2e 0d 00 00 00 00 01 00 00 00 00 00 00 00 b6 e5 28 30 14 00 53 00 4d 00 42 00
		44 00 2d 00 53 00 55 00 54 00 30 00 31 00`
	v2Properties  = `01 00 00 00 02 00 00 00 00 02 00 00 00 10 00 00 00 00 00 40 00 00 00 00`
	infoReply     = `01 00 00 00 00 02 00 00 00 10 00 00 00 00 00 00 00 00 00 40 00 00 00 00`
	capacityReq   = `24 00 00 00 10 14 01 00 4a 01 20 00 08 00 00 00 25`
	capacityReply = `24 00 01 00 10 14 01 00 4a 01 20 00 08 00 00 00
		00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 1f ff ff 00 00 02 00`
	registerReq   = `24 00 00 00 0a 14 00 00 80 00 00 00 18 00 00 00 5f 06 00 00 00 00 00 00 18`
	conflictReply = `24 00 01 18 0a 14 00 00 80 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00`
	srbReply      = `01 02 02 14 f0 00 00 00 00 00 00 0a 00 00 00 00 00 00 00 00 00 00 00 00`
)

func exampleV1() OpenContextRequest {
	r := OpenContextRequest{Version: 1, HasInitiatorID: 1, OriginatorFlags: OriginatorPVHDParser, OpenRequestID: 0x1ec7871e, InitiatorHostName: "client01"}
	copy(r.InitiatorID[:], "\x07\x77\x0d\x20\x1f\x27\x40\x83\x45\x79\xd4\x6f\x5a\xc4\x3b\x73")
	return r
}

func exampleV2() OpenContextRequest {
	r := OpenContextRequest{Version: 2, HasInitiatorID: 1, OriginatorFlags: OriginatorPVHDParser, OpenRequestID: 0x3028e5b600000000, InitiatorHostName: "SMBD-SUT01"}
	copy(r.InitiatorID[:], "\x72\xd6\xba\x68\x73\x2a\xd8\x4c\x9f\x58\x6a\x4b\x67\x23\x2e\x0d")
	return r
}

func TestAppendVectors(t *testing.T) {
	v1, v2 := exampleV1(), exampleV2()
	capacity := SCSIRequest{CDBLength: 16, SenseLength: 20, Disposition: DispositionIn, SRBFlags: 0x0020014A, DataTransferLength: 8}
	capacity.CDB[0] = 0x25
	register := SCSIRequest{CDBLength: 10, SenseLength: 20, Disposition: DispositionOut, SRBFlags: 0x80, DataTransferLength: 24}
	copy(register.CDB[:], "\x5f\x06\x00\x00\x00\x00\x00\x00\x18")
	for _, c := range []struct {
		name, want string
		total      int
		got        []byte
	}{
		{"open context v1", v1Context, 168, v1.Append(nil)},
		{"open context v2", v2Context, 192, v2.Append(nil)},
		{"header", "01 10 00 02 00 00 00 00 1e 87 c7 1e 00 00 00 00", 16, (&RequestHeader{Op: OpGetInitialInfo, RequestID: 0x1ec7871e}).Append(nil)},
		{"SCSI READ CAPACITY", capacityReq, 36, capacity.Append(nil)},
		{"SCSI PR OUT", registerReq, 36, register.Append(nil)},
		{"SRB status", "01", 28, (&SRBStatusRequest{StatusKey: 1}).Append(nil)},
		{"disk info", "", 56, AppendDiskInfoRequest(nil)},
		{"validate disk", "", 56, AppendValidateDiskRequest(nil)},
	} {
		if want := unhex(t, c.want, c.total); !bytes.Equal(c.got, want) {
			t.Errorf("%s:\n got %x\nwant %x", c.name, c.got, want)
		}
	}
}

func TestAppendKeepsWhatIsThere(t *testing.T) {
	v1 := exampleV1()
	got := v1.Append([]byte("abc"))
	if !bytes.HasPrefix(got, []byte("abc")) || !bytes.Equal(got[3:], v1.Append(nil)) {
		t.Fatal("Append does not append")
	}
}

func TestLongHostName(t *testing.T) {
	r := exampleV1()
	r.InitiatorHostName = strings.Repeat("a", 62) + "😀" // the pair would need bytes 124 to 128
	b := r.Append(nil)
	if n := b[offHostNameLength]; n != 124 {
		t.Fatalf("host name has %d bytes, want 124", n)
	}
	if len(b) != OpenContextV1Size {
		t.Fatalf("context has %d bytes", len(b))
	}
}

func TestParseVectors(t *testing.T) {
	r1, err := ParseOpenContextResponse(unhex(t, v1Context, 168))
	if err != nil || r1.OpenContextRequest != exampleV1() {
		t.Errorf("v1 context: %+v, %v", r1, err)
	}
	r2, err := ParseOpenContextResponse(append(unhex(t, v2Context, 168), unhex(t, v2Properties, 24)...))
	if want := (DiskProperties{1, 2, 512, 4096, 1 << 30}); err != nil || r2.OpenContextRequest != exampleV2() || r2.DiskProperties != want {
		t.Errorf("v2 context: %+v, %v", r2, err)
	}
	h, err := ParseResponseHeader(unhex(t, "02 10 00 02 0d 00 00 c0 1e 87 c7 1e 00 00 00 00", 16))
	if want := (ResponseHeader{OpSCSI, ntstatus.InvalidParameter, 0x1ec7871e}); err != nil || h != want {
		t.Errorf("header: %+v, %v", h, err)
	}
	info, err := ParseInitialInfoResponse(unhex(t, infoReply, 24))
	if want := (InitialInfoResponse{1, 512, 4096, 1 << 30}); err != nil || info != want {
		t.Errorf("initial info: %+v, %v", info, err)
	}
	s, err := ParseSCSIResponse(unhex(t, capacityReply, 44))
	if err != nil || s.Length != 36 || s.SRBStatus != SRBSuccess || s.SCSIStatus != 0 || s.SenseLength != 20 || s.Disposition != DispositionIn ||
		s.SRBFlags != 0x0020014A || !bytes.Equal(s.Data, []byte{0, 0x1f, 0xff, 0xff, 0, 0, 2, 0}) {
		t.Errorf("READ CAPACITY: %+v, %v", s, err)
	}
	s, err = ParseSCSIResponse(unhex(t, conflictReply, 36))
	if err != nil || s.SCSIStatus != 0x18 || len(s.Data) != 0 {
		t.Errorf("conflict: %+v, %v", s, err)
	}
	srb, err := ParseSRBStatusResponse(unhex(t, srbReply, 24))
	if err != nil || srb.StatusKey != 1 || srb.SenseAutoGenerated || srb.SRBStatus != SRBAborted || srb.SCSIStatus != 2 || len(srb.Sense) != 20 || srb.Sense[0] != 0xf0 || srb.Sense[7] != 0x0a {
		t.Errorf("SRB status: %+v, %v", srb, err)
	}
	sup, err := ParseSupportResponse(unhex(t, "07 00 00 00 03 00 00 00", 8))
	if want := (SupportResponse{SupportV2, HandleStateShared}); err != nil || sup != want {
		t.Errorf("support: %+v, %v", sup, err)
	}
	disk := unhex(t, "03 00 00 00 03 00 00 00 00 00 00 02", 56)
	disk[12], disk[28], disk[29], disk[34], disk[55] = 9, 1, 1, 0x40, 7
	di, err := ParseDiskInfoResponse(disk)
	if err != nil || di.DiskType != DiskTypeDynamic || di.DiskFormat != DiskFormatVHDX || di.BlockSize != 32<<20 || di.LinkageID[0] != 9 ||
		!di.IsMounted || !di.Is4kAligned || di.FileSize != 4<<20 || di.VirtualDiskID[15] != 7 {
		t.Errorf("disk info: %+v, %v", di, err)
	}
	if v, err := ParseValidateDiskResponse([]byte{1}); err != nil || !v.IsValid {
		t.Errorf("validate disk: %+v, %v", v, err)
	}
}

// The sense area may be as long as the sense data, not 20 bytes as Windows sends it.
func TestVariableSenseArea(t *testing.T) {
	sense := []byte{0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0, 0, 0}
	for _, length := range []byte{34, 0, 200} { // right, and two out of range
		b := append([]byte{length, 0, 0x84, 2, 16, 18, 1, 0, 0, 0, 0, 0, 3, 0, 0, 0}, sense...)
		b = append(b, "abc"...)
		r, err := ParseSCSIResponse(b)
		if err != nil || string(r.Data) != "abc" || !bytes.Equal(r.Sense[:18], sense) || r.Sense[18] != 0 || !r.SenseAutoGenerated || r.SRBStatus != SRBError {
			t.Errorf("Length %d: %+v, %v", length, r, err)
		}
	}
}

func TestEveryPrefixFails(t *testing.T) {
	v2 := append(unhex(t, v2Context, 168), unhex(t, v2Properties, 24)...)
	for _, c := range []struct {
		name  string
		whole []byte
		parse func([]byte) error
	}{
		{"v1", unhex(t, v1Context, 168), func(b []byte) error { _, err := ParseOpenContextResponse(b); return err }},
		{"v2", v2, func(b []byte) error { _, err := ParseOpenContextResponse(b); return err }},
		{"header", make([]byte, 16), func(b []byte) error { _, err := ParseResponseHeader(b); return err }},
		{"support", make([]byte, 8), func(b []byte) error { _, err := ParseSupportResponse(b); return err }},
		{"info", unhex(t, infoReply, 24), func(b []byte) error { _, err := ParseInitialInfoResponse(b); return err }},
		{"srb", unhex(t, srbReply, 24), func(b []byte) error { _, err := ParseSRBStatusResponse(b); return err }},
		{"disk", make([]byte, 56), func(b []byte) error { _, err := ParseDiskInfoResponse(b); return err }},
		{"validate", make([]byte, 1), func(b []byte) error { _, err := ParseValidateDiskResponse(b); return err }},
		{"scsi", unhex(t, capacityReply, 44), func(b []byte) error { _, err := ParseSCSIResponse(b); return err }},
	} {
		if err := c.parse(c.whole); err != nil {
			t.Errorf("%s: the whole fails: %v", c.name, err)
		}
		for n := range c.whole {
			if err := c.parse(c.whole[:n:n]); !errors.Is(err, ErrMalformed) {
				t.Errorf("%s: %d of %d bytes: %v", c.name, n, len(c.whole), err)
			}
		}
	}
}

func TestParseRefuses(t *testing.T) {
	ctx := func(change func(b []byte)) []byte {
		b := unhex(t, v1Context, 168)
		change(b)
		return b
	}
	for name, b := range map[string][]byte{
		"version 3":          ctx(func(b []byte) { b[0] = 3 }),
		"version 2, 168":     ctx(func(b []byte) { b[0] = 2 }),
		"version 1, 169":     append(ctx(func([]byte) {}), 0),
		"host name 128":      ctx(func(b []byte) { b[40] = 128 }),
		"host name odd":      ctx(func(b []byte) { b[40] = 15 }),
		"host name enormous": ctx(func(b []byte) { b[41] = 0xFF }),
	} {
		if _, err := ParseOpenContextResponse(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b := unhex(t, conflictReply, 36)
	b[5] = 21
	if _, err := ParseSCSIResponse(b); !errors.Is(err, ErrMalformed) {
		t.Errorf("21 bytes of sense: %v", err)
	}
	b[5], b[15] = 20, 0xFF // four gigabytes of data promised
	if _, err := ParseSCSIResponse(b); !errors.Is(err, ErrMalformed) {
		t.Errorf("data beyond the end: %v", err)
	}
	if _, err := ParseSRBStatusResponse([]byte{1, 2, 2, 21, 30: 0}); !errors.Is(err, ErrMalformed) {
		t.Errorf("SRB status with 21 bytes of sense: %v", err)
	}
}

func FuzzParseOpenContextResponse(f *testing.F) {
	f.Add(unhex(f, v1Context, 168))
	f.Add(append(unhex(f, v2Context, 168), unhex(f, v2Properties, 24)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseOpenContextResponse(b)
		if err != nil {
			return
		}
		again := r.Append(nil)
		if r.Version == Version2 && len(again) != OpenContextV2Size || r.Version == Version1 && len(again) != OpenContextV1Size {
			t.Fatalf("version %d encodes to %d bytes", r.Version, len(again))
		}
	})
}

func FuzzParseSCSIResponse(f *testing.F) {
	f.Add(unhex(f, capacityReply, 44))
	f.Add(unhex(f, conflictReply, 36))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseSCSIResponse(b)
		if err != nil {
			return
		}
		h, off, err := ParseSCSIResponseHead(b[:min(len(b), SCSIResponseSize)], len(b))
		if err != nil || off+int(h.DataTransferLength) > len(b) || int(h.DataTransferLength) != len(r.Data) {
			t.Fatalf("head and whole differ: %+v %d %v", h, off, err)
		}
	})
}

func FuzzParseInfoResponses(f *testing.F) {
	f.Add(unhex(f, infoReply, 24))
	f.Add(unhex(f, srbReply, 24))
	f.Add(make([]byte, 56))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = ParseResponseHeader(b)
		_, _ = ParseSupportResponse(b)
		_, _ = ParseInitialInfoResponse(b)
		_, _ = ParseDiskInfoResponse(b)
		_, _ = ParseValidateDiskResponse(b)
		if r, err := ParseSRBStatusResponse(b); err == nil && len(r.Sense) > MaxSense {
			t.Fatal("too much sense data")
		}
	})
}
