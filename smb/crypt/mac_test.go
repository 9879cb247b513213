package crypt

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"vdbridge/smb/wire"
)

func newAES(t testing.TB, key string) cipher.Block {
	t.Helper()
	b, err := aes.NewCipher(unhex(t, key))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// keys returns AES in all the ways that this processor can do it.
func keys(t testing.TB, key []byte) (list []*aesKey) {
	t.Helper()
	for _, fused := range []bool{false, true} {
		if fused && !canFuse {
			t.Log("this processor does not have what the fused loops need")
			continue
		}
		k, err := newAESKey(key, fused)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, k)
	}
	return list
}

// pattern is what the values from other implementations were computed over.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + 3)
	}
	return b
}

// TestCMAC has the vectors of RFC 4493, section 4.
func TestCMAC(t *testing.T) {
	for _, k := range keys(t, unhex(t, "2b7e151628aed2a6abf7158809cf4f3c")) {
		testCMAC(t, newCMAC(k))
	}
}

func testCMAC(t *testing.T, m *cmac) {
	equal(t, "K1", m.k1[:], "fbeed618357133667c85e08f7236a8de")
	equal(t, "K2", m.k2[:], "f7ddac306ae266ccf90bc11ee46d513b")
	msg := unhex(t, `6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e5130c81c46a35ce411e5fbc1191a0a52ef
		f69f2445df4f9b17ad2b417be66c3710`)
	for n, want := range map[int]string{0: "bb1d6929e95937287fa37d129b756746", 16: "070a16b46b4d4144f79bdd9dd04a287c",
		40: "dfa66747de9ae63030ca32611497c827", 64: "51f0bebf7e3b9d92fc49741779363cfe"} {
		var mac [16]byte
		m.sum(&mac, msg[:n])
		equal(t, fmt.Sprintf("MAC of %d bytes", n), mac[:], want)
	}
}

// TestMACs compares with values that OpenSSL has computed (through Python's cryptography package) with the key 00…0f over pattern; the nonce of GMAC is 00…0b.
func TestMACs(t *testing.T) {
	key := unhex(t, "000102030405060708090a0b0c0d0e0f")
	for _, k := range keys(t, key) {
		testMACs(t, newCMAC(k))
	}
}

func testMACs(t *testing.T, c *cmac) {
	g, err := newGMAC(c.key.Block)
	if err != nil {
		t.Fatal(err)
	}
	nonce := [12]byte(unhex(t, "000102030405060708090a0b"))
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, v := range []struct {
		n          int
		cmac, gmac string
	}{
		{0, "97dd6e5a882cbd564c39ae7d1c5a31aa", "435b9ba12d75a4be8a977ea3cd011890"},
		{1, "106f7acfc5ebf3c53a75abe4fff408f6", "1623aa639825af90f98659158de74108"},
		{64, "ec2cf0dc80bf3347bd98cbcce57d281d", "1b75a44406a1e7025a3eff5aa8ea8101"},
		{112, "449926f48b823edc13505b2e353b5ef9", "1610cef5190589ee3b52a01737d9aa76"},
		{4208, "d8619c2763c468db459c550b1296b55e", "01baffff31083f6967d68206e9e454be"},
		{16384, "539d6091c14d32f73bd0fed1a847f376", "d2b7c4f6c6518bb0b6ca725bd8179303"},
		{16385, "afe4fa00d0c6f4c44eda4bfc4c405cbd", "28e10814e92d3e524b6e55693a26fe04"},
		{65616, "d4cf1754396fe3b024e26bb57f93e792", "922cb39e8d812e12af1e481bb52d32c3"},
		{100003, "e4224ce2fb742be3d684bb542db96490", "387edae3fb4a4b29d951ff89fb46675d"},
	} {
		p := pattern(v.n)
		var mac [16]byte
		c.sum(&mac, p)
		equal(t, fmt.Sprintf("CMAC of %d bytes", v.n), mac[:], v.cmac)
		g.sum(&mac, nonce, p)
		equal(t, fmt.Sprintf("GMAC of %d bytes", v.n), mac[:], v.gmac)
		for range 20 {
			var parts [][]byte
			for rest := p; ; {
				n := rnd.IntN(len(rest) + 1)
				switch rnd.IntN(3) {
				case 0:
					n = min(n, rnd.IntN(40))
				case 1:
					n &^= 15
				}
				parts = append(parts, rest[:n])
				if rest = rest[n:]; len(rest) == 0 || len(parts) > 20 {
					parts = append(parts, rest)
					break
				}
			}
			c.sum(&mac, parts...)
			equal(t, fmt.Sprintf("CMAC of %d bytes in %d parts", v.n, len(parts)), mac[:], v.cmac)
			g.sum(&mac, nonce, parts...)
			equal(t, fmt.Sprintf("GMAC of %d bytes in %d parts", v.n, len(parts)), mac[:], v.gmac)
			if v.n > 0 {
				s := new(gmacState)
				copy(s.nonce[:], nonce[:])
				g.join(s, parts, v.n)
				equal(t, fmt.Sprintf("joined GMAC of %d bytes in %d parts", v.n, len(parts)), s.tag[:], v.gmac)
			}
		}
	}
}

