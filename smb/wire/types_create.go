package wire

import "net/netip"

// DurablePersistent is the flag of durable contexts, version 2, that asks for or grants a persistent open. [MS-SMB2] 2.2.13.2.11
const DurablePersistent uint32 = 0x02

// DurableRequest2 is the data of CreateDurableRequest2. [MS-SMB2] 2.2.13.2.11
type DurableRequest2 struct {
	Timeout    uint32 // milliseconds; 0: as the server likes
	Flags      uint32
	CreateGUID GUID
}

// DurableResponse2 is the data of CreateDurableRequest2 in a reply. [MS-SMB2] 2.2.14.2.12
type DurableResponse2 struct {
	Timeout uint32 // milliseconds
	Flags   uint32
}

// DurableConnect2 is the data of CreateDurableConnect2. [MS-SMB2] 2.2.13.2.12
type DurableConnect2 struct {
	FileID     FileID
	CreateGUID GUID
	Flags      uint32
}

// Flags of leases. [MS-SMB2] 2.2.13.2.10, 2.2.14.2.11, 2.2.23.2
const (
	LeaseBreakAckRequired uint32 = 0x01 // of a LeaseBreak
	LeaseBreakInProgress  uint32 = 0x02
	LeaseParentKeySet     uint32 = 0x04
)

// Lease is the data of CreateLease, in request and reply. [MS-SMB2] 2.2.13.2.8, 2.2.13.2.10, 2.2.14.2.10, 2.2.14.2.11
type Lease struct {
	Key     GUID
	State   uint32
	Flags   uint32
	Version int  // 1 or 2
	Parent  GUID // version 2
	Epoch   uint16
}

// LeaseBreak is a lease break notification. [MS-SMB2] 2.2.23.2
type LeaseBreak struct {
	NewEpoch     uint16
	Flags        uint32
	Key          GUID
	Current, New uint32 // states
}

// LeaseBreakAck is a lease break acknowledgment and the reply to it. [MS-SMB2] 2.2.24.2, 2.2.25.2
type LeaseBreakAck struct {
	Key   GUID
	State uint32
}

// Capabilities of a network interface. [MS-SMB2] 2.2.32.5
const (
	InterfaceRSS  uint32 = 0x01
	InterfaceRDMA uint32 = 0x02
)

// NetworkInterface is NETWORK_INTERFACE_INFO. [MS-SMB2] 2.2.32.5
type NetworkInterface struct {
	Index      uint32
	Capability uint32
	LinkSpeed  uint64     // bits per second
	Addr       netip.Addr // without zone, as the scope is the server's
}
