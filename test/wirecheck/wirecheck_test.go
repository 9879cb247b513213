package wirecheck

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"vdbridge/test/lab"
)

// The create contexts by which a shared disk is opened, [MS-SMB2] 2.2.13.2, and FSCTL codes, [MS-RSVD] 2.2.1.
const (
	fsctlSupport = "0x00090300" // FSCTL_QUERY_SHARED_VIRTUAL_DISK_SUPPORT
	fsctlTunnel  = "0x00090304" // FSCTL_SVHDX_SYNC_TUNNEL_REQUEST
)

// session is one capture: a disk is opened, written and read through an NBD export, and closed.
type session struct {
	name   string
	serve  []string // more arguments of vdbridge serve
	nbd    []string // more arguments of vdbridge nbd
	shared bool
	sealed bool
	gmac   bool // signed by AES-GMAC, which tshark cannot verify
}

var sessions = []session{
	{name: "plain-3.1.1-signed", nbd: []string{"--mode", "file"}, gmac: true},
	{name: "plain-3.1.1-sealed", nbd: []string{"--mode", "file", "--encrypt"}, sealed: true},
	{name: "plain-3.0-signed", nbd: []string{"--mode", "file", "--max-dialect", "3.0"}},
	{name: "plain-3.0-sealed", nbd: []string{"--mode", "file", "--max-dialect", "3.0", "--encrypt"}, sealed: true},
	{name: "shared-3.1.1-signed-scsi", nbd: []string{"--mode", "rsvd", "--io", "scsi"}, shared: true, gmac: true},
	{name: "shared-3.1.1-signed-smb", nbd: []string{"--mode", "rsvd", "--io", "smb"}, shared: true, gmac: true},
	{name: "shared-3.1.1-sealed-scsi", nbd: []string{"--mode", "rsvd", "--io", "scsi", "--encrypt"}, shared: true, sealed: true},
	{name: "shared-3.0.2-signed-scsi", nbd: []string{"--mode", "rsvd", "--io", "scsi", "--max-dialect", "3.0.2"}, shared: true},
	{name: "shared-3.1.1-server-insists-on-sealing", serve: []string{"--encrypt"}, nbd: []string{"--mode", "rsvd"}, shared: true, sealed: true},
}

// TestUseCases captures the six use cases of [MS-VSOD] section 3 (open, write and read, close, of a plain disk and of a shared one), on the client's
// and on the server's side, and checks both.
func TestUseCases(t *testing.T) {
	lab.Need(t, "tshark", "qemu-img", "qemu-io")
	bin := lab.Vdbridge(t)
	for _, s := range sessions {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			clientSide, serverSide := capture(t, bin, s)
			for side, file := range map[string]string{"client": clientSide, "server": serverSide} {
				messages, problems, err := Dissect(t.Context(), file, !s.gmac)
				if err != nil {
					t.Fatal(err)
				}
				for _, p := range problems {
					if why := known(p, messages); why != "" {
						t.Logf("%s: %s: known: %s", side, p, why)
						continue
					}
					t.Errorf("%s: %s", side, p)
				}
				check(t, side, s, messages)
			}
		})
	}
}

// known says why a problem is tshark's own, or "".
func known(p Problem, messages []Message) string {
	for _, m := range messages {
		if m.Frame != p.Frame {
			continue
		}
		if m.Command == "CREATE" && p.Text == "warning: Trailing stray characters" && m.Field("smb2.svhdx_open_device_context.host_name") != "" {
			return "tshark reads InitiatorHostName as ASCII; it is Unicode ([MS-RSVD] 2.2.4.12)"
		}
	}
	return ""
}

const (
	diskMiB   = 64
	pattern   = 0xa7
	ioSize    = 65536
	ioOffset  = 3 << 20
	diskName  = "disk.vhdx"
	initiator = "wirecheck"
)

// capture runs the session and returns the captures of both sides.
func capture(t *testing.T, bin string, s session) (clientSide, serverSide string) {
	t.Helper()
	dir := t.TempDir()
	disks := filepath.Join(dir, "disks")
	clientSide, serverSide = filepath.Join(dir, "client.pcap"), filepath.Join(dir, "server.pcap")
	if err := os.Mkdir(disks, 0o755); err != nil {
		t.Fatal(err)
	}
	vd, err := lab.NewProgram(bin, dir)
	if err != nil {
		t.Fatal(err)
	}
	run := func(name string, args ...string) {
		t.Helper()
		if _, err := lab.Run(t.Context(), name, args...); err != nil {
			t.Fatal(err)
		}
	}
	run("qemu-img", "create", "-q", "-f", "vhdx", "-o", "subformat=dynamic", filepath.Join(disks, diskName), fmt.Sprintf("%dM", diskMiB))
	server, addr, err := vd.Serve(t.Context(), disks, "127.0.0.1:0", append(s.serve, "--pcap", serverSide)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Kill)
	export, uri, err := vd.NBD(t.Context(), lab.URL(addr, diskName), filepath.Join(dir, "s"), append(s.nbd, "--initiator", initiator, "--pcap", clientSide)...)
	if err != nil {
		t.Fatalf("%v\nthe server printed:\n%s", err, server.Output())
	}
	t.Cleanup(export.Kill)
	run("qemu-io", "-t", "writeback", "-f", "raw", "-c", fmt.Sprintf("write -P %d %d %d", pattern, ioOffset, ioSize), "-c", fmt.Sprintf("read -P %d %d %d", pattern, ioOffset, ioSize), uri)
	for _, p := range []*lab.Proc{export, server} {
		if err := p.Stop(20 * time.Second); err != nil {
			t.Fatal(err)
		}
	}
	return clientSide, serverSide
}

