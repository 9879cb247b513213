package auth

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"vdbridge/smb/ntstatus"
)

func equal(t *testing.T, what string, got []byte, want string) {
	t.Helper()
	if !bytes.Equal(got, unhex(t, want)) {
		t.Errorf("%s is %x, want %s", what, got, strings.Join(strings.Fields(want), ""))
	}
}

// Values of [MS-NLMP] 4.2.1 and 4.2.4.
const (
	vectorChallenge = `4e544c4d53535000 02000000 0c000c00 38000000 33828ae2 0123456789abcdef 0000000000000000 24002400 44000000
		060070170000000f 530065007200760065007200 02000c0044006f006d00610069006e00 01000c00530065007200760065007200 00000000`
	vectorAuthenticate = `4e544c4d53535000 03000000 18001800 6c000000 54005400 84000000 0c000c00 48000000 08000800 54000000 10001000 5c000000
		10001000 d8000000 358288e2 0501280a0000000f 44006f006d00610069006e00 5500730065007200 43004f004d0050005500540045005200
		86c35097ac9cec102554764a57cccc19aaaaaaaaaaaaaaaa
		68cd0ab851e51c96aabc927bebef6a1c 0101000000000000 0000000000000000 aaaaaaaaaaaaaaaa 00000000
		02000c0044006f006d00610069006e00 01000c00530065007200760065007200 0000000000000000
		c5dad2544fc979909 4ce1ce90bc9d03e`
	vectorSessionKey = "55555555555555555555555555555555"
)

func TestVectorsOfNLMP(t *testing.T) {
	key := responseKey(NTHash("Password"), "User", "Domain")
	equal(t, "NTOWFv2", key[:], "0c868a403bfd7a93a3001ef22ef02e3f")
	c, err := parseChallenge(unhex(t, vectorChallenge))
	if err != nil {
		t.Fatal(err)
	}
	if c.targetName != "Server" || len(c.targetInfo) != 2 || c.flags != 0xe28a8233 {
		t.Errorf("challenge: %+v", c)
	}
	client := [8]byte{0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa}
	temp := encodeTemp(0, client, c.targetInfo)
	p := proof(key, c.challenge, temp)
	equal(t, "NTProofStr", p[:], "68cd0ab851e51c96aabc927bebef6a1c")
	base := hmacMD5(key[:], p[:])
	equal(t, "SessionBaseKey", base[:], "8de40ccadbc14a82f15cb0ad0de95ca3")
	equal(t, "EncryptedRandomSessionKey", rc4Once(base[:], unhex(t, vectorSessionKey)), "c5dad2544fc979909 4ce1ce90bc9d03e")

	a, err := parseAuthenticate(unhex(t, vectorAuthenticate))
	if err != nil {
		t.Fatal(err)
	}
	if a.user != "User" || a.domain != "Domain" || a.workstation != "COMPUTER" || !bytes.Equal(a.nt, append(p[:], temp...)) {
		t.Errorf("authenticate: %+v", a)
	}
	equal(t, "LMv2 response", a.lm, "86c35097ac9cec102554764a57cccc19 aaaaaaaaaaaaaaaa")

	// Signing and sealing, 4.2.4.4.
	k := newKeys(unhex(t, vectorSessionKey), "client-to-server")
	equal(t, "seal key", k.seal[:], "59f600973cc4960a25480a7c196e4c58")
	equal(t, "sign key", k.sign[:], "4788dc861b4782f35d43fd98fe1a2d39")
	message := utf16le("Plaintext")
	sum := hmacMD5(k.sign[:], make([]byte, 4), message)
	equal(t, "checksum", sum[:8], "70352851f2564309")
	// There the message was encrypted with the same RC4 state before the checksum.
	both := rc4Once(k.seal[:], append(bytes.Clone(message), sum[:8]...))
	equal(t, "sealed data and checksum", both, "54e50165bf1936dc996020c1811b0f06fb5f 7fb38ec5c55d4976")
	equal(t, "MAC without key exchange", k.mac(message, false), "01000000 70352851f2564309 00000000")
}

