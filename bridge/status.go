package bridge

import (
	"context"
	"fmt"
	"time"

	"vdbridge/client/link"
	"vdbridge/scsi"
)

// DiskStatus is a disk at this moment, for people and monitoring. Reading it costs next to nothing and asks nobody: who holds a reservation is
// asked separately, by Disk.Reservation.
type DiskStatus struct {
	URL  string `json:"url"`
	Mode string `json:"mode"` // rsvd, file, local

	// The way to the server.
	State     string     `json:"state"` // see the LinkState constants
	Since     time.Time  `json:"since"` // of this state
	Attempt   int        `json:"attempt,omitempty"`
	NextTry   *time.Time `json:"next_try,omitempty"`
	LastError string     `json:"last_error,omitempty"` // why the last attempt failed, or why the state is what it is
	OnLoss    string     `json:"on_loss,omitempty"`    // the policy: hold, fail, fail-after=30s

	Server   *ServerStatus   `json:"server,omitempty"`   // nil for a local image
	Handle   *HandleStatus   `json:"handle,omitempty"`   // nil for a local image
	Shared   *SharedStatus   `json:"shared,omitempty"`   // nil unless the disk is shared
	Channels []ChannelStatus `json:"channels,omitempty"` // empty while there is no connection

	Size           int64 `json:"size"`
	LogicalSector  int   `json:"logical_sector"`
	PhysicalSector int   `json:"physical_sector"`
	ReadOnly       bool  `json:"read_only"`

	// What it has done since it was opened.
	Opened     time.Time           `json:"opened"`
	InFlight   int64               `json:"in_flight"`
	Ops        map[string]OpStatus `json:"operations"` // read, write, flush, trim, write-zeroes, extents; those that have been used
	Errors     map[string]uint64   `json:"errors"`     // failed operations by class, such as io, connection, reservation-conflict
	Conflicts  uint64              `json:"conflicts"`  // commands that somebody's reservation forbade
	Losses     uint64              `json:"losses"`     // times that all ways to the server were lost
	Reconnects uint64              `json:"reconnects"` // losses that were overcome
	Repeated   uint64              `json:"repeated"`   // requests that were sent again after a loss
	Forged     uint64              `json:"forged"`     // losses because a message was not authentic
	Unflushed  bool                `json:"unflushed"`  // something was written that no flush has covered
}

// States of the way to the server.
const (
	StateConnected    = "connected"    // requests are carried out; always so for a local image
	StateReconnecting = "reconnecting" // requests wait, as the policy has it
	StateFenced       = "fenced"       // connected, but shut out: registration or reservation are gone, see LastError
	StateFailed       = "failed"       // for good, see LastError
	StateClosed       = "closed"
)

// ServerStatus is the server as far as it has told.
type ServerStatus struct {
	Address   string   `json:"address"`             // that is in use, or was last
	Addresses []string `json:"addresses,omitempty"` // that are tried in turn
	GUID      string   `json:"guid,omitempty"`
	Dialect   string   `json:"dialect,omitempty"`
	Signing   string   `json:"signing,omitempty"`
	Sealing   string   `json:"sealing,omitempty"` // the cipher, if messages are sealed
	User      string   `json:"user,omitempty"`
	Transport string   `json:"transport,omitempty"` // tcp
}

// HandleStatus is the open at the server.
type HandleStatus struct {
	Kind    string        `json:"kind"`              // persistent, durable, none: what it survives
	Timeout time.Duration `json:"timeout,omitempty"` // nanoseconds that the server keeps it for without a connection
}

// SharedStatus is what only a shared disk has.
type SharedStatus struct {
	Version       uint32 `json:"version"`        // of the open context
	ServerVersion uint32 `json:"server_version"` // of MS-RSVD at the server
	IO            string `json:"io"`             // smb or scsi
	Initiator     string `json:"initiator"`      // GUID
	InitiatorName string `json:"initiator_name,omitempty"`
	Host          string `json:"host,omitempty"`
}

// ChannelStatus is one connection.
type ChannelStatus struct {
	Address  string `json:"address"`
	State    string `json:"state"`     // connected, lost, connecting
	InFlight int64  `json:"in_flight"` // bytes, about
}

// OpStatus counts one kind of operation. Latencies are in microseconds, of those that succeeded.
type OpStatus struct {
	Count  uint64  `json:"count"` // that succeeded
	Failed uint64  `json:"failed"`
	Bytes  uint64  `json:"bytes"` // of those that succeeded
	P50    float64 `json:"p50_us"`
	P90    float64 `json:"p90_us"`
	P99    float64 `json:"p99_us"`
	P999   float64 `json:"p999_us"`
	Max    float64 `json:"max_us"`
}

