package nbd

import (
	"context"
	"strings"
)

// baseAllocation is the metadata context "base:allocation" of a disk.
type baseAllocation struct{ disk Disk }

const baseAllocationName = "base:allocation"

func (baseAllocation) Name() string { return baseAllocationName }

func (b baseAllocation) Status(ctx context.Context, off, n int64, yield func(n int64, flags uint32) bool) error {
	return b.disk.Extents(ctx, off, n, func(n int64, hole, zero bool) bool {
		var flags uint32
		if hole {
			flags |= stateHole
		}
		if zero {
			flags |= stateZero
		}
		return yield(n, flags)
	})
}

// activeContext is a context that the client selected, under the number that we gave it.
type activeContext struct {
	id uint32
	MetaContext
}

// contexts returns the metadata contexts of an export; the index is the number on the wire less one.
func (x *Export) contexts() []MetaContext {
	return append([]MetaContext{baseAllocation{x.Disk}}, x.Contexts...)
}

// matchContexts returns which contexts the queries select. For a list, no queries select all, and a query that ends after the colon all of
// its namespace.
func matchContexts(all []MetaContext, queries []string, list bool) []activeContext {
	var found []activeContext
	for i, m := range all {
		hit := list && len(queries) == 0
		for _, q := range queries {
			name := m.Name()
			ns, leaf, _ := strings.Cut(q, ":")
			hit = hit || q == name || list && leaf == "" && strings.HasSuffix(q, ":") && strings.HasPrefix(name, ns+":")
		}
		if hit {
			found = append(found, activeContext{uint32(i + 1), m})
		}
	}
	return found
}
