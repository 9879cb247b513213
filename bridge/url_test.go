package bridge

import (
	"errors"
	"strings"
	"testing"
)

func TestParseLocation(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Location
	}{
		{"smb://me@srv/disks/a.vhdx", Location{User: "me", Host: "srv", Port: 445, Share: "disks", Path: "a.vhdx"}},
		{"SMB://srv/disks/dir/a.vhdx", Location{Host: "srv", Port: 445, Share: "disks", Path: `dir\a.vhdx`}},
		{"smb://CORP;me@srv:4450/disks/a.vhdx", Location{Domain: "CORP", User: "me", Host: "srv", Port: 4450, Share: "disks", Path: "a.vhdx"}},
		{"smb://me%40corp.example@srv/d%20s/a%25.vhdx", Location{User: "me@corp.example", Host: "srv", Port: 445, Share: "d s", Path: "a%.vhdx"}},
		{"smb://me@[fe80::1%25eth0]:4450/d/a", Location{User: "me", Host: "fe80::1%eth0", Port: 4450, Share: "d", Path: "a"}},
		{"smb://[::1]/d/a", Location{Host: "::1", Port: 445, Share: "d", Path: "a"}},
		{"smb://srv", Location{Host: "srv", Port: 445}},
		{"smb://srv/", Location{Host: "srv", Port: 445}},
		{"smb://srv/d//x/./a", Location{Host: "srv", Port: 445, Share: "d", Path: `x\a`}},
		{"//srv/disks/dir/a.vhdx", Location{Host: "srv", Port: 445, Share: "disks", Path: `dir\a.vhdx`}},
		{`\\srv\disks\dir\a.vhdx`, Location{Host: "srv", Port: 445, Share: "disks", Path: `dir\a.vhdx`}},
		{`//srv:4450/disks`, Location{Host: "srv", Port: 4450, Share: "disks"}},
		{"a.vhdx", Location{Local: true, Path: "a.vhdx"}},
		{"/dir/a b.vhdx", Location{Local: true, Path: "/dir/a b.vhdx"}},
		{"./x://y", Location{Local: true, Path: "./x://y"}},
		{"file:///dir/a%20b.vhdx", Location{Local: true, Path: "/dir/a b.vhdx"}},
	} {
		got, err := ParseLocation(c.in)
		if err != nil || got != c.want {
			t.Errorf("%s:\n got %+v, %v\nwant %+v", c.in, got, err, c.want)
			continue
		}
		again, err := ParseLocation(got.String())
		if err != nil || again != got {
			t.Errorf("%s is printed as %s, which is %+v, %v", c.in, got, again, err)
		}
	}
}

func TestParseLocationRefuses(t *testing.T) {
	for in, word := range map[string]string{
		"":                                      "empty",
		"smb://me:secret@srv/d/a":               "password",
		"smb://d;me:secret@srv/d/a":             "password",
		"smb:///d/a":                            "host",
		"smb://srv:0/d":                         "port",
		"smb://srv:70000/d":                     "port",
		"smb://srv:x/d":                         "port",
		"smb://[::1/d":                          "bracket",
		"smb://fe80::1/d":                       "brackets",
		"smb://srv/d/%zz":                       "escape",
		"smb://srv/d/a%2Fb":                     "slash",
		"smb://srv/d/a:b":                       "colon",
		"smb://srv/d/a%00b":                     "control",
		"smb://srv/d/../a":                      "..",
		"ftp://srv/d":                           "scheme",
		"//me@srv/d":                            "user",
		"smb://srv/" + long(81):                 "80",
		"smb://srv/d/" + long(256):              "255",
		"smb://srv/d" + rep("/"+long(200), 200): "32760",
		"file://other/x":                        "file URL",
	} {
		_, err := ParseLocation(in)
		if !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), word) {
			t.Errorf("%.60s: %v, want a sentence with %q", in, err, word)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the password is in the message: %v", err)
		}
	}
}

func long(n int) string          { return strings.Repeat("x", n) }
func rep(s string, n int) string { return strings.Repeat(s, n) }

func FuzzParseLocation(f *testing.F) {
	for _, s := range []string{"smb://d;u@h:1/s/p", `\\h\s\p`, "//[::1]/s", "smb://u%41@h/s/%20", "file:///x", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseLocation(s)
		if err != nil {
			if !errors.Is(err, ErrUsage) {
				t.Fatalf("not a usage error: %v", err)
			}
			return
		}
		if l.Local {
			return
		}
		if strings.Contains(l.Path, "/") || strings.HasPrefix(l.Path, `\`) || strings.Contains(l.Path, `\\`) {
			t.Fatalf("path %q", l.Path)
		}
		again, err := ParseLocation(l.String())
		if err != nil || again != l {
			t.Fatalf("%+v is printed as %q, which is %+v, %v", l, l.String(), again, err)
		}
	})
}
