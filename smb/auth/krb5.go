package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jcmturner/gokrb5/v8/config"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
)

// KerberosConfig says with what a client logs on by Kerberos: with a keytab if there is one, else with a password if there is one, else with the
// tickets of kinit.
type KerberosConfig struct {
	// User and Realm name the principal. Without a user, that of the ticket cache or the keytab's first is taken; without a realm, that of the user
	// (user@REALM), else that of krb5.conf.
	User  string
	Realm string

	Keytab   string              // file
	Password string              `json:"-"` // empty = none
	CCache   string              // as in KRB5CCNAME; empty = the environment's, else /tmp/krb5cc_UID
	Conf     string              // krb5.conf; empty = KRB5_CONFIG of the environment, else /etc/krb5.conf
	AllowRC4 bool                // use the outdated RC4 as well
	Getenv   func(string) string // nil = os.Getenv
}

// Kerberos gets tickets for servers, and keeps them until they end. Its methods may be called from any goroutine.
type Kerberos struct {
	conf     *config.Config
	noDNS    bool
	rc4      bool
	etypes   []int32
	client   types.PrincipalName
	realm    string
	password string
	keys     []serviceKey
	ccache   string // a file, KEYRING:… or KCM:…, if there is neither password nor keytab
	wanted   string // the user asked for, if tickets of kinit are used
	now      func() time.Time

	defaultCCache string // of krb5.conf
	kcmSocket     string

	// turn is taken by whoever gets tickets, and held while the KDC is asked, so that the others find what it brings.
	turn    chan struct{}
	tgt     *tgt
	tickets map[string]*serviceTicket
}

// ticketMargin is how long a ticket must still be valid to be used.
const ticketMargin = time.Minute

// Settings whose absence, or which as a whole, gokrb5 does not report.
var (
	lookupKDC   = regexp.MustCompile(`(?mi)^\s*dns_lookup_kdc\s*=`)
	defaultName = regexp.MustCompile(`(?mi)^\s*default_ccache_name\s*=\s*(\S+)`)
	kcmPath     = regexp.MustCompile(`(?mi)^\s*kcm_socket\s*=\s*(\S+)`)
)

// NewKerberos reads the configuration and the keytab. It talks to nobody.
func NewKerberos(cfg KerberosConfig) (*Kerberos, error) {
	getenv := cfg.Getenv
	if getenv == nil {
		getenv = os.Getenv
	}
	k := &Kerberos{rc4: cfg.AllowRC4, now: time.Now, tickets: map[string]*serviceTicket{}, turn: make(chan struct{}, 1), password: cfg.Password}
	if err := k.configure(cfg.Conf, getenv); err != nil {
		return nil, err
	}
	user, realm := SplitUPN(cfg.User)
	if cfg.Realm != "" && realm == "" {
		realm = cfg.Realm
	}
	switch {
	case cfg.Keytab != "":
		keys, err := readKeytab(cfg.Keytab)
		if err != nil {
			return nil, err
		}
		if err := k.fromKeytab(cfg.Keytab, keys, user, realm); err != nil {
			return nil, err
		}
		return k, nil
	case cfg.Password == "":
		name := cfg.CCache
		if name == "" {
			name = getenv("KRB5CCNAME")
		}
		if name == "" {
			name = k.defaultCCache
		}
		path, err := ccachePath(name, os.Getuid())
		if err != nil {
			return nil, err
		}
		k.ccache = path
		if user != "" {
			k.wanted = user
			if realm != "" {
				k.wanted += "@" + realm
			}
		}
		return k, nil
	}
	if user == "" {
		return nil, kerberosErrorf("say as whom to log on: --user USER@REALM")
	}
	if realm == "" {
		realm = k.conf.LibDefaults.DefaultRealm
	}
	if realm == "" {
		return nil, kerberosErrorf("say the realm of %s, as %s@REALM, or set default_realm in krb5.conf", user, user)
	}
	k.setClient(user, realm)
	return k, nil
}

// setClient sets the principal. A realm that krb5.conf does not know is taken in capitals, as realms are.
func (k *Kerberos) setClient(user, realm string) {
	if !slices.ContainsFunc(k.conf.Realms, func(r config.Realm) bool { return r.Realm == realm }) && realm != k.conf.LibDefaults.DefaultRealm {
		realm = strings.ToUpper(realm)
	}
	k.client, k.realm = types.NewPrincipalName(nametype.KRB_NT_PRINCIPAL, user), realm
}

