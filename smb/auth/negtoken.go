package auth

import "bytes"

// Object identifiers, as the contents of their DER encodings.
var (
	oidSPNEGO = []byte{0x2B, 0x06, 0x01, 0x05, 0x05, 0x02}                              // 1.3.6.1.5.5.2
	oidNTLM   = []byte{0x2B, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x02, 0x0A}      // 1.3.6.1.4.1.311.2.2.10
	oidKrb5   = []byte{0x2A, 0x86, 0x48, 0x86, 0xF7, 0x12, 0x01, 0x02, 0x02}            // 1.2.840.113554.1.2.2
	oidMSKrb5 = []byte{0x2A, 0x86, 0x48, 0x82, 0xF7, 0x12, 0x01, 0x02, 0x02}            // 1.2.840.48018.1.2.2
	oidNegoEx = []byte{0x2B, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x02, 0x1E}      // 1.3.6.1.4.1.311.2.2.30
	hintName  = []byte("not_defined_in_RFC4178@please_ignore")                          // [MS-SPNG] 2.2.1
	mechNames = map[string]string{string(oidNTLM): "NTLM", string(oidKrb5): "Kerberos", //
		string(oidMSKrb5): "Kerberos", string(oidNegoEx): "NegoEx"}
)

// maxMechs bounds the list of mechanisms that is looked at.
const maxMechs = 32

// negState of NegTokenResp. RFC 4178 4.2.2
const (
	stateCompleted  = 0
	stateIncomplete = 1
	stateReject     = 2
	stateRequestMIC = 3
	stateNone       = 0xFF // absent
)

// negTokenInit is NegTokenInit of RFC 4178 4.2.1, or NegTokenInit2 of [MS-SPNG] 2.2.1, which differs in one field that does not matter.
type negTokenInit struct {
	mechs     [][]byte
	mechList  []byte // the DER encoding of mechs, as received or to be sent, over which mechListMIC is computed
	mechToken []byte // nil if absent
	mic       []byte // nil if absent
}

// negTokenResp is NegTokenResp of RFC 4178 4.2.2.
type negTokenResp struct {
	state byte
	mech  []byte // nil if absent
	token []byte // nil if absent
	mic   []byte // nil if absent
}

// encodeMechs returns the DER encoding of a MechTypeList.
func encodeMechs(mechs [][]byte) []byte {
	var list []byte
	for _, m := range mechs {
		list = append(list, element(tagOID, m)...)
	}
	return element(tagSequence, list)
}

func (t *negTokenInit) encode() []byte {
	return element(tagApplication, element(tagOID, oidSPNEGO),
		element(tagContext0, element(tagSequence, explicit(0, t.mechList), octets(2, t.mechToken), octets(3, t.mic))))
}

// encodeHint returns the NegTokenInit2 that a server puts into its NEGOTIATE reply.
func encodeHint(mechs [][]byte) []byte {
	hints := element(tagSequence, explicit(0, element(tagGeneral, hintName)))
	return element(tagApplication, element(tagOID, oidSPNEGO),
		element(tagContext0, element(tagSequence, explicit(0, encodeMechs(mechs)), explicit(3, hints))))
}

func parseNegTokenInit(b []byte) (*negTokenInit, error) {
	if len(b) > maxToken {
		return nil, malformed("SPNEGO: %d bytes", len(b))
	}
	d := der{b: b}
	d = d.only(tagApplication)
	if oid, _ := d.next(tagOID); d.err == nil && !bytes.Equal(oid, oidSPNEGO) {
		return nil, malformed("SPNEGO: GSS-API token of another mechanism")
	}
	d = d.only(tagContext0)
	d = d.only(tagSequence)
	t := new(negTokenInit)
	if d.peek() == tagContext0 {
		list := d.enter(tagContext0)
		_, t.mechList = list.next(tagSequence)
		if list.err != nil {
			return nil, list.err
		}
		whole := der{b: t.mechList}
		for e := whole.enter(tagSequence); ; {
			if !e.more() {
				if e.err != nil {
					return nil, e.err
				}
				break
			}
			oid, _ := e.next(tagOID)
			if e.err != nil {
				return nil, e.err
			}
			if len(t.mechs) == maxMechs {
				return nil, malformed("SPNEGO: more than %d mechanisms", maxMechs)
			}
			t.mechs = append(t.mechs, oid)
		}
	}
	if d.peek() == tagContext0+1 {
		flags := d.enter(tagContext0 + 1)
		flags.only(tagBitString)
		if flags.err != nil {
			return nil, flags.err
		}
	}
	if d.peek() == tagContext0+2 {
		t.mechToken = d.octets(2)
	}
	if d.peek() == tagContext0+3 {
		in := d.enter(tagContext0 + 3)
		if in.peek() == tagOctetString {
			t.mic, _ = in.next(tagOctetString)
		} else {
			in.only(tagSequence) // negHints
		}
		if in.err != nil {
			return nil, in.err
		}
	}
	if d.peek() == tagContext0+4 {
		t.mic = d.octets(4)
	}
	if d.more() {
		return nil, malformed("SPNEGO: unexpected field %#02x", d.peek())
	}
	if d.err != nil {
		return nil, d.err
	}
	if len(t.mechs) == 0 {
		return nil, malformed("SPNEGO: no mechanisms")
	}
	return t, nil
}

// octets reads an OCTET STRING in context tag n. What is returned is not nil unless there is an error.
func (d *der) octets(n byte) []byte {
	in := d.enter(tagContext0 + n)
	b, _ := in.next(tagOctetString)
	if in.err == nil && len(in.b) > 0 {
		in.err = malformed("SPNEGO: bytes after a string")
	}
	if d.err = in.err; d.err != nil {
		return nil
	}
	return b
}

func (t *negTokenResp) encode() []byte {
	var state, mech []byte
	if t.state != stateNone {
		state = element(tagEnum, []byte{t.state})
	}
	if t.mech != nil {
		mech = element(tagOID, t.mech)
	}
	return element(tagContext0+1, element(tagSequence, explicit(0, state), explicit(1, mech), octets(2, t.token), octets(3, t.mic)))
}

func parseNegTokenResp(b []byte) (*negTokenResp, error) {
	if len(b) > maxToken {
		return nil, malformed("SPNEGO: %d bytes", len(b))
	}
	d := der{b: b}
	d = d.only(tagContext0 + 1)
	d = d.only(tagSequence)
	t := &negTokenResp{state: stateNone}
	if d.peek() == tagContext0 {
		in := d.enter(tagContext0)
		s, _ := in.next(tagEnum)
		if in.err != nil || len(s) != 1 || s[0] > stateRequestMIC {
			return nil, malformed("SPNEGO: negState")
		}
		t.state = s[0]
	}
	if d.peek() == tagContext0+1 {
		in := d.enter(tagContext0 + 1)
		if t.mech, _ = in.next(tagOID); in.err != nil {
			return nil, in.err
		}
	}
	if d.peek() == tagContext0+2 {
		t.token = d.octets(2)
	}
	if d.peek() == tagContext0+3 {
		t.mic = d.octets(3)
	}
	if d.more() {
		return nil, malformed("SPNEGO: unexpected field %#02x", d.peek())
	}
	return t, d.err
}
