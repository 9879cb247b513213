package client_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vdbridge/client"
	"vdbridge/smb/pcap"
	"vdbridge/smb/transport"
	"vdbridge/smb/wire"
	"vdbridge/test/smbd"
)

// TestWireshark has Wireshark's dissector read what client and smbd say to each other: nothing may be malformed, and the order of
// the commands is that of the specification.
func TestWireshark(t *testing.T) {
	tshark, err := exec.LookPath("tshark")
	if err != nil {
		if os.Getenv(smbd.RequireEnv) == "1" {
			t.Fatal("tshark is not installed")
		}
		t.Skip("SKIPPED, NOT TESTED: tshark is not installed (Debian: apt-get install tshark)")
	}
	s := smbd.Start(t, smbd.Options{})
	for name, cfg := range map[string]client.Config{"signed": {}, "sealed": {Seal: true}, "3.0": {MaxDialect: wire.Dialect300}, "2.0.2": {MinDialect: wire.Dialect202, MaxDialect: wire.Dialect202}} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "capture.pcap")
			w, err := pcap.Create(file)
			if err != nil {
				t.Fatal(err)
			}
			cfg.Tap = func(local, remote net.Addr) transport.Tap { return w.Connection(local, remote, false) }
			cfg.SessionKey = w.SessionKey
			ctx := testContext(t)
			tree := connect(t, s, cfg)
			f := openFile(t, tree, "captured")
			if _, err := f.WriteAt(ctx, random(1, 5000), 0); err != nil {
				t.Fatal(err)
			}
			if _, err := f.ReadAt(ctx, make([]byte, 5000), 0); err != nil {
				t.Fatal(err)
			}
			if _, err := f.Stat(ctx); err != nil {
				t.Fatal(err)
			}
			if err := f.Truncate(ctx, 10); err != nil {
				t.Fatal(err)
			}
			if _, err := f.AllocatedRanges(ctx, 0, 10); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := tree.FSInfo(ctx); err != nil {
				t.Fatal(err)
			}
			if err := tree.Session().Conn().Close(); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			keys, err := os.ReadFile(file + ".keys")
			if err != nil {
				t.Fatal(err)
			}
			args := []string{"-r", file, "-d", "tcp.port==" + s.Addr[strings.LastIndexByte(s.Addr, ':')+1:] + ",nbss", "-T", "fields", "-e", "smb2.cmd", "-e", "smb2.flags.response", "-e", "_ws.malformed", "-e", "_ws.expert.message"}
			for _, line := range strings.Fields(string(keys)) {
				args = append(args, "-o", "uat:smb2_seskey_list:"+line)
			}
			out, err := exec.Command(tshark, args...).Output()
			if err != nil {
				t.Fatal(err)
			}
			if text := string(out); strings.Contains(strings.ToLower(text), "malformed") {
				t.Errorf("malformed:\n%s", text)
			}
			var cmds []string
			for _, line := range strings.Split(string(out), "\n") {
				if f := strings.Split(line, "\t"); len(f) > 1 && (f[1] == "0" || f[1] == "False") {
					cmds = append(cmds, f[0])
				}
			}
			// The requests. VALIDATE_NEGOTIATE_INFO, an IOCTL, is there only for 3.0.
			want := "0 1 1 3 5 9 8 16 17 11 6 5 16 16 16 16 6 4 2"
			if name == "3.0" {
				want = strings.Replace(want, "3 5", "3 11 5", 1)
			}
			if got := strings.Join(cmds, " "); got != want {
				t.Errorf("commands\n got %s\nwant %s\n%s", got, want, out)
			}
		})
	}
}
