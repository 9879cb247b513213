package auth

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	"vdbridge/smb/ntstatus"
)

// spnegoInitiator implements Initiator. RFC 4178 4, [MS-SPNG] 3.3
type spnegoInitiator struct {
	mechs    []MechInitiator
	list     []byte // mechs as DER, over which the MIC goes
	mech     MechInitiator
	started  bool
	raw      bool // the server answered without SPNEGO
	mechDone bool
	switched bool // the server did not want our first choice
	sentMIC  bool
	verified bool // the server's MIC was there, and right
	done     bool
	failed   bool
}

// NewInitiator returns an Initiator that offers the mechanisms in this order. hint is the security buffer of the NEGOTIATE reply, and
// may be empty; mechanisms that the server does not list in it are left out.
func NewInitiator(hint []byte, mechs ...MechInitiator) (Initiator, error) {
	if len(hint) > 0 {
		h, err := parseNegTokenInit(hint)
		if err != nil {
			return nil, fmt.Errorf("server's offer of authentication: %w", err)
		}
		offered := mechs
		mechs = nil
		for _, m := range offered {
			if slices.ContainsFunc(h.mechs, func(oid []byte) bool { return sameMech(m.OID(), oid) }) {
				mechs = append(mechs, m)
			}
		}
		if len(mechs) == 0 {
			return nil, fmt.Errorf("%w: the server offers %s, and the credentials are good for %s", ErrRefused,
				names(h.mechs), names(oids(offered)))
		}
	}
	if len(mechs) == 0 {
		return nil, fmt.Errorf("%w: no mechanism to offer", ErrRefused)
	}
	return &spnegoInitiator{mechs: mechs, list: encodeMechs(oids(mechs)), mech: mechs[0]}, nil
}

// sameMech says whether a server that lists theirs means ours: Kerberos has a second identifier, which Windows made by mistake. [MS-SPNG] 3.1.5.2
func sameMech(ours, theirs []byte) bool {
	return bytes.Equal(ours, theirs) || bytes.Equal(ours, oidKrb5) && bytes.Equal(theirs, oidMSKrb5)
}

// alias says whether the server chose our mechanism by its other identifier, which we have not offered.
func (s *spnegoInitiator) alias(oid []byte) bool {
	return sameMech(s.mech.OID(), oid) && !slices.ContainsFunc(s.mechs, func(m MechInitiator) bool { return bytes.Equal(m.OID(), oid) })
}

func oids[M interface{ OID() []byte }](mechs []M) [][]byte {
	list := make([][]byte, len(mechs))
	for i, m := range mechs {
		list[i] = m.OID()
	}
	return list
}

// names lists mechanisms for people.
func names(oids [][]byte) string {
	var list []string
	for _, oid := range oids {
		n, ok := mechNames[string(oid)]
		if !ok {
			n = fmt.Sprintf("mechanism %x", oid)
		}
		if !slices.Contains(list, n) {
			list = append(list, n)
		}
	}
	return strings.Join(list, ", ")
}

func (s *spnegoInitiator) SessionKey() []byte { return s.mech.SessionKey() }
func (s *spnegoInitiator) Identity() Identity { return s.mech.Identity() }

// Expiry implements Expirer.
func (s *spnegoInitiator) Expiry() time.Time { return expiryOf(s.mech) }

func (s *spnegoInitiator) Token(in []byte) ([]byte, bool, error) {
	if s.done || s.failed {
		return nil, false, malformed("token after the end of authentication")
	}
	out, done, err := s.token(in)
	s.done, s.failed = done, err != nil
	if err != nil {
		return nil, false, fmt.Errorf("authenticate: %w", err)
	}
	return out, done, nil
}

