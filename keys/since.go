package keys

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"time"
)

// Since is k for the connections of what began at t: a peer whose certificate was valid then is good for it, though that has ended meanwhile. A tree that has moved
// needs its source until all has come, and there is no way back; who connects shows the migration's token besides. All else is asked of a certificate as ever.
func (k *Keys) Since(t time.Time) *Keys { return &Keys{dir: k.dir, since: t} }

// verify lets cfg look at the peer's certificate as of now and, if it has ended, as of k.since, and then asks more.
func (k *Keys) verify(cfg *tls.Config, pool *x509.CertPool, usage x509.ExtKeyUsage, more func(tls.ConnectionState) error) {
	cfg.VerifyConnection = more
	if k.since.IsZero() {
		return
	}
	name := cfg.ServerName
	cfg.ClientAuth = tls.RequireAnyClientCert
	cfg.InsecureSkipVerify = true // VerifyConnection does it, with a time that depends on the certificate
	cfg.VerifyConnection = func(s tls.ConnectionState) error {
		if err := valid(s.PeerCertificates, pool, name, usage, k.since); err != nil {
			return &tls.CertificateVerificationError{UnverifiedCertificates: s.PeerCertificates, Err: err}
		}
		if more == nil {
			return nil
		}
		return more(s)
	}
}

// valid does what crypto/tls does with a peer's certificates. An empty name: any.
func valid(certs []*x509.Certificate, pool *x509.CertPool, name string, usage x509.ExtKeyUsage, since time.Time) error {
	if len(certs) == 0 {
		return errors.New("peer has shown no certificate")
	}
	o := x509.VerifyOptions{Roots: pool, DNSName: name, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{usage}}
	for _, c := range certs[1:] {
		o.Intermediates.AddCert(c)
	}
	_, err := certs[0].Verify(o)
	if ended(err) {
		o.CurrentTime = since
		if _, then := certs[0].Verify(o); !ended(then) {
			return then
		}
	}
	return err
}

// ended says whether it is only the time that is wrong.
func ended(err error) bool {
	var e x509.CertificateInvalidError
	return errors.As(err, &e) && e.Reason == x509.Expired
}
