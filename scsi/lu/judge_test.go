package lu

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vdbridge/scsi"
	"vdbridge/scsi/lu/lutest"
)

func tool(t *testing.T, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("VDBRIDGE_REQUIRE_TOOLS") == "1" {
			t.Fatalf("%s is missing (package sg3-utils)", name)
		}
		t.Skipf("SKIPPED: %s is missing (package sg3-utils); our bytes are not judged by it", name)
	}
	return p
}

// sg_inq, sg_vpd and sg_get_lba_status decode what the unit returns, see the same values, and complain of nothing.
func TestForeignDecoders(t *testing.T) {
	d := lutest.New(1 << 30)
	d.Optimal = 1 << 20
	l := newLU(t, d, Options{ID: [16]byte{0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xAA, 0xBB, 0xCC, 0xDD, 0xEE, 0xF0, 0x01}, Thin: true, MaxTransfer: 8 << 20})
	n := l.Attach(idA, false)
	list := scsi.AppendUnmapList(nil, scsi.UnmapRange{LBA: 64, Blocks: 64})
	mustGood(t, n, scsi.Unmap(uint16(len(list))), list...)
	for _, tt := range []struct {
		name string
		tool string
		args []string
		cdb  scsi.CDB
		want []string
	}{
		{"INQUIRY", "sg_inq", []string{"--descriptors", "-v"}, scsi.Inquiry(255), []string{"VDBRIDGE", "Virtual Disk", "CmdQue=1", "SPC-4", "SBC-3", "SAM-5", "PDT=0"}},
		{"VPD 00", "sg_vpd", []string{"--page=sv"}, scsi.InquiryVPD(scsi.VPDSupportedPages, 255), []string{"Supported VPD pages", "Unit serial number", "Device identification", "Block limits", "Block device characteristics", "Logical block provisioning"}},
		{"VPD 80", "sg_vpd", []string{"--page=sn"}, scsi.InquiryVPD(scsi.VPDUnitSerialNumber, 255), []string{"112233445566778899aabbccddeef001"}},
		{"VPD 83", "sg_vpd", []string{"--page=di"}, scsi.InquiryVPD(scsi.VPDDeviceIdentification, 255), []string{"vendor id: VDBRIDGE", "Locally assigned", "44332211-6655-8877-99aa-bbccddeef001", "Relative target port: 0x1"}},
		{"VPD B0", "sg_vpd", []string{"--page=bl"}, scsi.InquiryVPD(scsi.VPDBlockLimits, 255), []string{"Maximum compare and write length: 128", "granularity: 8 blocks", "Maximum transfer length: 16384 blocks", "Optimal transfer length: 2048 blocks", "WSNZ): 1"}},
		{"VPD B1", "sg_vpd", []string{"--page=bdc"}, scsi.InquiryVPD(scsi.VPDBlockCharacteristics, 255), []string{"Non-rotating medium"}},
		{"VPD B2", "sg_vpd", []string{"--page=lbpv"}, scsi.InquiryVPD(scsi.VPDLogicalBlockProvisioning, 255), []string{"LBPU): 1", "LBPWS): 1", "LBPRZ): 1", "thin"}},
		{"GET LBA STATUS", "sg_get_lba_status", []string{"--lba=0", "--maxlen=255"}, scsi.GetLBAStatus(0, 255), []string{"deallocated", "mapped"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "hex")
			var text strings.Builder
			for i, b := range mustGood(t, n, tt.cdb) {
				fmt.Fprintf(&text, "%02x", b)
				if i%16 == 15 {
					text.WriteByte('\n')
				} else {
					text.WriteByte(' ')
				}
			}
			text.WriteByte('\n')
			if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command(tool(t, tt.tool), append(tt.args, "--inhex="+path)...).CombinedOutput()
			if err != nil {
				t.Fatalf("%s: %v\n%s", tt.tool, err, out)
			}
			for _, w := range tt.want {
				if !strings.Contains(string(out), w) {
					t.Errorf("%s does not say %q:\n%s", tt.tool, w, out)
				}
			}
			for _, bad := range []string{"too short", "malformed", "expected", "unknown", "error", "decode failed", "truncat", "short ["} {
				if strings.Contains(strings.ReplaceAll(strings.ToLower(string(out)), "(or unknown)", ""), bad) {
					t.Errorf("%s complains (%q):\n%s", tt.tool, bad, out)
				}
			}
		})
	}
}
