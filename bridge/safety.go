package bridge

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"vdbridge/partition"
	"vdbridge/rsvd"
	"vdbridge/scsi"
)

// What is on a disk decides whether several hosts may write to it. OCFS2 and GFS2 are made for it; ext4, XFS, NTFS and the like are destroyed by the second host that mounts
// them, although every single write of both is carried out faithfully.

// Layout reads the partition table of the disk and what is in its partitions.
func (d *Disk) Layout(ctx context.Context) (*partition.Layout, error) {
	l, err := partition.Inspect(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.loc, err)
	}
	return l, nil
}

// Risk is why writing to a disk from this host may destroy what is on it.
type Risk struct {
	Disk     string   `json:"disk"`
	Contents []string `json:"contents"` // what must not be written by several hosts, such as "ext4 (partition 1)"
	// Others are the initiators that are registered besides ours, as GUIDs. The server tells only of those: who has the disk open without a
	// registration is not seen, so an empty list does not mean that we are alone.
	Others []string `json:"others,omitempty"`
}

// WriteRisk says whether writing to the disk may destroy what is on it: when other hosts can write to it too, and it holds something that belongs to one host. It is nil
// when there is no such risk: the disk is open for this host alone or read-only, it is empty, it holds a cluster file system, or a reservation of ours keeps all
// others from writing. layout is what was found; nil lets WriteRisk look itself.
func (d *Disk) WriteRisk(ctx context.Context, layout *partition.Layout) (*Risk, error) {
	if !d.Shared() || d.ReadOnly() {
		return nil, nil
	}
	if layout == nil {
		var err error
		if layout, err = d.Layout(ctx); err != nil {
			return nil, err
		}
	}
	r := &Risk{Disk: d.loc.String(), Contents: layout.SingleHost()}
	if len(r.Contents) == 0 {
		return nil, nil
	}
	st, err := d.RSVD().ReadFullStatus(ctx)
	if err != nil {
		// A server without READ FULL STATUS cannot tell who holds a reservation, so none can be counted on.
		return r, ctx.Err()
	}
	for _, reg := range st.Registrations {
		id, _, err := scsi.ParseTransportID(reg.TransportID)
		ours := err == nil && id.Port == d.RSVD().InitiatorID()
		switch {
		case ours && reg.Holder && (reg.Type == scsi.WriteExclusive || reg.Type == scsi.ExclusiveAccess):
			return nil, nil
		case !ours && err == nil:
			r.Others = append(r.Others, FormatGUID(id.Port))
		}
	}
	return r, nil
}

// Explain is the paragraph for whoever wanted to write: what was found, what would happen, and, in remedies, what to do.
func (r *Risk) Explain(remedies string) string {
	others := "Other hosts can open it at the same time"
	if n := len(r.Others); n == 1 {
		others = "Another initiator is registered for it now (" + r.Others[0] + "), and more hosts can open it at the same time"
	} else if n > 1 {
		others = fmt.Sprintf("%d other initiators are registered for it now (%s), and more hosts can open it at the same time", n, strings.Join(r.Others, ", "))
	}
	return fmt.Sprintf("%s is a shared disk, and it holds %s, which only one host at a time may use. %s; if two of them write, what is on the disk is destroyed, although nobody sees an error at first. %s",
		r.Disk, strings.Join(r.Contents, ", "), others, remedies)
}

// Error makes an error of it, of ClassBusy.
func (r *Risk) Error(remedies string) error {
	return &Error{ClassBusy, r.Explain(remedies), syscall.EBUSY}
}

