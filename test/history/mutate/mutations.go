package main

// mutation is a change that makes the code wrong.
type mutation struct {
	name     string
	file     string
	old, new string // old is in the file once
	tests    string // those that are to find it, a regular expression
}

var mutations = []mutation{
	{
		name: "no ChannelSequence check", // what was sent before a loss is carried out after its repetition
		file: "server/sequence.go",
		old:  "	if !ok {\n		switch r.hdr.Command {", new: "	if !ok && false {\n		switch r.hdr.Command {",
		tests: "TestLateRequest|TestHeldPrograms|TestHeldPowerCuts",
	},
	{
		name: "acknowledged before fsync", // FUA, and so what available shares write, is not durable
		file: "vhdx/disk.go",
		old:  "		err = d.write(ctx, p, off)\n	}\n	if err == nil && fua {", new: "		err = d.write(ctx, p, off)\n	}\n	if err == nil && fua && false {",
		tests: "TestHeldPowerCuts|TestPowerCuts",
	},
	{
		name: "flush without fsync",
		file: "vhdx/disk.go",
		old:  "	if !d.readOnly {\n		err = d.commit.sync(ctx)\n	}\n	d.gate.leave(c)\n	return err", new: "	d.gate.leave(c)\n	return err",
		tests: "TestPowerCuts",
	},
	{
		name: "flush after a lost server is good", // a client that had to open again does not care for what was not flushed
		file: "client/link/recover.go",
		old:  "		if !b.safe && f.lossy() {", new: "		if false {",
		tests: "TestHeldPowerCuts",
	},
	{
		name: "a preempted write is sent again", // the fence is forgotten by what was under way
		file: "client/link/file.go",
		old:  "			if e := f.fence.Load(); e != nil && change {\n				return nil, e", new: "			if e := f.fence.Load(); e != nil && false {\n				return nil, e",
		tests: "TestPreemptedWhileAway|TestHeldPowerCuts",
	},
	{
		name: "registration not checked after reopening",
		file: "rsvd/standing.go",
		old:  "		if err := d.stillStands(ctx, p); err != nil {", new: "		if err := d.stillStands(ctx, p); err != nil && false {",
		tests: "TestPreemptedWhileAway|TestHeldPowerCuts",
	},
	{
		name: "PreviousSessionId ignored", // the old session goes on beside the new one
		file: "server/session.go",
		old:  "	if req.PreviousSessionID != 0 && req.PreviousSessionID != sn.id && !binding {", new: "	if false {",
		tests: "TestLateRequest|TestHeldPowerCuts|TestHeldPrograms",
	},
	{
		name: "replayed PR OUT applied twice",
		file: "server/svhdx/replay.go",
		old:  "	replay := server.IsReplay(ctx)", new: "	replay := server.IsReplay(ctx) && false",
		tests: "TestHeldPrograms|TestHeldPowerCuts",
	},
	{
		name:  "no lock on the image", // two servers interpret one image
		file:  "vhdx/osfile_linux.go",
		old:   "	if ok, err := o.setLock(kind, ownLockByte); err != nil || !ok {\n		return err\n	}\n",
		new:   "	if ok, err := o.setLock(kind, ownLockByte); err != nil || !ok || true {\n		return nil\n	}\n",
		tests: "TestTwoServers",
	},
	{
		name: "a lost write is called done", // what was under way is not repeated
		file: "client/link/file.go",
		old:  "		n, err := in.h.WriteAt(ctx, p, off)\n", new: "		n, err := in.h.WriteAt(ctx, p, off)\n		if err != nil && f.again(in, err, tries) {\n			return len(p), nil\n		}\n",
		tests: "TestHeldPrograms|TestHeldPowerCuts",
	},
	{
		name: "preemption does not wait", // commands in flight of the loser are not waited for
		file: "scsi/lu/reservation.go",
		old:  "	for _, i := range wait {\n		i.drain()\n	}", new: "	_ = wait",
		tests: "TestPowerCuts|TestHeldPowerCuts",
	},
}
