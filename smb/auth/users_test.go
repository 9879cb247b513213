package auth

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestParseUsers(t *testing.T) {
	u, err := ParseUsers(strings.NewReader("\ufeff# people\n\nalice:secret\r\n Bob :with:colon and blank \n" +
		"hashed:$NT$878D8014606CDA29677A44EFA1353FC7\nDOM\\carol:secret\ndave@corp.example:secret\n"))
	if err != nil {
		t.Fatal(err)
	}
	if u.Len() != 5 {
		t.Errorf("%d users", u.Len())
	}
	for _, v := range []struct {
		user, domain, password string
	}{
		{"alice", "", "secret"}, {"ALICE", "any", "secret"}, {"alice@any.example", "", "secret"}, {"bob", "", "with:colon and blank "},
		{"hashed", "", "secret"}, {"carol", "dom", "secret"}, {"carol@DOM", "", "secret"}, {"dave@corp.example", "", "secret"},
		{"carol", "", ""}, {"carol", "other", ""}, {`dom\carol`, "", ""}, {"", "", ""}, {"alic", "", ""}, {"dave", "", ""},
	} {
		h, ok := u.Lookup(v.user, v.domain)
		if ok != (v.password != "") || ok && h != NTHash(v.password) {
			t.Errorf("%s of %q: %v", v.user, v.domain, ok)
		}
	}
	for _, s := range []string{fmt.Sprintf("%v %+v %#v", u, u, u)} {
		if strings.Contains(s, "135 141") || strings.Contains(s, "878d") {
			t.Errorf("hashes show: %s", s)
		}
	}
}

func TestParseUsersErrors(t *testing.T) {
	for text, want := range map[string]string{
		"alice:pa55\nnobody\n":         "line 2",
		"#\n:pa55\n":                   "line 2",
		"alice:pa55\nAlice:pa55word\n": "twice",
		"alice:\n":                     "no password",
		"alice:$NT$pa55\n":             "32 hexadecimal",
		"alice:$NT$878D8014606CDA29677A44EFA1353FC7pa55\n":    "32 hexadecimal",
		"alice:x\nbob:" + strings.Repeat("pa55", 2000) + "\n": "line 2",
	} {
		_, err := ParseUsers(strings.NewReader(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text[:min(len(text), 30)], err)
		} else if strings.Contains(err.Error(), "pa55") {
			t.Errorf("the password shows: %v", err)
		}
	}
}

func TestParseCredentials(t *testing.T) {
	for text, want := range map[string]Credentials{
		"username=alice\npassword=secret\ndomain=DOM\n":             {User: "alice", Password: "secret", Domain: "DOM"},
		"  user = DOM\\alice\r\npass=a=b #c \n\n# comment\n":        {User: "alice", Password: "a=b #c ", Domain: "DOM"},
		"domain=OTHER\nusername=DOM/alice\npassword2=old\n":         {User: "alice", Domain: "OTHER"},
		"username=alice@corp.example\npassword= lead\nworkgroup=\n": {User: "alice@corp.example", Password: " lead"},
	} {
		got, err := ParseCredentials(strings.NewReader(text))
		if err != nil || got.User != want.User || got.Password != want.Password || got.Domain != want.Domain {
			t.Errorf("%q: %#v %q, %v", text, got, got.Password, err)
		}
	}
	for text, want := range map[string]string{
		"password=pa55\n":                    "username",
		"username=alice\npasword=pa55\n":     "line 2",
		"username=alice\npassword pa55\n":    "line 2",
		"":                                   "username",
		strings.Repeat("x", 10000) + "=pa55": "line 1",
	} {
		_, err := ParseCredentials(strings.NewReader(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		} else if strings.Contains(err.Error(), "pa55") {
			t.Errorf("the password shows: %v", err)
		}
	}
}

func TestCredentialsStaySecret(t *testing.T) {
	c := Credentials{User: "alice", Domain: "DOM", Password: "pa55", NTHash: []byte("pa55pa55pa55pa55")}
	var b strings.Builder
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "c", c, "p", &c)
	fmt.Fprintf(&b, "%v %+v %#v %s %q %v %+v", c, c, c, c, c, &c, struct{ C Credentials }{c})
	if s := b.String(); strings.Contains(s, "pa55") || strings.Contains(s, "112 97") || strings.Contains(s, "7061") || !strings.Contains(s, `DOM\alice`) {
		t.Error(s)
	}
}

func TestSplit(t *testing.T) {
	for in, want := range map[string][2]string{`DOM\u`: {"DOM", "u"}, "DOM;u": {"DOM", "u"}, "u": {"", "u"}, "u@d": {"", "u@d"}, `\u`: {"", "u"}} {
		if d, u := SplitUser(in); d != want[0] || u != want[1] {
			t.Errorf("%q: %q, %q", in, d, u)
		}
	}
	if u, d := SplitUPN("a@b@c"); u != "a@b" || d != "c" {
		t.Errorf("%q, %q", u, d)
	}
}

func FuzzFiles(f *testing.F) {
	f.Add("alice:secret\n#\nbob:$NT$878D8014606CDA29677A44EFA1353FC7")
	f.Add("username=a\\b\npassword=\n")
	f.Fuzz(func(t *testing.T, s string) {
		if u, err := ParseUsers(strings.NewReader(s)); err == nil {
			u.Lookup(s, s)
		}
		if c, err := ParseCredentials(strings.NewReader(s)); err == nil && c.User == "" {
			t.Error("no user")
		}
	})
}
