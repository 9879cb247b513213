package client

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
)

// export is what a server told about itself.
type export struct {
	size       int64
	flags      uint16
	min, best  int
	max        int
	structured bool
	status     bool   // base:allocation
	context    uint32 // its number
}

// handshake negotiates until the connection is ready for requests.
func handshake(c net.Conn, r *bufio.Reader, name string) (e export, err error) {
	var hello [18]byte
	if _, err := io.ReadFull(r, hello[:]); err != nil {
		return e, err
	}
	if be.Uint64(hello[:]) != magicInit {
		return e, broken("it does not begin as one")
	}
	if be.Uint64(hello[8:]) != magicOption || be.Uint16(hello[16:])&flagFixed == 0 {
		return e, fmt.Errorf("the server speaks only an old kind of NBD, without negotiation")
	}
	answer := be.AppendUint32(nil, uint32(be.Uint16(hello[16:])&(flagFixed|flagNoZeroes)))
	if _, err := c.Write(answer); err != nil {
		return e, err
	}
	send := func(opt uint32, data []byte) error {
		b := be.AppendUint64(nil, magicOption)
		b = be.AppendUint32(b, opt)
		b = be.AppendUint32(b, uint32(len(data)))
		_, err := c.Write(append(b, data...))
		return err
	}
	// each reads the replies to an option until the last.
	each := func(opt uint32, info func(kind uint32, data []byte) error) (refused string, err error) {
		for range 1000 {
			var h [20]byte
			if _, err := io.ReadFull(r, h[:]); err != nil {
				return "", err
			}
			kind, n := be.Uint32(h[12:]), be.Uint32(h[16:])
			if be.Uint64(h[:]) != magicReply || be.Uint32(h[8:]) != opt || n > maxOption {
				return "", broken("a reply to option %d does not belong to it", opt)
			}
			data := make([]byte, n)
			if _, err := io.ReadFull(r, data); err != nil {
				return "", err
			}
			switch {
			case kind == repAck:
				return "", nil
			case kind&repError != 0:
				if text := clean(data); text != "" {
					return text, nil
				}
				return fmt.Sprintf("error %d", kind&^repError), nil
			}
			if err := info(kind, data); err != nil {
				return "", err
			}
		}
		return "", broken("its replies to option %d do not end", opt)
	}
	none := func(uint32, []byte) error { return nil }

	if err := send(optStructured, nil); err != nil {
		return e, err
	}
	refused, err := each(optStructured, none)
	if err != nil {
		return e, err
	}
	e.structured = refused == ""
	if e.structured {
		const query = "base:allocation"
		data := appendString(nil, name)
		data = be.AppendUint32(data, 1)
		if err := send(optSetMeta, appendString(data, query)); err != nil {
			return e, err
		}
		refused, err := each(optSetMeta, func(kind uint32, data []byte) error {
			if kind == repMeta && len(data) >= 4 && string(data[4:]) == query {
				e.status, e.context = true, be.Uint32(data)
			}
			return nil
		})
		if err != nil {
			return e, err
		}
		e.status = e.status && refused == ""
	}
	data := appendString(nil, name)
	data = be.AppendUint16(data, 1)
	data = be.AppendUint16(data, infoBlockSize)
	if err := send(optGo, data); err != nil {
		return e, err
	}
	known := false
	e.min, e.best, e.max = 1, 4096, maxPayload
	refused, err = each(optGo, func(kind uint32, data []byte) error {
		if kind != repInfo || len(data) < 2 {
			return nil
		}
		switch be.Uint16(data) {
		case infoExport:
			if len(data) < 12 || be.Uint64(data[2:]) > 1<<62 {
				return broken("it tells no usable size")
			}
			e.size, e.flags, known = int64(be.Uint64(data[2:])), be.Uint16(data[10:]), true
		case infoBlockSize:
			if len(data) < 14 {
				return broken("it tells no usable block size")
			}
			low, best, high := be.Uint32(data[2:]), be.Uint32(data[6:]), be.Uint32(data[10:])
			if low == 0 || low&(low-1) != 0 || low > 64<<10 || best < low || high < low {
				return broken("blocks of %d, %d, %d bytes are not possible", low, best, high)
			}
			e.min, e.best, e.max = int(low), int(min(best, maxPayload)), int(min(high, maxPayload))/int(low)*int(low)
		}
		return nil
	})
	switch {
	case err != nil:
		return e, err
	case refused != "":
		return e, fmt.Errorf("the server does not give the export %q: %s", name, refused)
	case !known:
		return e, broken("it tells no size")
	}
	return e, nil
}

func appendString(b []byte, s string) []byte {
	return append(be.AppendUint32(b, uint32(len(s))), s...)
}

// clean makes text of a server fit to be shown.
func clean(b []byte) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7F {
			return -1
		}
		return r
	}, strings.ToValidUTF8(string(b[:min(len(b), 300)]), "?")))
}
