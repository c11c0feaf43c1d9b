// Package keys makes and loads the certificates by which two hosts trust each other: one small CA, and one host
// certificate with all names and addresses. Mutual TLS 1.3 is the only way lazymig speaks.
//
// # Trust boundary
//
// Whoever holds a key signed by this CA may move processes to an agent and take pages and files of a migration
// that is its own. The CA's key is needed only to make host certificates; it need not be on the hosts.
//
// Files in a directory (a --tls-dir): ca.pem, ca-key.pem (CA), host.pem, host-key.pem. Keys are mode 0600. They are read
// again at each handshake, so that a renewed certificate needs no restart. A migration that has begun goes on with certificates that end in the middle (Since).
package keys

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Names of the files.
const (
	caCert   = "ca.pem"
	caKey    = "ca-key.pem"
	hostCert = "host.pem"
	hostKey  = "host-key.pem"
)

const (
	caLife   = 10 * 365 * 24 * time.Hour
	hostLife = 2 * 365 * 24 * time.Hour
	skew     = 24 * time.Hour // hosts' clocks differ
)

// Init makes a CA in dir. One that is there is left as it is, with an error.
func Init(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make key directory: %w", err)
	}
	if _, err := os.Stat(filepath.Join(dir, caCert)); err == nil {
		return fmt.Errorf("make CA in %s: %w: a CA is there already; take another directory or remove it first", dir, fs.ErrExist)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make CA key: %w", err)
	}
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "lazymig CA"},
		NotBefore: time.Now().Add(-skew), NotAfter: time.Now().Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return fmt.Errorf("make CA certificate: %w", err)
	}
	return writePair(dir, caCert, caKey, der, key)
}

// Host makes a certificate for all names (DNS names or IP addresses), signed by dir's CA. It is good for two years.
func Host(dir string, names ...string) error {
	return HostUntil(dir, time.Now().Add(hostLife), names...)
}

// HostUntil is Host with the end of the certificate, to the second.
func HostUntil(dir string, end time.Time, names ...string) error {
	if len(names) == 0 {
		return errors.New("make host certificate: no name or address given")
	}
	ca, err := tls.LoadX509KeyPair(filepath.Join(dir, caCert), filepath.Join(dir, caKey))
	if err != nil {
		return fmt.Errorf("load CA from %s (made by `lazymig keys init %s`): %w", dir, dir, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make host key: %w", err)
	}
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: names[0]},
		NotBefore: time.Now().Add(-skew), NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca.Leaf, &key.PublicKey, ca.PrivateKey)
	if err != nil {
		return fmt.Errorf("make host certificate: %w", err)
	}
	return writePair(dir, hostCert, hostKey, der, key)
}

func serial() *big.Int {
	n, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)) // crypto/rand does not fail
	return n.Add(n, big.NewInt(1))
}

// writePair writes certificate and key, each whole or not at all.
func writePair(dir, cert, keyName string, der []byte, key *ecdsa.PrivateKey) error {
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode %s: %w", keyName, err)
	}
	for _, f := range []struct {
		name, kind string
		b          []byte
		mode       os.FileMode
	}{{keyName, "PRIVATE KEY", k, 0o600}, {cert, "CERTIFICATE", der, 0o644}} {
		tmp := filepath.Join(dir, "."+f.name+".new")
		if err := os.WriteFile(tmp, pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.b}), f.mode); err != nil {
			return fmt.Errorf("write %s: %w", f.name, err)
		}
		if err := os.Rename(tmp, filepath.Join(dir, f.name)); err != nil {
			return fmt.Errorf("write %s: %w", f.name, err)
		}
	}
	return nil
}

// Keys is a --tls-dir.
type Keys struct {
	dir   string
	since time.Time // zero: certificates have to be valid now
}

// Load looks whether dir has what a host needs.
func Load(dir string) (*Keys, error) {
	k := &Keys{dir: dir}
	if _, _, err := k.read(); err != nil {
		return nil, err
	}
	return k, nil
}

func (k *Keys) read() (*tls.Certificate, *x509.CertPool, error) {
	c, err := tls.LoadX509KeyPair(filepath.Join(k.dir, hostCert), filepath.Join(k.dir, hostKey))
	if err != nil {
		return nil, nil, fmt.Errorf("load keys from %s (made by `lazymig keys init` and `lazymig keys host`): %w", k.dir, err)
	}
	b, err := os.ReadFile(filepath.Join(k.dir, caCert))
	if err != nil {
		return nil, nil, fmt.Errorf("load CA from %s: %w", k.dir, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, nil, fmt.Errorf("load CA from %s: %s holds no certificate", k.dir, caCert)
	}
	return &c, pool, nil
}

func base(c *tls.Certificate, pool *x509.CertPool) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*c},
		RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		SessionTicketsDisabled: true, DynamicRecordSizingDisabled: true,
	}
}

// Server is the configuration of a listening side. With allow, only peers whose certificate has one of these names pass.
func (k *Keys) Server(allow ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			c, pool, err := k.read()
			if err != nil {
				return nil, err
			}
			cfg := base(c, pool)
			k.verify(cfg, pool, x509.ExtKeyUsageClientAuth, func(s tls.ConnectionState) error {
				if len(allow) == 0 {
					return nil
				}
				return allowed(s.PeerCertificates[0], allow)
			})
			return cfg, nil
		},
	}
}

// Client is the configuration of the dialing side, which wants to reach name.
func (k *Keys) Client(name string) (*tls.Config, error) {
	c, pool, err := k.read()
	if err != nil {
		return nil, err
	}
	cfg := base(c, pool)
	cfg.ServerName = name
	k.verify(cfg, pool, x509.ExtKeyUsageServerAuth, nil)
	return cfg, nil
}

// Names are those of a certificate.
func Names(c *x509.Certificate) []string {
	names := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}

func allowed(c *x509.Certificate, allow []string) error {
	for _, n := range Names(c) {
		if slices.Contains(allow, n) {
			return nil
		}
	}
	return fmt.Errorf("certificate of %v is not among those allowed (--allow)", Names(c))
}