// configure reads krb5.conf. Without one, realms are found by DNS.
func (k *Kerberos) configure(path string, getenv func(string) string) error {
	given := path != ""
	if !given {
		if path = getenv("KRB5_CONFIG"); path != "" {
			path, _, _ = strings.Cut(path, ":")
			given = true
		} else {
			path = "/etc/krb5.conf"
		}
	}
	k.conf = config.New()
	b, err := readSmall(path, 1<<20)
	switch {
	case err == nil:
		var c *config.Config
		err = safely("krb5.conf", func() (err error) {
			c, err = config.NewFromReader(bytes.NewReader(b))
			return err
		})
		var ignored config.UnsupportedDirective
		if err != nil && !errors.As(err, &ignored) {
			return kerberosErrorf("%s: %w", path, err)
		}
		k.conf = c
	case given || !errors.Is(err, fs.ErrNotExist):
		return kerberosErrorf("krb5.conf cannot be read: %w", err)
	}
	l := &k.conf.LibDefaults
	if lookupKDC.Match(b) {
		k.noDNS = !l.DNSLookupKDC
	}
	if m := defaultName.FindSubmatch(b); m != nil {
		uid := strconv.Itoa(os.Getuid())
		k.defaultCCache = strings.NewReplacer("%{uid}", uid, "%{euid}", uid, "%{USERID}", uid).Replace(string(m[1]))
	}
	k.kcmSocket = kcmSocket
	if m := kcmPath.FindSubmatch(b); m != nil {
		k.kcmSocket = string(m[1])
	}
	// Without a list of their own, the types that are good; otherwise those of the list that are.
	defaults := config.New().LibDefaults
	choose := func(names, initial []string, ids []int32) []int32 {
		list := []int32{etypeID.AES256_CTS_HMAC_SHA1_96, etypeID.AES128_CTS_HMAC_SHA1_96, etypeID.AES256_CTS_HMAC_SHA384_192, etypeID.AES128_CTS_HMAC_SHA256_128}
		if k.rc4 {
			list = append(list, etypeID.RC4_HMAC)
		}
		if reflect.DeepEqual(names, initial) {
			return list
		}
		return slices.DeleteFunc(slices.Clone(ids), func(t int32) bool { return !goodType(t, k.rc4) })
	}
	l.DefaultTktEnctypeIDs = choose(l.DefaultTktEnctypes, defaults.DefaultTktEnctypes, l.DefaultTktEnctypeIDs)
	l.DefaultTGSEnctypeIDs = choose(l.DefaultTGSEnctypes, defaults.DefaultTGSEnctypes, l.DefaultTGSEnctypeIDs)
	permitted := choose(l.PermittedEnctypes, defaults.PermittedEnctypes, l.PermittedEnctypeIDs)
	drop := func(t int32) bool { return !slices.Contains(permitted, t) }
	l.DefaultTktEnctypeIDs = slices.DeleteFunc(l.DefaultTktEnctypeIDs, drop)
	l.DefaultTGSEnctypeIDs = slices.DeleteFunc(l.DefaultTGSEnctypeIDs, drop)
	if len(l.DefaultTktEnctypeIDs) == 0 || len(l.DefaultTGSEnctypeIDs) == 0 {
		return kerberosErrorf("%s permits no encryption type that is used here (AES)", path)
	}
	k.etypes = l.DefaultTktEnctypeIDs
	return nil
}

// fromKeytab chooses a principal of a keytab.
func (k *Kerberos) fromKeytab(path string, keys []serviceKey, user, realm string) error {
	var names []string
	for _, s := range keys {
		name := strings.Join(s.name, "/")
		if full := name + "@" + s.realm; !slices.Contains(names, full) {
			names = append(names, full)
		}
		if (user == "" || user == name) && (realm == "" || strings.EqualFold(realm, s.realm)) {
			k.client, k.realm, k.keys = types.NewPrincipalName(nametype.KRB_NT_PRINCIPAL, name), s.realm, keys
			return nil
		}
	}
	who := user
	if realm != "" {
		who += "@" + realm
	}
	return kerberosErrorf("the keytab %s has no keys of %s; it has keys of %s", path, who, strings.Join(names, ", "))
}

