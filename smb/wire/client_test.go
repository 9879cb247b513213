package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"
)

// message puts a header before a body that append makes.
func message(appendBody func([]byte) []byte) []byte {
	h := Header{Command: CmdEcho, Flags: FlagServerToRedir}
	b := make([]byte, HeaderSize)
	h.Put(b)
	return appendBody(b)
}

// golden compares a body with hexadecimal digits in which blanks do not count.
func golden(t *testing.T, what string, body []byte, want string) {
	t.Helper()
	w, err := hex.DecodeString(strings.Join(strings.Fields(want), ""))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(body, w) {
		t.Errorf("%s:\n got %x\nwant %x", what, body, w)
	}
}

func TestClientGoldenRequests(t *testing.T) {
	id := FileID{0x0807060504030201, 0x100F0E0D0C0B0A09}
	const idHex = "01020304 05060708 090A0B0C 0D0E0F10"
	for _, c := range []struct {
		what string
		body func([]byte) []byte
		want string
	}{
		{"NEGOTIATE 2.1", (&NegotiateRequest{SecurityMode: 1, ClientGUID: GUID{1, 2}, Dialects: []Dialect{0x202, 0x210}}).Append,
			"2400 0200 0100 0000 00000000 01020000000000000000000000000000 0000000000000000 0202 1002"},
		{"NEGOTIATE 3.1.1", (&NegotiateRequest{SecurityMode: 2, Capabilities: 0x44, Dialects: []Dialect{0x311},
			Contexts: []NegotiateContext{PreauthContext([]byte{9, 8, 7}), EncryptionContext([]Cipher{2, 1}), NetnameContext("ab")}}).Append,
			"2400 0100 0200 0000 44000000 00000000000000000000000000000000 68000000 0300 0000 1103 0000" +
				"0100 0900 00000000 0100 0300 0100 090807 00000000000000" +
				"0200 0600 00000000 0200 0200 0100 0000" +
				"0500 0400 00000000 6100 6200"},
		{"SESSION_SETUP", (&SessionSetupRequest{Flags: 1, SecurityMode: 2, Capabilities: 1, PreviousSessionID: 0x42, SecurityBuffer: []byte{0xAA, 0xBB}}).Append,
			"1900 01 02 01000000 00000000 5800 0200 4200000000000000 AABB"},
		{"TREE_CONNECT", (&TreeConnectRequest{Path: `\\s\x`}).Append, "0900 0000 4800 0A00 5C00 5C00 7300 5C00 7800"},
		{"CREATE", (&CreateRequest{Impersonation: 2, DesiredAccess: 3, ShareAccess: 7, Disposition: 1, Options: 0x40, Name: "a",
			Contexts: []CreateContext{{"MxAc", nil}, {"RqLs", []byte{1}}}}).Append,
			"3900 00 00 02000000 0000000000000000 0000000000000000 03000000 00000000 07000000 01000000 40000000" +
				"7800 0200 80000000 31000000 6100 000000000000" +
				"18000000 1000 0400 0000 0000 00000000 4D784163 00000000" +
				"00000000 1000 0400 0000 1800 01000000 52714C73 00000000 01"},
		{"CREATE of the root", (&CreateRequest{Disposition: 1}).Append,
			"3900 00 00 00000000 0000000000000000 0000000000000000 00000000 00000000 00000000 01000000 00000000 7800 0000 00000000 00000000 00"},
		{"CLOSE", (&CloseRequest{Flags: 1, FileID: id}).Append, "1800 0100 00000000" + idHex},
		{"FLUSH", (&FlushRequest{FileID: id}).Append, "1800 0000 00000000" + idHex},
		{"READ", (&ReadRequest{Padding: 0x50, Length: 0x1000, Offset: 0x200, FileID: id, MinimumCount: 5}).Append,
			"3100 50 00 00100000 0002000000000000" + idHex + "05000000 00000000 00000000 0000 0000 00"},
		{"WRITE", (&WriteRequest{Length: 0x1000, Offset: 0x200, FileID: id, Flags: 1}).Append,
			"3100 7000 00100000 0002000000000000" + idHex + "00000000 00000000 0000 0000 01000000"},
		{"IOCTL", (&IoctlRequest{CtlCode: 0x00140204, FileID: id, InputCount: 3, MaxOutputResponse: 24, Flags: 1}).Append,
			"3900 0000 04021400" + idHex + "78000000 03000000 00000000 00000000 00000000 18000000 01000000 00000000"},
		{"QUERY_DIRECTORY", (&QueryDirectoryRequest{InfoClass: 37, Flags: 1, FileID: id, OutputBufferLength: 0x10000, Pattern: "*"}).Append,
			"2100 25 01 00000000" + idHex + "6000 0200 00000100 2A00"},
		{"QUERY_INFO", (&QueryInfoRequest{InfoType: 1, FileInfoClass: 5, OutputBufferLength: 24, FileID: id}).Append,
			"2900 01 05 18000000 0000 0000 00000000 00000000 00000000" + idHex + "00"},
		{"SET_INFO", (&SetInfoRequest{InfoType: 1, FileInfoClass: 20, FileID: id, Buffer: []byte{1, 2}}).Append,
			"2100 01 14 02000000 6000 0000 00000000" + idHex + "0102"},
		{"LOCK", (&LockRequest{FileID: id, Locks: []LockElement{{1, 2, 3}}}).Append,
			"3000 0100 00000000" + idHex + "0100000000000000 0200000000000000 03000000 00000000"},
		{"CHANGE_NOTIFY", (&ChangeNotifyRequest{Flags: 1, OutputBufferLength: 8, FileID: id, CompletionFilter: 0x17}).Append,
			"2000 0100 08000000" + idHex + "17000000 00000000"},
		{"ECHO", AppendEmptyRequest, "0400 0000"},
		{"OPLOCK_BREAK", func(b []byte) []byte { return AppendOplockBreakAck(b, OplockBreak{1, id}) }, "1800 01 00 00000000" + idHex},
		{"VALIDATE_NEGOTIATE_INFO", func(b []byte) []byte {
			return (&ValidateNegotiateRequest{0x44, GUID{5}, 2, []Dialect{0x300, 0x302}}).Append(b)
		}, "44000000 05000000000000000000000000000000 0200 0200 0003 0203"},
	} {
		golden(t, c.what, message(c.body)[HeaderSize:], c.want)
	}
	golden(t, "SMB1 NEGOTIATE", AppendSMB1Negotiate(nil, "SMB 2.???"),
		"FF534D42 72 00000000 18 53C8 0000 0000000000000000 0000 FFFF FFFE 0000 0000 00 0B00 02 534D4220322E3F3F3F 00")
}