func (s *spnegoInitiator) token(in []byte) ([]byte, bool, error) {
	switch {
	case !s.started:
		s.started = true
		if len(in) > 0 {
			return nil, false, malformed("the server's offer belongs to NewInitiator")
		}
		token, done, err := s.mech.Token(nil)
		if err != nil {
			return nil, false, err
		}
		s.mechDone = done
		t := negTokenInit{mechList: s.list, mechToken: token}
		return t.encode(), false, nil
	case s.raw || isNTLM(in):
		return s.rawToken(in)
	case len(in) == 0:
		// The server reports success and adds nothing.
		if !s.mechDone || s.micRequired() {
			return nil, false, malformed("server ended the authentication too early")
		}
		return nil, true, nil
	}
	t, err := parseNegTokenResp(in)
	if err != nil {
		return nil, false, err
	}
	return s.response(t)
}

// micRequired says whether the server must still send a MIC.
func (s *spnegoInitiator) micRequired() bool { return s.switched && !s.verified }

func (s *spnegoInitiator) response(t *negTokenResp) ([]byte, bool, error) {
	if t.state == stateReject {
		return nil, false, fmt.Errorf("%w: the server wants none of %s: %w", ErrRefused, names(oids(s.mechs)), ntstatus.LogonFailure)
	}
	if t.mech != nil && !bytes.Equal(t.mech, s.mech.OID()) && !s.alias(t.mech) {
		return s.change(t)
	}
	out := negTokenResp{state: stateNone}
	// Old servers repeat the token of an already finished mechanism.
	if !s.mechDone && (t.token != nil || t.state != stateCompleted) {
		token, done, err := s.mech.Token(t.token)
		if err != nil {
			return nil, false, err
		}
		s.mechDone, out.token = done, token
	}
	if !s.mechDone {
		if t.state == stateCompleted {
			return nil, false, malformed("server ended the authentication too early")
		}
		out.state = stateIncomplete
		return out.encode(), false, nil
	}
	if t.mic != nil && !bytes.Equal(t.mic, t.token) {
		if err := s.mech.VerifyMIC(s.list, t.mic); err != nil {
			return nil, false, fmt.Errorf("list of mechanisms was changed on its way: %w", err)
		}
		s.verified = true
	}
	if t.state == stateCompleted {
		if s.micRequired() {
			return nil, false, fmt.Errorf("%w: the server chose another mechanism and does not prove that it saw our list", ErrRefused)
		}
		// A token that the mechanism still wants to send has nowhere to go.
		if len(out.token) > 0 {
			return nil, false, malformed("server ended the authentication too early")
		}
		return nil, true, nil
	}
	if !s.sentMIC {
		mic, err := s.mech.GetMIC(s.list)
		if err != nil {
			return nil, false, err
		}
		out.mic, s.sentMIC = mic, true
	} else if out.token == nil {
		return nil, false, malformed("server asks for more than there is")
	}
	return out.encode(), false, nil
}

// change begins again with the mechanism that the server has chosen.
func (s *spnegoInitiator) change(t *negTokenResp) ([]byte, bool, error) {
	if s.switched || s.sentMIC || t.state == stateCompleted {
		return nil, false, malformed("server changes the mechanism in the middle")
	}
	i := slices.IndexFunc(s.mechs, func(m MechInitiator) bool { return bytes.Equal(m.OID(), t.mech) })
	if i < 0 {
		return nil, false, malformed("server chose %s, which was not offered", names([][]byte{t.mech}))
	}
	s.mech, s.switched, s.mechDone = s.mechs[i], true, false
	token, done, err := s.mech.Token(nil)
	if err != nil {
		return nil, false, err
	}
	s.mechDone = done
	out := negTokenResp{state: stateIncomplete, token: token}
	return out.encode(), false, nil
}

// rawToken goes on without SPNEGO. That is allowed only with NTLM as our first choice, as there is no MIC over the list then.
func (s *spnegoInitiator) rawToken(in []byte) ([]byte, bool, error) {
	if !s.raw && (s.sentMIC || s.switched || !bytes.Equal(s.mechs[0].OID(), oidNTLM)) {
		return nil, false, malformed("NTLM token outside SPNEGO")
	}
	s.raw = true
	if s.mechDone {
		if len(in) > 0 {
			return nil, false, malformed("server asks for more than there is")
		}
		return nil, true, nil
	}
	out, done, err := s.mech.Token(in)
	s.mechDone = done
	return out, false, err
}