// TestAcceptsVector has our acceptor judge the AUTHENTICATE_MESSAGE of the specification.
func TestAcceptsVector(t *testing.T) {
	m := AcceptNTLM(AcceptorConfig{Users: NewUsers(map[string]string{"user": "Password"})}).(*ntlmAcceptor)
	m.now = func() time.Time { return time.Unix(-11644473600, 0) }
	c, _ := parseChallenge(unhex(t, vectorChallenge))
	m.negotiate, m.challenge, m.nonce, m.flags, m.target = []byte{}, []byte{}, c.challenge, c.flags, c.targetInfo
	m.sent = m.now()
	if err := m.check(unhex(t, vectorAuthenticate)); err != nil {
		t.Fatal(err)
	}
	equal(t, "session key", m.SessionKey(), vectorSessionKey)
	equal(t, "key of signatures received", m.recv.sign[:], "4788dc861b4782f35d43fd98fe1a2d39")
}

// TestMakesVector has our initiator answer the challenge of the specification. Our answer carries more AV pairs, so it is compared by what a server makes
// of it.
func TestMakesVector(t *testing.T) {
	m := NTLM(Credentials{User: "User", Domain: "Domain", Password: "Password", Workstation: "COMPUTER"}, "cifs/server").(*ntlmInitiator)
	m.random = func(b []byte) {
		for i := range b {
			b[i] = 0x55
		}
	}
	if _, _, err := m.Token(nil); err != nil {
		t.Fatal(err)
	}
	out, done, err := m.Token(unhex(t, vectorChallenge))
	if err != nil || !done {
		t.Fatal(done, err)
	}
	equal(t, "session key", m.SessionKey(), vectorSessionKey)
	a, err := parseAuthenticate(out)
	if err != nil {
		t.Fatal(err)
	}
	r, err := parseNTLMv2Response(a.nt)
	if err != nil {
		t.Fatal(err)
	}
	key := responseKey(NTHash("Password"), "User", "Domain")
	if p := proof(key, [8]byte{0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef}, r.temp); p != r.proof {
		t.Errorf("proof %x, want %x", r.proof, p)
	}
	if v, ok := findAv(r.pairs, avTargetName); !ok || fromUTF16(v) != "cifs/server" {
		t.Errorf("target name %q", v)
	}
	if v, ok := findAv(r.pairs, avChannelBindings); !ok || !bytes.Equal(v, make([]byte, 16)) {
		t.Errorf("channel bindings %x", v)
	}
	if _, ok := findAv(r.pairs, avFlags); ok || !bytes.Equal(out[micOffset:authenticateSize], make([]byte, 16)) {
		t.Error("there is a MIC although the challenge has no timestamp")
	}
}

// A session setup between Windows 10 and Windows Server, published by Microsoft in "SMB 2 and SMB 3 security in Windows 10: the anatomy of signing and
// cryptographic keys". The password is not known, but the response key is.
const (
	windowsInit = `604806062B0601050502A03E303CA00E300C060A2B06010401823702020AA22A
04284E544C4D5353500001000000978208E200000000000000000000000000000000060380250000
000F`
	windowsChallenge = `A181B03081ADA003
0A0101A10C060A2B06010401823702020AA281970481944E544C4D53535000020000000C000C0038
00000015828AE20D1D8BA31179D008000000000000000050005000440000000A0092270000000F53
005500540033003100310002000C0053005500540033003100310001000C00530055005400330031
00310004000C0053005500540033003100310003000C0053005500540033003100310007000800A1
A1F5ADCBAED00100000000`
	windowsAuthenticate = `A18201CB308201C7A0030A0101A28201AA048201A64E544C4D53535000030000
001800180090000000EE00EE00A80000000C000C00580000001A001A0064000000120012007E0000
001000100096010000158288E2060380250000000FECAC77A5F385A8BF9C38C706EEEDDCD3530055
005400330031003100610064006D0069006E006900730074007200610074006F0072004400520049
0056004500520033003100310000000000000000000000000000000000000000000000000063078E
B639FE03E20A231C3AE3BF23080101000000000000A1A1F5ADCBAED001BC4AD05F223CC90F000000
0002000C0053005500540033003100310001000C0053005500540033003100310004000C00530055
00540033003100310003000C0053005500540033003100310007000800A1A1F5ADCBAED001060004
00020000000800300030000000000000000000000000300000B61FEFCAA857EA57BF1EDCEBF8974B
8E0EBA5A6DFD9D07A31D11B548F8C9D0CC0A00100000000000000000000000000000000000090016
0063006900660073002F005300550054003300310031000000000000000000000000003B9BDFF38F
5EE8F9663F11A0F4C03A78A31204100100000063775A9A5FD97F0600000000`
	windowsEnd         = `A11B3019A0030A0100A3120410010000003B453CDC3524164200000000`
	windowsResponseKey = "AEE3959B44A815F1EB28C9511B4F533B"
	windowsSessionKey  = "270E1BA896585EEB7AF3472D3B4C75A7"
)

