package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"vdbridge/bridge"
	"vdbridge/rsvd"
	"vdbridge/scsi"
)

type keysJSON struct {
	Generation uint32   `json:"generation"`
	Keys       []string `json:"keys"`
}

func prKeys(ctx context.Context, _ *cli.Context, d *rsvd.Disk) (string, any, error) {
	k, err := d.ReadKeys(ctx)
	if err != nil {
		return "", nil, err
	}
	out := keysJSON{Generation: k.Generation, Keys: []string{}}
	for _, x := range k.Keys {
		out.Keys = append(out.Keys, keyText(x))
	}
	return strings.Join(append(out.Keys, ""), "\n"), out, nil
}

type registrationJSON struct {
	Key       string `json:"key"`
	Initiator string `json:"initiator,omitempty"`
	Ours      bool   `json:"ours"`
	Holder    bool   `json:"holder"`
}

type statusJSON struct {
	Generation    uint32             `json:"generation"`
	Reserved      bool               `json:"reserved"`
	Type          string             `json:"type,omitempty"`
	HolderKey     string             `json:"holder_key,omitempty"`
	Registrations []registrationJSON `json:"registrations"`
}

func prStatus(ctx context.Context, _ *cli.Context, d *rsvd.Disk) (string, any, error) {
	full, err := d.ReadFullStatus(ctx)
	if err != nil {
		return "", nil, err
	}
	r, err := d.ReadReservation(ctx)
	if err != nil {
		return "", nil, err
	}
	out := statusJSON{Generation: r.Generation, Reserved: r.Held, Registrations: []registrationJSON{}}
	var b strings.Builder
	switch {
	case r.Held && r.Type.AllRegistrants():
		out.Type = r.Type.String()
		fmt.Fprintf(&b, "reserved: %v, by all that are registered\n", r.Type)
	case r.Held:
		out.Type, out.HolderKey = r.Type.String(), keyText(r.Key)
		fmt.Fprintf(&b, "reserved: %v, by key %s\n", r.Type, keyText(r.Key))
	default:
		b.WriteString("not reserved\n")
	}
	if len(full.Registrations) == 0 {
		b.WriteString("nobody is registered\n")
	}
	for _, reg := range full.Registrations {
		j := registrationJSON{Key: keyText(reg.Key), Holder: reg.Holder}
		note := ""
		if id, _, err := scsi.ParseTransportID(reg.TransportID); err == nil && id.Protocol == scsi.ProtocolSRP {
			j.Initiator, j.Ours = bridge.FormatGUID(id.Port), id.Port == d.InitiatorID()
		}
		if j.Holder {
			note += ", holds the reservation"
		}
		if j.Ours {
			note += ", this is us"
		}
		fmt.Fprintf(&b, "registered: key %s, initiator %s%s\n", j.Key, j.Initiator, note)
		out.Registrations = append(out.Registrations, j)
	}
	return b.String(), out, nil
}

type capabilitiesJSON struct {
	PersistThroughPowerLoss bool     `json:"persist_through_power_loss"`
	SpecifyInitiators       bool     `json:"specify_initiators"`
	AllTargetPorts          bool     `json:"all_target_ports"`
	Types                   []string `json:"types"`
}

func prCapabilities(ctx context.Context, _ *cli.Context, d *rsvd.Disk) (string, any, error) {
	p, err := d.Capabilities(ctx)
	if err != nil {
		return "", nil, err
	}
	out := capabilitiesJSON{PersistThroughPowerLoss: p.PersistThroughPower, SpecifyInitiators: p.SpecifyInitiators, AllTargetPorts: p.AllTargetPorts, Types: []string{}}
	for _, t := range p.Types {
		out.Types = append(out.Types, t.String())
	}
	yes := map[bool]string{true: "yes", false: "no"}
	return fmt.Sprintf("types: %s\npersist through power loss: %s\nspecify initiators: %s\nall target ports: %s\n", strings.Join(out.Types, "; "),
		yes[out.PersistThroughPowerLoss], yes[out.SpecifyInitiators], yes[out.AllTargetPorts]), out, nil
}