// check holds the messages of a whole session against what they must be.
func check(t *testing.T, side string, s session, messages []Message) {
	t.Helper()
	var requests []string
	good := 0
	waiting := make(map[string]Message) // by message id
	for i, m := range messages {
		id := m.Field("smb2.msg_id")
		if m.Response {
			q, ok := waiting[id]
			if !ok || q.Command != m.Command {
				t.Errorf("%s: frame %d: %s answers nothing that was asked", side, m.Frame, m)
			}
			if m.Status != 0x103 { // STATUS_PENDING: the answer is still to come
				delete(waiting, id)
			}
			if m.Status != 0 && m.Status != 0x103 && !mayFail(q, m) {
				t.Errorf("%s: frame %d: %s failed", side, m.Frame, m)
			}
		} else {
			requests = append(requests, m.Command)
			if m.Command != "CANCEL" {
				waiting[id] = m
			}
		}
		good += len(m.Fields["smb2.good_signature"])
		if n := len(m.Fields["smb2.bad_signature"]); n > 0 {
			t.Errorf("%s: frame %d: the signature of %s is wrong", side, m.Frame, m)
		}
		first := m.Command == "NEGOTIATE" || m.Command == "SESSION_SETUP" && !(m.Response && m.Status == 0)
		if !first {
			signed := m.Field("smb2.flags.signature") == "1"
			if !m.Sealed && !signed {
				t.Errorf("%s: message %d, %s, is neither signed nor sealed", side, i, m)
			}
			if s.sealed && !m.Sealed && m.Command != "SESSION_SETUP" && m.Command != "TREE_CONNECT" {
				t.Errorf("%s: message %d, %s, is not sealed", side, i, m)
			}
		}
	}
	for _, q := range waiting {
		t.Errorf("%s: frame %d: %s was never answered", side, q.Frame, q)
	}
	if !s.sealed && !s.gmac && good == 0 {
		t.Errorf("%s: tshark has verified no signature, so the keys beside the capture are of no use", side)
	}

	order := `^NEGOTIATE (SESSION_SETUP ){2,3}TREE_CONNECT (IOCTL )?CREATE (CREATE )?((QUERY_INFO|READ|WRITE|FLUSH|IOCTL|SET_INFO|ECHO) )+CLOSE TREE_DISCONNECT LOGOFF$`
	if got := strings.Join(requests, " "); !regexp.MustCompile(order).MatchString(got) {
		t.Errorf("%s: the order of the requests is\n  %s\nwant\n  %s", side, got, order)
	}
	checkPlainFields(t, side, s, messages)
	if s.shared {
		checkSharedFields(t, side, s, messages)
	}
}

// mayFail says whether the answer to q is one of the refusals that belong to a good session.
func mayFail(q, m Message) bool {
	switch m.Command {
	case "SESSION_SETUP":
		return m.Status == 0xC0000016 // STATUS_MORE_PROCESSING_REQUIRED
	case "CREATE": // the client tries version 2 of the context first, which a server of version 1 refuses, [MS-RSVD] 3.2.5.1
		return m.Status == 0xC000000D && q.Field("smb2.svhdx_open_device_context.version") == "2"
	}
	return false
}

// find returns the messages of a command.
func find(messages []Message, command string, response bool) (found []Message) {
	for _, m := range messages {
		if m.Command == command && m.Response == response {
			found = append(found, m)
		}
	}
	return found
}

