//go:build !linux

package nbd

import "net"

// newSock is for Linux only.
func newSock(net.Conn) (transport, bool, error) { return nil, false, nil }
