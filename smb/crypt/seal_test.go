package crypt

import (
	"bytes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"sync"
	"testing"

	"vdbridge/smb/wire"
)

var _ cipher.AEAD = (*ccm)(nil)

// TestCCM has all vectors of RFC 3610, section 8, and of SP 800-38C, appendix C.
func TestCCM(t *testing.T) {
	for i, v := range ccmVectors {
		key, nonce, aad, plain, tag := unhex(t, v.key), unhex(t, v.nonce), unhex(t, v.aad), unhex(t, v.plain), unhex(t, v.tag)
		if i == 3 {
			// The data of SP 800-38C example 4: 524288 bits.
			aad = make([]byte, 65536)
			for j := range aad {
				aad[j] = byte(j)
			}
		}
		for _, k := range keys(t, key) {
			testCCM(t, i, k, nonce, aad, plain, v.cipher, tag)
		}
	}
}

func testCCM(t *testing.T, i int, k *aesKey, nonce, aad, plain []byte, want string, tag []byte) {
	c, err := newCCM(k, len(nonce), len(tag))
	if err != nil {
		t.Fatal(err)
	}
	got := c.Seal([]byte("before"), nonce, plain, aad)
	equal(t, fmt.Sprintf("vector %d", i), got, hex.EncodeToString([]byte("before"))+want+hex.EncodeToString(tag))
	sealed := got[6:]
	back, err := c.Open(nil, nonce, sealed, aad)
	if err != nil || !bytes.Equal(back, plain) {
		t.Errorf("vector %d: opened to %x, %v", i, back, err)
	}
	for j := range sealed {
		sealed[j] ^= 1
		if _, err := c.Open(nil, nonce, sealed, aad); err == nil {
			t.Errorf("vector %d: changed byte %d is not noticed", i, j)
		}
		sealed[j] ^= 1
		if _, err := c.Open(nil, nonce, sealed[:j], aad); err == nil {
			t.Errorf("vector %d: %d bytes are taken", i, j)
		}
	}
	if _, err := c.Open(nil, nonce, sealed, append(aad, 0)); err == nil {
		t.Errorf("vector %d: other additional data are not noticed", i)
	}
}