// SPN returns the principal name of the file server on a host, cifs/host. Kerberos knows servers by name: an address, and an empty host, are errors.
func SPN(host string) (string, error) {
	host = strings.TrimSuffix(host, ".")
	if host == "" || net.ParseIP(strings.Trim(host, "[]")) != nil || strings.ContainsAny(host, "/@:%") {
		return "", kerberosErrorf("Kerberos knows servers by name, and %q is none: put the server's full host name into the URL", host)
	}
	return "cifs/" + host, nil
}

// Mechanism returns Kerberos for one NewInitiator, with a ticket for the server spn, cifs/host. It asks the KDC unless there is a ticket already. Errors
// are *KerberosError where a sentence for users is possible.
func (k *Kerberos) Mechanism(ctx context.Context, spn string) (MechInitiator, error) {
	t, err := k.ticket(ctx, spn)
	if err != nil {
		return nil, err
	}
	return &krb5Initiator{t: t, now: k.now}, nil
}

// String names the user.
func (k *Kerberos) String() string {
	switch {
	case k.realm != "":
		return k.client.PrincipalNameString() + "@" + k.realm
	case k.wanted != "":
		return k.wanted
	}
	return "the user of " + k.ccache
}

// GoString keeps secrets out of %#v.
func (k *Kerberos) GoString() string { return fmt.Sprintf("auth.Kerberos{%q}", k.String()) }

// ticket returns a ticket that lasts for a while. While one caller asks the KDC the others wait.
func (k *Kerberos) ticket(ctx context.Context, spn string) (*serviceTicket, error) {
	select {
	case k.turn <- struct{}{}:
		defer func() { <-k.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	least := k.now().Add(ticketMargin)
	if t := k.tickets[spn]; t != nil && t.end.After(least) {
		return t, nil
	}
	var err error
	var t *serviceTicket
	if k.ccache != "" {
		t, err = k.fromCCache(ctx, spn, least)
	} else {
		if k.tgt == nil || k.tgt.end.Before(least) {
			if k.tgt, err = k.logon(ctx); err != nil {
				return nil, err
			}
		}
		t, err = k.ticketFor(ctx, k.tgt, spn)
	}
	if err != nil {
		return nil, err
	}
	k.tickets[spn] = t
	return t, nil
}

// fromCCache reads the tickets of kinit, each time anew, as somebody may renew them meanwhile.
func (k *Kerberos) fromCCache(ctx context.Context, spn string, least time.Time) (*serviceTicket, error) {
	c, err := readCCache(ctx, k.ccache, k.kcmSocket)
	if err != nil {
		return nil, err
	}
	name := c.client.PrincipalNameString()
	if k.wanted != "" && k.wanted != name && !strings.EqualFold(k.wanted, name+"@"+c.realm) {
		return nil, kerberosErrorf("the tickets in %s are of %s@%s, not of %s: run kinit %s, or leave the user out", k.ccache, name, c.realm, k.wanted, k.wanted)
	}
	if ct := c.find(strings.Split(spn, "/"), "", k.rc4); ct != nil && ct.end.After(least) && !ct.start.After(k.now().Add(krb5Skew)) {
		var t messages.Ticket
		if safely("ticket", func() error { return t.Unmarshal(ct.ticket) }) == nil && len(t.SName.NameString) > 0 {
			return &serviceTicket{ticket: t, key: ct.key, client: c.client, realm: c.realm, spn: spn, end: ct.end}, nil
		}
	}
	g := c.find([]string{"krbtgt", c.realm}, c.realm, k.rc4)
	if g == nil {
		return nil, kerberosErrorf("%s has no ticket of %s@%s that can be used: run kinit", k.ccache, name, c.realm)
	}
	if !g.end.After(k.now()) {
		return nil, kerberosErrorf("the tickets of %s@%s have expired (%s): run kinit", name, c.realm, g.end.Format(time.DateTime))
	}
	var t messages.Ticket
	if safely("ticket", func() error { return t.Unmarshal(g.ticket) }) != nil || len(t.SName.NameString) == 0 {
		return nil, kerberosErrorf("%s is damaged: run kinit", k.ccache)
	}
	return k.ticketFor(ctx, &tgt{ticket: t, key: g.key, client: c.client, crealm: c.realm, realm: c.realm, end: g.end}, spn)
}
