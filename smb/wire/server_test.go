package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"testing"
)

// parseServer decodes a request body by its command. It is what the server does with whatever comes.
func parseServer(cmd Command, msg []byte) (any, error) {
	switch cmd {
	case CmdNegotiate:
		return ParseNegotiateRequest(msg)
	case CmdSessionSetup:
		return ParseSessionSetupRequest(msg)
	case CmdTreeConnect:
		return ParseTreeConnectRequest(msg)
	case CmdCreate:
		return ParseCreateRequest(msg)
	case CmdClose:
		return ParseCloseRequest(msg)
	case CmdFlush:
		return ParseFlushRequest(msg)
	case CmdRead:
		return ParseReadRequest(msg)
	case CmdWrite:
		return ParseWriteRequest(msg)
	case CmdLock:
		return ParseLockRequest(msg)
	case CmdIoctl:
		return ParseIoctlRequest(msg)
	case CmdQueryDirectory:
		return ParseQueryDirectoryRequest(msg)
	case CmdChangeNotify:
		return ParseChangeNotifyRequest(msg)
	case CmdQueryInfo:
		return ParseQueryInfoRequest(msg)
	case CmdSetInfo:
		return ParseSetInfoRequest(msg)
	case CmdOplockBreak:
		return ParseOplockBreakAck(msg)
	}
	return nil, ParseEmptyRequest(msg)
}

// serverRequests are requests as the client's half encodes them, with what the server's half must make of them.
func serverRequests() map[Command]struct {
	body []byte
	want any
} {
	id := FileID{1, 2}
	at := make([]byte, HeaderSize) // without spare capacity, so that each body gets memory of its own
	type c = struct {
		body []byte
		want any
	}
	neg := &NegotiateRequest{SecurityMode: 1, Capabilities: 0x7F, ClientGUID: GUID{9}, Dialects: []Dialect{Dialect302, Dialect311},
		Contexts: []NegotiateContext{{CtxPreauthIntegrity, []byte{1, 0, 0, 0, 1, 0}}, {CtxEncryption, []byte{1, 0, 2, 0}}}}
	setup := &SessionSetupRequest{Flags: 1, SecurityMode: 2, Capabilities: 3, PreviousSessionID: 5, SecurityBuffer: []byte("token")}
	tree := &TreeConnectRequest{Path: `\\server\share`}
	create := &CreateRequest{OplockLevel: 9, Impersonation: 2, DesiredAccess: 3, FileAttributes: 4, ShareAccess: 5, Disposition: 1, Options: 7, Name: "dir\\n\u00e4me\U0001F600",
		Contexts: []CreateContext{{CreateMaximalAccess, nil}, {CreateSVHDX, bytes.Repeat([]byte{7}, 168)}, {CreateAllocationSize, make([]byte, 8)}}}
	lock := &LockRequest{LockSequence: 3, FileID: id, Locks: []LockElement{{1, 2, LockShared}, {3, 4, LockExclusive}}}
	qd := &QueryDirectoryRequest{InfoClass: 37, Flags: 1, FileIndex: 2, FileID: id, OutputBufferLength: 3, Pattern: "*.vhdx"}
	qi := &QueryInfoRequest{InfoType: 1, FileInfoClass: 5, OutputBufferLength: 100, AdditionalInformation: 4, Flags: 1, FileID: id, Input: []byte("in")}
	si := &SetInfoRequest{InfoType: 1, FileInfoClass: 20, AdditionalInformation: 4, FileID: id, Buffer: []byte("12345678")}
	wr := WriteRequest{DataOffset: 112, Length: 4, Offset: 1 << 40, FileID: id, Flags: 1}
	io := IoctlRequest{CtlCode: FsctlSetZeroData, FileID: id, InputCount: 3, MaxOutputResponse: 9, Flags: 1, Input: []byte("abc")}
	rd := ReadRequest{Padding: 0x50, Flags: 1, Length: 4096, Offset: 1 << 41, FileID: id, MinimumCount: 1}
	cl := CloseRequest{Flags: 1, FileID: id}
	fl := FlushRequest{FileID: id}
	cn := ChangeNotifyRequest{Flags: 1, OutputBufferLength: 2, FileID: id, CompletionFilter: 3}
	ack := OplockBreak{OplockLevel: 1, FileID: id}
	return map[Command]c{
		CmdNegotiate: {neg.Append(at), neg}, CmdSessionSetup: {setup.Append(at), setup}, CmdTreeConnect: {tree.Append(at), tree},
		CmdCreate: {create.Append(at), create}, CmdLock: {lock.Append(at), lock}, CmdQueryDirectory: {qd.Append(at), qd},
		CmdQueryInfo: {qi.Append(at), qi}, CmdSetInfo: {si.Append(at), si}, CmdWrite: {append(wr.Append(at), "data"...), wr},
		CmdIoctl: {append(io.Append(at), "abc"...), io}, CmdRead: {rd.Append(at), rd}, CmdClose: {cl.Append(at), cl}, CmdFlush: {fl.Append(at), fl},
		CmdChangeNotify: {cn.Append(at), cn}, CmdOplockBreak: {AppendOplockBreakAck(at, ack), ack}, CmdEcho: {AppendEmptyRequest(at), nil},
	}
}