// replies has, for each reply, the server half's encoding, and the client half's decoding as a function from message to value.
func replies() map[string]struct {
	msg    []byte
	decode func([]byte) (any, error)
	want   any
} {
	type row = struct {
		msg    []byte
		decode func([]byte) (any, error)
		want   any
	}
	neg := &NegotiateResponse{SecurityMode: 3, Dialect: Dialect311, ServerGUID: GUID{1, 2, 3}, Capabilities: 0x47, MaxTransactSize: 1, MaxReadSize: 2, MaxWriteSize: 3,
		SystemTime: 4, ServerStartTime: 5, SecurityBuffer: []byte("token"),
		Contexts: []NegotiateContext{{CtxPreauthIntegrity, AppendPreauthChoice(nil, HashSHA512, []byte("salt"))}, {CtxEncryption, AppendAlgorithmChoice(nil, 2)}, {CtxSigning, AppendAlgorithmChoice(nil, 1)}}}
	neg2 := *neg
	neg2.Dialect, neg2.Contexts = Dialect302, nil
	create := &CreateResponse{OplockLevel: 9, Flags: 1, Action: 2, CreationTime: 3, LastAccessTime: 4, LastWriteTime: 5, ChangeTime: 6, AllocationSize: 7, EndOfFile: 8,
		FileAttributes: 9, FileID: FileID{10, 11}, Contexts: []CreateContext{{"MxAc", []byte("12345678")}, {CreateSVHDX, []byte("x")}, {"none", nil}}}
	plain := *create
	plain.Contexts = nil
	return map[string]row{
		"negotiate":     {message(neg.Append), func(b []byte) (any, error) { v, err := ParseNegotiateResponse(b); return &v, err }, neg},
		"negotiate 302": {message(neg2.Append), func(b []byte) (any, error) { v, err := ParseNegotiateResponse(b); return &v, err }, &neg2},
		"session setup": {message((&SessionSetupResponse{SessionFlags: 5, SecurityBuffer: []byte("tok")}).Append),
			func(b []byte) (any, error) { return ParseSessionSetupResponse(b) }, SessionSetupResponse{5, []byte("tok")}},
		"tree connect": {message((&TreeConnectResponse{1, 2, 3, 4}).Append),
			func(b []byte) (any, error) { return ParseTreeConnectResponse(b) }, TreeConnectResponse{1, 2, 3, 4}},
		"create":       {message(create.Append), func(b []byte) (any, error) { v, err := ParseCreateResponse(b); return &v, err }, create},
		"create plain": {message(plain.Append), func(b []byte) (any, error) { v, err := ParseCreateResponse(b); return &v, err }, &plain},
		"close": {message((&CloseResponse{1, 2, 3, 4, 5, 6, 7, 8}).Append),
			func(b []byte) (any, error) { return ParseCloseResponse(b) }, CloseResponse{1, 2, 3, 4, 5, 6, 7, 8}},
		"read": {append(message((&ReadResponse{DataOffset: 80, DataLength: 3, DataRemaining: 1}).Append), "abc"...),
			func(b []byte) (any, error) { return ParseReadResponse(b, len(b)) }, ReadResponse{DataOffset: 80, DataLength: 3, DataRemaining: 1}},
		"write": {message((&WriteResponse{Count: 7}).Append), func(b []byte) (any, error) { return ParseWriteResponse(b) }, WriteResponse{Count: 7}},
		"ioctl": {append(message((&IoctlResponse{CtlCode: 1, FileID: FileID{2, 3}, OutputCount: 4}).Append), "abcd"...),
			func(b []byte) (any, error) { return ParseIoctlResponse(b) }, IoctlResponse{CtlCode: 1, FileID: FileID{2, 3}, OutputCount: 4, Output: []byte("abcd")}},
		"query": {message((&OutputResponse{[]byte("abcdef")}).Append), func(b []byte) (any, error) { return ParseOutputResponse(b) }, OutputResponse{[]byte("abcdef")}},
		"empty": {message(AppendEmptyResponse), func(b []byte) (any, error) { return nil, ParseEmptyResponse(b) }, nil},
		"set":   {message(AppendSetInfoResponse), func(b []byte) (any, error) { return nil, ParseSetInfoResponse(b) }, nil},
		"error": {message((&ErrorResponse{0, []byte("data")}).Append), func(b []byte) (any, error) { return ParseErrorResponse(b) }, ErrorResponse{0, []byte("data")}},
		"break": {message(func(b []byte) []byte { return AppendOplockBreakResponse(b, OplockBreak{1, FileID{2, 3}}) }),
			func(b []byte) (any, error) { return ParseOplockBreakNotification(b) }, OplockBreak{1, FileID{2, 3}}},
	}
}

