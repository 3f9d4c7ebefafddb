package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// certificate signs a template, with its own key where parent is nil.
func certificate(template, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if parent == nil {
		parent, signer = template, key
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, nil, err
	}
	template.SerialNumber = serial
	template.NotBefore = time.Now().Add(-time.Minute)
	template.NotAfter = time.Now().Add(time.Hour)
	template.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		return nil, nil, err
	}
	parsed, err := x509.ParseCertificate(der)
	return parsed, key, err
}

func authority(td spiffeid.TrustDomain) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	return certificate(&x509.Certificate{
		Subject:  pkix.Name{CommonName: "authority"},
		URIs:     []*url.URL{td.ID().URL()},
		IsCA:     true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, nil, nil)
}

func webCertificate() (*x509.Certificate, *ecdsa.PrivateKey, error) {
	return certificate(&x509.Certificate{
		Subject:     pkix.Name{CommonName: "localhost"},
		DNSNames:    []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, nil, nil)
}

func writeCertificate(path string, cert *x509.Certificate) error {
	block := &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}
	return os.WriteFile(path, pem.EncodeToMemory(block), 0o600)
}

// bundleCertificate writes cert.pem and key.pem for localhost.
func bundleCertificate(args []string) error {
	flags := flag.NewFlagSet("bundle-certificate", flag.ExitOnError)
	dir := flags.String("dir", "", "where to write")
	_ = flags.Parse(args)
	cert, key, err := webCertificate()
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	block := &pem.Block{Type: "PRIVATE KEY", Bytes: der}
	if err := os.WriteFile(filepath.Join(*dir, "key.pem"), pem.EncodeToMemory(block), 0o600); err != nil {
		return err
	}
	return writeCertificate(filepath.Join(*dir, "cert.pem"), cert)
}

// bundleFetch reads a bundle endpoint once, and prints what it holds.
func bundleFetch(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bundle-fetch", flag.ExitOnError)
	name := flags.String("trust-domain", "", "whose bundle")
	at := flags.String("url", "", "the endpoint")
	roots := flags.String("roots", "", "PEM with what the endpoint is verified with")
	id := flags.String("id", "", "the endpoint's SPIFFE ID; the Web PKI when empty")
	_ = flags.Parse(args)
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	td, err := spiffeid.TrustDomainFromString(*name)
	if err != nil {
		return err
	}
	var option federation.FetchOption
	if *id == "" {
		text, err := os.ReadFile(*roots)
		if err != nil {
			return err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(text) {
			return errors.New("no roots")
		}
		option = federation.WithWebPKIRoots(pool)
	} else {
		endpoint, err := spiffeid.FromString(*id)
		if err != nil {
			return err
		}
		bundle, err := x509bundle.Load(endpoint.TrustDomain(), *roots)
		if err != nil {
			return err
		}
		option = federation.WithSPIFFEAuth(bundle, endpoint)
	}
	bundle, err := federation.FetchBundle(ctx, td, *at, option)
	if err != nil {
		return err
	}
	hint, _ := bundle.RefreshHint()
	sequence, ok := bundle.SequenceNumber()
	if !ok {
		return errors.New("no sequence number")
	}
	fmt.Printf("x509=%d jwt=%d hint=%s sequence=%d\n",
		len(bundle.X509Authorities()), len(bundle.JWTAuthorities()), hint, sequence)
	return nil
}

// bundleServe serves the bundle of a trust domain with the library's handler.
// It writes bundle.pem (the authorities) and web.pem (the web certificate),
// and adds an authority for each line that it reads.
func bundleServe(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bundle-serve", flag.ExitOnError)
	name := flags.String("trust-domain", "", "whose bundle")
	web := flags.Bool("web", false, "present a web certificate instead of an X509-SVID")
	dir := flags.String("dir", "", "where to write")
	_ = flags.Parse(args)
	td, err := spiffeid.TrustDomainFromString(*name)
	if err != nil {
		return err
	}
	root, signer, err := authority(td)
	if err != nil {
		return err
	}
	bundle := spiffebundle.New(td)
	bundle.AddX509Authority(root)
	bundle.SetRefreshHint(5 * time.Minute)
	bundle.SetSequenceNumber(1)
	handler, err := federation.NewHandler(td, bundle)
	if err != nil {
		return err
	}
	var leaf *x509.Certificate
	var key *ecdsa.PrivateKey
	if *web {
		leaf, key, err = webCertificate()
	} else {
		leaf, key, err = certificate(&x509.Certificate{
			URIs:     []*url.URL{spiffeid.RequireFromPath(td, "/endpoint").URL()},
			KeyUsage: x509.KeyUsageDigitalSignature,
		}, root, signer)
	}
	if err != nil {
		return err
	}
	if err := writeCertificate(filepath.Join(*dir, "bundle.pem"), root); err != nil {
		return err
	}
	if err := writeCertificate(filepath.Join(*dir, "web.pem"), leaf); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		TLSConfig: &tls.Config{
			MinVersion:   tls.VersionTLS12,
			Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}},
		},
	}
	go func() { <-ctx.Done(); server.Close() }()
	go func() {
		lines := bufio.NewScanner(os.Stdin)
		for number := uint64(2); lines.Scan(); number++ {
			more, _, err := authority(td)
			if err != nil {
				fmt.Println("FAIL", err)
				os.Exit(1)
			}
			bundle.AddX509Authority(more)
			bundle.SetSequenceNumber(number)
		}
	}()
	fmt.Println("listening", listener.Addr().(*net.TCPAddr).Port)
	if err := server.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
