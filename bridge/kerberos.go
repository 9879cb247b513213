package bridge

import (
	"context"
	"errors"
	"fmt"
	"os"

	"vdbridge/client"
	"vdbridge/smb/auth"
)

// KerberosOptions say how to log on by Kerberos. With On nothing else is used, also if Kerberos fails.
type KerberosOptions struct {
	On       bool
	Keytab   string // log on with the keys in this file
	AllowRC4 bool   // use the outdated RC4 as well
}

// limit gives ctx the time limit of a step.
func (o *Options) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	if o.Timeout > 0 {
		return context.WithTimeout(ctx, o.Timeout)
	}
	return ctx, func() {}
}

// kerberos finds out as whom to log on, and with what: a keytab, a password that was given by name, or the tickets of kinit. There is no prompt.
func (o *Options) kerberos(loc Location) (*auth.Kerberos, error) {
	s := o.Credentials
	if s.Anonymous || s.Guest {
		return nil, Usagef("Kerberos logs users on, so it does not go with --guest or --anonymous")
	}
	getenv := s.Getenv
	if getenv == nil {
		getenv = os.Getenv
	}
	cfg := auth.KerberosConfig{User: loc.User, Realm: loc.Domain, Keytab: o.Kerberos.Keytab, AllowRC4: o.Kerberos.AllowRC4, Getenv: getenv}
	if s.CredentialsFile != "" {
		f, err := readCredentialsFile(s.CredentialsFile)
		if err != nil {
			return nil, err
		}
		cfg.Password = f.Password
		if cfg.User == "" {
			cfg.User = f.User
		}
		if cfg.Realm == "" {
			cfg.Realm = f.Domain
		}
	}
	if s.User != "" {
		if d, u := auth.SplitUser(s.User); d != "" {
			cfg.Realm, cfg.User = d, u
		} else {
			cfg.User = u
		}
	}
	if s.Domain != "" {
		cfg.Realm = s.Domain
	}
	if cfg.Password == "" && s.PasswordFile != "" {
		pw, err := readPasswordFile(s.PasswordFile)
		if err != nil {
			return nil, err
		}
		if pw == "" {
			return nil, &Error{ClassAuth, fmt.Sprintf("the password file %s is empty", s.PasswordFile), ErrAuth}
		}
		cfg.Password = pw
	}
	if cfg.Password == "" {
		cfg.Password = getenv(PasswordEnv)
	}
	if cfg.Keytab == "" && cfg.Password != "" && cfg.User == "" {
		return nil, Usagef("a password needs a user: put it into the URL, or give --user USER@REALM")
	}
	return auth.NewKerberos(cfg)
}

// explainKerberos makes the sentence for a logon that failed.
func explainKerberos(loc Location, o Options, k *auth.Kerberos, err error) error {
	var ke *auth.KerberosError
	var known *Error
	var ce *client.Error
	who := "you"
	if k != nil {
		who = k.String()
	}
	switch {
	case errors.Is(err, context.Canceled):
		return &Error{ClassInterrupted, "interrupted", err}
	case errors.Is(err, ErrUsage), errors.As(err, &known):
		return err
	case errors.As(err, &ke) && ke.Unreachable:
		return &Error{ClassConnection, ke.Sentence, err}
	case errors.As(err, &ke):
		return &Error{ClassAuth, ke.Sentence, err}
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{ClassConnection, fmt.Sprintf("logging %s on by Kerberos took longer than %v: give it more --timeout", who, o.Timeout), err}
	case errors.Is(err, auth.ErrRefused) && k != nil && !errors.As(err, &ce):
		return &Error{ClassAuth, fmt.Sprintf("%s and this client do not agree on Kerberos: %s", loc.Host, reason(err, auth.ErrRefused)), err}
	case errors.As(err, &ce) && Classify(err) == ClassAuth:
		return &Error{ClassAuth, fmt.Sprintf("%s does not accept the ticket of %s: the user may not log on there, the clocks differ, or the server's keytab is not that of the name %q (the server's log says which)", loc.Host, who, loc.Host), err}
	}
	return explain("logon", loc, o, err)
}

// logons are the ways in which users of a file server prove who they are. Each may be nil, but not both.
func logons(o ServeOptions) (auth.UserDB, *auth.KerberosService, error) {
	users := o.Users
	switch {
	case o.Keytab == "" && o.NoNTLM:
		return nil, nil, Usagef("without NTLM nobody could log on: give the server's keytab with --keytab")
	case o.Keytab == "" && (len(o.KerberosFor) > 0 || o.AllowRC4):
		return nil, nil, Usagef("what is said of Kerberos needs the server's keytab: --keytab FILE")
	case o.NoNTLM && (users != nil || o.UsersFile != ""):
		return nil, nil, Usagef("the users file is for NTLM, which --no-ntlm switches off; leave one of them out")
	}
	var krb *auth.KerberosService
	if o.Keytab != "" {
		var err error
		if krb, err = auth.NewKerberosService(auth.KerberosServiceConfig{Keytab: o.Keytab, Allow: o.KerberosFor, AllowRC4: o.AllowRC4}); err != nil {
			return nil, nil, Usagef("%v", err)
		}
		if users == nil && o.UsersFile == "" {
			return nil, krb, nil
		}
	}
	if users == nil {
		var err error
		if users, err = readUsers(o.UsersFile); err != nil {
			return nil, nil, err
		}
	}
	return users, krb, nil
}
