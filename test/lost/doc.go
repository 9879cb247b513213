// Package lost runs the whole program against servers that go away: `vdbridge serve` is killed and started again under `vdbridge nbd`, is another server afterwards,
// or stays away.
//
// The time until requests are carried out again is printed; VDBRIDGE_KILLS=n makes it n kills for each kind of disk instead of one.
package lost
