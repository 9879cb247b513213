package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// Finding is about one link of the chain from this host to a disk.
type Finding struct {
	Link   string `json:"link"`   // a name that stays
	Result string `json:"result"` // ok, broken, note: works, but worth knowing; skipped
	Text   string `json:"text"`   // what was found, and what to do about it
}

// Results of a Finding.
const (
	CheckOK      = "ok"
	CheckBroken  = "broken"
	CheckNote    = "note"
	CheckSkipped = "skipped"
)

// probeTimeout bounds each small step of Diagnose.
const probeTimeout = 5 * time.Second

// Diagnose walks the chain from this host to the disk at loc and tells each link to found, up to the first that is broken; that one's error is returned. It opens
// the disk read-only, as a passing initiator, and changes nothing.
func Diagnose(ctx context.Context, loc Location, o Options, found func(Finding)) error {
	ok := func(link, format string, args ...any) { found(Finding{link, CheckOK, fmt.Sprintf(format, args...)}) }
	broken := func(link string, err error) error {
		found(Finding{link, CheckBroken, err.Error()})
		return err
	}
	o.ReadOnly, o.Attachment, o.InitiatorID = true, "", nil
	if !loc.Local {
		if err := diagnoseNetwork(ctx, loc, ok, broken); err != nil {
			return err
		}
		r, err := Connect(ctx, loc, o)
		if err != nil {
			return broken(brokenLink(loc, err), err)
		}
		i := r.Info()
		_ = r.Close()
		sealing := "not encrypted"
		if i.Cipher != "" {
			sealing = "encrypted with " + i.Cipher
		}
		ok("dialect", "SMB %s, signed with %s, %s", i.Dialect, i.Signing, sealing)
		ok("authentication", "logged on as %s", i.User)
		ok("share", "%q can be used", loc.Share)
	}
	d, err := Open(ctx, loc, o)
	if err != nil {
		link := "open"
		if Classify(err) == ClassUnsupported && o.Mode == ModeRSVD {
			link = "rsvd"
		}
		return broken(link, err)
	}
	diagnoseDisk(ctx, d, ok, found)
	if err := d.Close(); err != nil {
		return broken("close", err)
	}
	return nil
}

func diagnoseNetwork(ctx context.Context, loc Location, ok func(link, format string, args ...any), broken func(string, error) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*probeTimeout)
	defer cancel()
	addrs := []string{loc.Host}
	if net.ParseIP(loc.Host) == nil {
		lookup, stop := context.WithTimeout(ctx, probeTimeout)
		defer stop()
		var err error
		if addrs, err = net.DefaultResolver.LookupHost(lookup, loc.Host); err != nil {
			return broken("dns", &Error{ClassConnection, fmt.Sprintf("the name %s is not known (%v): check it, /etc/resolv.conf and /etc/hosts", loc.Host, rootCause(err)), err})
		}
	}
	ok("dns", "%s is %s", loc.Host, strings.Join(addrs, ", "))
	_, port, err := net.SplitHostPort(loc.Addr())
	if err != nil {
		return broken("port", err)
	}
	var errs []error
	for _, a := range addrs {
		dial, stop := context.WithTimeout(ctx, probeTimeout)
		var d net.Dialer
		c, err := d.DialContext(dial, "tcp", net.JoinHostPort(a, port))
		stop()
		if err == nil {
			c.Close()
			ok("port", "%s accepts connections", net.JoinHostPort(a, port))
			return nil
		}
		errs = append(errs, err)
	}
	advice := "check that the server runs and listens there"
	var ne net.Error
	if errors.As(errs[0], &ne) && ne.Timeout() {
		advice = "nothing answers, so a firewall may be in between, or the host is down"
	}
	return broken("port", &Error{ClassConnection, fmt.Sprintf("%s does not accept connections (%v): %s", loc.Addr(), rootCause(errs[0]), advice), errors.Join(errs...)})
}

// brokenLink says at which link Connect has failed.
func brokenLink(loc Location, err error) string {
	switch class := Classify(err); {
	case class == ClassAuth:
		return "authentication"
	case class == ClassUnsupported:
		return "dialect"
	case class == ClassNotFound, class == ClassPermission && strings.Contains(err.Error(), fmt.Sprintf("share %q", loc.Share)):
		return "share"
	}
	return "connection"
}

func diagnoseDisk(ctx context.Context, d *Disk, ok func(link, format string, args ...any), found func(Finding)) {
	note := func(link, format string, args ...any) { found(Finding{link, CheckNote, fmt.Sprintf(format, args...)}) }
	s := d.Status()
	ok("open", "%d bytes in sectors of %d", s.Size, s.LogicalSector)
	if h := s.Handle; h != nil {
		switch h.Kind {
		case "persistent":
			ok("handle", "persistent: it survives a lost connection and the server's restart (the share is continuously available)")
		case "durable":
			note("handle", "durable: it survives a lost connection, but not the server's restart; make the share continuously available for that")
		default:
			note("handle", "it ends with the connection; after a loss the disk is opened again")
		}
	}
	if s.Shared == nil {
		if !d.loc.Local {
			note("rsvd", "the server offers no shared disks (MS-RSVD) here, so the image is for one host alone")
		}
		return
	}
	ok("rsvd", "MS-RSVD version %d of the server, %d in use", s.Shared.ServerVersion, s.Shared.Version)
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	switch r, err := d.Reservation(ctx); {
	case err != nil:
		note("reservation", "the server does not say who has reserved the disk: %v", err)
	case r.Held:
		who := r.HolderKey
		if who == "" {
			who = "all registrants"
		}
		note("reservation", "%s is held by %s (%d registered): initiators that it shuts out get I/O errors; 'vdbridge pr status' has more", r.Type, who, r.Registered)
	default:
		ok("reservation", "nobody holds one; %d registered", r.Registered)
	}
}
