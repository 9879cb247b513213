package auth

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"vdbridge/smb/ntstatus"
)

// spnegoAcceptor implements Acceptor. RFC 4178 4, [MS-SPNG] 3.2
type spnegoAcceptor struct {
	mechs    []MechAcceptor
	mech     MechAcceptor
	list     []byte // the client's list as it came
	started  bool
	raw      bool // the client speaks NTLM without SPNEGO
	first    bool // mech is the client's first choice
	named    bool // the client knows our choice
	mechDone bool
	sentMIC  bool
	done     bool
	failed   bool
}

// NewAcceptor returns an Acceptor that takes any of the mechanisms, each of which must be new. The client's order decides.
func NewAcceptor(mechs ...MechAcceptor) Acceptor { return &spnegoAcceptor{mechs: mechs} }

func (s *spnegoAcceptor) Hint() []byte { return encodeHint(oids(s.mechs)) }

func (s *spnegoAcceptor) SessionKey() []byte {
	if !s.done {
		return nil
	}
	return s.mech.SessionKey()
}

func (s *spnegoAcceptor) Identity() Identity {
	if !s.done {
		return Identity{}
	}
	return s.mech.Identity()
}

// Expiry implements Expirer.
func (s *spnegoAcceptor) Expiry() time.Time {
	if !s.done {
		return time.Time{}
	}
	return expiryOf(s.mech)
}

func (s *spnegoAcceptor) Token(in []byte) ([]byte, bool, error) {
	if s.done || s.failed {
		return nil, false, invalidToken(malformed("token after the end of authentication"))
	}
	out, done, err := s.token(in)
	s.done, s.failed = done, err != nil
	if err == nil {
		return out, done, nil
	}
	var status ntstatus.Status
	if !errors.As(err, &status) {
		err = invalidToken(err)
	}
	return nil, false, fmt.Errorf("authenticate: %w", err)
}

func (s *spnegoAcceptor) token(in []byte) ([]byte, bool, error) {
	if !s.started {
		s.started = true
		if isNTLM(in) {
			return s.startRaw(in)
		}
		t, err := parseNegTokenInit(in)
		if err != nil {
			return nil, false, err
		}
		return s.start(t)
	}
	if s.raw {
		return s.mech.Token(in)
	}
	t, err := parseNegTokenResp(in)
	if err != nil {
		return nil, false, err
	}
	if t.state == stateReject {
		return nil, false, logonFailure(fmt.Errorf("%w: the client rejects %s", ErrRefused, names([][]byte{s.mech.OID()})))
	}
	if s.mechDone {
		// Only the client's MIC was missing.
		if t.token != nil || t.mic == nil {
			return nil, false, malformed("SPNEGO: expected a MIC and nothing else")
		}
		return s.finish(nil, t.mic)
	}
	return s.step(t.token, t.mic)
}

func (s *spnegoAcceptor) startRaw(in []byte) ([]byte, bool, error) {
	i := slices.IndexFunc(s.mechs, func(m MechAcceptor) bool { return bytes.Equal(m.OID(), oidNTLM) })
	if i < 0 {
		return nil, false, logonFailure(fmt.Errorf("%w: the client speaks NTLM", ErrRefused))
	}
	s.raw, s.mech = true, s.mechs[i]
	return s.mech.Token(in)
}

func (s *spnegoAcceptor) start(t *negTokenInit) ([]byte, bool, error) {
	s.list = bytes.Clone(t.mechList)
	for i, oid := range t.mechs {
		j := slices.IndexFunc(s.mechs, func(m MechAcceptor) bool { return bytes.Equal(m.OID(), oid) })
		if j < 0 {
			continue
		}
		s.mech, s.first = s.mechs[j], i == 0
		if s.first && t.mechToken != nil {
			return s.step(t.mechToken, t.mic)
		}
		// A token for another mechanism than ours is of no use.
		s.named = true
		out := negTokenResp{state: stateIncomplete, mech: s.mech.OID()}
		if !s.first {
			out.state = stateRequestMIC
		}
		return out.encode(), false, nil
	}
	return nil, false, logonFailure(fmt.Errorf("%w: the client offers %s", ErrRefused, names(t.mechs)))
}

// step passes a token to the mechanism.
func (s *spnegoAcceptor) step(token, mic []byte) ([]byte, bool, error) {
	out, done, err := s.mech.Token(token)
	if err != nil {
		return nil, false, err
	}
	if !done {
		t := negTokenResp{state: stateIncomplete, token: out}
		if !s.named {
			t.mech, s.named = s.mech.OID(), true
		}
		return t.encode(), false, nil
	}
	s.mechDone = true
	return s.finish(out, mic)
}

// finish ends the negotiation after the mechanism is done, if the client's MIC is there or not needed.
func (s *spnegoAcceptor) finish(token, mic []byte) ([]byte, bool, error) {
	t := negTokenResp{state: stateCompleted, token: token}
	if len(token) == 0 {
		t.token = nil
	}
	if !s.named {
		t.mech, s.named = s.mech.OID(), true
	}
	switch {
	case mic != nil:
		if err := s.mech.VerifyMIC(s.list, mic); err != nil {
			return nil, false, logonFailure(fmt.Errorf("list of mechanisms was changed on its way: %w", err))
		}
	case s.mech.MICRequired():
		return nil, false, logonFailure(fmt.Errorf("%w: the client does not protect its list of mechanisms", ErrRefused))
	case s.first:
		return t.encode(), true, nil
	default:
		t.state = stateIncomplete
	}
	if !s.sentMIC {
		m, err := s.mech.GetMIC(s.list)
		if err != nil {
			return nil, false, err
		}
		t.mic, s.sentMIC = m, true
	}
	return t.encode(), t.state == stateCompleted, nil
}
