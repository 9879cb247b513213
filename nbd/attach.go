package nbd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
)

// resolve finds an export and returns the reply type for when it cannot.
func (h *handshake) resolve(ctx context.Context, name string) (*Export, uint32, error) {
	x, err := h.c.srv.cfg.Resolver.Resolve(ctx, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, repErrUnknown, fmt.Errorf("no export %q: %w", name, err)
	case err != nil:
		return nil, repErrPolicy, fmt.Errorf("export %q: %w", name, err)
	case x == nil || x.Disk == nil:
		return nil, repErrUnknown, errNoDisk
	}
	return x, 0, nil
}

// attached is an export that a connection uses, with what was told to the client.
type attached struct {
	export           *Export
	size             int64
	block, preferred int
	maxTransfer      int
	readOnly         bool
	flags            uint16
	style            replyStyle
	contexts         []activeContext
	nonBlocking      bool
	fastZero         bool
	holes            HoleReader // nil if the disk has no such ability or replies have no room for it
	cacher           Cacher
}

func (a *attached) release() {
	if a.export.Release != nil {
		a.export.Release()
	}
}

// Bounds of the preferred block size, in bytes. Below a page a request costs as much as one of a page, whatever the disk's sectors are.
const (
	leastPreferred = 4096
	mostPreferred  = 1 << 20
)

// attach finds an export and settles what the transmission phase needs to know of it.
func (h *handshake) attach(ctx context.Context, name string) (*attached, uint32, error) {
	x, code, err := h.resolve(ctx, name)
	if err != nil {
		return nil, code, err
	}
	a, err := x.attach(h.style)
	if err != nil {
		return nil, repErrPolicy, err
	}
	if a.style != styleSimple && h.selectedFor == name {
		all := x.contexts()
		for _, id := range h.selected {
			if int(id) <= len(all) {
				a.contexts = append(a.contexts, activeContext{id, all[id-1]})
			}
		}
		if a.style == styleExtended && len(a.contexts) > 0 {
			a.flags |= txBlockStatusPayload
		}
	}
	return a, 0, nil
}

// attach settles what the transmission phase needs to know, without metadata contexts. On an error it releases the export.
func (x *Export) attach(style replyStyle) (*attached, error) {
	logical, physical, optimal, maxTransfer := x.Disk.BlockSizes()
	a := &attached{export: x, block: max(logical, 1), style: style, readOnly: x.ReadOnly || x.Disk.ReadOnly()}
	if bits.OnesCount(uint(a.block)) != 1 || a.block > 64<<10 {
		a.release()
		return nil, fmt.Errorf("export %q: NBD cannot express a block size of %d bytes", x.Name, logical)
	}
	a.preferred = max(a.block, leastPreferred)
	for _, n := range []int{physical, optimal} {
		if n > 0 && bits.OnesCount(uint(n)) == 1 && n <= mostPreferred {
			a.preferred = max(a.preferred, n)
		}
	}
	a.maxTransfer = maxTransfer / a.block * a.block
	if maxTransfer > 0 && a.maxTransfer == 0 {
		a.maxTransfer = a.block
	}
	a.size = x.Disk.Size() &^ int64(a.block-1)
	a.nonBlocking = isTrue(x.Disk, NonBlocker.NonBlocking)
	a.fastZero = isTrue(x.Disk, FastZeroer.FastZero)
	if a.style != styleSimple {
		a.holes, _ = x.Disk.(HoleReader)
	}
	a.cacher, _ = x.Disk.(Cacher)

	a.flags = txHasFlags | txSendFlush | txSendFUA | txSendCache
	if a.readOnly {
		a.flags |= txReadOnly
	} else {
		a.flags |= txSendTrim | txSendWriteZeroes | txSendFastZero
	}
	if a.style != styleSimple {
		a.flags |= txSendDF
	}
	if !x.SingleConn {
		a.flags |= txCanMultiConn
	}
	return a, nil
}

// isTrue reports whether d has an optional ability and the ability says yes.
func isTrue[T any](d Disk, ask func(T) bool) bool {
	t, ok := d.(T)
	return ok && ask(t)
}
