package arrows

// A room is a folder with everything below it, unless a longer entry of this table claims a part. The table is the one in
// docs/architecture.md; change both together.
var rooms = []struct {
	room   string
	may    []string // rooms of ours; "x/..." is x and all below it
	reason string   // why nothing else
}{
	{"cmd/vdbridge", []string{"bridge/...", "client/...", "rsvd", "nbd/...", "fusefs", "server/...", "smb/...", "scsi/...", "vhdx/...", "partition"},
		"the command line is the top of the tree: it joins rooms, and nothing but test/ is closed to it"},
	{"bridge", []string{"client/...", "rsvd", "nbd/...", "fusefs", "server/...", "smb/...", "scsi/...", "vhdx/...", "partition"},
		"the bridge is used by the command line; if it imported cmd it could not be used by anything else"},
	{"bridge/daemon", []string{"bridge", "nbd/..."},
		"it keeps disks that somebody else opens: it knows a disk by the interface that it declares, and of the bridge its status and errors"},
	{"client", []string{"smb/..."},
		"the SMB client knows files, not disks: rsvd and vhdx stand on it through interfaces of their own, so that it serves plain files as well"},
	{"client/link", []string{"client", "smb/..."},
		"it keeps an open alive and knows nothing of what is in it: whether that is still the same its owner tells it"},
	{"rsvd", []string{"smb/tunnel", "smb/ntstatus", "smb/wire", "scsi"},
		"rsvd knows SMB only by the few file operations that it declares, so that it runs over any open, also a test's; and scsi/lu is the target's side, not the initiator's"},
	{"nbd", nil,
		"the NBD server knows a disk by the interface that it declares; with an import of ours it would serve only our disks"},
	{"nbd/kernel", []string{"nbd"},
		"it speaks to the kernel only; what is behind the sockets that it hands over is the caller's"},
	{"nbd/client", nil, "the NBD client is written from the protocol, not from the server's code; it offers the methods of a disk and needs nothing for it"},
	{"fusefs", nil,
		"the FUSE front end knows a disk by the interface that it declares; with an import of ours it would show only our disks"},
	{"server", []string{"server/journal", "smb/..."},
		"the file server knows virtual disks through server.DiskService only; it must neither know VHDX or SCSI nor be written from the client's code"},
	{"server/journal", nil, "a table on disk is a leaf; what is in it is the business of whoever keeps it"},
	{"server/svhdx", []string{"server", "smb/...", "scsi", "scsi/lu", "vhdx/..."},
		"the RSVD server role is written from the specification, not from the client's code, or both would share a misreading"},
	{"smb/wire", nil,
		"codecs are bytes in, values out; a codec that imports a room can no longer be tested and fuzzed with byte slices alone"},
	{"smb/ntstatus", nil, "status codes are a leaf for everyone"},
	{"smb/fscc", []string{"smb/wire", "smb/ntstatus"}, "a codec: bytes in, values out"},
	{"smb/auth", []string{"smb/ntstatus"}, "tokens in, tokens and a session key out; it knows no message and no connection"},
	{"smb/crypt", []string{"smb/wire"}, "it signs and seals bytes; it knows no connection, so that keys and vectors can be tested alone"},
	{"smb/transport", nil, "it carries messages without reading them; SMB Direct will stand beside TCP here"},
	{"smb/tunnel", []string{"smb/wire", "smb/ntstatus"}, "client and server both say these structures, so they belong to neither"},
	{"smb/pcap", []string{"smb/transport"}, "it writes what the transport shows it; knowing the protocol is the dissector's work"},
	{"scsi", nil, "CDBs, sense and pages are a codec for both ends"},
	{"scsi/lu", []string{"scsi"}, "the logical unit knows a disk by the interface that it declares, and nothing of SMB: iSCSI will stand on it too"},
	{"vhdx", nil, "the format stands on any backing file, local or remote, by an interface of its own"},
	{"partition", nil, "tables and signatures are read from any disk, by an interface of its own"},
	{"test", []string{"..."}, ""},
}

// foreign says which modules of others a room may import in what we ship. Rooms that are not named, and modules that are not named, may not.
// golang.org/x/sys and golang.org/x/sync are open to everyone.
var foreign = map[string][]string{
	"cmd/vdbridge": {"github.com/urfave/cli/v2", "golang.org/x/term"},
	"fusefs":       {"github.com/hanwen/go-fuse/v2"},
	"nbd":          {"github.com/pojntfx/go-nbd"},
	"smb/auth":     {"golang.org/x/crypto", "github.com/jcmturner/gokrb5/v8"},
}

// sleepers are the files of tests that may call time.Sleep, with the reason why there is nothing to wait for instead.
var sleepers = map[string]string{
	"client/channel_test.go":        "asks again and again for a state that has no event",
	"client/conn_test.go":           "asks again and again for a state of the connection's table that has no event",
	"client/link/link_test.go":      "sleeps in a bubble of synctest, where time passes when nobody has anything to do",
	"client/speed_test.go":          "cancels at any moment, which one does not matter",
	"test/channels/harness_test.go": "asks again and again for a state of a session that has no event",
	"test/leak/leak.go":             "the runtime has no event for the end of a goroutine, so it is asked again and again",
	"test/bench/nbdbench/main.go":   "a disk that takes a while is what it measures with -delay",
}

// maxLines is when a file no longer fits in the head.
const maxLines = 700
