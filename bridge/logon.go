package bridge

import (
	"context"
	"sync"

	"vdbridge/client"
	"vdbridge/smb/auth"
)

// logon logs on, the first time with what the user is asked for, and then with the same again: it keeps the credentials in memory. Tickets are got anew when they end.
type logon struct {
	loc Location
	o   Options

	mu   sync.Mutex
	krb  *auth.Kerberos
	cred *Credentials
}

// run is the Logon of link.SMB. Errors are *Error with a sentence for the user.
func (g *logon) run(ctx context.Context, c *client.Conn, so client.SessionOptions) (*client.Session, error) {
	last := g.o.last
	if last != nil && so.Previous == 0 {
		so.Previous = last.previous(c.Info())
	}
	s, err := g.session(ctx, c, so)
	if err == nil && last != nil {
		last.keep(c.Info(), s.ID())
	}
	return s, err
}

func (g *logon) session(ctx context.Context, c *client.Conn, so client.SessionOptions) (*client.Session, error) {
	if g.o.Kerberos.On {
		return g.byKerberos(ctx, c, so)
	}
	// Asked for only now: nobody types a password for a server that is not there. The prompt has no time limit.
	cred, err := g.credentials(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := g.o.limit(ctx)
	defer cancel()
	so.AllowGuest = cred.Guest
	if !cred.Anonymous && !cred.Guest {
		so.Renew = func(context.Context) ([]auth.MechInitiator, error) { return []auth.MechInitiator{g.ntlm(cred)}, nil }
	}
	s, err := c.SessionWith(ctx, so, g.ntlm(cred))
	if err != nil {
		return nil, explainLogon(g.loc, g.o, *cred, err)
	}
	return s, nil
}

func (g *logon) ntlm(c *Credentials) auth.MechInitiator {
	return auth.NTLM(auth.Credentials{User: c.User, Domain: c.Domain, Password: c.password, Anonymous: c.Anonymous}, "cifs/"+g.loc.Host)
}

func (g *logon) credentials(ctx context.Context) (*Credentials, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cred == nil {
		c, err := g.o.Credentials.Resolve(ctx, g.loc)
		if err != nil {
			return nil, err
		}
		g.cred = &c
	}
	return g.cred, nil
}

// kerberos finds out as whom to log on, once.
func (g *logon) kerberos() (*auth.Kerberos, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.krb == nil {
		k, err := g.o.kerberos(g.loc)
		if err != nil {
			return nil, err
		}
		g.krb = k
	}
	return g.krb, nil
}

func (g *logon) byKerberos(ctx context.Context, c *client.Conn, so client.SessionOptions) (*client.Session, error) {
	k, err := g.kerberos()
	if err != nil {
		return nil, explainKerberos(g.loc, g.o, nil, err)
	}
	spn, err := auth.SPN(g.loc.Host)
	if err != nil {
		return nil, explainKerberos(g.loc, g.o, k, err)
	}
	ctx, cancel := g.o.limit(ctx)
	defer cancel()
	so.Renew = func(ctx context.Context) ([]auth.MechInitiator, error) {
		mech, err := k.Mechanism(ctx, spn)
		return []auth.MechInitiator{mech}, err
	}
	mechs, err := so.Renew(ctx)
	if err != nil {
		return nil, explainKerberos(g.loc, g.o, k, err)
	}
	s, err := c.SessionWith(ctx, so, mechs...)
	if err != nil {
		return nil, explainKerberos(g.loc, g.o, k, err)
	}
	return s, nil
}