// TestCCMLong compares with what OpenSSL has made (through Python's cryptography package) of pattern, with additional data of 32 bytes and the nonce of SMB's
// length. Given is the SHA-256 of ciphertext and tag.
func TestCCMLong(t *testing.T) {
	nonce := make([]byte, 11)
	for i := range nonce {
		nonce[i] = byte(100 + i)
	}
	key := make([]byte, 32)
	for i := range key {
		key[i] = byte(i)
	}
	for _, v := range []struct {
		key, n int
		sum    string
	}{
		{16, 1, "e42b1ffc0d5f6041584dbd3e7377bc355159bb9c2c392d2c632188bc1bcc239c"},
		{32, 1, "e13d0ee648870b7289708af06e03adf71cf73172f44879bf4d6eecac7097b429"},
		{16, 15, "f40a4dd45492f9118f3186ddf20b6ecec915c9666c4183d78f461b870af9b68b"},
		{32, 15, "7c095b3f932d486c9ee348700b69d6dc1b3559de1824056c99907f13e2279e48"},
		{16, 16, "07fa6057fa5ca9ab0b8c9fcbafbf03ecfcef3ecc2c5ccb25397b505c6e138de6"},
		{32, 16, "0a95b7e8487da3cd01d1730ad53e070f99c220ca5d77f15b32d84d8c1956d84f"},
		{16, 17, "fb4ccd4a6438c465d6a4dadf9347a110de80bbe8609ba2cc0ce454e594ad84f7"},
		{32, 17, "2fb9b89d872b2bfe7ff6b2eb839ee3dcad759765d9fd84e91f85f50b05337431"},
		{16, 31, "4af4c81ee0dabe7f16490a49525b5b04839a1a7e77c5ad899fefbffdf0545335"},
		{32, 31, "5239a19bed91c68142b697501dfb8ee4c198f09099273c158728be4508bdfcb7"},
		{16, 32, "0f4c127fbc1f9d557c7aead4a2eb2a794c7211f3b62ac5c5ed90aab989f8c47a"},
		{32, 32, "7e0a98415f3eb1dc64738cc143199b55b5f1ea4afedfc326580a832496c871ad"},
		{16, 33, "4f222aff69fcf9ee7da9e5a0228ab82e863a8717bd92560900c53c2544c78a9d"},
		{32, 33, "4c3fe512e46b0b7065a3109c8d11d01ab1f2e148f6dee7ae59e51e85c82d47d7"},
		{16, 79, "4305d3a8496de375546599659e14439a76de04dccf8ab6f32431227c78726d43"},
		{32, 79, "23e4d6b7e2baf82bfeabdd7f78b4c9fb6cce0378249ae4f0d09ab7e5ba5a54e9"},
		{16, 80, "13bdff65208f723f86518772950a7181b2cede5a7752cfebacd7886106fd62ff"},
		{32, 80, "063de2d494fac625f5297b609c2ca7c2e09000bc2cbfa67c6276d1073e5dbf17"},
		{16, 81, "7e4ca44225efefa313dd07b1a1c3db13d5ecff889350a3e20a273933dd9a4921"},
		{32, 81, "9a9b0194ce8d10bb5f671548fa1997cf6c696f3ca6807211e12f470b7e9d1c19"},
		{16, 95, "ff92901006a8a56c1da2888d98f991f8cca5a7478432b99003a9357be0ed8e46"},
		{32, 95, "04e534228c1800154f474fff1c73aa0b68ed4dfd9cc123c5633c6a1c58483c0c"},
		{16, 96, "d7765d75327e627f4afcead28c9f41d1fcccf02e0776a8d6fa09d4e02e731f0c"},
		{32, 96, "caf5b19386672908a46feef9a8497475d532cc8f77ba97468009a21d6ef9be61"},
		{16, 97, "a29177cf9c5762d2a93fe36d7c3282bc0c2d60afaa8994a01c483c33f20b200c"},
		{32, 97, "42b8db54e78c24a00097a3ebd3160accfe4576e89d82d1c3766900f7b2eddd70"},
		{16, 127, "7ff4d41bf71516aab476a86086b23d6d36053f2b1adbee4a5195f7a8c1e53215"},
		{32, 127, "97610942d6c7528c4dff4d9fa679c3f064914ff48b1f046ea614b3655b69fe6f"},
		{16, 128, "12453a599aab6f8eb486c0fa5a6fa20d73d08e300e44b01210e90ec794e292f1"},
		{32, 128, "b2e8d696255b95cb9d72cf0343a905dfbd3fdee856e438a5f375d80a0cc46af5"},
		{16, 129, "900f96d88ad1d636354a76d11644c3b11df6ff017a075136201ae760b18b8768"},
		{32, 129, "881d8edde49699e222c07e7ebda7e52f0b02207fd4eea71f0a2785ac1672c82a"},
		{16, 4096, "89cb9cb192955c14aa891713d7a739116eb82266abc5f163eeb55027f063c893"},
		{32, 4096, "e9b2308ff6b86652bf41152dd71e3c68433061ef3f62eb5826e65df35d3750f9"},
		{16, 65553, "c9475910dd2a4b1a81ec3328e4bc4c11f772c6856566458d34048216b2ce582b"},
		{32, 65553, "b8c27687d186127b09b6c735707cccc647eb475e60884c5e46ba648804908796"},
		{16, 1048656, "42089c66379492446ae0bdc9ea6b99ad7c124afe569bfaa5017c41775b38674a"},
		{32, 1048656, "869b32f52add0edfc4b817915a3db828bb5bd6de4fbae7471bc31ab535f2ce60"},
	} {
		for _, k := range keys(t, key[:v.key]) {
			c, err := newCCM(k, 11, 16)
			if err != nil {
				t.Fatal(err)
			}
			out := c.Seal(nil, nonce, pattern(v.n), pattern(32))
			sum := sha256.Sum256(out)
			equal(t, fmt.Sprintf("%d bytes with a key of %d, fused %v", v.n, v.key, k.fused), sum[:], v.sum)
			if back, err := c.Open(nil, nonce, out, pattern(32)); err != nil || !bytes.Equal(back, pattern(v.n)) {
				t.Errorf("%d bytes with a key of %d, fused %v: not opened: %v", v.n, v.key, k.fused, err)
			}
		}
	}
}

