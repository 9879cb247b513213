package pcap

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"vdbridge/smb/auth"
	"vdbridge/smb/crypt"
	"vdbridge/smb/transport"
	"vdbridge/smb/wire"
)

// exchange plays both sides of a connection into a capture.
type exchange struct {
	t       *testing.T
	c       *Connection
	id      uint64
	session uint64
	preauth crypt.Preauth
}

func (x *exchange) message(cmd wire.Command, reply bool, status uint32, body interface{ Append([]byte) []byte }) []byte {
	h := wire.Header{Command: cmd, Status: status, MessageID: x.id, Credits: 1, SessionID: x.session}
	if reply {
		h.Flags = wire.FlagServerToRedir
	}
	b := make([]byte, wire.HeaderSize, 1024)
	h.Put(b)
	return body.Append(b)
}

func (x *exchange) sent(b []byte)     { x.c.Sent(transport.Message{b}) }
func (x *exchange) received(b []byte) { x.c.Received(b, 0) }

// empty is the body of ECHO. [MS-SMB2] 2.2.28
type empty struct{}

func (empty) Append(b []byte) []byte { return append(b, 4, 0, 0, 0) }

// TestTsharkDecrypts has tshark follow a made-up session, derive its keys from the keys file and what it saw, and decrypt what follows. It so
// judges the keys and the ciphers as well.
func TestTsharkDecrypts(t *testing.T) {
	for _, cipher := range []wire.Cipher{wire.CipherAES128CCM, wire.CipherAES128GCM, wire.CipherAES256CCM, wire.CipherAES256GCM} {
		t.Run(cipher.String(), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "c.pcap")
			w, err := Create(path)
			if err != nil {
				t.Fatal(err)
			}
			x := &exchange{t: t, c: w.Connection(nil, nil, false)}
			play(x, w, cipher)
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			opts, err := DecryptOptions(path)
			if err != nil {
				t.Fatal(err)
			}
			out := tshark(t, append(append([]string{"-r", path}, opts...), "-Y", "smb2 || _ws.malformed", "-T", "fields",
				"-e", "smb2.cmd", "-e", "ntlmssp.auth.username", "-e", "_ws.malformed")...)
			var cmds []string
			for line := range strings.Lines(out) {
				f := strings.Split(strings.TrimRight(line, "\n"), "\t")
				cmds = append(cmds, f[0])
				if f[2] != "" {
					t.Errorf("tshark finds a malformed message: %s", line)
				}
			}
			if got := strings.Join(cmds, " "); got != "0 0 1 1 1 1 13 13 13" || !strings.Contains(out, "alice") {
				t.Errorf("tshark sees the commands %q in\n%s", got, out)
			}
			// Without the keys, the sealed messages must stay closed.
			if cipher != wire.CipherAES128GCM {
				return
			}
			if out := tshark(t, "-r", path, "-Y", "smb2.cmd == 13"); out != "" {
				t.Errorf("tshark reads sealed messages without their keys:\n%s", out)
			}
		})
	}
}

func play(x *exchange, w *Writer, cipher wire.Cipher) {
	t := x.t
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	salt := bytes.Repeat([]byte{7}, 32)
	acceptor := auth.NewAcceptor(auth.AcceptNTLM(auth.AcceptorConfig{Users: auth.NewUsers(map[string]string{"alice": "secret"})}))
	initiator, err := auth.NewInitiator(acceptor.Hint(), auth.NTLM(auth.Credentials{User: "alice", Password: "secret"}, "cifs/x"))
	check(err)

	req := x.message(wire.CmdNegotiate, false, 0, &wire.NegotiateRequest{SecurityMode: 1, Capabilities: wire.CapEncryption, Dialects: []wire.Dialect{wire.Dialect311},
		Contexts: []wire.NegotiateContext{wire.PreauthContext(salt), wire.EncryptionContext([]wire.Cipher{cipher})}})
	x.sent(req)
	x.preauth.Update(req)
	rep := x.message(wire.CmdNegotiate, true, 0, &wire.NegotiateResponse{SecurityMode: 1, Dialect: wire.Dialect311, MaxReadSize: 1 << 20, MaxWriteSize: 1 << 20,
		MaxTransactSize: 1 << 20, SecurityBuffer: acceptor.Hint(), Contexts: []wire.NegotiateContext{
			{Type: wire.CtxPreauthIntegrity, Data: wire.AppendPreauthChoice(nil, wire.HashSHA512, salt)},
			{Type: wire.CtxEncryption, Data: wire.AppendAlgorithmChoice(nil, uint16(cipher))}}})
	x.received(rep)
	x.preauth.Update(rep)

	var token []byte
	for done := false; !done; {
		x.id++
		token, _, err = initiator.Token(token)
		check(err)
		req = x.message(wire.CmdSessionSetup, false, 0, &wire.SessionSetupRequest{SecurityMode: 1, SecurityBuffer: token})
		x.sent(req)
		x.preauth.Update(req)
		token, done, err = acceptor.Token(token)
		check(err)
		status := uint32(0xC0000016)
		if done {
			status = 0
		}
		x.session = 0x0000040000000021
		rep = x.message(wire.CmdSessionSetup, true, status, &wire.SessionSetupResponse{SecurityBuffer: token})
		if !done {
			x.preauth.Update(rep)
		}
		if done {
			keys := crypt.DeriveKeys(wire.Dialect311, cipher, acceptor.SessionKey(), &x.preauth)
			signer, err := crypt.NewSigner(wire.SigningAESCMAC, keys.Signing)
			check(err)
			rep[16] |= byte(wire.FlagSigned)
			signer.Sign(rep)
			x.received(rep)
			w.SessionKey(x.session, acceptor.SessionKey())
			client, err := crypt.NewSealer(crypt.SealerConfig{Cipher: cipher, SendKey: keys.ClientToServer, ReceiveKey: keys.ServerToClient, SessionID: x.session})
			check(err)
			server, err := crypt.NewSealer(crypt.SealerConfig{Cipher: cipher, SendKey: keys.ServerToClient, ReceiveKey: keys.ClientToServer, SessionID: x.session})
			check(err)
			seal := func(s *crypt.Sealer, reply bool) []byte {
				b := x.message(wire.CmdEcho, reply, 0, empty{})
				b = append(make([]byte, crypt.SealRoom), b...)
				check(s.Seal(b))
				return b
			}
			x.id++
			x.sent(seal(client, false))
			x.received(seal(server, true))
			x.id++
			x.sent(seal(client, false))
			return
		}
		x.received(rep)
	}
}