// TestGMAC has vectors of NIST's CAVP (gcmEncryptExtIV128, no plaintext).
func TestGMAC(t *testing.T) {
	for _, v := range []struct{ key, nonce, data, tag string }{
		{"11754cd72aec309bf52f7687212e8957", "3c819d9a9bed087615030b65", "", "250327c674aaf477aef2675748cf6971"},
		{"77be63708971c4e240d1cb79e8d77feb", "e0e00f19fed7ba0136a797f3", "7a43ec1d9c0a5a78a0b16533a6213cab", "209fcc8d3675ed938e9c7166709dd946"},
		{"fbe3467cc254f81be8e78d765a2e6333", "c6697351ff4aec29cdbaabf2", "67", "3659cdc25288bf499ac736c03bfc1159"},
	} {
		g, err := newGMAC(newAES(t, v.key))
		if err != nil {
			t.Fatal(err)
		}
		var mac [16]byte
		g.sum(&mac, [12]byte(unhex(t, v.nonce)), unhex(t, v.data))
		equal(t, "GMAC", mac[:], v.tag)
	}
}

// TestMultiply checks the multiplication against the definition in SP 800-38D 6.3.
func TestMultiply(t *testing.T) {
	slow := func(x, y element) (z element) {
		for i := range 128 {
			bit := x.hi >> (63 - i%64)
			if i >= 64 {
				bit = x.lo >> (63 - i%64)
			}
			if bit&1 != 0 {
				z = z.plus(y)
			}
			odd := y.lo & 1
			y.lo = y.lo>>1 | y.hi<<63
			y.hi = y.hi>>1 ^ odd*0xE1<<56
		}
		return z
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	ones := element{^uint64(0), ^uint64(0)}
	for i := range 2000 {
		x, y := element{rnd.Uint64(), rnd.Uint64()}, element{rnd.Uint64(), rnd.Uint64()}
		switch i {
		case 0:
			x, y = ones, ones
		case 1:
			x = ones
		}
		if got, want := x.times(y), slow(x, y); got != want {
			t.Fatalf("%x times %x is %x, want %x", x, y, got, want)
		}
	}
}

// message returns a message with a header.
func message(command wire.Command, flags uint32, id uint64, body int) []byte {
	b := make([]byte, 64)
	h := wire.Header{Command: command, Flags: flags | wire.FlagSigned, MessageID: id}
	h.Put(b)
	return append(b, pattern(body)...)
}

var algorithms = []wire.SigningAlgorithm{wire.SigningHMACSHA256, wire.SigningAESCMAC, wire.SigningAESGMAC}

func newSigner(t testing.TB, alg wire.SigningAlgorithm) *Signer {
	t.Helper()
	s, err := NewSigner(alg, pattern(16))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSigner(t *testing.T) {
	for _, alg := range algorithms {
		s := newSigner(t, alg)
		for _, body := range []int{0, 4, 16, 48, 4096, 70000} {
			msg := message(wire.CmdWrite, 0, 7, body)
			copy(msg[48:], "garbage before!!")
			s.Sign(msg)
			if err := s.Verify(msg); err != nil {
				t.Fatalf("%v, %d bytes: %v", alg, body, err)
			}
			split := message(wire.CmdWrite, 0, 7, body)
			parts := [][]byte{split[:64], split[64 : 64+body/3], split[64+body/3:]}
			s.Sign(parts...)
			if !bytes.Equal(split, msg) {
				t.Fatalf("%v, %d bytes: segments are signed otherwise than the whole", alg, body)
			}
			if err := s.Verify(parts...); err != nil {
				t.Fatalf("%v, %d bytes in segments: %v", alg, body, err)
			}
			for _, at := range []int{0, 5, 12, 16, 24, 40, 48, 63, len(msg) - 1, 64 + body/2} {
				if at >= len(msg) {
					continue
				}
				msg[at] ^= 0x10
				bad := bytes.Clone(msg)
				if err := s.Verify(msg); !errors.Is(err, ErrSignature) {
					t.Errorf("%v, %d bytes: changed byte %d is not noticed: %v", alg, body, at, err)
				}
				if !bytes.Equal(msg, bad) {
					t.Errorf("%v: Verify leaves the message changed", alg)
				}
				msg[at] ^= 0x10
			}
			if err := s.Verify(msg[:len(msg)-1]); body > 0 && !errors.Is(err, ErrSignature) {
				t.Errorf("%v: %v", alg, err)
			}
		}
		for n := range 64 {
			if err := s.Verify(make([]byte, n)); !errors.Is(err, ErrSignature) {
				t.Errorf("%v, message of %d bytes: %v", alg, n, err)
			}
		}
		if err := s.Verify(); !errors.Is(err, ErrSignature) {
			t.Errorf("%v, no message: %v", alg, err)
		}
	}
	for _, n := range []int{0, 15, 17, 32} {
		if _, err := NewSigner(wire.SigningAESCMAC, make([]byte, n)); err == nil {
			t.Errorf("key of %d bytes is taken", n)
		}
	}
	if _, err := NewSigner(3, make([]byte, 16)); err == nil {
		t.Error("unknown algorithm is taken")
	}
}

// TestGMACNonce: [MS-SMB2] 3.1.4.1.
func TestGMACNonce(t *testing.T) {
	const id = 0x1122334455667788
	for _, v := range []struct {
		command wire.Command
		flags   uint32
		want    byte
	}{{wire.CmdRead, 0, 0}, {wire.CmdRead, wire.FlagServerToRedir, 1}, {wire.CmdCancel, 0, 2}, {wire.CmdCancel, wire.FlagAsync, 2}} {
		nonce := gmacNonce(message(v.command, v.flags, id, 0))
		want := binary.LittleEndian.AppendUint64(nil, id)
		want = append(want, v.want, 0, 0, 0)
		if !bytes.Equal(nonce[:], want) {
			t.Errorf("%v, flags %#x: nonce %x, want %x", v.command, v.flags, nonce, want)
		}
	}
}

// TestKeySchedule encrypts one block with the round keys of expandKey, with keys of both lengths.
func TestKeySchedule(t *testing.T) {
	if !canFuse {
		t.Skip("SKIPPED: this processor does not have what the fused loops need")
	}
	rnd := rand.NewChaCha8([32]byte{1})
	for range 200 {
		for _, n := range []int{16, 32} {
			key, text := make([]byte, n), make([]byte, 16)
			rnd.Read(key)
			rnd.Read(text)
			k, err := newAESKey(key, true)
			if err != nil {
				t.Fatal(err)
			}
			want := make([]byte, 16)
			k.Encrypt(want, text)
			var got [16]byte
			cbcMACBlocks(k.rounds, &k.xk[0], &got[0], &text[0], 1)
			if !bytes.Equal(got[:], want) {
				t.Fatalf("key of %d bytes: %x, want %x", n, got, want)
			}
		}
	}
}

// TestSignerConcurrent uses one signer from many goroutines; it is worth most with the race detector.
func TestSignerConcurrent(t *testing.T) {
	for _, alg := range algorithms {
		s := newSigner(t, alg)
		want := message(wire.CmdRead, 0, 1, 20000)
		s.Sign(want)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 50 {
					msg := message(wire.CmdRead, 0, 1, 20000)
					s.Sign(msg[:64], msg[64:])
					if !bytes.Equal(msg, want) || s.Verify(msg) != nil {
						t.Errorf("%v: wrong signature", alg)
						return
					}
				}
			})
		}
		wg.Wait()
	}
}

