package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// restoreWait is how long the files of opens may still be locked by a process that is just ending: it gives up its locks one after the other.
const restoreWait = 15 * time.Second

// restore brings the persistent opens of the database back, each as if its client had just lost its connection. One whose file is not there any more, or is
// another file now, is refused and forgotten. No connection has been accepted yet.
func (s *Server) restore(ctx context.Context) error {
	table := s.db.Table()
	if rd, ok := s.cfg.Disks.(DiskRestorer); ok {
		rd.BeginRestore()
		defer rd.EndRestore()
	}
	ctx, cancel := context.WithTimeout(ctx, restoreWait)
	defer cancel()
	var records []*openRecord
	for id, b := range table {
		r, err := decodeRecord(b)
		if err == nil && r.ID != id {
			err = errors.New("it has the identifier of another one")
		}
		if err != nil {
			return fmt.Errorf("the database of persistent opens has a record, number %d, that cannot be: %w", id, err)
		}
		records = append(records, r)
	}
	// In the order in which they were opened.
	slices.SortFunc(records, func(a, b *openRecord) int { return cmp.Compare(a.ID, b.ID) })
	for _, r := range records {
		for {
			err := s.restoreOpen(ctx, r, r.Path)
			if err != nil && r.NextPath != "" && r.NextPath != r.Path {
				if nerr := s.restoreOpen(ctx, r, r.NextPath); nerr == nil || errors.Is(nerr, ntstatus.SharingViolation) {
					err = nerr
				}
			}
			if err == nil {
				break
			}
			if st, _ := ntstatus.Of(err); st == ntstatus.SharingViolation {
				select {
				case <-time.After(pollOwner):
					continue
				case <-ctx.Done():
				}
			}
			s.log.Warn("a persistent open could not be restored, and is forgotten", "share", r.Share, "path", r.Path, "user", r.Owner, "why", err)
			s.db.Delete(r.ID)
			break
		}
	}
	for _, r := range records {
		if e := s.durables.byID[r.ID]; e != nil && r.Oplock != nil {
			e.open.restoreOplock(r.Oplock)
		}
	}
	if len(records) > 0 {
		s.log.Info("persistent opens restored", "count", s.opens.Load(), "of", len(records))
	}
	return s.db.Sync()
}

// restoreOplock gives an open what its client was allowed to cache, as far as the other opens that were restored leave room for it: what has been taken away since it was granted is not
// in the database. The client is told what it has when it comes back.
func (o *open) restoreOplock(r *oplockRecord) {
	obj := o.obj
	if o.isDisk || o.fd < 0 {
		return
	}
	obj.host.mu.Lock()
	possible := obj.host.cacheable(o.fd, validState(r.State))
	obj.mu.Lock()
	defer obj.hostUnlock()
	defer obj.host.mu.Unlock()
	defer obj.mu.Unlock()
	l := r.Lease
	if l == nil {
		obj.grant(o, r.State, possible, nil)
		return
	}
	// Breaks since then have had epochs of their own.
	const ahead = 256
	req := &wire.Lease{Version: int(l.Version), Key: o.lease.key, State: r.State, Epoch: l.Epoch + ahead}
	if len(l.Parent) != 0 {
		req.Parent, req.Flags = wire.GUID(l.Parent), wire.LeaseParentKeySet
	}
	obj.grant(o, r.State, possible, req)
}

// nobody is the session of opens that no client has claimed yet.
func (s *Server) nobody() *session {
	sn := &session{srv: s, trees: map[uint32]*tree{}, opens: map[uint64]*open{}, dropped: make(chan struct{})}
	sn.state.Store(sessionGone)
	close(sn.dropped)
	return sn
}

