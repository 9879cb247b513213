package wire

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestCreateContextData(t *testing.T) {
	id := FileID{0x0807060504030201, 0x100F0E0D0C0B0A09}
	guid := GUID{0xA0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0xAF}
	const guidHex = "A0010203 04050607 08090A0B 0C0D0EAF"
	const idHex = "01020304 05060708 090A0B0C 0D0E0F10"
	for _, c := range []struct {
		what string
		got  []byte
		want string
	}{
		{"DH2Q", AppendDurableRequest2(nil, DurableRequest2{Timeout: 60000, Flags: DurablePersistent, CreateGUID: guid}),
			"60EA0000 02000000 0000000000000000" + guidHex},
		{"DH2C", AppendDurableConnect2(nil, DurableConnect2{FileID: id, CreateGUID: guid, Flags: DurablePersistent}), idHex + guidHex + "02000000"},
		{"application instance", AppendAppInstanceID(nil, guid), "1400 0000" + guidHex},
		{"application version", AppendAppInstanceVersion(nil, 0x0102, 0x0304), "1800 0000 00000000 0201000000000000 0403000000000000"},
		{"lease 1", AppendLease(nil, Lease{Key: guid, State: LeaseRead | LeaseHandle, Version: 1}), guidHex + "03000000 00000000 0000000000000000"},
		{"lease 2", AppendLease(nil, Lease{Key: guid, State: 7, Flags: LeaseParentKeySet, Parent: guid, Epoch: 0x0201, Version: 2}),
			guidHex + "07000000 04000000 0000000000000000" + guidHex + "0102 0000"},
		{"lease acknowledgment", AppendLeaseBreakAck(nil, LeaseBreakAck{Key: guid, State: LeaseRead}),
			"2400 0000 00000000" + guidHex + "01000000 0000000000000000"},
	} {
		golden(t, c.what, c.got, c.want)
	}
}

// createReplies are what the decoders of create contexts and of what goes with them take, with what they make of it.
func createReplies() []struct {
	what   string
	in     string
	decode func([]byte) (any, error)
	want   any
} {
	guid := GUID{0xA0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0xAF}
	const guidHex = "A0010203 04050607 08090A0B 0C0D0EAF"
	const header = "FE534D42 4000 0000 00000000 1200 0000 00000000 00000000 FFFFFFFFFFFFFFFF 00000000 00000000 0000000000000000 00000000000000000000000000000000"
	as := func(v any, err error) (any, error) { return v, err }
	return []struct {
		what   string
		in     string
		decode func([]byte) (any, error)
		want   any
	}{
		{"durable", "10270000 02000000", func(b []byte) (any, error) { return as(ParseDurableResponse2(b)) }, DurableResponse2{10000, DurablePersistent}},
		{"lease 1", guidHex + "03000000 02000000 0000000000000000", func(b []byte) (any, error) { return as(ParseLease(b)) },
			Lease{Key: guid, State: 3, Flags: LeaseBreakInProgress, Version: 1}},
		{"lease 2", guidHex + "07000000 04000000 0000000000000000" + guidHex + "0102 0000", func(b []byte) (any, error) { return as(ParseLease(b)) },
			Lease{Key: guid, State: 7, Flags: LeaseParentKeySet, Version: 2, Parent: guid, Epoch: 0x0201}},
		{"lease break", header + "2C00 0500 01000000" + guidHex + "07000000 01000000 00000000 00000000 00000000",
			func(b []byte) (any, error) { return as(ParseLeaseBreak(b)) },
			LeaseBreak{NewEpoch: 5, Flags: LeaseBreakAckRequired, Key: guid, Current: 7, New: 1}},
		{"lease break reply", header + "2400 0000 00000000" + guidHex + "03000000 0000000000000000",
			func(b []byte) (any, error) { return as(ParseLeaseBreakResponse(b)) }, LeaseBreakAck{guid, 3}},
		{"interfaces", "98000000 02000000 03000000 00000000 00E40B5402000000 0200 0000 C0A80A14" + strings.Repeat("00", 120) +
			"98000000 03000000 00000000 00000000 0010A5D400000000 9900" + strings.Repeat("00", 126) +
			"00000000 04000000 01000000 00000000 00CA9A3B00000000 1700 0000 00000000 20010DB8000000000000000000000001 05000000" + strings.Repeat("00", 100),
			func(b []byte) (any, error) { return as(ParseNetworkInterfaces(b)) },
			[]NetworkInterface{
				{2, InterfaceRSS | InterfaceRDMA, 10e9, netip.MustParseAddr("192.168.10.20")},
				{4, InterfaceRSS, 1e9, netip.MustParseAddr("2001:db8::1")},
			}},
	}
}

func TestCreateReplies(t *testing.T) {
	for _, c := range createReplies() {
		b, err := hex.DecodeString(strings.Join(strings.Fields(c.in), ""))
		if err != nil {
			t.Fatal(c.what, err)
		}
		if got, err := c.decode(b); err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, %v, want %+v", c.what, got, err, c.want)
		}
		for n := range b {
			if c.what == "interfaces" && (n == 0 || n >= 304+52) {
				continue // none, or only the reserved end is missing
			}
			if got, err := c.decode(slices.Clip(b[:n])); c.what != "lease 2" && !errors.Is(err, ErrMalformed) {
				t.Errorf("%s: %d of %d bytes: %+v, %v", c.what, n, len(b), got, err)
			}
		}
	}
	for what, change := range map[string]func(b []byte){
		"next not aligned": func(b []byte) { b[0] = 0x99 },
		"next too short":   func(b []byte) { b[0] = 0x90 },
		"next beyond":      func(b []byte) { b[3] = 1 },
	} {
		all := createReplies()
		b, _ := hex.DecodeString(strings.Join(strings.Fields(all[len(all)-1].in), ""))
		change(b)
		if _, err := ParseNetworkInterfaces(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for n, want := range map[int]bool{44: true, 36: true, 24: false} {
		b := make([]byte, HeaderSize+n)
		b[HeaderSize] = byte(n)
		if IsLeaseBreak(b) != want {
			t.Errorf("size %d: %v", n, !want)
		}
	}
	if IsLeaseBreak(make([]byte, HeaderSize+1)) {
		t.Error("a message that is cut off is taken for a lease break")
	}
}

// FuzzCreateReplies feeds arbitrary bytes to the decoders.
func FuzzCreateReplies(f *testing.F) {
	for _, c := range createReplies() {
		b, _ := hex.DecodeString(strings.Join(strings.Fields(c.in), ""))
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, c := range createReplies() {
			_, _ = c.decode(b)
		}
		if list, err := ParseNetworkInterfaces(b); err == nil && len(list)*interfaceFixed > len(b) {
			t.Errorf("%d addresses of %d bytes", len(list), len(b))
		}
		IsLeaseBreak(b)
		if l, err := ParseLease(b); err == nil {
			if again, err := ParseLease(AppendLease(nil, l)); err != nil || again.Key != l.Key || again.State != l.State || again.Epoch != l.Epoch {
				t.Errorf("%+v became %+v, %v", l, again, err)
			}
		}
	})
}
