package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCredentials(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	cifs := file("cifs", "# comment\nusername=file-user\npassword= with blanks = and more\ndomain=FILE\n")
	pw := file("pw", "first line \r\nsecond\n")
	env := func(m map[string]string) func(string) string { return func(k string) string { return m[k] } }
	none := func(context.Context, string) (string, error) { return "", errors.New("no terminal") }
	for _, c := range []struct {
		name, url string
		src       CredentialSource
		user, pw  string
	}{
		{"URL and password file", "smb://D;u@h/s", CredentialSource{PasswordFile: pw}, `D\u`, "first line "},
		{"credentials file", "smb://h/s", CredentialSource{CredentialsFile: cifs}, `FILE\file-user`, " with blanks = and more"},
		{"the URL's user stands", "smb://u@h/s", CredentialSource{CredentialsFile: cifs}, `FILE\u`, " with blanks = and more"},
		{"--user stands above all", "smb://D;u@h/s", CredentialSource{User: `E\v`, PasswordFile: pw}, `E\v`, "first line "},
		{"environment", "smb://u@h/s", CredentialSource{Getenv: env(map[string]string{PasswordEnv: "e"})}, "u", "e"},
		{"prompt", "smb://u@h/s", CredentialSource{Prompt: func(context.Context, string) (string, error) { return "p", nil }}, "u", "p"},
		{"$USER", "smb://h/s", CredentialSource{Getenv: env(map[string]string{PasswordEnv: "e", "USER": "me"})}, "me", "e"},
		{"anonymous", "smb://u@h/s", CredentialSource{Anonymous: true}, "anonymous", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.src.Getenv == nil {
				c.src.Getenv = env(nil)
			}
			if c.src.Prompt == nil {
				c.src.Prompt = none
			}
			loc, err := ParseLocation(c.url)
			if err != nil {
				t.Fatal(err)
			}
			got, err := c.src.Resolve(context.Background(), loc)
			if err != nil || got.String() != c.user || got.password != c.pw {
				t.Errorf("got %s %q, %v", got, got.password, err)
			}
		})
	}
	_, err := CredentialSource{Getenv: env(nil), Prompt: none}.Resolve(context.Background(), Location{User: "u", Host: "h"})
	if Classify(err) != ClassAuth || !strings.Contains(err.Error(), "--password-file") {
		t.Errorf("no password anywhere: %v", err)
	}
	for _, bad := range []CredentialSource{{CredentialsFile: filepath.Join(dir, "none")}, {PasswordFile: filepath.Join(dir, "none")}} {
		if _, err := bad.Resolve(context.Background(), Location{}); Classify(err) != ClassNotFound {
			t.Errorf("missing file: %v", err)
		}
	}
}

func TestCredentialsDoNotPrint(t *testing.T) {
	c := NewCredentials("D", "u", "topsecret")
	var b strings.Builder
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "c", c, "p", &c)
	for _, s := range []string{fmt.Sprint(c), fmt.Sprintf("%v %+v %#v %s", c, c, c, c), b.String()} {
		if strings.Contains(s, "topsecret") {
			t.Errorf("printed: %s", s)
		}
	}
}