// TestServerRequests decodes what the client's half encodes, and every prefix of it.
func TestServerRequests(t *testing.T) {
	for cmd, c := range serverRequests() {
		msg := append([]byte(nil), c.body...)
		got, err := parseServer(cmd, msg)
		if err != nil {
			t.Errorf("%v: %v", cmd, err)
			continue
		}
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%v:\n%+v, want\n%+v", cmd, got, c.want)
		}
		min := len(msg)
		if cmd == CmdRead {
			min-- // the last byte is there only because the specification wants a buffer
		}
		for n := range min {
			if _, err := parseServer(cmd, msg[:n:n]); err == nil {
				t.Errorf("%v: no error for %d of %d bytes", cmd, n, len(msg))
			} else if !errors.Is(err, ErrMalformed) {
				t.Errorf("%v: %d bytes: %v does not wrap ErrMalformed", cmd, n, err)
			}
		}
		// Another StructureSize is another structure.
		msg[HeaderSize] ^= 0x40
		if _, err := parseServer(cmd, msg); err == nil {
			t.Errorf("%v: a wrong StructureSize is accepted", cmd)
		}
	}
}

// TestServerReplies compares replies with their bytes, laid out by hand from [MS-SMB2].
func TestServerReplies(t *testing.T) {
	id := FileID{0x1111, 0x2222}
	const idHex = "1111000000000000" + "2222000000000000"
	at := make([]byte, HeaderSize)
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"SESSION_SETUP": {(&SessionSetupResponse{SessionFlags: 4, SecurityBuffer: []byte{0xAA}}).Append(at), "0900" + "0400" + "4800" + "0100" + "aa"},
		"TREE_CONNECT":  {(&TreeConnectResponse{1, 0x30, 0x10, 0x1F01FF}).Append(at), "1000" + "01" + "00" + "30000000" + "10000000" + "ff011f00"},
		"error":         {(&ErrorResponse{}).Append(at), "0900" + "00" + "00" + "00000000" + "00"},
		"empty":         {AppendEmptyResponse(at), "04000000"},
		"WRITE":         {(&WriteResponse{Count: 0x1000}).Append(at), "1100" + "0000" + "00100000" + "00000000" + "0000" + "0000"},
		"READ":          {(&ReadResponse{DataOffset: 80, DataLength: 5}).Append(at), "1100" + "50" + "00" + "05000000" + "00000000" + "00000000"},
		"CLOSE": {(&CloseResponse{Flags: 1, CreationTime: 1, LastAccessTime: 2, LastWriteTime: 3, ChangeTime: 4, AllocationSize: 5, EndOfFile: 6, FileAttributes: 7}).Append(at),
			"3c00" + "0100" + "00000000" + "0100000000000000" + "0200000000000000" + "0300000000000000" + "0400000000000000" + "0500000000000000" + "0600000000000000" + "07000000"},
		"IOCTL": {(&IoctlResponse{CtlCode: 0x90304, FileID: id, OutputCount: 3}).Append(at),
			"3100" + "0000" + "04030900" + idHex + "70000000" + "00000000" + "70000000" + "03000000" + "00000000" + "00000000"},
		"output":   {(&OutputResponse{[]byte{1, 2}}).Append(at), "0900" + "4800" + "02000000" + "0102"},
		"SET_INFO": {AppendSetInfoResponse(at), "0200"},
		"CREATE": {(&CreateResponse{OplockLevel: 0, Action: 1, CreationTime: 1, LastAccessTime: 2, LastWriteTime: 3, ChangeTime: 4, AllocationSize: 5, EndOfFile: 6, FileAttributes: 7, FileID: id,
			Contexts: []CreateContext{{"MxAc", []byte{0, 0, 0, 0, 0xFF, 1, 0x1F, 0}}, {"QFid", []byte{9}}}}).Append(at),
			"5900" + "00" + "00" + "01000000" + "0100000000000000" + "0200000000000000" + "0300000000000000" + "0400000000000000" + "0500000000000000" + "0600000000000000" + "07000000" + "00000000" + idHex +
				"98000000" + "39000000" + "20000000" + "1000" + "0400" + "0000" + "1800" + "08000000" + "4d784163" + "00000000" + "00000000ff011f00" +
				"00000000" + "1000" + "0400" + "0000" + "1800" + "01000000" + "51466964" + "00000000" + "09"},
	} {
		if got := hex.EncodeToString(c.got[HeaderSize:]); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, c.want)
		}
	}
}