// Status says how the disk is. It may be called at any time, also after Close.
func (d *Disk) Status() DiskStatus {
	s := DiskStatus{
		URL: d.loc.String(), Mode: d.mode.String(), State: StateConnected, Since: d.opened, Size: d.Size(), ReadOnly: d.ReadOnly(),
		Opened: d.opened, InFlight: d.metrics.inFlight.Load(), Conflicts: d.conflicts.Load(), Unflushed: d.dirty(),
		Ops: map[string]OpStatus{}, Errors: map[string]uint64{},
	}
	if d.loc.Local {
		s.Mode = "local"
	}
	s.LogicalSector, s.PhysicalSector, _, _ = d.BlockSizes()
	for op := range diskOps {
		m := &d.metrics.ops[op]
		v := OpStatus{Count: m.done.Load(), Failed: m.failed.Load(), Bytes: m.bytes.Load()}
		if v.Count == 0 && v.Failed == 0 {
			continue
		}
		us := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
		p := m.took.percentiles(0.5, 0.9, 0.99, 0.999)
		v.P50, v.P90, v.P99, v.P999, v.Max = us(p[0]), us(p[1]), us(p[2]), us(p[3]), us(time.Duration(m.took.longest.Load()))
		s.Ops[diskOpNames[op]] = v
	}
	for c := range d.metrics.errors {
		if n := d.metrics.errors[c].Load(); n > 0 {
			s.Errors[Class(c).String()] = n
		}
	}
	if sh := d.shared; sh != nil {
		s.Shared = &SharedStatus{Version: sh.Version(), ServerVersion: sh.ServerVersion(), IO: sh.IO().String()}
		if d.initiator != nil {
			s.Shared.Initiator, s.Shared.InitiatorName, s.Shared.Host = d.initiator.GUID(), d.initiator.Name, d.initiator.Host
		}
	}
	if r := d.remote; r != nil {
		r.describe(&s)
	}
	return s
}

// describe fills in what the connection knows.
func (r *Remote) describe(s *DiskStatus) {
	l := r.link.Status()
	i := r.Info()
	s.OnLoss, s.Since, s.Losses, s.Reconnects, s.Repeated, s.Forged = r.onLoss.String(), l.Since, l.Losses, l.Reconnects, l.Repeated, l.Forged
	s.State = [...]string{link.Connected: StateConnected, link.Reconnecting: StateReconnecting, link.Failed: StateFailed, link.Closed: StateClosed}[l.State]
	s.Attempt = l.Attempt
	if !l.NextTry.IsZero() {
		s.NextTry = &l.NextTry
	}
	switch {
	case l.LastError != nil:
		s.LastError = l.LastError.Error()
	case l.Fence != nil:
		s.State, s.LastError = StateFenced, l.Fence.Error()
	}
	s.Server = &ServerStatus{Address: l.Server.Address, GUID: FormatGUID(l.Server.GUID), Dialect: i.Dialect, Signing: i.Signing, Sealing: i.Cipher, User: i.User, Transport: "tcp"}
	if len(r.addrs) > 1 {
		s.Server.Addresses = r.addrs
	}
	s.Handle = &HandleStatus{Kind: l.Lasting.Kind.String(), Timeout: l.Lasting.Timeout}
	for _, c := range l.Channels {
		state := "connected"
		if !c.Connected {
			state = "lost"
		}
		s.Channels = append(s.Channels, ChannelStatus{Address: c.Address, State: state, InFlight: c.InFlight})
	}
}

// ReservationStatus is what the server says about the reservations of a shared disk.
type ReservationStatus struct {
	Generation uint32 `json:"generation"`
	Key        string `json:"key,omitempty"` // that we are registered with
	Held       bool   `json:"held"`
	Ours       bool   `json:"ours,omitempty"`       // we hold it
	HolderKey  string `json:"holder_key,omitempty"` // none if all registrants hold it
	Holder     string `json:"holder,omitempty"`     // its initiator's GUID
	Type       string `json:"type,omitempty"`
	Registered int    `json:"registered"` // how many registrations there are
}

// Reservation asks the server who is registered and who holds the reservation. It returns nil for a disk that is not shared.
func (d *Disk) Reservation(ctx context.Context) (*ReservationStatus, error) {
	if d.shared == nil {
		return nil, nil
	}
	full, err := d.shared.ReadFullStatus(ctx)
	if err != nil {
		return nil, err
	}
	r, err := d.shared.ReadReservation(ctx)
	if err != nil {
		return nil, err
	}
	key := func(k uint64) string { return fmt.Sprintf("%#016x", k) }
	s := &ReservationStatus{Generation: r.Generation, Held: r.Held, Registered: len(full.Registrations)}
	if r.Held {
		s.Type = r.Type.String()
		if !r.Type.AllRegistrants() {
			s.HolderKey = key(r.Key)
		}
	}
	for _, reg := range full.Registrations {
		who, ours := "", false
		if id, _, err := scsi.ParseTransportID(reg.TransportID); err == nil && id.Protocol == scsi.ProtocolSRP {
			who, ours = FormatGUID(id.Port), id.Port == d.shared.InitiatorID()
		}
		if ours {
			s.Key, s.Ours = key(reg.Key), s.Held && reg.Holder
		}
		if r.Held && reg.Holder && !r.Type.AllRegistrants() {
			s.Holder = who
		}
	}
	return s, nil
}
