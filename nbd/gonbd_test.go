package nbd

import (
	"bytes"
	"encoding/binary"
	"testing"

	gonbd "github.com/pojntfx/go-nbd/pkg/client"
	"github.com/pojntfx/go-nbd/pkg/protocol"

	"vdbridge/test/ramdisk"
)

// TestGoNBDClientLists has go-nbd's client list the exports. It reads one reply only, so it sees one export and no description. The rest of that
// client works through a kernel device; test/vm/kernel runs it in a guest.
func TestGoNBDClientLists(t *testing.T) {
	ts := startServer(t, Config{Resolver: Exports{{Name: "first", Disk: ramdisk.New(1<<20, 512)}}})
	r := dial(t, ts)
	names, err := gonbd.List(r.c)
	if err != nil || len(names) != 1 || names[0] != "first" {
		t.Errorf("%q, %v", names, err)
	}
}

// TestGoNBDClientHandshake says what go-nbd's client says in Connect, byte for byte, with the types of its own protocol package: no handshake
// flags, and a GO whose header announces no data though there is some.
func TestGoNBDClientHandshake(t *testing.T) {
	d := ramdisk.New(1<<20, 512)
	ts := startServer(t, oneDisk(d))
	r := dial(t, ts)
	r.greet(0)
	hello := func(name string, infos ...uint16) []byte {
		var b bytes.Buffer
		if err := binary.Write(&b, binary.BigEndian, protocol.NegotiationOptionHeader{
			OptionMagic: protocol.NEGOTIATION_MAGIC_OPTION, ID: protocol.NEGOTIATION_ID_OPTION_GO}); err != nil {
			t.Fatal(err)
		}
		b.Write(infoData(name, infos...))
		return b.Bytes()
	}
	r.send(hello("nothing of that name"))
	if a := r.reply(optGo); a.typ != repErrUnknown {
		t.Fatalf("reply %#x", a.typ)
	}
	r.send(hello("disk", infoName))
	var export, sizes bool
	for {
		a := r.reply(optGo)
		if a.typ == repAck {
			break
		}
		if a.typ != repInfo {
			t.Fatalf("reply %#x %q", a.typ, a.data)
		}
		switch binary.BigEndian.Uint16(a.data) {
		case protocol.NEGOTIATION_TYPE_INFO_EXPORT:
			export = binary.BigEndian.Uint64(a.data[2:]) == 1<<20
		case protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE:
			preferred := binary.BigEndian.Uint32(a.data[6:])
			sizes = preferred >= gonbd.MinimumBlockSize && preferred <= gonbd.MaximumBlockSize
		}
	}
	if !export || !sizes {
		t.Errorf("the size is right: %v; the block size suits it: %v", export, sizes)
	}
	p := pattern(4096, 1)
	r.write(8192, p)
	if !bytes.Equal(r.read(8192, 4096), p) {
		t.Error("read something else")
	}
	r.bye()
}

// TestEmptyGoOfOthers is the same mistake from a client with flags: it is refused, and nothing is waited for.
func TestEmptyGoOfOthers(t *testing.T) {
	ts := startServer(t, oneDisk(ramdisk.New(1<<20, 512)))
	r := hello(t, ts)
	r.must(optGo, nil, repErrInvalid)
	r.must(optGo, infoData("disk"), repAck)

	r = dial(t, ts)
	r.greet(0)
	r.send(optionBytes(optGo, nil), optionBytes(optGo, infoData("disk")))
	r.gone()
}
