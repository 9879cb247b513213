package rsvdcases

import (
	"bytes"
	"encoding/binary"
	"net"
	"testing"
	"time"

	"vdbridge/smb/auth"
	"vdbridge/smb/crypt"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/transport"
	"vdbridge/smb/tunnel"
	"vdbridge/smb/wire"
)

// raw is a client that sends what it is told: the CREATE that reconnects has no RSVD context, which no real client of ours leaves out.
type raw struct {
	t      *testing.T
	tc     transport.Conn
	signer *crypt.Signer
	nextID uint64
	sid    uint64
	tid    uint32
	opID   uint64
}

// ask sends one request, signed once there is a key, and returns status, header and message of the reply.
func (c *raw) ask(cmd wire.Command, body func([]byte) []byte, hash func([]byte)) (ntstatus.Status, wire.Header, []byte) {
	c.t.Helper()
	h := wire.Header{Command: cmd, CreditCharge: 1, Credits: 16, MessageID: c.nextID, SessionID: c.sid, TreeID: c.tid}
	c.nextID++
	m := make([]byte, wire.HeaderSize, 4096)
	h.Put(m)
	m = body(m)
	if c.signer != nil {
		binary.LittleEndian.PutUint32(m[16:], wire.FlagSigned)
		c.signer.Sign(m)
	}
	if hash != nil {
		hash(m)
	}
	if err := c.tc.WriteMessages([]transport.Message{{m}}); err != nil {
		c.t.Fatal(err)
	}
	for {
		n, err := c.tc.NextMessage()
		if err != nil {
			c.t.Fatal(err)
		}
		b := make([]byte, n)
		if err := c.tc.ReadFull(b); err != nil {
			c.t.Fatal(err)
		}
		h, err := wire.ParseHeader(b)
		if err != nil {
			c.t.Fatal(err)
		}
		if st := ntstatus.Status(h.Status); st != ntstatus.Pending {
			return st, h, b
		}
	}
}