func TestCCMParameters(t *testing.T) {
	b := keys(t, unhex(t, "000102030405060708090a0b0c0d0e0f"))[0]
	for _, v := range [][2]int{{6, 16}, {14, 16}, {11, 2}, {11, 18}, {11, 5}} {
		if _, err := newCCM(b, v[0], v[1]); err == nil {
			t.Errorf("nonce of %d and tag of %d bytes are taken", v[0], v[1])
		}
	}
	c, _ := newCCM(b, 13, 16)
	if _, err := c.Open(nil, make([]byte, 13), make([]byte, 1<<16+16), nil); err == nil {
		t.Error("a message that is too long for its length field is taken")
	}
}

var ciphers = []wire.Cipher{wire.CipherAES128CCM, wire.CipherAES128GCM, wire.CipherAES256CCM, wire.CipherAES256GCM}

const testSession = 0x100000000019

// sealers returns the two sides of a session.
func sealers(t testing.TB, c wire.Cipher) (client, server *Sealer) {
	t.Helper()
	there, back := pattern(KeySize(c)), make([]byte, KeySize(c))
	client, err := NewSealer(SealerConfig{Cipher: c, SendKey: there, ReceiveKey: back, SessionID: testSession})
	if err != nil {
		t.Fatal(err)
	}
	server, err = NewSealer(SealerConfig{Cipher: c, SendKey: back, ReceiveKey: there, SessionID: testSession})
	if err != nil {
		t.Fatal(err)
	}
	return client, server
}

// sealed returns a sealed message with n bytes of plaintext, with or without slack behind it.
func sealed(t testing.TB, s *Sealer, n, slack int) []byte {
	t.Helper()
	buf := make([]byte, SealRoom+n, SealRoom+n+slack)
	copy(buf[SealRoom:], pattern(n))
	if err := s.Seal(buf); err != nil {
		t.Fatal(err)
	}
	return buf
}

func TestSealer(t *testing.T) {
	for _, c := range ciphers {
		client, server := sealers(t, c)
		for _, slack := range []int{0, 5, SealSlack} {
			for _, n := range []int{1, 16, 64, 80, 81, 4176, 65616, 1<<20 + 80} {
				buf := sealed(t, client, n, slack)
				h, err := wire.ParseTransformHeader(buf)
				if err != nil || h.Flags != 1 || h.SessionID != testSession || int(h.OriginalMessageSize) != n {
					t.Fatalf("%v: header %+v, %v", c, h, err)
				}
				if unused := 16 - client.send.nonceSize; !bytes.Equal(h.Nonce[16-unused:], make([]byte, unused)) {
					t.Errorf("%v: nonce %x", c, h.Nonce)
				}
				if id, size, ok := SealedFor(buf); id != testSession || int(size) != n || !ok {
					t.Errorf("SealedFor: %x, %d, %v", id, size, ok)
				}
				if n >= 16 && bytes.Contains(buf, pattern(16)) {
					t.Errorf("%v: plaintext shows", c)
				}
				changed := bytes.Clone(buf)
				wrong := bytes.Clone(buf)
				msg, err := server.Open(buf)
				if err != nil || !bytes.Equal(msg, pattern(n)) {
					t.Fatalf("%v, %d bytes, slack %d: %v", c, n, slack, err)
				}
				if &msg[0] != &buf[SealRoom] {
					t.Errorf("%v: not opened in place", c)
				}
				if _, err := client.Open(wrong); !errors.Is(err, ErrSealed) {
					t.Errorf("%v: opened with the key of the other direction", c)
				}
				if n > 100 {
					continue
				}
				for at := range changed {
					bad := make([]byte, len(changed), cap(buf))
					copy(bad, changed)
					bad[at] ^= 4
					if _, err := server.Open(bad); !errors.Is(err, ErrSealed) {
						t.Errorf("%v: changed byte %d is not noticed: %v", c, at, err)
					}
					if _, err := server.Open(bytes.Clone(changed[:at])); !errors.Is(err, ErrSealed) {
						t.Errorf("%v: %d bytes are opened: %v", c, at, err)
					}
				}
			}
		}
		if err := client.Seal(make([]byte, SealRoom)); err == nil {
			t.Errorf("%v: an empty message is sealed", c)
		}
	}
	if _, err := NewSealer(SealerConfig{Cipher: 5, SendKey: pattern(16), ReceiveKey: pattern(16)}); err == nil {
		t.Error("unknown cipher is taken")
	}
	if _, err := NewSealer(SealerConfig{Cipher: wire.CipherAES256GCM, SendKey: pattern(16), ReceiveKey: pattern(32)}); err == nil {
		t.Error("short key is taken")
	}
	if _, err := NewSealer(SealerConfig{Cipher: wire.CipherAES128GCM, SendKey: pattern(16), ReceiveKey: pattern(32)}); err == nil {
		t.Error("long key is taken")
	}
}

