package auth

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
)

// A client that asks for no proof of the server's identity, as Linux's cifs, gets none, and shares its own subkey with the server.
func TestKerberosOneWay(t *testing.T) {
	for _, et := range testTypes {
		r := newRealm(t, et)
		s, ticket := r.service(KerberosServiceConfig{}), r.alice()
		subkey := newSubkey(ticket.key)
		sum := make([]byte, 24)
		binary.LittleEndian.PutUint32(sum, 16)
		binary.LittleEndian.PutUint32(sum[20:], gssIntegrity)
		req, err := messages.NewAPReq(ticket.ticket, ticket.key, types.Authenticator{
			AVNO: 5, CRealm: ticket.realm, CName: ticket.client, Cksum: types.Checksum{CksumType: checksumGSS, Checksum: sum},
			CTime: time.Now().UTC().Truncate(time.Second), SubKey: subkey, SeqNumber: 77,
		})
		if err != nil {
			t.Fatal(err)
		}
		b, err := req.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		m := s.Mechanisms()[1]
		out, done, err := m.Token(frameKrb5(tokenAPReq, b))
		if err != nil || !done || len(out) != 0 {
			t.Fatalf("type %d: token %x, done %v, %v", et, out, done, err)
		}
		if !bytes.Equal(m.SessionKey(), subkey.KeyValue) {
			t.Errorf("type %d: the session key is not the client's subkey", et)
		}
		if _, _, err := s.Mechanisms()[1].Token(frameKrb5(tokenAPReq, b)); err == nil {
			t.Errorf("type %d: a replay was taken", et)
		}
	}
}