// TestClientRepliesOfServerHalf decodes what the server half encodes, and refuses every message that ends early.
func TestClientRepliesOfServerHalf(t *testing.T) {
	for name, r := range replies() {
		t.Run(name, func(t *testing.T) {
			got, err := r.decode(r.msg)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, r.want) {
				t.Errorf("got %+v, want %+v", got, r.want)
			}
			for n := range len(r.msg) {
				if _, err := r.decode(r.msg[:n:n]); !errors.Is(err, ErrMalformed) {
					// The error reply may end before its one byte of padding.
					if name == "error" && n >= len(r.msg)-1 {
						continue
					}
					t.Fatalf("the first %d of %d bytes: %v", n, len(r.msg), err)
				}
			}
			wrong := bytes.Clone(r.msg)
			wrong[HeaderSize]++
			if _, err := r.decode(wrong); !errors.Is(err, ErrMalformed) {
				t.Errorf("wrong StructureSize: %v", err)
			}
		})
	}
}

// TestClientRequestsAtServerHalf has the server half decode what the client half encodes.
func TestClientRequestsAtServerHalf(t *testing.T) {
	id := FileID{1, 2}
	n := &NegotiateRequest{SecurityMode: 2, Capabilities: 4, ClientGUID: GUID{7}, Dialects: []Dialect{Dialect302, Dialect311},
		Contexts: []NegotiateContext{PreauthContext([]byte("salt!")), SigningContext([]SigningAlgorithm{2, 1}), NetnameContext("host")}}
	c := &CreateRequest{OplockLevel: 1, Impersonation: 2, DesiredAccess: 3, FileAttributes: 4, ShareAccess: 5, Disposition: 1, Options: 2, Name: `a\b`,
		Contexts: []CreateContext{{"MxAc", nil}, {"DH2Q", bytes.Repeat([]byte{1}, 32)}}}
	for name, r := range map[string]struct {
		msg    []byte
		decode func([]byte) (any, error)
		want   any
	}{
		"negotiate":       {message(n.Append), func(b []byte) (any, error) { return ParseNegotiateRequest(b) }, n},
		"create":          {message(c.Append), func(b []byte) (any, error) { return ParseCreateRequest(b) }, c},
		"tree connect":    {message((&TreeConnectRequest{Path: `\\h\s`}).Append), func(b []byte) (any, error) { return ParseTreeConnectRequest(b) }, &TreeConnectRequest{Path: `\\h\s`}},
		"close":           {message((&CloseRequest{1, id}).Append), func(b []byte) (any, error) { return ParseCloseRequest(b) }, CloseRequest{1, id}},
		"flush":           {message((&FlushRequest{id}).Append), func(b []byte) (any, error) { return ParseFlushRequest(b) }, FlushRequest{id}},
		"set info":        {message((&SetInfoRequest{1, 2, 3, id, []byte("abc")}).Append), func(b []byte) (any, error) { return ParseSetInfoRequest(b) }, &SetInfoRequest{1, 2, 3, id, []byte("abc")}},
		"query directory": {message((&QueryDirectoryRequest{37, 1, 0, id, 100, "*"}).Append), func(b []byte) (any, error) { return ParseQueryDirectoryRequest(b) }, &QueryDirectoryRequest{37, 1, 0, id, 100, "*"}},
	} {
		got, err := r.decode(r.msg)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !reflect.DeepEqual(got, r.want) {
			t.Errorf("%s: got %+v, want %+v", name, got, r.want)
		}
	}
}

