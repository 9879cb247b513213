package ntstatus

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	seen := make(map[string]Status)
	for s, n := range names {
		if !strings.HasPrefix(n, "STATUS_") {
			t.Errorf("%#08x has the name %q", uint32(s), n)
		}
		if other, ok := seen[n]; ok {
			t.Errorf("%s is %#08x and %#08x", n, uint32(s), uint32(other))
		}
		seen[n] = s
		if s.String() != n || s.Error() != n {
			t.Errorf("%s prints as %q", n, s.String())
		}
	}
	if got := Status(0xC0001234).String(); got != "NTSTATUS 0xc0001234" {
		t.Errorf("unknown status prints as %q", got)
	}
	if got := Status(0xC05C0042).String(); got != "STATUS_SVHDX_ERROR_STORED|0x42" {
		t.Errorf("stored sense prints as %q", got)
	}
}

// TestWireshark compares names and numbers with those that Wireshark has, which were not made by us.
func TestWireshark(t *testing.T) {
	path, err := exec.LookPath("tshark")
	if err != nil {
		if os.Getenv("VDBRIDGE_REQUIRE_TOOLS") == "1" {
			t.Fatal("tshark is missing; install the Debian package tshark")
		}
		t.Skip("SKIPPED: tshark judges our NTSTATUS values, and it is missing; install the Debian package tshark")
	}
	out, err := exec.Command(path, "-G", "values").Output()
	if err != nil {
		t.Fatal(err)
	}
	known := make(map[Status]string)
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		f := strings.Split(s.Text(), "\t")
		if len(f) == 4 && f[0] == "V" && f[1] == "smb2.nt_status" {
			n, err := strconv.ParseUint(f[2], 0, 32)
			if err != nil {
				t.Fatal(err)
			}
			known[Status(n)] = f[3]
		}
	}
	if len(known) < 500 {
		t.Fatalf("only %d values found", len(known))
	}
	checked := 0
	for s, n := range names {
		if want, ok := known[s]; ok {
			checked++
			if want != n {
				t.Errorf("%#08x is %s for us and %s for Wireshark", uint32(s), n, want)
			}
		} else if uint32(s)>>16 != 0xC05C {
			t.Logf("Wireshark does not know %s (%#08x)", n, uint32(s))
		}
	}
	t.Logf("%d of %d names checked", checked, len(names))
	if checked < len(names)*2/3 {
		t.Errorf("only %d of %d names could be checked", checked, len(names))
	}
}

func TestErrors(t *testing.T) {
	if Success.Err() != nil || AccessDenied.Err() != error(AccessDenied) {
		t.Error("Err")
	}
	err := fmt.Errorf("open disk: %w", ObjectNameNotFound)
	if !errors.Is(err, ObjectNameNotFound) || errors.Is(err, AccessDenied) {
		t.Error("errors.Is does not find the status")
	}
	if s, ok := Of(err); !ok || s != ObjectNameNotFound {
		t.Errorf("Of: %v, %v", s, ok)
	}
	if s, ok := Of(fs.ErrExist); ok {
		t.Errorf("Of finds %v where there is none", s)
	}
	for _, v := range []struct {
		s    Status
		want error
	}{
		{ObjectNameNotFound, fs.ErrNotExist}, {ObjectPathNotFound, fs.ErrNotExist}, {NoSuchFile, fs.ErrNotExist}, {BadNetworkName, fs.ErrNotExist},
		{ObjectNameCollision, fs.ErrExist}, {AccessDenied, fs.ErrPermission}, {MediaWriteProtected, fs.ErrPermission}, {FileClosed, fs.ErrClosed},
	} {
		for _, e := range []error{fs.ErrNotExist, fs.ErrExist, fs.ErrPermission, fs.ErrClosed} {
			if errors.Is(v.s, e) != (e == v.want) {
				t.Errorf("%v as %v", v.s, e)
			}
		}
	}
}

func TestClasses(t *testing.T) {
	for s, want := range map[Status]bool{Success: false, Pending: false, BufferOverflow: false, NoMoreFiles: false, AccessDenied: true,
		MoreProcessingRequired: true, SVHDXErrorStored: true} {
		if s.IsError() != want {
			t.Errorf("%v is an error: %v", s, !want)
		}
	}
	// [MS-RSVD] 2.2.3: the last byte is the key.
	for _, s := range []Status{SVHDXErrorStored, SVHDXErrorStored | 0x42, SVHDXErrorStored | 0xFF} {
		if key, ok := s.StoredSense(); !ok || key != byte(s) {
			t.Errorf("%#08x: %#x, %v", uint32(s), key, ok)
		}
	}
	for _, s := range []Status{SVHDXErrorNotAvailable, SVHDXReservationConflict, Success, 0xC05C0100, 0x405C0001} {
		if _, ok := s.StoredSense(); ok {
			t.Errorf("%#08x passes for stored sense", uint32(s))
		}
	}
}