// TestWindows follows the exchange of two Windows machines, and comes to the same keys, MIC and signatures of the list of mechanisms.
func TestWindows(t *testing.T) {
	i, err := parseNegTokenInit(unhex(t, windowsInit))
	if err != nil {
		t.Fatal(err)
	}
	c, err := parseNegTokenResp(unhex(t, windowsChallenge))
	if err != nil {
		t.Fatal(err)
	}
	a, err := parseNegTokenResp(unhex(t, windowsAuthenticate))
	if err != nil {
		t.Fatal(err)
	}
	end, err := parseNegTokenResp(unhex(t, windowsEnd))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(i.mechs[0], oidNTLM) || c.state != stateIncomplete || !bytes.Equal(c.mech, oidNTLM) || end.state != stateCompleted {
		t.Errorf("%+v, %+v, %+v", i, c, end)
	}
	challenge, err := parseChallenge(c.token)
	if err != nil {
		t.Fatal(err)
	}
	auth, err := parseAuthenticate(a.token)
	if err != nil {
		t.Fatal(err)
	}
	if auth.user != "administrator" || auth.domain != "SUT311" || auth.workstation != "DRIVER311" {
		t.Errorf("%+v", auth)
	}
	r, err := parseNTLMv2Response(auth.nt)
	if err != nil {
		t.Fatal(err)
	}
	key := [16]byte(unhex(t, windowsResponseKey))
	if p := proof(key, challenge.challenge, r.temp); p != r.proof {
		t.Errorf("proof %x, want %x", p, r.proof)
	}
	base := hmacMD5(key[:], r.proof[:])
	exported := rc4Once(base[:], auth.encryptedSessionKey)
	equal(t, "session key", exported, windowsSessionKey)
	var zero [16]byte
	mic := hmacMD5(exported, i.mechToken, c.token, a.token[:micOffset], zero[:], a.token[authenticateSize:])
	equal(t, "MIC", mic[:], "ECAC77A5F385A8BF9C38C706EEEDDCD3")

	client := ntlmSession{exported: exported, keyExchange: true, send: newKeys(exported, "client-to-server"), recv: newKeys(exported, "server-to-client")}
	if got, _ := client.GetMIC(i.mechList); !bytes.Equal(got, a.mic) {
		t.Errorf("client's mechListMIC %x, want %x", got, a.mic)
	}
	if err := client.VerifyMIC(i.mechList, end.mic); err != nil {
		t.Error(err)
	}
	// Our acceptor takes the tokens as they came, with its own challenge replaced by Windows's.
	m := AcceptNTLM(AcceptorConfig{}).(*ntlmAcceptor)
	m.now = func() time.Time { return time.Date(2015, 6, 24, 20, 0, 0, 0, time.UTC) }
	m.sent, m.flags, m.target, m.nonce = m.now(), challenge.flags, challenge.targetInfo, challenge.challenge
	m.negotiate, m.challenge = i.mechToken, c.token
	if err := m.check(a.token); !errors.Is(err, ntstatus.LogonFailure) {
		t.Errorf("unknown user: %v", err)
	}
}

