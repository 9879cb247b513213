package server

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/tunnel"
	"vdbridge/smb/wire"
)

// script makes the input of FuzzSession: for each request the command, flags, the length of the body in two bytes, and the body.
func script(steps ...[]byte) []byte { return bytes.Join(steps, nil) }

func step(cmd wire.Command, flags byte, body func([]byte) []byte) []byte {
	b := body(make([]byte, wire.HeaderSize))[wire.HeaderSize:]
	return append([]byte{byte(cmd), flags, byte(len(b)), byte(len(b) >> 8)}, b...)
}

// Flags of a step.
const (
	stepFile    = 1 // the FileId is put in: that of the file
	stepDir     = 2 // or of the directory
	stepDisk    = 4 // or of the disk
	stepRelated = 8 // it goes into a compound with the one before
)

// FuzzSession sends requests with right headers and signatures, and bodies of any kind, to a server on which a file, a directory and a disk are
// open. Whatever comes, the server answers each or ends the connection, and lives on.
func FuzzSession(f *testing.F) {
	create := openReq("dir\\x")
	create.Contexts = []wire.CreateContext{{Name: wire.CreateMaximalAccess}, {Name: wire.CreateQueryOnDiskID}, {Name: wire.CreateSVHDX, Data: make([]byte, 168)}}
	lock := &wire.LockRequest{Locks: []wire.LockElement{{Offset: 1, Length: 2, Flags: wire.LockExclusive}}}
	ioctl := func(code uint32, in string) func([]byte) []byte {
		return func(b []byte) []byte {
			q := wire.IoctlRequest{CtlCode: code, InputCount: uint32(len(in)), MaxOutputResponse: 5000, Flags: 1}
			return append(q.Append(b), in...)
		}
	}
	rename := "\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00z\x00"
	for _, s := range [][]byte{
		script(step(wire.CmdCreate, 0, create.Append), step(wire.CmdClose, stepRelated, (&wire.CloseRequest{Flags: 1, FileID: wire.RelatedFileID}).Append)),
		script(step(wire.CmdRead, stepFile, (&wire.ReadRequest{Length: 100}).Append), step(wire.CmdRead, stepDisk, (&wire.ReadRequest{Length: 100}).Append)),
		script(step(wire.CmdWrite, stepFile, writeBody(wire.FileID{}, 0, []byte("abc"), 1)), step(wire.CmdFlush, stepFile, (&wire.FlushRequest{}).Append)),
		script(step(wire.CmdLock, stepFile, lock.Append), step(wire.CmdLock, stepFile, lock.Append), step(wire.CmdClose, stepFile, (&wire.CloseRequest{}).Append)),
		script(step(wire.CmdQueryDirectory, stepDir, (&wire.QueryDirectoryRequest{InfoClass: 37, OutputBufferLength: 1000, Pattern: `<>"?*a`}).Append)),
		script(step(wire.CmdChangeNotify, stepDir, (&wire.ChangeNotifyRequest{OutputBufferLength: 100, CompletionFilter: 0xFFF}).Append), step(wire.CmdCreate, 0, create.Append)),
		script(step(wire.CmdQueryInfo, stepFile, (&wire.QueryInfoRequest{InfoType: 1, FileInfoClass: 18, OutputBufferLength: 1000}).Append)),
		script(step(wire.CmdQueryInfo, stepDisk, (&wire.QueryInfoRequest{InfoType: 3, OutputBufferLength: 8, AdditionalInformation: 7}).Append)),
		script(step(wire.CmdSetInfo, stepFile, (&wire.SetInfoRequest{InfoType: 1, FileInfoClass: 10, Buffer: []byte(rename)}).Append)),
		script(step(wire.CmdIoctl, stepDisk, ioctl(tunnel.FsctlSyncTunnelRequest, "0123456789abcdef"))),
		script(step(wire.CmdIoctl, stepFile, ioctl(wire.FsctlSrvRequestResumeKey, "")), step(wire.CmdIoctl, stepFile, ioctl(wire.FsctlQueryAllocatedRanges, "\x00\x00\x00\x00\x00\x00\x00\x00\xff\x00\x00\x00\x00\x00\x00\x00"))),
		script(step(wire.CmdTreeConnect, 0, (&wire.TreeConnectRequest{Path: `\\x\IPC$`}).Append), step(wire.CmdLogoff, 0, wire.AppendEmptyRequest)),
	} {
		f.Add(s)
	}
	s := startServer(f, func(c *Config) {
		c.Disks = &ramDisk{b: make([]byte, 1<<16)}
		c.Limits.MaxIO = 64 << 10
	})
	var turn atomic.Int64
	f.Fuzz(func(t *testing.T, data []byte) {
		p := s.connect(t, wire.Dialect311, "disks")
		p.tc.SetReadDeadline(time.Now().Add(6 * time.Second))
		n := turn.Add(1) // the server may not have noticed yet that the turn before has gone
		name := func(kind string) string { return fmt.Sprintf("%s%d", kind, n) }
		if err := os.WriteFile(s.path(name("disk")), nil, 0o666); err != nil {
			t.Fatal(err)
		}
		ids := [3]wire.FileID{p.open(openReq(name("file")))}
		dir := openReq(name("dir"))
		dir.Options = wire.OptDirectoryFile
		ids[1] = p.open(dir)
		disk := openReq(name("disk") + ":SharedVirtualDisk")
		disk.DesiredAccess, disk.Contexts = 0x20083, []wire.CreateContext{{Name: wire.CreateSVHDX, Data: make([]byte, 168)}}
		ids[2] = p.open(disk)
		var batch [][]byte
		for n := 0; len(data) >= 4 && n < 16; n++ {
			cmd, flags, l := wire.Command(data[0]%19), data[1], int(data[2])|int(data[3])<<8
			data = data[4:]
			body := append([]byte(nil), data[:min(l, len(data))]...)
			data = data[len(body):]
			if cmd == wire.CmdCancel || cmd == wire.CmdNegotiate || cmd == wire.CmdSessionSetup {
				cmd = wire.CmdEcho
			}
			if at := int(fileIDAt[cmd]); at != 0 && len(body) >= at+16 {
				for i, bit := range []byte{stepFile, stepDir, stepDisk} {
					if flags&bit != 0 {
						le.PutUint64(body[at:], ids[i].Persistent)
						le.PutUint64(body[at+8:], ids[i].Volatile)
					}
				}
			}
			m := p.message(cmd, func(b []byte) []byte { return append(b, body...) })
			if flags&stepRelated != 0 && len(batch) > 0 {
				le.PutUint32(m[16:], wire.FlagRelated)
			} else if len(batch) > 0 {
				if p.trySend(batch...) != nil {
					return
				}
				batch = nil
			}
			batch = append(batch, m)
		}
		if len(batch) > 0 && p.trySend(batch...) != nil {
			return
		}
		last := p.nextID
		if p.trySend(p.message(wire.CmdEcho, wire.AppendEmptyRequest)) != nil {
			return
		}
		for {
			rs, err := p.tryReceive()
			if errors.Is(err, os.ErrDeadlineExceeded) {
				buf := make([]byte, 1<<20)
				t.Fatalf("no answer\n%s", buf[:runtime.Stack(buf, true)])
			}
			if err != nil {
				return // the server has ended the connection, which is its right
			}
			for _, r := range rs {
				if r.hdr.MessageID == last && r.status() != ntstatus.Pending {
					return
				}
			}
		}
	})
}

// FuzzBeforeLogon sends any bytes to a connection that is new, or has negotiated.
func FuzzBeforeLogon(f *testing.F) {
	f.Add(false, []byte("\xfeSMB@\x00"))
	f.Add(false, wire.AppendSMB1Negotiate(nil, "SMB 2.???"))
	f.Add(true, (&wire.SessionSetupRequest{SecurityBuffer: []byte("`H\x06\x06+\x06\x01\x05\x05\x02")}).Append(make([]byte, wire.HeaderSize)))
	s := startServer(f, nil)
	f.Fuzz(func(t *testing.T, negotiated bool, data []byte) {
		p := s.dialPeer(t)
		if negotiated {
			p.negotiate(wire.Dialect311)
			if len(data) < wire.HeaderSize {
				return
			}
			h := wire.Header{Command: wire.CmdSessionSetup, MessageID: p.nextID}
			h.Put(data)
		}
		if p.trySend(data) != nil {
			return
		}
		p.nextID++
		if p.trySend(p.message(wire.CmdEcho, wire.AppendEmptyRequest)) != nil {
			return
		}
		for range 2 {
			if _, err := p.tryReceive(); err != nil {
				return
			}
		}
	})
}
