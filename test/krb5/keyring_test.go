package krb5

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vdbridge/bridge"
)

// TestKeyring logs on with tickets that MIT's kinit has put into the kernel's keyrings.
func TestKeyring(t *testing.T) {
	if _, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false); err != nil {
		if os.Getenv("VDBRIDGE_REQUIRE_TOOLS") == "1" {
			t.Fatalf("the kernel has no keyrings here: %v", err)
		}
		t.Skipf("SKIPPED, as the kernel has no keyrings here: %v", err)
	}
	k := Start(t, Options{})
	k.User(t, "alice", password)
	k.User(t, "bob", password)
	keytab := k.Service(t, "cifs/localhost")
	url := "//" + serve(t, bridge.ServeOptions{Keytab: keytab, NoNTLM: true}) + "/disks"
	unique := fmt.Sprintf("vdbridge%d", os.Getpid())
	on := bridge.KerberosOptions{On: true}
	for _, name := range []string{"KEYRING:" + unique, "KEYRING:session:" + unique, "KEYRING:user:" + unique, fmt.Sprintf("KEYRING:persistent:%d:%s", os.Getuid(), unique)} {
		k.Kinit(t, "alice", password, name)
		t.Cleanup(func() { _ = k.run("", "kdestroy", "-A", "-c", name) })
		user, err := logon(t, url, bridge.Options{Kerberos: on, Credentials: bridge.CredentialSource{Getenv: env(k, map[string]string{"KRB5CCNAME": name})}})
		if err != nil || user != `VDB.TEST\alice` {
			t.Errorf("%s: logged on as %q, %v", name, user, err)
		}
		_, err = logon(t, url, bridge.Options{Kerberos: on, Credentials: bridge.CredentialSource{User: "bob", Getenv: env(k, map[string]string{"KRB5CCNAME": name})}})
		if err == nil || !strings.Contains(err.Error(), "not of bob") {
			t.Errorf("%s: another user: %v", name, err)
		}
	}
	for _, name := range []string{"KEYRING:session:" + unique + "none", "KEYRING:nowhere:x", "KEYRING:persistent:x"} {
		_, err := logon(t, url, bridge.Options{Kerberos: on, Credentials: bridge.CredentialSource{Getenv: env(k, map[string]string{"KRB5CCNAME": name})}})
		if err == nil || !strings.Contains(err.Error(), "run kinit") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
