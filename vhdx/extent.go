package vhdx

import (
	"cmp"
	"slices"
)

// extent is a part of the file, in bytes.
type extent struct{ off, n int64 }

func (e extent) end() int64             { return e.off + e.n }
func (e extent) overlaps(o extent) bool { return e.off < o.end() && o.off < e.end() }

// firstOverlap finds two extents that overlap.
func firstOverlap(all []extent) (i, j int, found bool) {
	order := make([]int, len(all))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(all[a].off, all[b].off) })
	for k := 1; k < len(order); k++ {
		if all[order[k-1]].overlaps(all[order[k]]) {
			return order[k-1], order[k], true
		}
	}
	return 0, 0, false
}
