package redistest

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
	"strconv"
	"time"
)

// Authority is a certificate authority for one test.
type Authority struct {
	CertFile string // path of its certificate

	t      T
	dir    string
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	issued int64
}

// NewAuthority makes a certificate authority, whose files end with the test.
func NewAuthority(t T) *Authority {
	t.Helper()
	ca := &Authority{t: t, dir: t.TempDir()}
	ca.cert = &x509.Certificate{
		Subject:               pkix.Name{CommonName: "authority of a test"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	ca.CertFile, _ = ca.write(ca.cert)
	return ca
}

// Issue makes a certificate for servers called name, which may be an IP address, and for clients, and returns the paths of
// its file and of its key's.
func (ca *Authority) Issue(name string) (cert, key string) {
	ca.t.Helper()
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	return ca.write(template)
}

// client returns the configuration of a client that trusts ca, with a certificate of its own.
func (ca *Authority) client(cert, key string) *tls.Config {
	ca.t.Helper()
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		ca.t.Fatal(err)
	}
	data, err := os.ReadFile(ca.CertFile)
	if err != nil {
		ca.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(data)
	return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
}

// write signs template, by itself if it is the first, and writes it and its key into files.
func (ca *Authority) write(template *x509.Certificate) (certFile, keyFile string) {
	ca.t.Helper()
	ca.issued++
	template.SerialNumber = big.NewInt(ca.issued)
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = time.Now().Add(time.Hour)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		ca.t.Fatal(err)
	}
	if ca.key == nil {
		ca.key = key
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		ca.t.Fatal(err)
	}
	base := filepath.Join(ca.dir, strconv.FormatInt(ca.issued, 10))
	for name, block := range map[string]*pem.Block{
		base + ".crt": {Type: "CERTIFICATE", Bytes: cert},
		base + ".key": {Type: "EC PRIVATE KEY", Bytes: private},
	} {
		err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600)
		if err != nil {
			ca.t.Fatal(err)
		}
	}
	return base + ".crt", base + ".key"
}
