package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	var (
		dir      = flag.String("dir", "", "folder to work in; it must exist")
		seed     = flag.Uint64("seed", 0, "seed of the decisions; 0 takes one from the clock")
		duration = flag.Duration("duration", 10*time.Second, "how long to work")
		workers  = flag.Int("workers", 3, "how many work at once")
		size     = flag.Int64("size", 512<<10, "largest size of a file")
		maps     = flag.Bool("mmap", true, "use memory maps too")
		until    = flag.String("until", "", "work until this file exists, at most for the duration")
	)
	flag.Parse()
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	fmt.Printf("fsx: seed %d\n", *seed)
	ctx, cancel := context.WithTimeout(context.Background(), *duration)
	defer cancel()
	if *until != "" {
		go func() {
			tick := time.NewTicker(100 * time.Millisecond) // another machine makes the file
			defer tick.Stop()
			for ctx.Err() == nil {
				if _, err := os.Stat(*until); err == nil {
					cancel()
				}
				<-tick.C
			}
		}()
	}
	var (
		wg     sync.WaitGroup
		failed atomic.Bool
		total  atomic.Int64
		all    = make([]*worker, *workers)
	)
	for i := range all {
		all[i] = &worker{dir: *dir, id: i, max: *size, maps: *maps, rng: rand.New(rand.NewPCG(*seed, uint64(i)))}
		wg.Go(func() {
			n, err := all[i].run(ctx)
			total.Add(int64(n))
			if err != nil {
				failed.Store(true)
				cancel()
				fmt.Printf("fsx: FAILED, worker %d, seed %d: %v\n", i, *seed, err)
				for _, l := range all[i].log {
					fmt.Println("  " + l)
				}
			}
		})
	}
	wg.Wait()
	if failed.Load() {
		os.Exit(1)
	}
	for _, w := range all {
		for _, f := range w.files {
			fmt.Printf("fsx: sum %x %s\n", sha256.Sum256(f.want), filepath.Base(f.path))
		}
	}
	fmt.Printf("fsx: good, %d operations, seed %d\n", total.Load(), *seed)
}

var errWrong = errors.New("the file is not as it must be")
