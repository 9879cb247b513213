package nbd

import "net"

// ServeKernel serves x on a connection whose other end is given to the Linux nbd driver (package nbd/kernel), and returns when it has ended. nil: the
// driver has said goodbye. It closes nc. There is no handshake: KernelFlags, the size and the block size are told to the driver by other means, and
// replies are simple ones.
//
// The driver is a peer of its own kind. It gives up a connection by shutting it down and sends again elsewhere what was in flight, so
// x.Disk should be a [Settled] that all connections of the device share. When the server closes, requests that have not begun are left unanswered, for
// whoever serves the device next. And the device may grow.
func (s *Server) ServeKernel(nc net.Conn, x *Export) error {
	if x == nil || x.Disk == nil {
		nc.Close()
		return errNoDisk
	}
	done := make(chan error, 1)
	s.start(nc, x, done)
	return <-done
}

// KernelFlags are the transmission flags that the driver is to be connected with.
func KernelFlags(x *Export) (uint64, error) {
	a, err := x.attach(styleSimple)
	if err != nil {
		return 0, err
	}
	return uint64(a.flags), nil
}

// followSize takes over the size of a disk that has grown. Only the reader calls it. A disk that has shrunk refuses by itself what is beyond its end.
func (c *conn) followSize() {
	c.size = max(c.size, c.export.Disk.Size()&^int64(c.block-1))
}
