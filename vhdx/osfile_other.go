//go:build !linux

package vhdx

import "context"

func (o *OSFile) dataSync() error { return o.f.Sync() }

// Lock does nothing on this system.
func (o *OSFile) Lock(context.Context, bool) error { return nil }
