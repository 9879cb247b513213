package partition

import "context"

// Source is a disk to look at. Reads are of whole sectors.
type Source interface {
	Read(ctx context.Context, p []byte, off int64) error
	Size() int64 // bytes
	BlockSizes() (logical, physical, optimal, maxTransfer int)
}

// readAt fills p from anywhere inside the part of src that begins at base and has n bytes; what is outside reads as zeros.
func readAt(ctx context.Context, src Source, base, n int64, p []byte, off int64) error {
	clear(p)
	if off < 0 || off >= n {
		return nil
	}
	p = p[:min(int64(len(p)), n-off)]
	logical, _, _, most := src.BlockSizes()
	bs := int64(max(logical, 1))
	start := (base + off) / bs * bs
	end := min((base+off+int64(len(p))+bs-1)/bs*bs, src.Size()/bs*bs)
	if end <= start {
		return nil
	}
	buf := make([]byte, end-start)
	step := len(buf)
	if most = most / int(bs) * int(bs); most > 0 {
		step = min(step, most)
	}
	for at := 0; at < len(buf); at += step {
		if err := src.Read(ctx, buf[at:min(at+step, len(buf))], start+int64(at)); err != nil {
			return err
		}
	}
	copy(p, buf[base+off-start:])
	return nil
}