// TestNames has every UTF-16 string come back as it was, also one that is not valid.
func TestNames(t *testing.T) {
	for _, u := range []string{"6100", "", "3DD80ADE", "3DD8", "0ADE", "0ADE3DD8", "61003DD86200", "FFFF", "FDFF"} {
		b, _ := hex.DecodeString(u)
		if got := AppendName(nil, DecodeName(b)); !bytes.Equal(got, b) {
			t.Errorf("%s came back as %x, by way of %q", u, got, DecodeName(b))
		}
	}
	if got := AppendName(nil, "a\xffb\xed\xa0"); !bytes.Equal(got, []byte{'a', 0, 0xFD, 0xFF, 'b', 0, 0xFD, 0xFF, 0xFD, 0xFF}) {
		t.Errorf("invalid UTF-8 became %x", got)
	}
}

func TestErrorContexts(t *testing.T) {
	r := ErrorResponse{ContextCount: 2, Data: []byte("\x03\x00\x00\x00\x01\x00\x00\x00abc\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00xy")}
	if d := r.DefaultData(); string(d) != "xy" {
		t.Errorf("got %q", d)
	}
	r.Data = r.Data[:20]
	if d := r.DefaultData(); d != nil {
		t.Errorf("cut off: got %q", d)
	}
}

// FuzzClientReplies feeds arbitrary bytes to every decoder of replies: none may panic, and what they return lies in the message.
func FuzzClientReplies(f *testing.F) {
	for _, r := range replies() {
		f.Add(r.msg)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, r := range replies() {
			_, _ = r.decode(b)
		}
		if v, err := ParseNegotiateResponse(b); err == nil {
			for i := range v.Contexts {
				_, _ = v.Contexts[i].Selected()
			}
		}
		if v, err := ParseErrorResponse(b); err == nil {
			_ = v.DefaultData()
		}
		if v, err := ParseReadResponse(b, len(b)); err == nil && v.DataLength > 0 {
			_ = b[v.DataOffset : int(v.DataOffset)+int(v.DataLength)]
		}
		if v, off, err := ParseIoctlResponseFixed(b, len(b)); err == nil {
			_ = b[off : off+int(v.OutputCount)]
		}
		_, _ = ParseValidateNegotiateResponse(b)
		_ = AppendName(nil, DecodeName(b))
	})
}