// restoreOpen makes a parked open of a record whose file has, or may have, a path.
func (s *Server) restoreOpen(ctx context.Context, r *openRecord, path string) (err error) {
	sh := s.shares[foldName(r.Share)]
	switch {
	case sh == nil || sh.ipc:
		return fmt.Errorf("there is no share %s", r.Share)
	case !sh.cfg.CA:
		return fmt.Errorf("the share %s is not continuously available any more", r.Share)
	case sh.cfg.ReadOnly && r.Granted&^accessReadOnly != 0:
		return fmt.Errorf("the share %s is read-only now", r.Share)
	case s.opens.Load() >= int64(s.lim.MaxOpens):
		return errors.New("there are too many")
	}
	e := &durable{persistent: true, granted: true, version: 2, client: wire.GUID(r.ClientGUID), createGUID: wire.GUID(r.CreateGUID), clientGUID: wire.GUID(r.ClientGUID), owner: r.Owner, share: sh, name: r.Name, access: r.Desired, shared: r.ShareMode,
		options: r.Options, timeout: time.Duration(r.Timeout) * time.Millisecond, action: r.Action, svhdx: r.SVHDX, svhdxAsked: r.SVHDXAsked, file: r.File}
	o := &open{id: wire.FileID{Persistent: r.ID}, sess: s.nobody(), tree: &tree{share: sh, access: accessAll}, fd: -1, path: r.PathOnly, granted: r.Granted, share: r.ShareMode,
		options: r.Options | wire.OptWriteThrough, rel: path, share0: sh, durable: e, isDisk: r.Disk, drained: make(chan struct{}, 1), restoring: true}
	if k := r.Oplock; k != nil && k.Lease != nil {
		o.leased, o.lease = true, leaseID{wire.GUID(k.Lease.Client), wire.GUID(k.Lease.Key)}
	}
	o.modeBits.Store(r.ModeBits)
	o.refs.Store(closing) // as park leaves it
	if a := r.App; a != nil {
		o.app = &appInstance{id: wire.GUID(a.ID), hasVersion: a.HasVersion, high: a.High, low: a.Low, clientGUID: e.clientGUID}
	}
	if s.durables.byGUID[e.key()] != nil {
		return errors.New("there is another one with its CreateGuid")
	}
	flags := unix.O_RDONLY
	switch {
	case o.isDisk || o.path:
		flags = unix.O_PATH
	case o.granted&accessWrite != 0:
		flags = unix.O_RDWR
	}
	fd, err := sh.openBeneath(path, flags, 0)
	if err != nil {
		return err
	}
	o.fd = fd
	defer func() {
		if err != nil {
			if o.obj != nil {
				o.obj.leave(o)
			}
			unix.Close(fd)
		}
	}()
	var m meta
	if err := sh.statAt(fd, "", &m); err != nil {
		return err
	}
	now, err := identify(fd)
	if err != nil {
		return err
	}
	if !m.isReg() || !r.File.is(now) {
		return errors.New("another file has its name")
	}
	if st := s.objects.join(m.key, o, &contention{}); st != ntstatus.Success {
		return st
	}
	if o.isDisk {
		path, err := readlink(fd)
		if err != nil {
			return err
		}
		if s.cfg.Disks == nil {
			return errors.New("there are no shared disks any more")
		}
		disk, _, err := s.cfg.Disks.OpenDisk(ctx, path, r.SVHDXAsked, o.options, o.granted)
		if err != nil {
			return err
		}
		if pd, ok := disk.(PersistentDisk); ok {
			if err := pd.Persist(r.ID); err != nil {
				return errors.Join(err, disk.Close())
			}
		}
		o.disk, o.fd = disk, -1
		unix.Close(fd)
	} else if st := o.hostLock(); st != ntstatus.Success {
		return st
	}
	o.obj.mu.Lock()
	o.deleteOnClose = r.Delete
	o.obj.deletePending = o.obj.deletePending || r.Pending
	for _, l := range r.Locks {
		o.obj.locks.held = append(o.obj.locks.held, byteLock{byteRange{l.Start, l.Last, l.Empty}, o, l.Exclusive})
	}
	o.obj.locked.Store(!o.obj.locks.empty())
	for i, n := range r.LockSeq {
		o.noteLock(uint32(i)<<4 | uint32(n))
	}
	o.restoring = false
	o.obj.mu.Unlock()
	s.opens.Add(1)
	t := &s.durables
	t.add(o)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byGUID[e.key()] = e
	if r.NextPath != "" && !r.Disk {
		// Nobody was told how the renaming ended, so the client may ask by either name.
		e.name, e.alias = foldName(wireName(r.Path)), foldName(wireName(r.NextPath))
	}
	s.parkLocked(e)
	return nil
}

// suspend is finishClose for an open that another process will restore: nothing that its owner has is given up. Its close has begun, and nobody uses it.
func (o *open) suspend() {
	o.waitIdle()
	s := o.tree.share.srv
	o.list.close()
	o.obj.mu.Lock()
	o.suspended = true
	o.obj.mu.Unlock()
	o.obj.leave(o)
	if pd, ok := o.disk.(PersistentDisk); ok {
		if err := pd.Suspend(); err != nil {
			s.log.Warn("close of a shared virtual disk failed", "path", o.rel, "err", err)
		}
	} else if o.disk != nil {
		if err := o.disk.Close(); err != nil {
			s.log.Warn("close of a shared virtual disk failed", "path", o.rel, "err", err)
		}
	}
	if o.fd >= 0 {
		unix.Close(o.fd)
		o.fd = -1
	}
	s.opens.Add(-1)
}
