package rsvd

import (
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"net"
	"strings"
	"testing"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// props is the tail of a v2 reply: 1 GiB, 512 and 4096. ms-rsvd.md 15.2
var props, _ = hex.DecodeString("010000000200000000020000001000000000004000000000")

// server answers CREATEs by a function, and notes them.
type server struct {
	file    *fake
	creates []*wire.CreateRequest
	answer  func(n int, req *wire.CreateRequest) ([]wire.CreateContext, error)
}

func (s *server) create(_ context.Context, req *wire.CreateRequest) (File, []wire.CreateContext, error) {
	s.creates = append(s.creates, req)
	ctxs, err := s.answer(len(s.creates), req)
	if err != nil {
		return nil, nil, err
	}
	return s.file, ctxs, nil
}

func shared(req *wire.CreateRequest) bool { return strings.HasSuffix(req.Name, ":SharedVirtualDisk") }

func v2Reply(req *wire.CreateRequest) []wire.CreateContext {
	return []wire.CreateContext{{Name: wire.CreateSVHDX, Data: append(append([]byte{}, req.Contexts[0].Data[:168]...), props...)}}
}

func TestOpenDiscovery(t *testing.T) {
	noDevice := func(code uint32, _ []byte) error { return ntstatus.InvalidDeviceRequest }
	for _, c := range []struct {
		name    string
		opts    Options
		ioctl   func(code uint32, in []byte) error
		answer  func(n int, req *wire.CreateRequest) ([]wire.CreateContext, error)
		want    error // nil: opens
		version uint32
		creates int
		closes  int32
	}{
		{"version 2", Options{}, nil, func(_ int, req *wire.CreateRequest) ([]wire.CreateContext, error) { return v2Reply(req), nil }, nil, 2, 1, 0},
		{"version 1 server refuses 2", Options{}, nil, func(_ int, req *wire.CreateRequest) ([]wire.CreateContext, error) {
			if req.Contexts[0].Data[0] == 2 {
				return nil, ntstatus.InvalidParameter
			}
			return []wire.CreateContext{req.Contexts[0]}, nil
		}, nil, 1, 2, 0},
		{"2012 R2 without the update answers no context", Options{}, nil, func(int, *wire.CreateRequest) ([]wire.CreateContext, error) { return nil, nil }, nil, 1, 2, 1},
		{"a server that ignores the context and has such a stream", Options{}, noDevice, func(int, *wire.CreateRequest) ([]wire.CreateContext, error) { return nil, nil },
			ErrNotSupported, 0, 2, 2},
		{"no RSVD: the stream is not found, the file is", Options{}, noDevice, func(_ int, req *wire.CreateRequest) ([]wire.CreateContext, error) {
			if shared(req) {
				return nil, ntstatus.ObjectNameNotFound
			}
			return nil, nil
		}, ErrNotSupported, 0, 3, 1},
		{"RSVD, but not where the file lies", Options{}, nil, func(_ int, req *wire.CreateRequest) ([]wire.CreateContext, error) {
			if shared(req) {
				return nil, ntstatus.ObjectNameInvalid
			}
			return nil, nil
		}, ErrNotSupported, 0, 3, 1},
		{"no such file", Options{}, nil, func(int, *wire.CreateRequest) ([]wire.CreateContext, error) { return nil, ntstatus.ObjectNameNotFound }, fs.ErrNotExist, 0, 3, 0},
		{"no such directory", Options{}, nil, func(int, *wire.CreateRequest) ([]wire.CreateContext, error) { return nil, ntstatus.ObjectPathNotFound }, fs.ErrNotExist, 0, 1, 0},
		{"not allowed", Options{}, nil, func(int, *wire.CreateRequest) ([]wire.CreateContext, error) { return nil, ntstatus.AccessDenied }, fs.ErrPermission, 0, 1, 0},
		{"not a disk", Options{}, nil, func(int, *wire.CreateRequest) ([]wire.CreateContext, error) { return nil, ntstatus.SVHDXWrongFileType }, ErrWrongFileType, 0, 1, 0},
		{"in exclusive use", Options{}, nil, func(int, *wire.CreateRequest) ([]wire.CreateContext, error) { return nil, ntstatus.SharingViolation }, ErrInUse, 0, 1, 0},
		{"connection lost", Options{}, nil, func(int, *wire.CreateRequest) ([]wire.CreateContext, error) { return nil, net.ErrClosed }, net.ErrClosed, 0, 1, 0},
		{"old dialect", Options{Dialect: wire.Dialect300}, nil, nil, ErrNotSupported, 0, 0, 0},
		{"version 2 insisted on, version 1 server", Options{Version: 2}, nil, func(_ int, req *wire.CreateRequest) ([]wire.CreateContext, error) {
			if shared(req) {
				return nil, ntstatus.InvalidParameter
			}
			return nil, nil
		}, ntstatus.InvalidParameter, 0, 2, 1},
		{"broken reply", Options{}, nil, func(_ int, req *wire.CreateRequest) ([]wire.CreateContext, error) {
			return []wire.CreateContext{{Name: wire.CreateSVHDX, Data: make([]byte, 100)}}, nil
		}, ErrProtocol, 0, 1, 1},
		{"sectors of 300 bytes", Options{}, nil, func(_ int, req *wire.CreateRequest) ([]wire.CreateContext, error) {
			r := v2Reply(req)
			r[0].Data[176], r[0].Data[177] = 44, 1
			return r, nil
		}, ErrProtocol, 0, 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(1 << 20)
			f.onIoctl = c.ioctl
			if c.name == "version 2" {
				f.data = nil
			}
			s := &server{file: f, answer: c.answer}
			c.opts.Path = "disk.vhdx"
			d, err := Open(context.Background(), s.create, c.opts)
			if c.want == nil && err != nil || c.want != nil && !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if len(s.creates) != c.creates {
				t.Errorf("%d CREATEs, want %d", len(s.creates), c.creates)
			}
			if n := f.closed.Load(); n != c.closes {
				t.Errorf("%d CLOSEs, want %d", n, c.closes)
			}
			for _, req := range s.creates {
				if req.Disposition != wire.FileOpen {
					t.Errorf("disposition %d: a server without RSVD could make a stream", req.Disposition)
				}
				if shared(req) && req.Options&wire.OptNoIntermediateBuffering == 0 {
					t.Error("buffered: READ would be refused")
				}
			}
			if c.want == nil && d.Version() != c.version {
				t.Errorf("version %d, want %d", d.Version(), c.version)
			}
		})
	}
}

