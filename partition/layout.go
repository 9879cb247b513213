package partition

import (
	"context"
	"errors"
	"fmt"
)

// Layout is all that is known to be on a disk.
type Layout struct {
	Table
	Damage  string      `json:"damage,omitempty"` // of the table, when it cannot be used
	Content []Content   `json:"content"`          // of the partitions, or of the whole disk (Number 0) when it has none
	Whole   []Signature `json:"-"`                // of a disk that is not partitioned
}

// Content is what a partition holds.
type Content struct {
	Number     int         `json:"number"` // 0: the whole disk
	Signatures []Signature `json:"signatures"`
}

// maxContents bounds the work of a table with thousands of partitions.
const maxContents = 128

// Inspect reads the table and looks into every partition. A table that is damaged is not an error: Damage says so.
func Inspect(ctx context.Context, src Source) (*Layout, error) {
	l := &Layout{Content: []Content{}}
	t, err := ReadTable(ctx, src)
	switch {
	case errors.Is(err, ErrDamaged):
		l.Damage = err.Error()
		logical, _, _, _ := src.BlockSizes()
		l.Table = Table{SectorSize: logical, Partitions: []Partition{}}
	case err != nil:
		return nil, err
	default:
		l.Table = *t
	}
	if len(l.Partitions) == 0 {
		if l.Whole, err = Identify(ctx, src, 0, src.Size()); err != nil {
			return nil, err
		}
		l.Content = append(l.Content, Content{0, l.Whole})
		return l, nil
	}
	for _, p := range l.Partitions {
		if p.Extended {
			continue
		}
		if len(l.Content) == maxContents {
			l.note("only the first %d partitions were looked into", maxContents)
			break
		}
		s, err := Identify(ctx, src, p.Start, p.Size)
		if err != nil {
			return nil, err
		}
		l.Content = append(l.Content, Content{p.Number, s})
	}
	return l, nil
}

// SingleHost lists what must not be written by several hosts, such as "ext4 (partition 1)".
func (l *Layout) SingleHost() (list []string) {
	for _, c := range l.Content {
		for _, s := range c.Signatures {
			if !s.SingleHost() {
				continue
			}
			if c.Number == 0 {
				list = append(list, s.Name)
			} else {
				list = append(list, fmt.Sprintf("%s (partition %d)", s.Name, c.Number))
			}
		}
	}
	return list
}

// Partition finds a partition by its number.
func (l *Layout) Partition(number int) (Partition, bool) {
	for _, p := range l.Partitions {
		if p.Number == number {
			return p, true
		}
	}
	return Partition{}, false
}

// In returns what the partition holds; 0 is the whole disk.
func (l *Layout) In(number int) []Signature {
	for _, c := range l.Content {
		if c.Number == number {
			return c.Signatures
		}
	}
	return nil
}