// TestServerRefuses has requests that are long enough and yet wrong.
func TestServerRefuses(t *testing.T) {
	bend := func(cmd Command, f func(b []byte)) []byte {
		b := append([]byte(nil), serverRequests()[cmd].body...)
		f(b[HeaderSize:])
		return b
	}
	for name, c := range map[string]struct {
		cmd Command
		msg []byte
	}{
		"name behind the end":             {CmdCreate, bend(CmdCreate, func(b []byte) { le.PutUint16(b[46:], 0xFFFE) })},
		"name inside the fixed part":      {CmdCreate, bend(CmdCreate, func(b []byte) { le.PutUint16(b[44:], 70) })},
		"odd name":                        {CmdCreate, bend(CmdCreate, func(b []byte) { le.PutUint16(b[46:], 3) })},
		"contexts behind the end":         {CmdCreate, bend(CmdCreate, func(b []byte) { le.PutUint32(b[52:], 0xFFFFFFF0) })},
		"context chain that goes nowhere": {CmdCreate, bend(CmdCreate, func(b []byte) { le.PutUint32(b[le.Uint32(b[48:])-HeaderSize:], 8) })},
		"context name too short":          {CmdCreate, bend(CmdCreate, func(b []byte) { le.PutUint16(b[le.Uint32(b[48:])-HeaderSize+6:], 3) })},
		"data behind the end":             {CmdWrite, bend(CmdWrite, func(b []byte) { le.PutUint32(b[4:], 5) })},
		"data inside the fixed part":      {CmdWrite, bend(CmdWrite, func(b []byte) { le.PutUint16(b[2:], 100) })},
		"input behind the end":            {CmdIoctl, bend(CmdIoctl, func(b []byte) { le.PutUint32(b[24:], 0xFFFFFFFF) })},
		"no locks":                        {CmdLock, bend(CmdLock, func(b []byte) { le.PutUint16(b[2:], 0) })},
		"more locks than there are":       {CmdLock, bend(CmdLock, func(b []byte) { le.PutUint16(b[2:], 3) })},
		"more dialects than there are":    {CmdNegotiate, bend(CmdNegotiate, func(b []byte) { le.PutUint16(b[2:], 9000) })},
		"contexts before the dialects":    {CmdNegotiate, bend(CmdNegotiate, func(b []byte) { le.PutUint32(b[28:], 64) })},
	} {
		if v, err := parseServer(c.cmd, c.msg); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
	}
}

func TestSMB1Negotiate(t *testing.T) {
	msg := AppendSMB1Negotiate(nil, "NT LM 0.12", "SMB 2.???")
	got, err := ParseSMB1Negotiate(msg)
	if err != nil || !reflect.DeepEqual(got, []string{"NT LM 0.12", "SMB 2.???"}) {
		t.Errorf("%q, %v", got, err)
	}
	for n := range msg {
		if _, err := ParseSMB1Negotiate(msg[:n]); !errors.Is(err, ErrMalformed) {
			t.Errorf("no error for %d of %d bytes", n, len(msg))
		}
	}
}

func FuzzServerRequests(f *testing.F) {
	for cmd, c := range serverRequests() {
		f.Add(uint16(cmd), c.body)
	}
	f.Fuzz(func(t *testing.T, cmd uint16, msg []byte) {
		if _, err := parseServer(Command(cmd), msg); err != nil && !errors.Is(err, ErrMalformed) {
			t.Errorf("%v does not wrap ErrMalformed", err)
		}
	})
}

func FuzzSMB1Negotiate(f *testing.F) {
	f.Add(AppendSMB1Negotiate(nil, "NT LM 0.12", "SMB 2.???"))
	f.Fuzz(func(t *testing.T, msg []byte) { _, _ = ParseSMB1Negotiate(msg) })
}