func TestPrefixes(t *testing.T) {
	negotiate := encodeNegotiate(clientFlags)
	for n := range negotiate[:16] {
		if _, err := parseNegotiate(negotiate[:n]); !errors.Is(err, ErrToken) {
			t.Errorf("NEGOTIATE of %d bytes: %v", n, err)
		}
	}
	challenge := unhex(t, vectorChallenge)
	for n := range challenge {
		if _, err := parseChallenge(challenge[:n]); !errors.Is(err, ErrToken) {
			t.Errorf("CHALLENGE of %d bytes: %v", n, err)
		}
	}
	authenticate := unhex(t, vectorAuthenticate)
	for n := range authenticate {
		if _, err := parseAuthenticate(authenticate[:n]); !errors.Is(err, ErrToken) {
			t.Errorf("AUTHENTICATE of %d bytes: %v", n, err)
		}
	}
	a, _ := parseAuthenticate(authenticate)
	for n := range a.nt[:len(a.nt)-4] { // the last four bytes are padding
		if _, err := parseNTLMv2Response(a.nt[:n]); !errors.Is(err, ErrToken) {
			t.Errorf("NTLMv2 response of %d bytes: %v", n, err)
		}
	}
	for _, s := range []string{windowsInit} {
		b := unhex(t, s)
		for n := range b {
			if _, err := parseNegTokenInit(b[:n]); !errors.Is(err, ErrToken) {
				t.Errorf("NegTokenInit of %d bytes: %v", n, err)
			}
		}
	}
	for _, s := range []string{windowsChallenge, windowsAuthenticate, windowsEnd} {
		b := unhex(t, s)
		for n := range b {
			if _, err := parseNegTokenResp(b[:n]); !errors.Is(err, ErrToken) {
				t.Errorf("NegTokenResp of %d bytes: %v", n, err)
			}
		}
	}
}

// TestNoNTLMv1 sees that an acceptor refuses NTLMv1 and LM responses, and that both sides refuse weak session security.
func TestNoNTLMv1(t *testing.T) {
	for _, nt := range []int{0, 24} {
		m := AcceptNTLM(AcceptorConfig{Users: testUsers(), AllowAnonymous: true})
		if _, _, err := m.Token(encodeNegotiate(clientFlags)); err != nil {
			t.Fatal(err)
		}
		a := authenticateMessage{flags: clientFlags, user: "alice", lm: make([]byte, 24), nt: make([]byte, nt), encryptedSessionKey: make([]byte, 16)}
		if _, _, err := m.Token(a.encode()); !errors.Is(err, ntstatus.LogonFailure) || !strings.Contains(err.Error(), "NTLMv1") {
			t.Errorf("NT response of %d bytes: %v", nt, err)
		}
	}
	for _, without := range []uint32{flagExtended, flag128, flagUnicode, flagNTLM} {
		m := AcceptNTLM(AcceptorConfig{Users: testUsers()})
		if _, _, err := m.Token(encodeNegotiate(clientFlags &^ without)); !errors.Is(err, ntstatus.LogonFailure) {
			t.Errorf("NEGOTIATE without %#x: %v", without, err)
		}
		i := NTLM(Credentials{User: "alice", Password: "secret"}, "cifs/x")
		i.Token(nil)
		c := unhex(t, vectorChallenge)
		binary.LittleEndian.PutUint32(c[20:], 0xe28a8233&^without)
		if _, _, err := i.Token(c); !errors.Is(err, ErrRefused) {
			t.Errorf("CHALLENGE without %#x: %v", without, err)
		}
	}
	// A client that gives session security up only in the end.
	m := AcceptNTLM(AcceptorConfig{Users: testUsers()})
	m.Token(encodeNegotiate(clientFlags))
	a := authenticateMessage{flags: clientFlags &^ flagExtended, user: "alice", nt: make([]byte, 100), encryptedSessionKey: make([]byte, 16)}
	if _, _, err := m.Token(a.encode()); !errors.Is(err, ntstatus.LogonFailure) {
		t.Errorf("%v", err)
	}
	// A server without target information.
	i := NTLM(Credentials{User: "alice", Password: "secret"}, "cifs/x")
	i.Token(nil)
	c := challengeMessage{flags: requiredFlags | flagKeyExchange}
	if _, _, err := i.Token(c.encode()); !errors.Is(err, ErrRefused) {
		t.Errorf("challenge without target information: %v", err)
	}
}

