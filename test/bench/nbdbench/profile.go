package main

import (
	"os"
	"runtime/pprof"
)

// startProfile profiles the process until the returned function is called.
func startProfile(path string) (done func(), err error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		f.Close()
		return nil, err
	}
	return func() {
		pprof.StopCPUProfile()
		f.Close()
	}, nil
}