// ReserveExclusive makes us the only initiator that may write to the shared disk: it registers a key and takes a Write Exclusive reservation, unless we hold an exclusive
// one already. release gives up what was taken; it may be nil. What somebody else holds is an error of ClassConflict that names the key. SPC-4 5.13
func (d *Disk) ReserveExclusive(ctx context.Context) (release func(context.Context) error, err error) {
	s := d.RSVD()
	if s == nil {
		return nil, Usagef("%s is open for this host alone, so there is nothing to reserve", d.loc)
	}
	var key uint64
	if st, err := s.ReadFullStatus(ctx); err == nil {
		for _, reg := range st.Registrations {
			if id, _, err := scsi.ParseTransportID(reg.TransportID); err != nil || id.Port != s.InitiatorID() {
				continue
			}
			if reg.Holder && (reg.Type == scsi.WriteExclusive || reg.Type == scsi.ExclusiveAccess) {
				return nil, nil
			}
			key = reg.Key
		}
	}
	registered := key == 0
	if registered {
		var b [8]byte
		if _, err := rand.Read(b[:]); err != nil {
			return nil, fmt.Errorf("making a reservation key: %w", err)
		}
		key = binary.BigEndian.Uint64(b[:]) | 1
		if err := s.RegisterIgnore(ctx, key, false); err != nil {
			return nil, fmt.Errorf("reserve %s: %w", d.loc, err)
		}
	}
	give := func(ctx context.Context) error {
		if !registered {
			return nil
		}
		if err := s.Register(ctx, key, 0, false); err != nil && !errors.Is(err, rsvd.ErrReservationConflict) {
			return fmt.Errorf("give up the registration for %s: %w", d.loc, err)
		}
		return nil
	}
	if err := s.Reserve(ctx, key, scsi.WriteExclusive); err != nil {
		r, rerr := s.ReadReservation(ctx)
		_ = give(context.WithoutCancel(ctx))
		if errors.Is(err, rsvd.ErrReservationConflict) {
			who := "another initiator"
			if rerr == nil && r.Held {
				who = fmt.Sprintf("the initiator with key %#016x (%v)", r.Key, r.Type)
			}
			return nil, &Error{ClassConflict, fmt.Sprintf("%s is reserved by %s: end that use first ('vdbridge pr status' shows who it is), or try --read-only", d.loc, who), err}
		}
		return nil, fmt.Errorf("reserve %s: %w", d.loc, err)
	}
	return func(ctx context.Context) error {
		// A reservation that was taken from us is not ours to release.
		err := s.Release(ctx, key, scsi.WriteExclusive)
		if errors.Is(err, rsvd.ErrReservationConflict) || errors.Is(err, rsvd.ErrPreempted) {
			err = nil
		}
		return errors.Join(err, give(ctx))
	}, nil
}

// GiveUpReservation removes our registration from the shared disk, and with it the reservation if we hold one alone. A disk that is not shared has neither. SPC-4 5.13
func (d *Disk) GiveUpReservation(ctx context.Context) error {
	s := d.RSVD()
	if s == nil {
		return nil
	}
	st, err := s.ReadFullStatus(ctx)
	if err != nil {
		return err
	}
	for _, reg := range st.Registrations {
		if id, _, err := scsi.ParseTransportID(reg.TransportID); err == nil && id.Port == s.InitiatorID() {
			return s.Register(ctx, reg.Key, 0, false)
		}
	}
	return nil
}

// GuardWrites is for who is about to let a disk be written: with reserve it takes an exclusive reservation first, which release gives up at the end; without know it
// refuses if writing is a risk. release may be nil.
func GuardWrites(ctx context.Context, d *Disk, reserve, know bool) (release func(context.Context) error, err error) {
	if reserve {
		if release, err = d.ReserveExclusive(ctx); err != nil {
			return nil, err
		}
	}
	if know {
		return release, nil
	}
	r, err := d.WriteRisk(ctx, nil)
	if err == nil && r != nil {
		err = r.Error("Say --reserve to take a reservation that keeps all other hosts from writing, --mode file to open the image for this host alone, --read-only to write nothing, " +
			"or --i-know if you see to it that no other host uses it.")
	}
	if err != nil && release != nil {
		err = errors.Join(err, release(context.WithoutCancel(ctx)))
	}
	if err != nil {
		return nil, err
	}
	return release, nil
}