func TestSignerAllocates(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools forget")
	}
	for _, alg := range algorithms {
		s := newSigner(t, alg)
		for _, n := range []int{100, 4096, 65536} {
			msg := message(wire.CmdRead, 0, 1, n)
			if a := testing.AllocsPerRun(200, func() { s.Sign(msg) }); a >= 1 {
				t.Errorf("%v: signing %d bytes allocates %v times", alg, n, a)
			}
			if a := testing.AllocsPerRun(200, func() { s.Sign(msg[:80], msg[80:]) }); a >= 1 {
				t.Errorf("%v: signing %d bytes in segments allocates %v times", alg, n, a)
			}
			s.Sign(msg)
			if a := testing.AllocsPerRun(200, func() {
				if s.Verify(msg) != nil {
					t.Error("wrong signature")
				}
			}); a >= 1 {
				t.Errorf("%v: verifying %d bytes allocates %v times", alg, n, a)
			}
		}
	}
}

func FuzzVerify(f *testing.F) {
	f.Add(message(wire.CmdRead, 0, 1, 0), 64)
	f.Add([]byte{1, 2, 3}, 1)
	signers := make([]*Signer, len(algorithms))
	for i, alg := range algorithms {
		signers[i] = newSigner(f, alg)
	}
	f.Fuzz(func(t *testing.T, msg []byte, cut int) {
		for _, s := range signers {
			if s.Verify(msg) == nil {
				t.Errorf("%v: a signature was found by chance", s.Algorithm())
			}
			if len(msg) < 64 {
				continue
			}
			signed := bytes.Clone(msg)
			s.Sign(signed)
			if cut >= 64 && cut < len(signed) {
				if err := s.Verify(signed[:cut], signed[cut:]); err != nil {
					t.Errorf("%v: %v", s.Algorithm(), err)
				}
			}
		}
	})
}

var benchSizes = []int{64 + 48, 4096 + 112, 64<<10 + 80, 1<<20 + 80}

func sizeName(n int) string {
	return strings.TrimSuffix(fmt.Sprintf("%d", n), "000")
}

func BenchmarkSign(b *testing.B) {
	for _, alg := range algorithms {
		s := newSigner(b, alg)
		for _, n := range benchSizes {
			msg := message(wire.CmdRead, 0, 1, n-64)
			b.Run(fmt.Sprintf("%v/%s", alg, sizeName(n)), func(b *testing.B) {
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					s.Sign(msg)
				}
			})
			if n > 4096 {
				b.Run(fmt.Sprintf("%v-segments/%s", alg, sizeName(n)), func(b *testing.B) {
					b.SetBytes(int64(n))
					b.ReportAllocs()
					for b.Loop() {
						s.Sign(msg[:112], msg[112:])
					}
				})
			}
		}
	}
}
