package bridge

import (
	"encoding/json"
	"log/slog"
	"os"

	"vdbridge/client"
)

// previousSession remembers in the state directory which session at the server an attachment has. Whoever is the same initiator after the process was killed ends that
// session first ([MS-SMB2] 3.3.5.5.3): what the killed process had on its way in the network is not carried out after what its successor writes.
type previousSession struct {
	path string
	log  *slog.Logger
}

// sessionFile is what is remembered. A session identifier means something to one run of one server only; to another it could name somebody else's session.
type sessionFile struct {
	Session uint64   `json:"session"`
	Server  [16]byte `json:"server"`
	Started uint64   `json:"started"` // FILETIME
}

// previous is the session to end, 0 for none. A server that does not say when it was started is not asked.
func (p *previousSession) previous(n client.Info) uint64 {
	b, err := os.ReadFile(p.path)
	if err != nil {
		return 0
	}
	var f sessionFile
	if err := json.Unmarshal(b, &f); err != nil || n.StartTime == 0 || f.Started != n.StartTime || f.Server != n.ServerGUID {
		return 0
	}
	return f.Session
}

// keep remembers a session before the first request that changes anything. It need not survive a power cut, which ends what is in the network too.
func (p *previousSession) keep(n client.Info, session uint64) {
	b, err := json.Marshal(sessionFile{session, n.ServerGUID, n.StartTime})
	if err == nil {
		if err = os.WriteFile(p.path+".new", append(b, '\n'), 0o600); err == nil {
			err = os.Rename(p.path+".new", p.path)
		}
	}
	if err != nil {
		p.log.Warn("the session cannot be remembered: if this process is killed, a write that it had on its way in the network may come late", "err", err)
	}
}

// forget is for a session that has ended.
func (p *previousSession) forget() { _ = os.Remove(p.path) }
