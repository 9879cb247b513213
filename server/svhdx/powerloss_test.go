package svhdx

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"vdbridge/scsi"
	"vdbridge/server"
	"vdbridge/smb/wire"
	"vdbridge/vhdx"
	"vdbridge/vhdx/crashfile"
)

// TestPowerLoss takes the power away at every moment while a shared disk is used: what an open that writes through has acknowledged is there, and of another
// open what was there when a flush was acknowledged.
func TestPowerLoss(t *testing.T) {
	for name, opts := range map[string]uint32{"write through": unbuffered | wire.OptWriteThrough, "flushes": unbuffered} {
		t.Run(name, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 0))
			ctx := context.Background()
			image := crashfile.New()
			if err := vhdx.Create(ctx, image, vhdx.CreateOptions{Size: 32 << 20, BlockSize: 1 << 20}); err != nil {
				t.Fatal(err)
			}
			start := image.Record()
			path := filepath.Join(t.TempDir(), "d.vhdx") // only its name is used
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			s := service(t, Config{OpenFile: func(ctx context.Context, _ string, readOnly bool) (Disk, error) {
				d, err := vhdx.Open(ctx, image, vhdx.Options{ReadOnly: readOnly})
				if err != nil {
					return nil, err
				}
				return vhdxDisk{d}, nil
			}})
			so, _, err := s.OpenDisk(ctx, path, openCtx(1, 1), opts, fullAccess)
			if err != nil {
				t.Fatal(err)
			}
			o := so.(*open)
			var _ server.DiskOpen = o
			const sectors = 24 // of 512 bytes, one for each block
			type version struct {
				value           uint64
				begun, promised int // operations of the image then; promised is 0 if nothing was
			}
			history := make([][]version, sectors)
			for i := range history {
				history[i] = []version{{0, 0, 1}}
			}
			fill := func(v uint64) []byte {
				return bytes.Repeat(binary.LittleEndian.AppendUint64(nil, v), 64)
			}
			promise := func() {
				for i := range history {
					for k := range history[i] {
						if v := &history[i][k]; v.promised == 0 {
							v.promised = image.Ops()
						}
					}
				}
			}
			good := func(cdb scsi.CDB, out []byte) {
				t.Helper()
				if st, sense, _ := command(t, o, cdb, out); st != scsi.Good {
					t.Fatalf("%v: %v %v", cdb.String(), st, sense)
				}
			}
			for n := uint64(1); n <= 80; n++ {
				i := rng.IntN(sectors)
				lba := uint64(i) * (1 << 20 / 512)
				value := n
				add := func() { history[i] = append(history[i], version{value, image.Ops(), 0}) }
				switch k := rng.IntN(10); {
				case k < 3:
					add()
					if err := o.Write(ctx, fill(value), int64(lba)<<9, opts&wire.OptWriteThrough != 0); err != nil {
						t.Fatal(err)
					}
				case k < 6:
					add()
					good(scsi.Write16(lba, 1, false), fill(value))
				case k == 6:
					add()
					good(scsi.WriteSame10(uint32(lba), 1, false), fill(value))
				case k == 7:
					value = 0
					add()
					good(scsi.WriteSame10(uint32(lba), 1, false), fill(0))
				case k == 8:
					add()
					good(scsi.Write16(lba, 1, true), fill(value)) // FUA
					history[i][len(history[i])-1].promised = image.Ops()
				default:
					if err := o.Flush(ctx); err != nil {
						t.Fatal(err)
					}
					promise()
				}
				if opts&wire.OptWriteThrough != 0 {
					promise()
				}
			}
			moments := 0
			image.Crashes(start, func(m crashfile.Moment) bool {
				if rng.IntN(3) != 0 {
					return true
				}
				moments++
				d, err := vhdx.Open(ctx, m.After(rng, 0.5, 512), vhdx.Options{})
				if err != nil {
					t.Errorf("after %d operations: %v", m.Ops, err)
					return false
				}
				defer d.Close()
				p := make([]byte, 512)
				for i, versions := range history {
					if err := d.Read(ctx, p, int64(i)<<20); err != nil {
						t.Errorf("after %d operations: %v", m.Ops, err)
						return false
					}
					// The last one that was promised, or a later one that had begun.
					last := 0
					for k, v := range versions {
						if v.promised > 0 && v.promised < m.Ops || k == 0 { // a flush is over one moment after it was issued
							last = k
						}
					}
					ok := false
					for _, v := range versions[last:] {
						ok = ok || v.begun <= m.Ops && bytes.Equal(p, fill(v.value))
					}
					if !ok {
						t.Errorf("after %d operations: sector %d has % x, promised was %d", m.Ops, i, p[:8], versions[last].value)
						return false
					}
				}
				return true
			})
			if moments < 10 {
				t.Errorf("only %d moments", moments)
			}
			t.Logf("%d moments of %d operations", moments, image.Ops())
			closeOnce(t, o)
		})
	}
}