// TestNonces sees that no nonce comes twice, whoever asks, and that the counter does not wrap.
func TestNonces(t *testing.T) {
	for _, c := range ciphers {
		client, _ := sealers(t, c)
		var mu sync.Mutex
		seen := make(map[[16]byte]bool)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 500 {
					h, _ := wire.ParseTransformHeader(sealed(t, client, 4, 16))
					mu.Lock()
					if seen[h.Nonce] {
						t.Errorf("%v: nonce %x twice", c, h.Nonce)
					}
					seen[h.Nonce] = true
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		client.nonces.counter.Store(math.MaxUint64 - 1)
		sealed(t, client, 4, 16)
		for range 3 {
			buf := append(make([]byte, SealRoom), "plaintext"...)
			if err := client.Seal(buf); !errors.Is(err, ErrNonces) {
				t.Errorf("%v: after the last nonce: %v", c, err)
			}
		}
	}
}

func TestSealerAllocates(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools forget")
	}
	for _, c := range ciphers {
		client, server := sealers(t, c)
		for _, n := range []int{80, 4176, 65616} {
			buf := make([]byte, SealRoom+n, SealRoom+n+SealSlack)
			if a := testing.AllocsPerRun(200, func() {
				if client.Seal(buf) != nil {
					t.Error("not sealed")
				}
				if _, err := server.Open(buf); err != nil {
					t.Error(err)
				}
			}); a >= 1 {
				t.Errorf("%v: sealing and opening %d bytes allocates %v times", c, n, a)
			}
		}
	}
}

func FuzzOpen(f *testing.F) {
	var servers []*Sealer
	for _, c := range ciphers {
		client, server := sealers(f, c)
		servers = append(servers, server)
		f.Add(sealed(f, client, 80, 0))
	}
	f.Add([]byte("\xfdSMB"))
	f.Fuzz(func(t *testing.T, msg []byte) {
		for i, s := range servers {
			text, err := s.Open(bytes.Clone(msg))
			if err == nil && !bytes.Equal(text, pattern(len(text))) {
				t.Errorf("%v: opened to %x", ciphers[i], text)
			}
		}
		SealedFor(msg)
	})
}

