package vhdx

import (
	"context"
	"errors"
	"fmt"
)

// Repair checks an image and puts right what can be put right without a doubt: it replays the log, writes damaged spare copies of headers and region table
// anew, and clears what entries say that nobody may use. What is lost stays lost, and is reported as such. Every step goes through the log, so that
// a crash leaves the image as it was or better. An image with nothing to repair is not written to.
//
// The report is that of the check before; findings that are gone after the repair are marked as Repaired, and State is that after it. An image whose block
// allocation table is damaged is not written to at all: nothing that is written could be relied on. Repair closes the backing file, whatever happens.
func Repair(ctx context.Context, b Backing, o CheckOptions) (Report, error) {
	r, err := repair(ctx, b, &o)
	if err != nil {
		err = fmt.Errorf("repair: %w", err)
	}
	return r, err
}

// repairable lists the findings that Repair can do something about.
var repairable = map[string]bool{
	CodeHeaderSpare: true, CodeLogDirty: true, CodeLogEmpty: true, CodeRegionSpare: true, CodeRegionDiffers: true, CodeReservedBits: true, CodeStalePlace: true,
}

func repair(ctx context.Context, b Backing, o *CheckOptions) (r Report, err error) {
	open := false
	defer func() {
		if !open {
			err = errors.Join(err, b.Close())
		}
	}()
	if l, ok := b.(Locker); ok { // what is being written looks damaged
		if err := l.Lock(ctx, true); err != nil {
			return r, err
		}
	}
	if r, err = CheckWith(ctx, b, *o); err != nil {
		return r, err
	}
	work := false
	for _, f := range r.Findings {
		work = work || repairable[f.Code]
		if f.Severity == Damage && f.Code != CodeParentMissing && f.Code != CodeParentChanged && f.Code != CodeChain {
			return r, nil
		}
	}
	if !work {
		return r, nil
	}
	d, err := Open(ctx, b, Options{Name: o.Name, detached: true})
	if err != nil {
		return r, err
	}
	open = true // the disk closes the file, which is looked at once more before
	err = d.exclusive(ctx, false, func() error { return d.mend(ctx) })
	if err == nil {
		if err = d.gate.shut(ctx, true); err == nil {
			err = d.finish(ctx)
		}
	}
	var after Report
	if err == nil {
		after, err = CheckWith(ctx, b, *o)
	}
	if err = errors.Join(err, b.Close()); err != nil {
		return r, err
	}
	left := make(map[[2]any]bool)
	for _, f := range after.Findings {
		left[[2]any{f.Code, f.Offset}] = true
	}
	for i, f := range r.Findings {
		r.Findings[i].Repaired = repairable[f.Code] && !left[[2]any{f.Code, f.Offset}]
	}
	r.State, r.Info, r.Usage, r.LeakedBytes = after.State, after.Info, after.Usage, after.LeakedBytes
	return r, nil
}

// mend does what Repair promises. Opening has replayed the log, and the session has written both headers.
func (d *Disk) mend(ctx context.Context) error {
	updates, err := d.planRegion(ctx, d.layout.bat)
	if err != nil {
		return err
	}
	if len(updates) > 0 {
		if err := d.commit.atomic(ctx, updates); err != nil {
			return err
		}
	}
	size := d.space.size.Load()
	return eachEntry(ctx, d.file, d.layout.bat, d.geo.entries, func(i int64, v uint64) error {
		clean := v & (offsetMask | stateMask)
		if _, payload := d.geo.blockOf(i); payload {
			stale := v&stateMask == blockUndefined || v&stateMask == blockUnmapped
			if off := int64(v & offsetMask); stale && reservesSpace(v) && (off < headerSectionLen || v&offsetMask > maxFileSize || off >= size) {
				clean = v & stateMask
			}
		}
		if clean == v {
			return nil
		}
		if d.bat.crowded() {
			if err := d.commit.sync(ctx); err != nil {
				return err
			}
		}
		return d.bat.set(ctx, i, clean, batChange{})
	})
}

// RepairFile is [Repair] for a local file.
func RepairFile(ctx context.Context, path string) (Report, error) {
	f, err := OpenOSFile(path, false)
	if err != nil {
		return Report{}, err
	}
	name := CanonicalFile(path)
	r, err := Repair(ctx, f, CheckOptions{Resolver: localResolver(name), Name: name})
	if err != nil {
		return r, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}