// What Microsoft's client sends, byte for byte. ms-rsvd.md 3.1, 15.2
func TestOpenRequest(t *testing.T) {
	f := newFake(1 << 20)
	s := &server{file: f, answer: func(_ int, req *wire.CreateRequest) ([]wire.CreateContext, error) { return v2Reply(req), nil }}
	id := [16]byte{0x72, 0xd6, 0xba, 0x68, 0x73, 0x2a, 0xd8, 0x4c, 0x9f, 0x58, 0x6a, 0x4b, 0x67, 0x23, 0x2e, 0x0d}
	f.size, f.data = 1<<30, nil
	f.onSCSI = func(cdb []byte) *scsiReply { return checkCondition(5, 0x2000) }
	if _, err := Open(context.Background(), s.create, Options{Path: "rsvd.vhds", InitiatorID: id, HostName: "SMBD-SUT01", IO: IOSCSI}); err != nil {
		t.Fatal(err)
	}
	req := s.creates[0]
	if req.Name != "rsvd.vhds:SharedVirtualDisk" || req.DesiredAccess != 0x00020083 || req.ShareAccess != 7 || req.Options != 8 || req.Disposition != 1 || req.Impersonation != 2 || req.OplockLevel != 0 {
		t.Errorf("CREATE is not as Windows sends it: %+v", req)
	}
	want := "02000000" + "01000000" + hex.EncodeToString(id[:]) + "00000000" + "01000000" + "0000000000000000" + "1400" + "53004d00420044002d005300550054003000310000"
	if got := hex.EncodeToString(req.Contexts[0].Data); !strings.HasPrefix(got, want) || len(got) != 2*192 || strings.Trim(got[len(want):], "0") != "" {
		t.Errorf("context\n got %s\nwant %s…", got, want)
	}
	if len(req.Contexts) != 1 || req.Contexts[0].Name != wire.CreateSVHDX {
		t.Errorf("contexts %v", req.Contexts)
	}
}

func TestReadOnlyOpen(t *testing.T) {
	f := newFake(1 << 20)
	s := &server{file: f, answer: func(_ int, req *wire.CreateRequest) ([]wire.CreateContext, error) { return v2Reply(req), nil }}
	f.data = make([]byte, 1<<20)
	d, err := Open(context.Background(), s.create, Options{Path: "a.vhdx", ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if a := s.creates[0].DesiredAccess; a&wire.AccessWriteData != 0 {
		t.Errorf("access %#x", a)
	}
	for name, err := range map[string]error{
		"write": d.Write(context.Background(), make([]byte, 512), 0, false), "trim": d.Trim(context.Background(), 0, 512),
		"zero": d.WriteZeroes(context.Background(), 0, 512, false, false),
	} {
		if !errors.Is(err, ErrReadOnly) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
