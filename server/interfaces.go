package server

import (
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

const (
	interfaceInfoSize = 152
	// interfaceRSS tells clients that several connections to one address pay: each has its own goroutines here.
	interfaceRSS uint32 = 1
	// maxInterfaces bounds the reply.
	maxInterfaces = 64
	// unknownSpeed is told where the system does not know the speed of a link.
	unknownSpeed = uint64(1e9)
)

// networkAddr is an address by which this server can be reached.
type networkAddr struct {
	ip    net.IP
	index int
	speed uint64 // bits per second
}

// reachable lists the addresses on which clients of this connection can open more connections: those of the listeners on the same port.
// The one by which the client has come is the first.
func (c *conn) reachable() []networkAddr {
	local, ok := c.tc.LocalAddr().(*net.TCPAddr)
	if !ok {
		return nil
	}
	all4, all6 := false, false
	named := []net.IP{local.IP}
	c.srv.mu.Lock()
	for l := range c.srv.listeners {
		a, ok := l.Addr().(*net.TCPAddr)
		if !ok || a.Port != local.Port {
			continue
		}
		switch {
		case !a.IP.IsUnspecified():
			named = append(named, a.IP)
		case a.IP.To4() != nil:
			all4 = true
		default:
			all4, all6 = true, true
		}
	}
	c.srv.mu.Unlock()
	wanted := func(ip net.IP) bool {
		for _, n := range named {
			if n.Equal(ip) {
				return true
			}
		}
		return ip.To4() != nil && all4 || ip.To4() == nil && all6
	}
	var out []networkAddr
	ifs, err := net.Interfaces()
	if err != nil {
		ifs = nil
	}
	for _, i := range ifs {
		if i.Flags&net.FlagUp == 0 || i.Index == 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addrs {
			n, ok := a.(*net.IPNet)
			if !ok || len(out) >= maxInterfaces || !wanted(n.IP) {
				continue
			}
			mine := n.IP.Equal(local.IP)
			if !mine && (n.IP.IsLinkLocalUnicast() || n.IP.IsLoopback() != local.IP.IsLoopback()) {
				continue // a client elsewhere cannot reach it, or not by the address alone
			}
			out = append(out, networkAddr{n.IP, i.Index, linkSpeed(i.Name)})
			if mine {
				out[0], out[len(out)-1] = out[len(out)-1], out[0]
			}
		}
	}
	// Addresses on no interface, of a network that is local as a whole, such as 127.0.0.2.
	loopback := 1
	for _, i := range ifs {
		if i.Flags&net.FlagLoopback != 0 {
			loopback = i.Index
		}
	}
	if len(out) == 0 || !out[0].ip.Equal(local.IP) {
		out = append([]networkAddr{{local.IP, loopback, unknownSpeed}}, out...)
	}
	for _, ip := range named {
		known := slices.ContainsFunc(out, func(a networkAddr) bool { return a.ip.Equal(ip) })
		if !known && ip.IsLoopback() && local.IP.IsLoopback() && len(out) < maxInterfaces {
			out = append(out, networkAddr{ip, loopback, unknownSpeed})
		}
	}
	return out
}

func linkSpeed(name string) uint64 {
	b, err := os.ReadFile("/sys/class/net/" + name + "/speed")
	if err != nil {
		return unknownSpeed
	}
	v, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32)
	if err != nil || v == 0 || v == 1<<32-1 {
		return unknownSpeed
	}
	return v * 1e6
}

// networkInterfaces handles FSCTL_QUERY_NETWORK_INTERFACE_INFO. When not all addresses fit, the first ones are given. [MS-SMB2] 3.3.5.15.11
func (r *request) networkInterfaces(req *wire.IoctlRequest) ntstatus.Status {
	if r.c.dialect < wire.Dialect300 {
		return ntstatus.NotSupported
	}
	list := r.c.reachable()
	if len(list) == 0 {
		return ntstatus.NotSupported
	}
	n := min(len(list), int(req.MaxOutputResponse)/interfaceInfoSize)
	if n == 0 {
		return ntstatus.BufferTooSmall
	}
	req.FileID = wire.RelatedFileID
	out := r.beginOutput(n * interfaceInfoSize)
	clear(out)
	for i := range n {
		b, a := out[i*interfaceInfoSize:][:interfaceInfoSize], &list[i]
		if i+1 < n {
			le.PutUint32(b, interfaceInfoSize)
		}
		le.PutUint32(b[4:], uint32(a.index))
		le.PutUint32(b[8:], interfaceRSS)
		le.PutUint64(b[16:], a.speed)
		if ip4 := a.ip.To4(); ip4 != nil {
			le.PutUint16(b[24:], 2)
			copy(b[28:], ip4)
		} else {
			le.PutUint16(b[24:], 0x17)
			copy(b[32:], a.ip.To16())
		}
	}
	return r.endOutput(req, n*interfaceInfoSize)
}
