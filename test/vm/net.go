package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"vdbridge/test/lab"
)

// The addresses in a Net, of the host and of the first guest.
const (
	HostAddr  = "10.77.0.1"
	GuestAddr = "10.77.0.2"

	bridgeName = "guests"
)

// maxGuests is how many guests a Net can have.
const maxGuests = 9

// AddrOf is the address of a guest of a Net, counted from 0.
func AddrOf(guest int) string { return fmt.Sprintf("10.77.0.%d", 2+guest) }

func guestVeth(guest int) string { return fmt.Sprintf("guest%d", guest) }

// Net is a network namespace with loopback, and a bridge with HostAddr that its guests are connected to. It has no name in the file system:
// it is gone when Close was called and everything started in it has ended.
type Net struct {
	work chan func()
	once sync.Once
	done chan struct{}
}

// NewNet makes a network for so many guests. It needs root. The caller ends it with Close.
func NewNet(guests int) (*Net, error) {
	if guests < 1 || guests > maxGuests {
		return nil, fmt.Errorf("a network has 1 to %d guests, not %d", maxGuests, guests)
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("a network for a guest needs root")
	}
	ip, err := lab.Look("ip")
	if err != nil {
		return nil, err
	}
	n := &Net{work: make(chan func()), done: make(chan struct{})}
	ready := make(chan error, 1)
	go func() {
		defer close(n.done)
		// The thread is in the namespace for good: it is never unlocked, so it ends with this goroutine, and by Pdeathsig what it started.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		ready <- err
		if err != nil {
			return
		}
		for f := range n.work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("new network namespace: %w", err)
	}
	steps := []string{
		"link set lo up",
		"link add " + bridgeName + " type bridge",
		"addr add " + HostAddr + "/24 dev " + bridgeName,
		"link set " + bridgeName + " up",
	}
	for i := range guests {
		steps = append(steps,
			fmt.Sprintf("link add host%d type veth peer name %s", i, guestVeth(i)),
			fmt.Sprintf("link set host%d master %s up", i, bridgeName),
			"link set "+guestVeth(i)+" up promisc on")
	}
	for _, args := range steps {
		cmd := exec.Command(ip, strings.Fields(args)...)
		var out []byte
		if err := n.Do(func() (err error) { out, err = cmd.CombinedOutput(); return err }); err != nil {
			n.Close()
			return nil, fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
	}
	return n, nil
}

// NewTestNet makes a network with one guest for a test and closes it when the test ends.
func NewTestNet(t testing.TB) *Net {
	t.Helper()
	return NewTestNetFor(t, 1)
}

// NewTestNetFor is NewTestNet for so many guests.
func NewTestNetFor(t testing.TB, guests int) *Net {
	t.Helper()
	lab.NeedRoot(t)
	lab.Need(t, "ip")
	n, err := NewNet(guests)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

// Do runs f on a thread inside the network and returns its error. Sockets that f itself makes belong to the network for their whole life;
// goroutines that f starts do not run there. Calls run one after the other.
func (n *Net) Do(f func() error) error {
	err := make(chan error, 1)
	n.work <- func() { err <- f() }
	return <-err
}

// StartCommand is cmd.Start inside the network.
func (n *Net) StartCommand(cmd *exec.Cmd) error { return n.Do(cmd.Start) }

// Start starts a program of the host inside the network; see lab.Start.
func (n *Net) Start(cmd *exec.Cmd) (*lab.Proc, error) { return lab.Start(cmd, n.StartCommand) }

// Listen is net.Listen inside the network. network is "tcp".
func (n *Net) Listen(network, addr string) (ln net.Listener, err error) {
	err = n.Do(func() (err error) { ln, err = net.Listen(network, addr); return err })
	return ln, err
}

// Dial is net.Dial inside the network. addr is an IP address with a port.
func (n *Net) Dial(network, addr string) (c net.Conn, err error) {
	err = n.Do(func() (err error) { c, err = net.Dial(network, addr); return err })
	return c, err
}

// WaitListen waits until the program, started in the network, accepts connections at addr.
func (n *Net) WaitListen(ctx context.Context, p *lab.Proc, addr string) error {
	return p.WaitListen(ctx, "tcp", addr, n.Dial)
}

// Close ends what was started in the network and still runs, and lets the network go. It may be called more than once.
func (n *Net) Close() {
	n.once.Do(func() { close(n.work) })
	<-n.done
}
