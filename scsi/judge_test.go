package scsi

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// tool finds a program of sg3-utils.
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

// sg_decode_sense reads our CDBs and sense data, and says the names that we say.
func TestForeignDecoder(t *testing.T) {
	decode := tool(t, "sg_decode_sense")
	run := func(args ...string) string {
		out, err := exec.Command(decode, args...).CombinedOutput()
		if err != nil {
			t.Errorf("sg_decode_sense %v: %v\n%s", args, err, out)
		}
		return strings.ToLower(string(out))
	}
	simple := strings.NewReplacer("(", " ", ")", " ", ",", " ", "-", " ", "medium", "", "reserve in", "reserve in").Replace
	words := func(s string) string { return strings.Join(strings.Fields(simple(strings.ToLower(s))), " ") }
	for _, g := range goldenCDBs {
		got := words(run("--cdb", "--nospace", fmt.Sprintf("%x", g.cdb.Bytes())))
		want := words(g.name)
		switch g.cdb.Op() { // sg3-utils says these shorter, or otherwise
		case OpPersistentReserveIn:
			want = "persistent reserve in read full status"
		case OpSynchronizeCache10, OpMaintenanceIn, OpPreventAllow:
			want = strings.Fields(want)[0]
		}
		if !strings.Contains(got, want) {
			t.Errorf("%s: sg_decode_sense says %q", g.name, got)
		}
	}
	for _, s := range []Sense{
		NewSense(IllegalRequest, CodeInvalidFieldInCDB).WithCDBBit(2, 5),
		NewSense(IllegalRequest, CodeInvalidOpCode).WithCDBField(0),
		NewSense(IllegalRequest, CodeLBAOutOfRange).WithInfo(0x12345),
		NewSense(IllegalRequest, CodeInvalidRelease),
		NewSense(IllegalRequest, CodeInsufficientRegistrations),
		NewSense(IllegalRequest, CodeParameterListLength),
		NewSense(IllegalRequest, CodeInvalidFieldInParams).WithParamField(20),
		NewSense(UnitAttention, CodeReservationsPreempted),
		NewSense(UnitAttention, CodeReservationsReleased),
		NewSense(UnitAttention, CodeRegistrationsPreempted),
		NewSense(UnitAttention, CodeCapacityChanged),
		NewSense(UnitAttention, CodePowerOn),
		NewSense(UnitAttention, CodeOperatingDefinitionChanged),
		NewSense(DataProtect, CodeWriteProtected),
		NewSense(DataProtect, CodeSpaceAllocation),
		NewSense(MediumError, CodeUnrecoveredRead).WithInfo(7),
		NewSense(MediumError, CodeWriteError),
		NewSense(HardwareError, CodeInternalTargetFailure),
		NewSense(Miscompare, CodeMiscompare).WithInfo(511),
	} {
		for _, b := range [][]byte{s.AppendFixed(nil), s.AppendDescriptor(nil)} {
			got := words(run("--nospace", fmt.Sprintf("%x", b)))
			for _, want := range []string{words(s.Key.String()), words(s.Code().String())} {
				if !strings.Contains(got, want) {
					t.Errorf("%v: no %q in what sg_decode_sense says: %q", s, want, got)
				}
			}
			if s.FieldValid && !strings.Contains(got, fmt.Sprintf("byte %d", s.Field)) {
				t.Errorf("%v: no field pointer in %q", s, got)
			}
			for _, complaint := range []string{"malformed", "unknown", "truncat", "reserved"} {
				if strings.Contains(got, complaint) {
					t.Errorf("%v: sg_decode_sense complains: %q", s, got)
				}
			}
		}
	}
}
