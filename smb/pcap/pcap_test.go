package pcap

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vdbridge/smb/transport"
	"vdbridge/smb/wire"
)

// echoRequest is a whole ECHO message: the smallest that a dissector accepts.
func echoMessage(id uint64, reply bool) []byte {
	h := wire.Header{Command: wire.CmdEcho, MessageID: id, Credits: 1}
	if reply {
		h.Flags = wire.FlagServerToRedir
	}
	b := make([]byte, wire.HeaderSize, wire.HeaderSize+4)
	h.Put(b)
	return append(b, 4, 0, 0, 0)
}

func tshark(t *testing.T, args ...string) string {
	t.Helper()
	exe, err := exec.LookPath("tshark")
	if err != nil {
		if os.Getenv("VDBRIDGE_REQUIRE_TOOLS") != "" {
			t.Fatal("tshark is missing: apt-get install tshark")
		}
		t.Skip("tshark is missing (apt-get install tshark): nothing judges the capture")
	}
	var stderr bytes.Buffer
	cmd := exec.Command(exe, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v\n%s", err, &stderr)
	}
	return string(out)
}

func TestTsharkDecodesTheCapture(t *testing.T) {
	for _, tc := range []struct {
		name          string
		local, remote net.Addr
		server        bool
	}{
		{"client over IPv4", &net.TCPAddr{IP: net.IPv4(10, 0, 0, 2), Port: 50000}, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 4450}, false},
		{"server over IPv6", &net.TCPAddr{IP: net.ParseIP("fd00::1"), Port: 445}, &net.TCPAddr{IP: net.ParseIP("fd00::2"), Port: 50001}, true},
		{"no IP at all", &net.UnixAddr{Name: "a", Net: "unix"}, &net.UnixAddr{Name: "b", Net: "unix"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "c.pcap")
			w, err := Create(path)
			if err != nil {
				t.Fatal(err)
			}
			c := w.Connection(tc.local, tc.remote, tc.server)
			say := func(id uint64) {
				req, rep := echoMessage(id, false), echoMessage(id, true)
				if tc.server {
					c.Received(req[:10], len(req)-10)
					c.Received(req[10:], 0)
					c.Sent(transport.Message{rep})
				} else {
					c.Sent(transport.Message{req[:64], req[64:]})
					c.Received(rep, 0)
				}
			}
			for i := range uint64(3) {
				say(i)
			}
			c.Closed()
			w.SessionKey(0x0102030405060708, []byte("0123456789abcdef"))
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			say(9) // dropped, not a crash

			out := tshark(t, "-r", path, "-Y", "smb2", "-T", "fields", "-e", "smb2.cmd", "-e", "smb2.flags.response", "-e", "smb2.msg_id")
			want := "13\t0\t0\n13\t1\t0\n13\t0\t1\n13\t1\t1\n13\t0\t2\n13\t1\t2\n"
			if out != want {
				t.Errorf("tshark saw\n%swant\n%s", out, want)
			}
			bad := tshark(t, "-r", path, "-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE",
				"-Y", "_ws.malformed || tcp.analysis.flags || tcp.checksum.status == 0 || ip.checksum.status == 0")
			if bad != "" {
				t.Errorf("tshark finds fault with\n%s", bad)
			}
			opts, err := DecryptOptions(path)
			if err != nil || len(opts) != 2 || !strings.Contains(opts[1], "0807060504030201,30313233") {
				t.Errorf("DecryptOptions = %q, %v", opts, err)
			}
			tshark(t, append([]string{"-r", path}, opts...)...)
		})
	}
}

func TestLargeMessagesAreSegmented(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.pcap")
	w, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	c := w.Connection(nil, nil, false)
	c.Sent(transport.Message{echoMessage(0, false), make([]byte, 1<<20)})
	c.Received(echoMessage(0, true), 0)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if out := tshark(t, "-r", path, "-Y", "tcp.analysis.flags"); out != "" {
		t.Errorf("tshark finds fault with\n%s", out)
	}
	out := tshark(t, "-r", path, "-Y", "smb2", "-T", "fields", "-e", "smb2.flags.response")
	if out != "0\n1\n" {
		t.Errorf("messages %q", out)
	}
}

func TestCaptureIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.pcap")
	w, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, p := range []string{path, path + ".keys"} {
		st, err := os.Stat(p)
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", filepath.Base(p), st.Mode(), err)
		}
	}
}
