package lu

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"vdbridge/scsi"
)

// Disk is what a logical unit stands on. Its calls may overlap; offsets and lengths are multiples of the logical block size. A call that has
// returned, be it with an error or because its context has ended, changes nothing any more: fencing rests on that.
type Disk interface {
	Read(ctx context.Context, p []byte, off int64) error
	Write(ctx context.Context, p []byte, off int64, fua bool) error
	Flush(ctx context.Context) error
	Trim(ctx context.Context, off, n int64) error
	WriteZeroes(ctx context.Context, off, n int64, unmap, fua bool) error
	Extents(ctx context.Context, off, n int64, yield func(n int64, hole, zero bool) bool) error
	Size() int64
	BlockSizes() (logical, physical, optimal, maxTransfer int)
	ReadOnly() bool
}

// TrimGranularity is an optional ability of a Disk: the alignment and size in bytes of what Trim can give back.
type TrimGranularity interface{ TrimGranularity() int64 }

// Options describe a logical unit. The zero value is usable.
type Options struct {
	Vendor   string // at most 8 characters of ASCII; "" means "VDBRIDGE"
	Product  string // at most 16; "" means "Virtual Disk"
	Revision string // at most 4; "" means "1"
	// ID identifies the disk wherever it is opened: it makes the serial number and the designators of VPD pages 80h and 83h.
	ID [16]byte
	// MaxTransfer bounds the bytes of one READ or WRITE; 0 leaves it to the disk.
	MaxTransfer int
	// Thin says that UNMAP gives space back.
	Thin bool
	// State keeps reservations over a power loss (APTPL), and those of nexuses that survive the unit (see Nexus.Persist); nil: both are refused.
	State PersistentState
	// Restore says that nexuses of the unit's former life will be attached again, until Restored is called.
	Restore bool
	// Logger hears of changes of reservations; nil is silent.
	Logger *slog.Logger
}

// LU is a logical unit. Its methods may be called at the same time.
type LU struct {
	disk     Disk
	opt      Options
	log      *slog.Logger
	bs       int64 // logical block size
	locks    rangeLocks
	bufs     sync.Pool     // *[]byte of bufferSize
	bufSlots chan struct{} // capacity maxBuffers: one for each in use

	change    chan struct{} // capacity 1: the token of who changes reservations
	survives  bool          // some nexus does, so that every change is saved; of the token
	suspended bool          // some nexus has been suspended: the unit ends; of the token

	mu         sync.Mutex
	pr         *prState // in force for who loses rights by it; written with the change token only
	shown      *prState // in force for all, and reported: pr, but while a change waits for commands the one before
	initiators map[InitiatorID]*initiator
}

// New makes a logical unit and, with Options.State, restores the reservations that were kept. Initiators restored in this way find a unit
// attention "power on occurred", unless one of their nexuses has survived. The disk stays the caller's.
func New(ctx context.Context, disk Disk, o Options) (*LU, error) {
	logical, physical, _, _ := disk.BlockSizes()
	if logical < 512 || logical&(logical-1) != 0 || physical < logical || physical&(physical-1) != 0 {
		return nil, fmt.Errorf("logical unit over a disk with blocks of %d and %d bytes: %w", logical, physical, errors.ErrUnsupported)
	}
	def := func(s *string, d string) {
		if *s == "" {
			*s = d
		}
	}
	def(&o.Vendor, "VDBRIDGE")
	def(&o.Product, "Virtual Disk")
	def(&o.Revision, "1")
	l := &LU{disk: disk, opt: o, log: o.Logger, bs: int64(logical), change: make(chan struct{}, 1), bufSlots: make(chan struct{}, maxBuffers), pr: &prState{},
		initiators: make(map[InitiatorID]*initiator)}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	l.bufs.New = func() any { b := make([]byte, bufferSize); return &b }
	l.shown = l.pr
	if o.State != nil {
		s, err := o.State.Load(ctx)
		if err != nil {
			return nil, fmt.Errorf("load persistent reservations: %w", err)
		}
		if s != nil {
			if err := l.load(ctx, s); err != nil {
				return nil, fmt.Errorf("load persistent reservations: %w", err)
			}
		}
	}
	return l, nil
}

// initiator finds or makes the record of an initiator. Called with l.mu held (or before the unit is shared).
func (l *LU) initiator(id InitiatorID) *initiator {
	i := l.initiators[id]
	if i == nil {
		i = &initiator{id: id, rights: l.pr.rights(id) & l.shown.rights(id)}
		l.initiators[id] = i
	}
	return i
}

// Nexus is an initiator's way to the unit. Its methods may be called at the same time, but for Detach, which comes last.
type Nexus struct {
	lu       *LU
	i        *initiator
	readOnly bool
	through  bool // everything is durable before its command ends
	once     sync.Once
}

// Attach opens a nexus for an initiator. Through a nexus that is readOnly nothing can be changed, neither blocks nor reservations: such
// commands find the disk write protected.
func (l *LU) Attach(id InitiatorID, readOnly bool) *Nexus {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := l.initiator(id)
	i.refs++
	return &Nexus{lu: l, i: i, readOnly: readOnly || l.disk.ReadOnly()}
}

// Detach closes the nexus. With the last nexus of an initiator goes its registration, and with that its reservation, unless
// reservations are kept over a power loss (APTPL). A second call does nothing.
func (n *Nexus) Detach() {
	n.once.Do(func() { n.lu.detach(n.i) })
}

func (l *LU) detach(i *initiator) {
	l.change <- struct{}{}
	defer func() { <-l.change }()
	l.mu.Lock()
	i.refs--
	last, st := i.refs == 0, l.pr
	l.mu.Unlock()
	if !last {
		return
	}
	if st.find(i.id) >= 0 && !st.aptpl {
		c := st.begin(i.id)
		c.next.generation++
		c.unregister(i.id)
		l.log.Info("registration dropped: the initiator closed its last open", "initiator", i.id)
		if err := l.apply(context.Background(), c); err != nil {
			l.log.Error("drop registration", "initiator", i.id, "err", err)
		}
	}
	l.mu.Lock()
	l.forget(i)
	alone := true
	for _, other := range l.initiators {
		alone = alone && other.refs == 0
	}
	l.mu.Unlock()
	if alone {
		l.lastDetached()
	}
}

// Initiator returns whom the nexus belongs to.
func (n *Nexus) Initiator() InitiatorID { return n.i.id }

// CapacityChanged tells every initiator, with a unit attention, that the size of the disk has changed.
func (l *LU) CapacityChanged() { l.attendAll(scsi.CodeCapacityChanged) }

// attendAll queues a unit attention for every initiator.
func (l *LU) attendAll(c scsi.Code) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, i := range l.initiators {
		i.mu.Lock()
		i.attend(c)
		i.mu.Unlock()
	}
}

// LogValue shows an initiator as a GUID.
func (id InitiatorID) LogValue() slog.Value { return slog.StringValue(id.String()) }

// String formats the identifier as a GUID whose first three fields are little-endian on the wire.
func (id InitiatorID) String() string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(id[:]), binary.LittleEndian.Uint16(id[4:]),
		binary.LittleEndian.Uint16(id[6:]), id[8:10], id[10:])
}
