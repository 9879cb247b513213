package svhdx

import (
	"errors"
	"testing"

	"vdbridge/scsi"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/tunnel"
	"vdbridge/smb/wire"
)

func TestReservationStatuses(t *testing.T) {
	path := newDisk(t)
	s := service(t, Config{})
	ctx, p := t.Context(), make([]byte, 512)
	a, b := mustOpen(t, s, path, 1), mustOpen(t, s, path, 2)
	reserve(t, a, scsi.PRRegisterAndIgnore, 0, scsi.PROutList{ActionKey: 1})
	reserve(t, a, scsi.PRReserve, scsi.WriteExclusiveRegistrantsOnly, scsi.PROutList{Key: 1})
	wantStatus(t, "write of a stranger", b.Write(ctx, p, 0, false), ntstatus.SVHDXReservationConflict)
	wantStatus(t, "flush of a stranger", b.Flush(ctx), ntstatus.SVHDXReservationConflict)
	if err := b.Read(ctx, p, 0); err != nil {
		t.Error(err)
	}
	if st, _, _ := command(t, b, scsi.Write16(0, 1, false), p); st != scsi.ReservationConflict {
		t.Errorf("WRITE(16) of a stranger: %v", st)
	}
	a2 := mustOpen(t, s, path, 1) // another open of the same initiator
	if err := a2.Write(ctx, p, 0, false); err != nil {
		t.Error(err)
	}
	reserve(t, b, scsi.PRRegister, 0, scsi.PROutList{ActionKey: 2})
	if err := b.Write(ctx, p, 0, false); err != nil {
		t.Error(err)
	}
	reserve(t, b, scsi.PRPreempt, scsi.ExclusiveAccess, scsi.PROutList{Key: 2, ActionKey: 1})
	wantStatus(t, "first I/O of the preempted", a.Write(ctx, p, 0, false), ntstatus.SVHDXUnitAttentionRegistrationsPreempted)
	wantStatus(t, "write of the preempted", a.Write(ctx, p, 0, false), ntstatus.SVHDXReservationConflict)
	wantStatus(t, "read of the preempted", a2.Read(ctx, p, 0), ntstatus.SVHDXReservationConflict)
	reserve(t, a, scsi.PRRegister, 0, scsi.PROutList{ActionKey: 1})
	reserve(t, b, scsi.PRPreempt, scsi.ExclusiveAccessRegistrantsOnly, scsi.PROutList{Key: 2, ActionKey: 2}) // itself, with another type
	wantStatus(t, "after a change of type", a.Read(ctx, p, 0), ntstatus.SVHDXUnitAttentionReservationsReleased)
	reserve(t, b, scsi.PRClear, 0, scsi.PROutList{Key: 2})
	wantStatus(t, "after CLEAR", a.Read(ctx, p, 0), ntstatus.SVHDXUnitAttentionReservationsPreempted)
	a.d.lu.CapacityChanged()
	wantStatus(t, "after a resize", a.Read(ctx, p, 0), ntstatus.SVHDXUnitAttentionCapacityDataChanged)
	wantStatus(t, "after a resize", b.Read(ctx, p, 0), ntstatus.SVHDXUnitAttentionCapacityDataChanged)
	if err := a2.Read(ctx, p, 0); err != nil { // attentions belong to the initiator, not to the open
		t.Error(err)
	}
	reserve(t, b, scsi.PRRegisterAndIgnore, 0, scsi.PROutList{ActionKey: 2})
	reserve(t, b, scsi.PRReserve, scsi.WriteExclusive, scsi.PROutList{Key: 2})
	closeOnce(t, b)
	if err := a.Write(ctx, p, 0, false); err != nil {
		t.Errorf("a reservation stands though its holder has closed its last open: %v", err)
	}
}

// What an open was not granted cannot be had through the tunnel either.
func TestAccess(t *testing.T) {
	path := newDisk(t)
	s := service(t, Config{})
	ctx, p := t.Context(), make([]byte, 512)
	r := mustOpenAs(t, s, path, 1, wire.AccessReadData)
	w := mustOpenAs(t, s, path, 2, wire.AccessWriteData)
	wantStatus(t, "write", r.Write(ctx, p, 0, false), ntstatus.AccessDenied)
	wantStatus(t, "read", w.Read(ctx, p, 0), ntstatus.AccessDenied)
	if err := errors.Join(r.Read(ctx, p, 0), r.Flush(ctx), w.Write(ctx, p, 0, false), w.Flush(ctx)); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		cdb scsi.CDB
		out []byte
	}{{scsi.Write16(0, 1, false), p}, {scsi.WriteSame10(0, 1, false), p}, {scsi.CompareAndWrite(0, 1, false), make([]byte, 1024)},
		{scsi.PersistentReserveOut(scsi.PRRegister, 0, 24), (&scsi.PROutList{ActionKey: 1}).Append(nil)},
		{scsi.Unmap(24), scsi.AppendUnmapList(nil, scsi.UnmapRange{Blocks: 1})}} {
		if st, sense, _ := command(t, r, c.cdb, c.out); st != scsi.CheckCondition || sense.Key != scsi.DataProtect {
			t.Errorf("%v on a read-only open: %v %v", c.cdb.String(), st, sense)
		}
	}
	in := append(unhex(t, 16, "02100002"), scsiBody(scsi.Read16(0, 1, false), 1, 512, nil)...)
	_, err := w.Tunnel(ctx, tunnel.FsctlSyncTunnelRequest, in, make([]byte, 4096))
	wantStatus(t, "READ(16) on a write-only open", err, ntstatus.AccessDenied)
}
