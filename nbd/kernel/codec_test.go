package kernel

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The attributes of a CONNECT, byte by byte as linux/nbd-netlink.h and linux/netlink.h have them (little-endian machines).
func TestConnectAttributes(t *testing.T) {
	littleEndian(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	c := Config{Index: 3, Size: 1 << 20, BlockSize: 512, Flags: SendFlush | CanMultiConn, ClientFlags: DisconnectOnClose,
		Timeout: 1500 * time.Millisecond, DeadConnTimeout: time.Minute, Backend: "vd1", Sockets: []*os.File{r, w}}
	fd := func(f *os.File) string { return hex.EncodeToString([]byte{byte(f.Fd()), 0, 0, 0}) }
	want := strings.Join([]string{
		"0800 0100 03000000",
		"0c00 0200 0000100000000000",
		"0c00 0300 0002000000000000",
		"0c00 0500 0501000000000000", // HAS_FLAGS is always there
		"0c00 0600 0200000000000000",
		"0c00 0400 0200000000000000", // rounded up
		"0c00 0800 3c00000000000000",
		"0800 0a00 76643100",
		"1c00 0780 0c00 0180 0800 0100" + fd(r) + "0c00 0180 0800 0100" + fd(w),
	}, "")
	if got := hex.EncodeToString(c.attrs()); got != strings.ReplaceAll(want, " ", "") {
		t.Errorf("attributes\n%s, want\n%s", got, strings.ReplaceAll(want, " ", ""))
	}
	c.Index = Any
	if got := hex.EncodeToString(c.attrs()); !strings.HasPrefix(got, "0c000200") {
		t.Errorf("a device is named though any will do: %s", got)
	}
	// The string is padded to four bytes, but its length is its own.
	if got := hex.EncodeToString(appendString(nil, attrBackend, "vdbr")); got != "09000a007664627200000000" {
		t.Errorf("string %s", got)
	}
}

func littleEndian(t *testing.T) {
	if b := appendU32(nil, 1, 1); b[4] != 1 {
		t.Skip("the bytes are written down for little-endian machines")
	}
}

// A GETFAMILY reply as a kernel gives it.
func TestFamilyReply(t *testing.T) {
	attrs := appendString(nil, unix.CTRL_ATTR_FAMILY_NAME, "nbd")
	attrs = appendAttr(attrs, unix.CTRL_ATTR_FAMILY_ID, 0x1c, 0)
	one := appendU32(appendString(nil, unix.CTRL_ATTR_MCAST_GRP_NAME, "other"), unix.CTRL_ATTR_MCAST_GRP_ID, 4)
	two := appendString(appendU32(nil, unix.CTRL_ATTR_MCAST_GRP_ID, 5), unix.CTRL_ATTR_MCAST_GRP_NAME, groupName)
	attrs = appendAttr(attrs, unix.CTRL_ATTR_MCAST_GROUPS|attrNested, append(appendAttr(nil, 1|attrNested, one...), appendAttr(nil, 2|attrNested, two...)...)...)
	littleEndian(t)
	id, group, err := parseFamily(attrs, groupName)
	if err != nil || id != 0x1c || group != 5 {
		t.Errorf("family %#x, group %d, %v", id, group, err)
	}
}

func TestMessages(t *testing.T) {
	const seq = 7
	answer := message(0x1c, 0, seq, cmdConnect, appendU32(nil, attrIndex, 2))
	ack := func(seq uint32, errno int32) []byte {
		b := message(unix.NLMSG_ERROR, 0, seq, 0, nil)
		b = append(b[:unix.NLMSG_HDRLEN], byte(-errno), byte(-errno>>8), byte(-errno>>16), byte(-errno>>24))
		b[0] = byte(len(b))
		return b
	}
	littleEndian(t)
	for _, tc := range []struct {
		name string
		in   []byte
		done bool
		err  error
		got  int
	}{
		{"an answer", answer, false, nil, 1},
		{"an answer and its acknowledgement", slices.Concat(answer, ack(seq, 0)), true, nil, 1},
		{"a refusal", ack(seq, 16), true, syscall.EBUSY, 0},
		{"an earlier request's refusal", ack(seq-1, 16), false, nil, 0},
		{"nothing", nil, false, nil, 0},
	} {
		got := 0
		done, err := eachMessage(tc.in, seq, func(cmd uint8, attrs []byte) {
			if cmd == cmdConnect && len(attrs) == 8 {
				got++
			}
		})
		if done != tc.done || !errors.Is(err, tc.err) || got != tc.got {
			t.Errorf("%s: done %v, %v, %d answers", tc.name, done, err, got)
		}
	}
	for n := 1; n < len(answer); n++ {
		if done, _ := eachMessage(answer[:n], seq, func(uint8, []byte) { t.Errorf("%d of %d bytes are a message", n, len(answer)) }); done {
			t.Errorf("%d bytes are the end", n)
		}
	}
}

func TestDeviceList(t *testing.T) {
	item := func(index uint32, up byte) []byte {
		return appendAttr(appendU32(nil, attrDeviceIndex, index), attrDeviceConnected, up)
	}
	list := appendAttr(appendAttr(nil, attrDeviceItem|attrNested, item(0, 1)...), attrDeviceItem|attrNested, item(17, 0)...)
	got, err := parseDevices(nil, appendAttr(nil, attrDeviceList|attrNested, list...))
	if want := []Device{{0, true}, {17, false}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestConfigsThatMakeNoSense(t *testing.T) {
	good := Config{Index: Any, Size: 4096, BlockSize: 4096, Sockets: []*os.File{os.Stdin}}
	if err := good.check(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Config){
		"no socket":      func(c *Config) { c.Sockets = nil },
		"block size":     func(c *Config) { c.BlockSize = 256 },
		"not a power":    func(c *Config) { c.BlockSize = 1536 },
		"larger pages":   func(c *Config) { c.BlockSize = 8192 },
		"no size":        func(c *Config) { c.Size = 0 },
		"half a block":   func(c *Config) { c.Size = 4096 + 512 },
		"negative":       func(c *Config) { c.Size = -4096 },
		"negative index": func(c *Config) { c.Index = -2 },
	} {
		c := good
		change(&c)
		if c.check() == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// What the kernel sends is trusted in its meaning, not in its lengths.
func FuzzMessages(f *testing.F) {
	item := appendAttr(appendU32(nil, attrDeviceIndex, 1), attrDeviceConnected, 1)
	list := appendAttr(nil, attrDeviceList|attrNested, appendAttr(nil, attrDeviceItem|attrNested, item...)...)
	f.Add(message(0x1c, 0, 7, cmdStatus, list))
	f.Add(message(0x1c, 0, 7, cmdConnect, appendU32(nil, attrIndex, 2)))
	f.Add(message(unix.NLMSG_ERROR, 0, 7, 0, nil))
	f.Add(message(ctrlFamily, 0, 7, 1, appendAttr(nil, unix.CTRL_ATTR_MCAST_GROUPS, appendAttr(nil, 1, appendString(nil, 1, groupName)...)...)))
	f.Fuzz(func(t *testing.T, b []byte) {
		in := bytes.Clone(b)
		_, _ = eachMessage(b, 0, func(_ uint8, attrs []byte) {
			devices, _ := parseDevices(nil, attrs)
			for _, d := range devices {
				if d.Index < 0 {
					t.Errorf("device %d", d.Index)
				}
			}
			_, _, _ = parseFamily(attrs, groupName)
		})
		if !bytes.Equal(in, b) {
			t.Error("the message was changed")
		}
	})
}