// FuzzCCM compares with a CCM written straight from RFC 3610, block by block.
func FuzzCCM(f *testing.F) {
	f.Add(make([]byte, 16), []byte("hello"), []byte("more"), uint8(4))
	f.Add(make([]byte, 32), pattern(200), []byte{}, uint8(6))
	f.Add(make([]byte, 32), pattern(4096), pattern(70000), uint8(0))
	f.Fuzz(func(t *testing.T, key, plain, aad []byte, nonceLen uint8) {
		if len(key) != 16 && len(key) != 32 {
			return
		}
		n := 7 + int(nonceLen)%7
		if n == 13 && len(plain) > 65535 {
			return
		}
		for _, k := range keys(t, key) {
			c, err := newCCM(k, n, 16)
			if err != nil {
				t.Fatal(err)
			}
			nonce := pattern(n)
			got := c.Seal(nil, nonce, plain, aad)
			if want := slowCCM(k, nonce, plain, aad); !bytes.Equal(got, want) {
				t.Fatalf("fused %v: got %x, want %x", k.fused, got, want)
			}
			if back, err := c.Open(nil, nonce, got, aad); err != nil || !bytes.Equal(back, plain) {
				t.Fatalf("fused %v: not opened: %v", k.fused, err)
			}
		}
	})
}

func slowCCM(b cipher.Block, nonce, plain, aad []byte) []byte {
	l := 15 - len(nonce)
	var head [16]byte
	binary.BigEndian.PutUint64(head[8:], uint64(len(plain)))
	head[0] = byte(7<<3 | (l - 1))
	copy(head[1:], nonce)
	mac := make([]byte, 16)
	feed := func(p []byte) {
		for len(p) > 0 {
			for i := 0; i < 16 && i < len(p); i++ {
				mac[i] ^= p[i]
			}
			b.Encrypt(mac, mac)
			p = p[min(16, len(p)):]
		}
	}
	if len(aad) > 0 {
		head[0] |= 0x40
	}
	feed(head[:])
	if len(aad) >= 0xFF00 {
		feed(append(binary.BigEndian.AppendUint32([]byte{0xFF, 0xFE}, uint32(len(aad))), aad...))
	} else if len(aad) > 0 {
		feed(append(binary.BigEndian.AppendUint16(nil, uint16(len(aad))), aad...))
	}
	feed(plain)
	var out []byte
	block := func(i int) []byte {
		var a [16]byte
		binary.BigEndian.PutUint64(a[8:], uint64(i))
		a[0] = byte(l - 1)
		copy(a[1:], nonce)
		b.Encrypt(a[:], a[:])
		return a[:]
	}
	for i, c := range plain {
		out = append(out, c^block(i/16 + 1)[i%16])
	}
	for i, c := range block(0) {
		out = append(out, c^mac[i])
	}
	return out
}

