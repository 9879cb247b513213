package bridge

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// issue makes a certificate for localhost, signed by a, or by itself if a is nil.
func (a *authority) issue(t *testing.T, use x509.ExtKeyUsage) (tls.Certificate, *authority) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{use}}
	parent, signer := tmpl, key
	if a == nil {
		tmpl.IsCA, tmpl.ExtKeyUsage, tmpl.KeyUsage = true, nil, x509.KeyUsageCertSign
	} else {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, &authority{cert, key}
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A client that shows whatever certificate it has, as GnuTLS does not, is admitted only with one of our authority.
func TestNBDTLSVerifiesClients(t *testing.T) {
	_, ours := (*authority)(nil).issue(t, 0)
	_, theirs := (*authority)(nil).issue(t, 0)
	server, _ := ours.issue(t, x509.ExtKeyUsageServerAuth)
	friend, _ := ours.issue(t, x509.ExtKeyUsageClientAuth)
	stranger, _ := theirs.issue(t, x509.ExtKeyUsageClientAuth)
	dir := t.TempDir()
	key, err := x509.MarshalPKCS8PrivateKey(server.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(dir, "server-cert.pem"), "CERTIFICATE", server.Certificate[0])
	writePEM(t, filepath.Join(dir, "server-key.pem"), "PRIVATE KEY", key)
	writePEM(t, filepath.Join(dir, "ca-cert.pem"), "CERTIFICATE", ours.cert.Raw)
	o, err := LoadNBDTLS(dir, true, false)
	if err != nil {
		t.Fatal(err)
	}
	if !o.Required() {
		t.Error("clients that do not encrypt are admitted, although they show no certificate")
	}
	roots := x509.NewCertPool()
	roots.AddCert(ours.cert)
	for _, c := range []struct {
		name  string
		cert  *tls.Certificate
		admit bool
	}{{"friend", &friend, true}, {"stranger", &stranger, false}, {"nobody", &tls.Certificate{}, false}} {
		a, b := net.Pipe()
		done := make(chan error, 1)
		go func() {
			defer b.Close()
			done <- tls.Server(b, o.config).Handshake()
		}()
		client := tls.Client(a, &tls.Config{RootCAs: roots, ServerName: "localhost",
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.cert, nil }})
		go func() {
			if client.Handshake() == nil {
				_, _ = client.Read(make([]byte, 1)) // takes the alert
			}
		}()
		if err := <-done; (err == nil) != c.admit {
			t.Errorf("%s: %v", c.name, err)
		}
		a.Close()
	}
}