func checkPlainFields(t *testing.T, side string, s session, messages []Message) {
	t.Helper()
	name := diskName
	if s.shared {
		name += ":SharedVirtualDisk" // [MS-RSVD] 3.1.4.2
	}
	for _, m := range find(messages, "CREATE", false) {
		if got := m.Field("smb2.filename"); got != name {
			t.Errorf("%s: CREATE of %q, want %q", side, got, name)
		}
	}
	if reply := find(messages, "NEGOTIATE", true); s.gmac && !slices.Contains(reply[len(reply)-1].Fields["smb2.negotiate_context.signing_id"], "0x0002") {
		t.Errorf("%s: AES-GMAC was not agreed on: %v", side, reply[len(reply)-1].Fields["smb2.negotiate_context.signing_id"])
	}
	if tree := find(messages, "TREE_CONNECT", false); !strings.HasSuffix(strings.ToLower(tree[0].Field("smb2.tree")), `\`+lab.Share) {
		t.Errorf("%s: TREE_CONNECT to %q", side, tree[0].Field("smb2.tree"))
	}
	if !s.shared {
		if len(find(messages, "WRITE", false)) == 0 || len(find(messages, "READ", false)) == 0 {
			t.Errorf("%s: no READ or no WRITE", side)
		}
	}
}

func checkSharedFields(t *testing.T, side string, s session, messages []Message) {
	t.Helper()
	creates := find(messages, "CREATE", false)
	create := creates[len(creates)-1]
	if v := create.Field("smb2.svhdx_open_device_context.version"); v != "1" && v != "2" {
		t.Errorf("%s: CREATE has no SVHDX_OPEN_DEVICE_CONTEXT that tshark reads (version %q)", side, v)
	}
	if host, err := os.Hostname(); err == nil {
		host, _, _ = strings.Cut(host, ".")
		// tshark shows Unicode as ASCII and so only the first letter; the length is in bytes.
		got, n := create.Field("smb2.svhdx_open_device_context.host_name"), create.Field("smb2.svhxd_open_device_context.initiator_host_name_len")
		if got != host[:1] || n != fmt.Sprint(2*len(host)) {
			t.Errorf("%s: the initiator host name on the wire begins with %q and has %s bytes, ours is %q", side, got, n, host)
		}
	}
	var (
		operations = make(map[string]int)
		asked      = make(map[string]Message) // tunnel requests by message id
		cdbs       []string
	)
	for _, m := range messages {
		if m.Command != "IOCTL" {
			continue
		}
		code := m.Field("rsvd.svhdx_operation_code")
		if m.Field("smb2.ioctl.function") != fsctlTunnel {
			continue
		}
		if code == "" {
			t.Errorf("%s: frame %d: tshark finds no tunnel header", side, m.Frame)
			continue
		}
		id := m.Field("smb2.msg_id")
		if !m.Response {
			operations[code]++
			asked[id] = m
			cdbs = append(cdbs, strings.ReplaceAll(m.Field("rsvd.svhdx_scsi_cdb"), ":", ""))
			continue
		}
		q := asked[id]
		if q.Field("rsvd.svhdx_request_id") != m.Field("rsvd.svhdx_request_id") || q.Field("rsvd.svhdx_operation_code") != code {
			t.Errorf("%s: frame %d: the tunnel's reply does not repeat its request's id and code", side, m.Frame)
		}
		if st := m.Field("rsvd.svhdx_status"); st != "0x00000000" {
			t.Errorf("%s: frame %d: tunnel operation %s has status %s", side, m.Frame, code, st)
		}
		if v := m.Field("rsvd.svhdx_file_info_virtual_size"); v != "" && v != fmt.Sprint(diskMiB<<20) {
			t.Errorf("%s: the disk's size on the wire is %s", side, v)
		}
	}
	if operations["0x02001001"] == 0 {
		t.Errorf("%s: no RSVD_TUNNEL_GET_INITIAL_INFO_OPERATION; there were %v", side, operations)
	}
	if strings.Contains(s.name, "scsi") {
		all := strings.Join(cdbs, " ")
		for name, opcode := range map[string]string{"WRITE(16)": "8a", "READ(16)": "88"} {
			lba := fmt.Sprintf("%s%s%016x", opcode, "[0-9a-f]{2}", ioOffset/512)
			if !regexp.MustCompile(`(^| )` + lba).MatchString(all) {
				t.Errorf("%s: no %s at block %d among the CDBs %s", side, name, ioOffset/512, all)
			}
		}
	} else if strings.Contains(s.name, "-smb") && (len(find(messages, "WRITE", false)) == 0 || len(find(messages, "READ", false)) == 0) {
		t.Errorf("%s: no SMB2 READ or WRITE on the shared open", side)
	}
}

// TestProblemsAreSeen makes sure that the checks can fail: a capture with damaged bytes has problems.
func TestProblemsAreSeen(t *testing.T) {
	lab.Need(t, "tshark", "qemu-img", "qemu-io")
	file, _ := capture(t, lab.Vdbridge(t), session{name: "forged", nbd: []string{"--mode", "file", "--max-dialect", "3.0"}})
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	// A byte of the name in the CREATE request: what is left is well formed, and not what was signed.
	name := []byte("d\x00i\x00s\x00k\x00.\x00")
	i := strings.Index(string(b), string(name))
	if i < 0 {
		t.Fatal("the capture does not have the file's name")
	}
	b[i] = 'x'
	bad := filepath.Join(t.TempDir(), "bad.pcap")
	keys, err := os.ReadFile(file + ".keys")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bad, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bad+".keys", keys, 0o600); err != nil {
		t.Fatal(err)
	}
	messages, problems, err := Dissect(t.Context(), bad, true)
	if err != nil {
		t.Fatal(err)
	}
	wrong := 0
	for _, m := range messages {
		wrong += len(m.Fields["smb2.bad_signature"])
	}
	if wrong != 1 || len(problems) == 0 {
		t.Errorf("a forged message was not noticed (%d bad signatures, problems %q)", wrong, problems)
	}
}