func BenchmarkSeal(b *testing.B) {
	for _, c := range ciphers {
		client, server := sealers(b, c)
		for _, n := range benchSizes {
			buf := make([]byte, SealRoom+n, SealRoom+n+SealSlack)
			b.Run(fmt.Sprintf("%v/seal/%s", c, sizeName(n)), func(b *testing.B) {
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					if err := client.Seal(buf); err != nil {
						b.Fatal(err)
					}
				}
			})
			good := bytes.Clone(buf)
			b.Run(fmt.Sprintf("%v/open/%s", c, sizeName(n)), func(b *testing.B) {
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					copy(buf, good)
					if _, err := server.Open(buf); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

var ccmVectors = []struct{ aad, plain, cipher, tag, key, nonce string }{
	{"0001020304050607", "20212223", "7162015b", "4dac255d", "404142434445464748494a4b4c4d4e4f", "10111213141516"},
	{"000102030405060708090a0b0c0d0e0f", "202122232425262728292a2b2c2d2e2f", "d2a1f0e051ea5f62081a7792073d593d", "1fc64fbfaccd", "404142434445464748494a4b4c4d4e4f", "1011121314151617"},
	{"000102030405060708090a0b0c0d0e0f10111213", "202122232425262728292a2b2c2d2e2f3031323334353637", "e3b201a9f5b71a7a9b1ceaeccd97e70b6176aad9a4428aa5", "484392fbc1b09951", "404142434445464748494a4b4c4d4e4f", "101112131415161718191a1b"},
	{"", "202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f", "69915dad1e84c6376a68c2967e4dab615ae0fd1faec44cc484828529463ccf72", "b4ac6bec93e8598e7f0dadbcea5b", "404142434445464748494a4b4c4d4e4f", "101112131415161718191a1b1c"},
	{"0001020304050607", "08090a0b0c0d0e0f101112131415161718191a1b1c1d1e", "588c979a61c663d2f066d0c2c0f989806d5f6b61dac384", "17e8d12cfdf926e0", "c0c1c2c3c4c5c6c7c8c9cacbcccdcecf", "00000003020100a0a1a2a3a4a5"},
	{"0001020304050607", "08090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f", "72c91a36e135f8cf291ca894085c87e3cc15c439c9e43a3b", "a091d56e10400916", "c0c1c2c3c4c5c6c7c8c9cacbcccdcecf", "00000004030201a0a1a2a3a4a5"},
	{"0001020304050607", "08090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20", "51b1e5f44a197d1da46b0f8e2d282ae871e838bb64da859657", "4adaa76fbd9fb0c5", "c0c1c2c3c4c5c6c7c8c9cacbcccdcecf", "00000005040302a0a1a2a3a4a5"},
	{"000102030405060708090a0b", "0c0d0e0f101112131415161718191a1b1c1d1e", "a28c6865939a9a79faaa5c4c2a9d4a91cdac8c", "96c861b9c9e61ef1", "c0c1c2c3c4c5c6c7c8c9cacbcccdcecf", "00000006050403a0a1a2a3a4a5"},
	{"000102030405060708090a0b", "0c0d0e0f101112131415161718191a1b1c1d1e1f", "dcf1fb7b5d9e23fb9d4e131253658ad86ebdca3e", "51e83f077d9c2d93", "c0c1c2c3c4c5c6c7c8c9cacbcccdcecf", "00000007060504a0a1a2a3a4a5"},
	{"000102030405060708090a0b", "0c0d0e0f101112131415161718191a1b1c1d1e1f20", "6fc1b011f006568b5171a42d953d469b2570a4bd87", "405a0443ac91cb94", "c0c1c2c3c4c5c6c7c8c9cacbcccdcecf", "00000008070605a0a1a2a3a4a5"},
	{"0001020304050607", "08090a0b0c0d0e0f101112131415161718191a1b1c1d1e", "0135d1b2c95f41d5d1d4fec185d166b8094e999dfed96c", "048c56602c97acbb7490", "c0c1c2c3c4c5c6c7c8c9cacbcccdcecf", "00000009080706a0a1a2a3a4a5"},
	{"0001020304050607", "08090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f", "7b75399ac0831dd2f0bbd75879a2fd8f6cae6b6cd9b7db24", "c17b4433f434963f34b4", "c0c1c2c3c4c5c6c7c8c9cacbcccdcecf", "0000000a090807a0a1a2a3a4a5"},
	{"0001020304050607", "08090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20", "82531a60cc24945a4b8279181ab5c84df21ce7f9b73f42e197", "ea9c07e56b5eb17e5f4e", "c0c1c2c3c4c5c6c7c8c9cacbcccdcecf", "0000000b0a0908a0a1a2a3a4a5"},
	{"000102030405060708090a0b", "0c0d0e0f101112131415161718191a1b1c1d1e", "07342594157785152b074098330abb141b947b", "566aa9406b4d999988dd", "c0c1c2c3c4c5c6c7c8c9cacbcccdcecf", "0000000c0b0a09a0a1a2a3a4a5"},
	{"000102030405060708090a0b", "0c0d0e0f101112131415161718191a1b1c1d1e1f", "676bb20380b0e301e8ab79590a396da78b834934", "f53aa2e9107a8b6c022c", "c0c1c2c3c4c5c6c7c8c9cacbcccdcecf", "0000000d0c0b0aa0a1a2a3a4a5"},
	{"000102030405060708090a0b", "0c0d0e0f101112131415161718191a1b1c1d1e1f20", "c0ffa0d6f05bdb67f24d43a4338d2aa4bed7b20e43", "cd1aa31662e7ad65d6db", "c0c1c2c3c4c5c6c7c8c9cacbcccdcecf", "0000000e0d0c0ba0a1a2a3a4a5"},
	{"0be1a88bace018b1", "08e8cf97d820ea258460e96ad9cf5289054d895ceac47c", "4cb97f86a2a4689a877947ab8091ef5386a6ffbdd080f8", "e78cf7cb0cddd7b3", "d7828d13b2b0bdc325a76236df93cc6b", "00412b4ea9cdbe3c9696766cfa"},
	{"63018f76dc8a1bcb", "9020ea6f91bdd85afa0039ba4baff9bfb79c7028949cd0ec", "4ccb1e7ca981befaa0726c55d378061298c85c92814abc33", "c52ee81d7d77c08a", "d7828d13b2b0bdc325a76236df93cc6b", "0033568ef7b2633c9696766cfa"},
	{"aa6cfa36cae86b40", "b916e0eacc1c00d7dcec68ec0b3bbb1a02de8a2d1aa346132e", "b1d23a2220ddc0ac900d9aa03c61fcf4a559a4417767089708", "a776796edb723506", "d7828d13b2b0bdc325a76236df93cc6b", "00103fe41336713c9696766cfa"},
	{"d0d0735c531e1becf049c244", "12daac5630efa5396f770ce1a66b21f7b2101c", "14d253c3967b70609b7cbb7c49916028324526", "9a6f49975bcadeaf", "d7828d13b2b0bdc325a76236df93cc6b", "00764c63b8058e3c9696766cfa"},
	{"77b60f011c03e1525899bcae", "e88b6a46c78d63e52eb8c546efb5de6f75e9cc0d", "5545ff1a085ee2efbf52b2e04bee1e2336c73e3f", "762c0c7744fe7e3c", "d7828d13b2b0bdc325a76236df93cc6b", "00f8b678094e3b3c9696766cfa"},
	{"cd9044d2b71fdb8120ea60c0", "6435acbafb11a82e2f071d7ca4a5ebd93a803ba87f", "009769ecabdf48625594c59251e6035722675e04c8", "47099e5ae0704551", "d7828d13b2b0bdc325a76236df93cc6b", "00d560912d3f703c9696766cfa"},
	{"d85bc7e69f944fb8", "8a19b950bcf71a018e5e6701c91787659809d67dbedd18", "bc218daa947427b6db386a99ac1aef23ade0b52939cb6a", "637cf9bec2408897c6ba", "d7828d13b2b0bdc325a76236df93cc6b", "0042fff8f1951c3c9696766cfa"},
	{"74a0ebc9069f5b37", "1761433c37c5a35fc1f39f406302eb907c6163be38c98437", "5810e6fd25874022e80361a478e3e9cf484ab04f447efff6", "f0a477cc2fc9bf548944", "d7828d13b2b0bdc325a76236df93cc6b", "00920f40e56cdc3c9696766cfa"},
	{"44a3aa3aae6475ca", "a434a8e58500c6e41530538862d686ea9e81301b5ae4226bfa", "f2beed7bc5098e83feb5b31608f8e29c38819a89c8e776f154", "4d4151a4ed3a8b87b9ce", "d7828d13b2b0bdc325a76236df93cc6b", "0027ca0c7120bc3c9696766cfa"},
	{"ec46bb63b02520c33c49fd70", "b96b49e21d621741632875db7f6c9243d2d7c2", "31d750a09da3ed7fddd49a2032aabf17ec8ebf", "7d22c8088c666be5c197", "d7828d13b2b0bdc325a76236df93cc6b", "005b8ccbcd9af83c9696766cfa"},
	{"47a65ac78b3d594227e85e71", "e2fcfbb880442c731bf95167c8ffd7895e337076", "e882f1dbd38ce3eda7c23f04dd65071eb41342ac", "df7e00dccec7ae52987d", "d7828d13b2b0bdc325a76236df93cc6b", "003ebe94044b9a3c9696766cfa"},
	{"6e37a6ef546d955d34ab6059", "abf21c0b02feb88f856df4a37381bce3cc128517d4", "f32905b88a641b04b9c9ffb58cc390900f3da12ab1", "6dce9e82efa16da62059", "d7828d13b2b0bdc325a76236df93cc6b", "008d493b30ae8b3c9696766cfa"},
}
