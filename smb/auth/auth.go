package auth

import (
	"errors"
	"fmt"
	"time"

	"vdbridge/smb/ntstatus"
)

// ErrToken is wrapped when a token is malformed, or does not belong where it came.
var ErrToken = errors.New("malformed authentication token")

// ErrRefused is wrapped when the peer's proposal is not safe enough, or there is nothing that both sides can do.
var ErrRefused = errors.New("authentication refused")

// maxToken is the longest token in bytes that is looked at. A Kerberos token of a user in many groups may have 48 KiB or more.
const maxToken = 64 << 10

// Identity says who has authenticated, or, at an initiator, as whom.
type Identity struct {
	User        string
	Domain      string
	Workstation string // as the client says; nothing proves it
	Guest       bool
	Anonymous   bool
}

// String returns DOMAIN\user.
func (id Identity) String() string {
	switch {
	case id.Anonymous:
		return "anonymous"
	case id.Guest:
		return "guest"
	case id.Domain == "":
		return id.User
	}
	return id.Domain + `\` + id.User
}

// Initiator is the client's side of one authentication. It is used by one goroutine at a time, and once.
type Initiator interface {
	// Token takes what the server sent (nothing in the first call) and returns what to send next. With done, the authentication has
	// succeeded as far as the mechanism can tell, and out may be empty. When the server has reported success by other
	// means without a last token, Token must be called with an empty one.
	Token(in []byte) (out []byte, done bool, err error)
	// SessionKey returns the key of the session after done, usually 16 bytes.
	SessionKey() []byte
	Identity() Identity
}

// Acceptor is the server's side of one authentication. It is used by one goroutine at a time, and once.
type Acceptor interface {
	// Hint returns the token for the NEGOTIATE reply, by which the client learns what the server offers.
	Hint() []byte
	// Token takes what the client sent and returns what to reply. With done, Identity has proved who it is, and out goes with
	// STATUS_SUCCESS; otherwise with STATUS_MORE_PROCESSING_REQUIRED. An error contains the ntstatus.Status to reply with, and
	// ends the authentication; wrong passwords, unknown users and whatever else a client could use to find out about users all
	// have the same, LogonFailure.
	Token(in []byte) (out []byte, done bool, err error)
	// SessionKey returns the key of the session after done, usually 16 bytes.
	SessionKey() []byte
	Identity() Identity
}

// MechInitiator is one mechanism at the client, for SPNEGO to choose.
type MechInitiator interface {
	// OID is the mechanism's object identifier, as the contents of its DER encoding.
	OID() []byte
	// Token is like Initiator.Token; done together with a token means that the token must still be sent.
	Token(in []byte) (out []byte, done bool, err error)
	SessionKey() []byte
	Identity() Identity
	MIC
}

// MechAcceptor is one mechanism at the server, for SPNEGO to choose.
type MechAcceptor interface {
	OID() []byte
	Token(in []byte) (out []byte, done bool, err error)
	SessionKey() []byte
	Identity() Identity
	MIC
}

// MIC is what SPNEGO needs of a finished mechanism to protect the negotiation. RFC 4178 5
type MIC interface {
	// GetMIC signs the message, which is the first one that this side signs.
	GetMIC(message []byte) ([]byte, error)
	// VerifyMIC checks the signature of the first message that the other side signs.
	VerifyMIC(message, mic []byte) error
	// MICRequired says that the other side is known to be able to send one, so that one must come.
	MICRequired() bool
}

// Expirer is implemented by initiators, acceptors and mechanisms whose authentication ends at a time: with Kerberos, when the ticket does. Zero means that
// it does not end.
type Expirer interface {
	Expiry() time.Time
}

// expiryOf asks a mechanism.
func expiryOf(mech any) time.Time {
	if e, ok := mech.(Expirer); ok {
		return e.Expiry()
	}
	return time.Time{}
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrToken, fmt.Sprintf(format, args...))
}

// logonFailure is what an acceptor replies whenever a user could not be authenticated. why is for the server's log only.
func logonFailure(why error) error {
	return fmt.Errorf("%w: %w", ntstatus.LogonFailure, why)
}

// invalidToken is what an acceptor replies to a token that makes no sense.
func invalidToken(why error) error {
	return fmt.Errorf("%w: %w", ntstatus.InvalidParameter, why)
}
