package bridge

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"vdbridge/nbd/tlspsk"
)

// NBDTLS says how NBD clients may, or must, encrypt. The zero value is: they cannot.
type NBDTLS struct {
	config  *tls.Config
	keys    tlspsk.Keys
	require bool
}

// Required says whether nothing is told to a client that does not begin with STARTTLS.
func (t NBDTLS) Required() bool { return t.require }

// LoadNBDTLS reads the certificates in dir: server-cert.pem and server-key.pem, and with verifyPeer ca-cert.pem, which must have signed those
// of the clients. They are the names that QEMU, libnbd and nbdkit use. Errors are *Error with a sentence for the user.
func LoadNBDTLS(dir string, verifyPeer, require bool) (NBDTLS, error) {
	c, err := loadTLS(dir, verifyPeer)
	// Whoever does not encrypt shows no certificate either.
	return NBDTLS{config: c, require: require || verifyPeer}, err
}

// LoadNBDKeys reads pre-shared keys from the file at path, lines of NAME:KEY in hexadecimal digits. Clients that know one are admitted and all
// others are not, so clients must encrypt.
func LoadNBDKeys(path string) (NBDTLS, error) {
	keys, err := tlspsk.LoadKeys(path)
	if err != nil {
		return NBDTLS{}, &Error{Classify(err), fmt.Sprintf("cannot use the pre-shared keys: %v", err), err}
	}
	return NBDTLS{keys: keys, require: true}, nil
}

func loadTLS(dir string, verifyPeer bool) (*tls.Config, error) {
	file := func(name string) string { return filepath.Join(dir, name) }
	cert, err := tls.LoadX509KeyPair(file("server-cert.pem"), file("server-key.pem"))
	if err != nil {
		return nil, certificateError(dir, err)
	}
	c := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	if verifyPeer {
		pem, err := os.ReadFile(file("ca-cert.pem"))
		if err != nil {
			return nil, certificateError(dir, err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, &Error{ClassOther, fmt.Sprintf("%s has no certificate in PEM form", file("ca-cert.pem")), errors.New("no certificate")}
		}
		// Not ClientCAs: a server that names its authorities gets no certificate from GnuTLS, at least by TLS 1.3.
		c.ClientAuth = tls.RequireAnyClientCert
		c.VerifyConnection = func(s tls.ConnectionState) error { return verifyClient(s.PeerCertificates, roots) }
	}
	return c, nil
}

// verifyClient checks the chain that a client has shown.
func verifyClient(chain []*x509.Certificate, roots *x509.CertPool) error {
	o := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, c := range chain[1:] { // there is a first one, as the handshake requires it
		o.Intermediates.AddCert(c)
	}
	if _, err := chain[0].Verify(o); err != nil {
		return fmt.Errorf("the client's certificate: %w", err)
	}
	return nil
}

func certificateError(dir string, err error) error {
	class, hint := ClassOther, ""
	switch {
	case errors.Is(err, fs.ErrNotExist):
		class, hint = ClassNotFound, "; the directory must have server-cert.pem and server-key.pem, and ca-cert.pem to verify clients"
	case errors.Is(err, fs.ErrPermission):
		class = ClassPermission
	}
	return &Error{class, fmt.Sprintf("cannot use the certificates in %s: %v%s", dir, err, hint), err}
}
