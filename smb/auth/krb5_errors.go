package auth

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/messages"
)

// KerberosError is a failure of Kerberos as a sentence that says what to do.
type KerberosError struct {
	Sentence string
	// Code is the error code of RFC 4120 7.5.9 that the KDC or the server gave, 0 if none.
	Code int32
	// Unreachable says that no KDC answered, so that it may be worth trying again.
	Unreachable bool
	Err         error
}

// Error is the sentence.
func (e *KerberosError) Error() string { return e.Sentence }

// Unwrap gives the cause.
func (e *KerberosError) Unwrap() error { return e.Err }

// Is says that the error is one of refusal, unless nobody answered.
func (e *KerberosError) Is(target error) bool { return target == ErrRefused && !e.Unreachable }

func kerberosErrorf(format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &KerberosError{Sentence: err.Error(), Err: errors.Unwrap(err)}
}

// explainKRB makes a sentence of an error message of a KDC or a server. client and service are principals, now is our clock.
func explainKRB(e messages.KRBError, client, service, realm string, now time.Time) error {
	k := &KerberosError{Code: e.ErrorCode, Err: e}
	switch e.ErrorCode {
	case errorcode.KRB_AP_ERR_SKEW:
		k.Sentence = "the clocks differ too much for Kerberos: set the clock"
		if !e.STime.IsZero() {
			k.Sentence = skewSentence("that of the Kerberos server", now.Sub(e.STime))
		}
	case errorcode.KDC_ERR_C_PRINCIPAL_UNKNOWN:
		k.Sentence = fmt.Sprintf("the realm %s has no user %s: check user name and realm", realm, client)
	case errorcode.KDC_ERR_S_PRINCIPAL_UNKNOWN:
		k.Sentence = fmt.Sprintf("the realm %s knows no server %s (server not found in Kerberos database): the host name in the URL must be the one that the server is registered with, in full, not an alias or an address", realm, service)
	case errorcode.KDC_ERR_PREAUTH_FAILED, errorcode.KRB_AP_ERR_BAD_INTEGRITY:
		k.Sentence = fmt.Sprintf("the password or keytab of %s is wrong", client)
	case errorcode.KDC_ERR_KEY_EXPIRED:
		k.Sentence = fmt.Sprintf("the password of %s has expired: change it first (kpasswd)", client)
	case errorcode.KDC_ERR_CLIENT_REVOKED, errorcode.KDC_ERR_NAME_EXP:
		k.Sentence = fmt.Sprintf("the account %s is locked, disabled or expired: ask the administrator", client)
	case errorcode.KRB_AP_ERR_TKT_EXPIRED:
		k.Sentence = fmt.Sprintf("the ticket of %s has expired: run kinit", client)
	case errorcode.KDC_ERR_WRONG_REALM:
		k.Sentence = fmt.Sprintf("%s is not the realm of %s: give the user as user@REALM", realm, client)
	case errorcode.KDC_ERR_ETYPE_NOSUPP:
		k.Sentence = fmt.Sprintf("the Kerberos server has no AES key for %s or %s; an old account may need a new password (RC4 is used only when it is asked for)", client, service)
	case errorcode.KRB_AP_ERR_REPEAT:
		k.Sentence = "the server took the logon for a replay"
	case errorcode.KRB_AP_ERR_MODIFIED, errorcode.KRB_AP_ERR_NOKEY, errorcode.KRB_AP_ERR_BADKEYVER, errorcode.KRB_AP_ERR_NOT_US:
		k.Sentence = fmt.Sprintf("the server cannot decrypt the ticket for %s: its keytab or machine password is not the one that the realm has, or the host name is that of another server", service)
	default:
		k.Sentence = "Kerberos: " + strings.TrimPrefix(e.Error(), "KRB Error: ")
	}
	return k
}

// skewSentence says by how much this machine's clock is off.
func skewSentence(other string, ahead time.Duration) string {
	how := "ahead of"
	if ahead < 0 {
		how, ahead = "behind", -ahead
	}
	return fmt.Sprintf("the clock of this machine is %v %s %s, and Kerberos allows 5 minutes: set the clock", ahead.Round(time.Second), how, other)
}