// TestReplacesPairs: a server must not choose our channel bindings and target name.
func TestReplacesPairs(t *testing.T) {
	i := NTLM(Credentials{User: "alice", Password: "secret"}, "cifs/mine")
	i.Token(nil)
	c, _ := parseChallenge(unhex(t, vectorChallenge))
	c.targetInfo = append(c.targetInfo, avPair{avTargetName, utf16le("cifs/other")}, avPair{avChannelBindings, make([]byte, 16)}, avPair{avFlags, []byte{1, 0, 0, 0}},
		avPair{avTimestamp, make([]byte, 8)})
	out, _, err := i.Token(c.encode())
	if err != nil {
		t.Fatal(err)
	}
	a, _ := parseAuthenticate(out)
	r, err := parseNTLMv2Response(a.nt)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[uint16]int{}
	for _, p := range r.pairs {
		seen[p.id]++
	}
	name, _ := findAv(r.pairs, avTargetName)
	flags, _ := findAv(r.pairs, avFlags)
	if seen[avTargetName] != 1 || seen[avChannelBindings] != 1 || seen[avFlags] != 1 || fromUTF16(name) != "cifs/mine" || flags[0] != 3 {
		t.Errorf("%v, %q, flags %x", seen, fromUTF16(name), flags)
	}
	if bytes.Equal(out[micOffset:authenticateSize], make([]byte, 16)) || r.time != 0 {
		t.Error("there is no MIC, or not the server's time")
	}
}

func FuzzNTLM(f *testing.F) {
	f.Add(encodeNegotiate(clientFlags))
	f.Add(unhex(f, vectorChallenge))
	f.Add(unhex(f, vectorAuthenticate))
	a, _ := parseAuthenticate(unhex(f, vectorAuthenticate))
	f.Add(a.nt)
	f.Fuzz(func(t *testing.T, b []byte) {
		parseNegotiate(b)
		if c, err := parseChallenge(b); err == nil {
			if _, err := parseChallenge(c.encode()); err != nil {
				t.Errorf("encoded again: %v", err)
			}
			i := NTLM(Credentials{User: "alice", Password: "secret"}, "cifs/x")
			i.Token(nil)
			if out, done, err := i.Token(b); err == nil {
				if _, err := parseAuthenticate(out); err != nil || !done {
					t.Errorf("answered with %x: %v", out, err)
				}
			}
		}
		parseAuthenticate(b)
		parseNTLMv2Response(b)
		m := AcceptNTLM(AcceptorConfig{Users: testUsers()})
		m.Token(encodeNegotiate(clientFlags))
		if _, done, err := m.Token(b); done || err == nil {
			t.Errorf("let in: %x", b)
		}
	})
}

func FuzzSPNEGO(f *testing.F) {
	for _, s := range []string{windowsInit, windowsChallenge, windowsAuthenticate, windowsEnd} {
		f.Add(unhex(f, s))
	}
	f.Add(acceptor().Hint())
	f.Fuzz(func(t *testing.T, b []byte) {
		if i, err := parseNegTokenInit(b); err == nil {
			if j, err := parseNegTokenInit(i.encode()); err != nil || len(j.mechs) != len(i.mechs) {
				t.Errorf("encoded again: %v", err)
			}
		}
		if r, err := parseNegTokenResp(b); err == nil {
			if q, err := parseNegTokenResp(r.encode()); err != nil || !bytes.Equal(q.token, r.token) || q.state != r.state {
				t.Errorf("encoded again: %v", err)
			}
		}
		a := acceptor()
		if _, done, err := a.Token(b); done {
			t.Error("let in")
		} else if err == nil {
			if _, done, _ := a.Token(b); done {
				t.Error("let in")
			}
		}
		if i, err := NewInitiator(b, NTLM(Credentials{User: "alice", Password: "secret"}, "cifs/x")); err == nil {
			i.Token(nil)
		}
		i, _ := NewInitiator(nil, NTLM(Credentials{User: "alice", Password: "secret"}, "cifs/x"))
		i.Token(nil)
		if _, done, _ := i.Token(b); done {
			t.Error("done too early")
		}
	})
}
