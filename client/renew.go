package client

import (
	"context"
	"errors"
	"time"

	"vdbridge/smb/auth"
)

// Reauthenticate proves the user's identity again, by one of the mechanisms, so that the session does not expire. It must be the same user. Keys stay as they
// are, and requests go on meanwhile. Without mechanisms, those of SessionOptions.Renew are used. [MS-SMB2] 3.2.4.2.3.1
func (s *Session) Reauthenticate(ctx context.Context, mechs ...auth.MechInitiator) error {
	return wrap("log on again to "+s.c.server, "", errors.ErrUnsupported)
}

// Expiry returns when the proof of the user's identity ends, which is when a Kerberos ticket does; zero if it does not, as far as is known here. The server may
// have limits of its own.
func (s *Session) Expiry() time.Time { return time.Time{} }
