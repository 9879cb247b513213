package server

import (
	"testing"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// FuzzDurableContexts decodes any data in the contexts of durable opens.
func FuzzDurableContexts(f *testing.F) {
	names := []string{wire.CreateDurableRequest2, wire.CreateDurableConnect2, wire.CreateAppInstanceID, wire.CreateAppInstanceVer, wire.CreateDurableRequest}
	for i, c := range append([]wire.CreateContext{dh2q(1, 1, flagPersistent), dh2c(wire.FileID{Persistent: 1}, 1, flagPersistent)}, appContexts(1, 2, 3)...) {
		f.Add(byte(i), c.Data, byte(i+1), c.Data)
		for n := range c.Data { // every prefix is refused
			a := createArgs{CreateRequest: &wire.CreateRequest{Contexts: []wire.CreateContext{{Name: c.Name, Data: c.Data[:n]}}}}
			if st := a.durableContexts(wire.Dialect311); st != ntstatus.InvalidParameter {
				f.Errorf("%d of %d bytes of context %d: %v", n, len(c.Data), i, st)
			}
		}
	}
	f.Fuzz(func(t *testing.T, i byte, a []byte, j byte, b []byte) {
		args := createArgs{CreateRequest: &wire.CreateRequest{Contexts: []wire.CreateContext{{Name: names[int(i)%len(names)], Data: a}, {Name: names[int(j)%len(names)], Data: b}}}}
		st := args.durableContexts(wire.Dialect311)
		if v := &args.durable; st == ntstatus.Success && v.request && v.reconnect {
			t.Error("both a request and a reconnection")
		}
	})
}