// dialRaw negotiates 3.1.1 with persistent handles, logs on in the place of the session previous, and connects to the share.
func dialRaw(t *testing.T, s *sut, guid wire.GUID, previous uint64) *raw {
	t.Helper()
	nc, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	c := &raw{t: t, tc: transport.NewTCP(nc, transport.Options{})}
	t.Cleanup(func() { c.tc.Close() })
	c.tc.SetReadDeadline(time.Now().Add(20 * time.Second))
	var preauth crypt.Preauth
	hash := func(m []byte) { preauth.Update(m) }
	neg := wire.NegotiateRequest{SecurityMode: wire.NegotiateSigningEnabled, Capabilities: wire.CapPersistentHandles | wire.CapLargeMTU, ClientGUID: guid,
		Dialects: []wire.Dialect{wire.Dialect311}, Contexts: []wire.NegotiateContext{wire.PreauthContext(make([]byte, 32))}}
	st, _, b := c.ask(wire.CmdNegotiate, neg.Append, hash)
	resp, err := wire.ParseNegotiateResponse(b)
	if st != ntstatus.Success || err != nil || resp.Capabilities&wire.CapPersistentHandles == 0 {
		t.Fatalf("NEGOTIATE: %v, %v, capabilities %#x", st, err, resp.Capabilities)
	}
	hash(b)
	ini, err := auth.NewInitiator(resp.SecurityBuffer, auth.NTLM(auth.Credentials{User: user, Password: password}, "cifs/test"))
	if err != nil {
		t.Fatal(err)
	}
	var in []byte
	for {
		token, _, err := ini.Token(in)
		if err != nil {
			t.Fatal(err)
		}
		st, h, b := c.ask(wire.CmdSessionSetup, (&wire.SessionSetupRequest{SecurityMode: 1, PreviousSessionID: previous, SecurityBuffer: token}).Append, hash)
		c.sid = h.SessionID
		r, err := wire.ParseSessionSetupResponse(b)
		if err != nil || st != ntstatus.Success && st != ntstatus.MoreProcessingRequired {
			t.Fatalf("SESSION_SETUP: %v, %v", st, err)
		}
		in = r.SecurityBuffer
		if st == ntstatus.Success {
			break
		}
		hash(b)
	}
	if _, _, err := ini.Token(in); err != nil {
		t.Fatal(err)
	}
	if c.signer, err = crypt.NewSigner(wire.SigningAESCMAC, crypt.SigningKey(wire.Dialect311, ini.SessionKey(), &preauth)); err != nil {
		t.Fatal(err)
	}
	st, h, b := c.ask(wire.CmdTreeConnect, (&wire.TreeConnectRequest{Path: `\\test\` + caShare}).Append, nil)
	tree, err := wire.ParseTreeConnectResponse(b)
	if st != ntstatus.Success || err != nil || tree.Capabilities&wire.ShareCapContinuousAvailability == 0 {
		t.Fatalf("TREE_CONNECT: %v, %v, capabilities %#x", st, err, tree.Capabilities)
	}
	c.tid = h.TreeID
	return c
}

func (c *raw) create(options uint32, contexts ...wire.CreateContext) (wire.CreateResponse, ntstatus.Status) {
	c.t.Helper()
	req := wire.CreateRequest{Impersonation: 2, DesiredAccess: 0x00020083, ShareAccess: 7, Disposition: wire.FileOpenIf, Options: options,
		Name: diskName + tunnel.Suffix, Contexts: contexts}
	st, _, b := c.ask(wire.CmdCreate, req.Append, nil)
	if st != ntstatus.Success {
		return wire.CreateResponse{}, st
	}
	resp, err := wire.ParseCreateResponse(b)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp, st
}

func (c *raw) tunnel(id wire.FileID, op tunnel.OpCode, body []byte) []byte {
	c.t.Helper()
	c.opID++
	in := append((&tunnel.RequestHeader{Op: op, RequestID: c.opID}).Append(nil), body...)
	st, _, b := c.ask(wire.CmdIoctl, func(b []byte) []byte {
		q := wire.IoctlRequest{CtlCode: tunnel.FsctlSyncTunnelRequest, FileID: id, InputCount: uint32(len(in)), MaxOutputResponse: 4096, Flags: wire.IoctlFlagIsFsctl}
		return append(q.Append(b), in...)
	}, nil)
	if st != ntstatus.Success {
		c.t.Fatalf("%v: %v", op, st)
	}
	resp, err := wire.ParseIoctlResponse(b)
	if err != nil {
		c.t.Fatal(err)
	}
	h, err := tunnel.ParseResponseHeader(resp.Output)
	if err != nil || h.Status != 0 {
		c.t.Fatalf("%v: tunnel status %v, %v", op, h.Status, err)
	}
	return resp.Output[tunnel.HeaderSize:]
}

func (c *raw) scsi(id wire.FileID, cdb []byte, disposition uint8, data []byte) tunnel.SCSIResponse {
	c.t.Helper()
	r := tunnel.SCSIRequest{CDBLength: uint8(len(cdb)), SenseLength: 20, Disposition: disposition, DataTransferLength: uint32(len(data))}
	copy(r.CDB[:], cdb)
	rep, err := tunnel.ParseSCSIResponse(c.tunnel(id, tunnel.OpSCSI, append(r.Append(nil), data...)))
	if err != nil {
		c.t.Fatal(err)
	}
	return rep
}

func (c *raw) reserveOut(id wire.FileID, action, typ byte, key, actionKey uint64) tunnel.SCSIResponse {
	list := make([]byte, 24)
	binary.BigEndian.PutUint64(list, key)
	binary.BigEndian.PutUint64(list[8:], actionKey)
	return c.scsi(id, []byte{0x5f, action, typ, 0, 0, 0, 0, 0, 24, 0}, tunnel.DispositionOut, list)
}

// read returns the status of a READ.
func (c *raw) read(id wire.FileID, off uint64) ntstatus.Status {
	st, _, _ := c.ask(wire.CmdRead, (&wire.ReadRequest{Length: 512, Offset: off, FileID: id}).Append, nil)
	return st
}

// TestReconnectSharedVHDWithoutDeviceContext loses the connection of a persistent open and reconnects it without the RSVD context. Beyond what the
// suite checks: the reservation and the stored sense data are still there. ms-rsvd.md 10.6, 11.2
func TestReconnectSharedVHDWithoutDeviceContext(t *testing.T) {
	each(t, func(t *testing.T, s *sut, version uint32) {
		guid, createGUID := randomGUID(), randomGUID()
		_, open := openRequest(openArgs{version: version})
		var dh2q [32]byte
		dh2q[4] = 2
		copy(dh2q[16:], createGUID[:])
		c := dialRaw(t, s, guid, 0)
		resp, st := c.create(wire.OptNoIntermediateBuffering, append(open.Contexts, wire.CreateContext{Name: wire.CreateDurableRequest2, Data: dh2q[:]})...)
		if st != ntstatus.Success {
			t.Fatalf("CREATE: %v", st)
		}
		// The suite looks at the first context only.
		if len(resp.Contexts) != 2 || resp.Contexts[0].Name != wire.CreateDurableRequest2 || resp.Contexts[0].Data[4]&2 == 0 {
			t.Fatalf("contexts %+v", resp.Contexts)
		}
		id := resp.FileID
		const key, writeExclusive = 0x1234, 1
		for i, r := range []tunnel.SCSIResponse{c.reserveOut(id, 0, 0, 0, key), c.reserveOut(id, 1, writeExclusive, key, 0)} {
			if r.SCSIStatus != 0 {
				t.Fatalf("PERSISTENT RESERVE OUT %d: %+v", i, r)
			}
		}
		failed := c.read(id, diskSize)
		senseKey, stored := failed.StoredSense()
		if !stored {
			t.Fatalf("READ beyond the end: %v", failed)
		}
		status := func(c *raw, id wire.FileID) []byte {
			return c.tunnel(id, tunnel.OpSRBStatus, (&tunnel.SRBStatusRequest{StatusKey: senseKey}).Append(nil))
		}
		sense := bytes.Clone(status(c, id))
		c.tc.Close()

		c = dialRaw(t, s, guid, c.sid)
		var dh2c [36]byte
		binary.LittleEndian.PutUint64(dh2c[:], id.Persistent)
		binary.LittleEndian.PutUint64(dh2c[8:], id.Volatile)
		copy(dh2c[16:], createGUID[:])
		dh2c[32] = 2
		resp, st = c.create(wire.OptNonDirectoryFile, wire.CreateContext{Name: wire.CreateDurableConnect2, Data: dh2c[:]})
		if st != ntstatus.Success {
			t.Fatalf("CREATE that reconnects: %v", st)
		}
		if resp.FileID.Persistent != id.Persistent {
			t.Errorf("identifier %+v, was %+v", resp.FileID, id)
		}
		id = resp.FileID
		if got := status(c, id); !bytes.Equal(got, sense) {
			t.Errorf("stored sense % x, was % x", got, sense)
		}
		if st := c.read(id, 0); st != ntstatus.Success {
			t.Errorf("READ: %v", st)
		}
		r := c.scsi(id, []byte{0x5e, 1, 0, 0, 0, 0, 0, 0, 24, 0}, tunnel.DispositionIn, make([]byte, 24))
		if r.SCSIStatus != 0 || len(r.Data) != 24 || binary.BigEndian.Uint64(r.Data[8:]) != key || r.Data[21] != writeExclusive {
			t.Errorf("READ RESERVATION: %+v", r)
		}
		// Another initiator is still kept out.
		o := openDisk(t, s.connect(t), openArgs{version: version})
		defer o.close()
		if _, err := o.f.WriteAt(bg, make([]byte, 512), 0); err == nil {
			t.Error("another initiator may write")
		} else if st, _ := ntstatus.Of(err); st != ntstatus.SVHDXReservationConflict {
			t.Errorf("WRITE by another initiator: %v", err)
		}
		if st, _, _ := c.ask(wire.CmdClose, (&wire.CloseRequest{FileID: id}).Append, nil); st != ntstatus.Success {
			t.Errorf("CLOSE: %v", st)
		}
	})
}
