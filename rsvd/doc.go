// Package rsvd is the client role of MS-RSVD: a virtual disk that lives in a file on an SMB server and that several hosts use at
// once, with SCSI persistent reservations between them.
//
// It stands on one SMB open (File), which a CreateFunc makes; it knows nothing else of SMB. Open finds out which version of the protocol
// the server speaks, and returns a *Disk.
//
// # Data paths
//
// Sectors travel as SMB2 READ and WRITE on the shared open (IOSMB), or as READ(16) and WRITE(16) CDBs in the tunnel (IOSCSI). Both
// reach the same logical unit and the same reservations. IOAuto takes SMB2, as Windows does: it spares 104 bytes and a second parse per
// request, and it can go by RDMA; if the server refuses it, the tunnel is used.
// UNMAP, WRITE SAME, COMPARE AND WRITE, GET LBA STATUS and writes with FUA go through the tunnel in either case.
//
// A data-in request of the tunnel has a DataBuffer of as many zeros as bytes are wanted ([MS-RSVD] 2.2.4.7), which would double what a bulk read
// moves. The server has no use for them: it refuses more than DataTransferLength, not less (3.2.5.5.5). So Open asks once, by INQUIRY, whether
// the server answers the same without; if so, requests for more than 512 bytes go without, until the server refuses one.
//
// # What makes data durable
//
// The specification names neither FLUSH nor SYNCHRONIZE CACHE. The open is the virtual disk, so FLUSH ([MS-SMB2] 3.3.5.11, "flush what is
// cached for this open") and SYNCHRONIZE CACHE (the cache of the logical unit) mean the same cache. Flush uses the command that belongs
// to the data path in use: FLUSH for IOSMB, SYNCHRONIZE CACHE(16) for IOSCSI; if the server does not know it, the other one; if it knows
// neither, Flush fails: it never pretends. A write with FUA is WRITE(16) with the FUA bit where the unit says that it honours it
// (DPOFUA of MODE SENSE), otherwise a write and a Flush.
//
// # Nothing is cached
//
// Another host may have written a microsecond ago, so every Read and every Write goes to the server.
//
// # Unit attentions
//
// A unit attention says that something happened before this command, and that the command was not carried out. It is logged, and
// the command is sent again, unless the attention says that this host was shut out: after RESERVATIONS PREEMPTED writes fail, after
// REGISTRATIONS PREEMPTED everything fails, once, with an error that is ErrPreempted. The caller decides what then.
package rsvd
