package daemon

import (
	"context"
	"os"
	"sync"
	"time"

	"vdbridge/bridge"
)

// Status is a disk that a process of this host serves, for people and monitoring.
type Status struct {
	Kind  string `json:"kind"` // attach, nbd, mount
	PID   int    `json:"pid"`
	Name  string `json:"name,omitempty"`  // of the attachment
	Where string `json:"where,omitempty"` // device, address or directory
	URL   string `json:"url"`
	State string `json:"state"`         // see the constants; of nbd and mount: serving
	Why   string `json:"why,omitempty"` // if the state is a bad one

	Device *DeviceStatus      `json:"device,omitempty"` // attach
	Disk   *bridge.DiskStatus `json:"disk,omitempty"`   // nil while it cannot be opened
	Rates  Rates              `json:"rates"`
	// Reservation is what the server said last, at most a few seconds ago; nil if it was not asked or the disk is not shared.
	Reservation *bridge.ReservationStatus `json:"reservation,omitempty"`
}

// StateServing is that of what is no attachment.
const StateServing = "serving"

// DeviceStatus is the kernel's device.
type DeviceStatus struct {
	Path        string   `json:"path"`
	Size        int64    `json:"size"`
	Partitions  []string `json:"partitions,omitempty"`
	Connections int      `json:"connections"` // that should be
	Alive       int      `json:"alive"`       // that are
	Renewed     uint64   `json:"renewed"`     // that took the place of dead ones
	InFlight    int      `json:"in_flight"`   // in the kernel
}

// Rates are of the last second or so.
type Rates struct {
	ReadIOPS  float64 `json:"read_iops"`
	WriteIOPS float64 `json:"write_iops"` // everything that is not reading
	ReadBps   float64 `json:"read_bytes_per_second"`
	WriteBps  float64 `json:"write_bytes_per_second"`
}

// rates turns counters into rates.
type rates struct {
	mu   sync.Mutex
	at   time.Time
	last [4]float64
	now  Rates
}

// note takes the counters of a disk at a moment.
func (r *rates) note(at time.Time, s *bridge.DiskStatus) {
	var c [4]float64
	for name, op := range s.Ops {
		if name == "read" {
			c[0], c[2] = float64(op.Count), float64(op.Bytes)
		} else if name != "extents" {
			c[1] += float64(op.Count)
			if name == "write" {
				c[3] = float64(op.Bytes)
			}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	d := at.Sub(r.at).Seconds()
	if !r.at.IsZero() && d > 0 {
		r.now = Rates{(c[0] - r.last[0]) / d, (c[1] - r.last[1]) / d, (c[2] - r.last[2]) / d, (c[3] - r.last[3]) / d}
	}
	r.at, r.last = at, c
}

func (r *rates) get() Rates {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}

const sampleEvery = time.Second

// sample notes the counters of all disks again and again.
func (m *Manager) sample() {
	t := time.NewTicker(sampleEvery)
	defer t.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case now := <-t.C:
			for _, a := range m.list() {
				if state, _, _ := a.get(); state == StateAttached {
					s := a.disk.Status()
					a.rates.note(now, &s)
				}
			}
		}
	}
}

// reservationCache keeps what the server said of reservations, as asking takes a trip to the server, and status must not.
type reservationCache struct {
	mu     sync.Mutex
	asking bool
	at     time.Time
	last   *bridge.ReservationStatus
}

const (
	reservationAge     = 5 * time.Second
	reservationTimeout = 5 * time.Second
)

// get returns what is known, and has the server asked again, by start, if that is old.
func (c *reservationCache) get(d Disk, start func(func(context.Context))) *bridge.ReservationStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.asking && time.Since(c.at) > reservationAge {
		c.asking = true
		start(func(ctx context.Context) {
			ctx, cancel := context.WithTimeout(ctx, reservationTimeout)
			defer cancel()
			r, err := d.Reservation(ctx)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.asking, c.at = false, time.Now()
			if err != nil {
				r = nil
			}
			c.last = r
		})
	}
	return c.last
}

// Status says how all attachments are. It asks nobody.
func (m *Manager) Status() []Status {
	list := m.list()
	out := make([]Status, 0, len(list))
	for _, a := range list {
		out = append(out, a.status())
	}
	return out
}

func (a *attachment) status() Status {
	state, why, index := a.get()
	s := Status{Kind: "attach", PID: os.Getpid(), Name: a.rec.Spec.Name, Where: a.node(), URL: a.loc.String(), State: state, Why: why, Rates: a.rates.get()}
	if index >= 0 {
		sys := a.m.cfg.Sys
		size, _ := sys.Size(index)
		s.Device = &DeviceStatus{Path: a.node(), Size: size, Partitions: sys.Partitions(index), Connections: a.rec.Connections,
			Alive: int(a.links.Load()), Renewed: a.renewed.Load(), InFlight: sys.InFlight(index)}
	}
	if state == StateAttached {
		d := a.disk.Status()
		s.Disk = &d
		if d.Shared != nil && d.State == bridge.StateConnected {
			s.Reservation = a.reservation.get(a.disk, func(f func(context.Context)) { go f(a.ctx) })
		}
	}
	return s
}
