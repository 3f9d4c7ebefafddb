// Command interop drives a Workload API with go-spiffe, the library that most
// SPIFFE workloads in production use. It knows nothing of Bonafide: the socket
// comes from SPIFFE_ENDPOINT_SOCKET, the rest from flags.
//
// Each check prints "ok <name>"; the first failure prints "FAIL <name>: why"
// and ends the program with status 1.
package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/exp/bundle/witbundle"
	"github.com/spiffe/go-spiffe/v2/exp/svid/witsvid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: interop suite|watch|serve|dial|delegate|broker|registrar|bundle-certificate|bundle-fetch|bundle-serve [flags]")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	var err error
	switch os.Args[1] {
	case "suite":
		err = suite(ctx, os.Args[2:])
	case "watch":
		err = watch(ctx, os.Args[2:])
	case "serve":
		err = serve(ctx, os.Args[2:])
	case "dial":
		err = dial(ctx, os.Args[2:])
	case "delegate":
		err = delegate(ctx, os.Args[2:])
	case "broker":
		err = brokerClient(ctx, os.Args[2:])
	case "registrar":
		err = registrar(ctx, os.Args[2:])
	case "bundle-certificate":
		err = bundleCertificate(os.Args[2:])
	case "bundle-fetch":
		err = bundleFetch(ctx, os.Args[2:])
	case "bundle-serve":
		err = bundleServe(ctx, os.Args[2:])
	default:
		err = fmt.Errorf("no such mode: %s", os.Args[1])
	}
	if err != nil {
		fmt.Println("FAIL", err)
		os.Exit(1)
	}
	fmt.Println("PASS")
}

func check(name string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	fmt.Println("ok", name)
	return nil
}

// suite calls every method that the library has, once, and verifies each
// answer with the library's own verification code.
func suite(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("suite", flag.ExitOnError)
	expect := flags.String("expect", "", "SPIFFE ID that the workload must get")
	audience := flags.String("audience", "interop", "audience of the tokens")
	wit := flags.Bool("wit", true, "also call the WIT methods")
	write := flags.String("write", "", "folder for chain.pem, bundle.pem, token.jwt and jwks.json, for other verifiers")
	_ = flags.Parse(args)
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	id, err := spiffeid.FromString(*expect)
	if err != nil {
		return err
	}

	client, err := workloadapi.New(ctx)
	if err != nil {
		return check("connect", err)
	}
	defer client.Close()

	// An entry that was just made takes a moment to reach the agent.
	x509Context, err := client.FetchX509Context(ctx)
	for err != nil && status.Code(err) == codes.PermissionDenied && ctx.Err() == nil {
		time.Sleep(100 * time.Millisecond)
		x509Context, err = client.FetchX509Context(ctx)
	}
	if err == nil && x509Context.DefaultSVID().ID != id {
		err = fmt.Errorf("got %s", x509Context.DefaultSVID().ID)
	}
	if err := check("FetchX509Context", err); err != nil {
		return err
	}
	svid := x509Context.DefaultSVID()
	verified, _, err := x509svid.Verify(svid.Certificates, x509Context.Bundles)
	if err == nil && verified != id {
		err = fmt.Errorf("verified as %s", verified)
	}
	if err := check("x509svid.Verify", err); err != nil {
		return err
	}
	if err := check("leaf profile", leafProfile(svid.Certificates[0])); err != nil {
		return err
	}

	bundles, err := client.FetchX509Bundles(ctx)
	if err == nil {
		_, _, err = x509svid.Verify(svid.Certificates, bundles)
	}
	if err := check("FetchX509Bundles", err); err != nil {
		return err
	}

	token, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: *audience, ExtraAudiences: []string{"second"}})
	if err == nil && token.ID != id {
		err = fmt.Errorf("token for %s", token.ID)
	}
	if err := check("FetchJWTSVID", err); err != nil {
		return err
	}
	jwtBundles, err := client.FetchJWTBundles(ctx)
	if err == nil {
		_, err = jwtsvid.ParseAndValidate(token.Marshal(), jwtBundles, []string{"second"})
	}
	if err := check("FetchJWTBundles and local validation", err); err != nil {
		return err
	}
	validated, err := client.ValidateJWTSVID(ctx, token.Marshal(), *audience)
	if err == nil && validated.ID != id {
		err = fmt.Errorf("validated as %s", validated.ID)
	}
	if err := check("ValidateJWTSVID", err); err != nil {
		return err
	}
	if _, err = client.ValidateJWTSVID(ctx, token.Marshal(), "somebody-else"); err == nil {
		return errors.New("ValidateJWTSVID accepted a token for another audience")
	}
	fmt.Println("ok ValidateJWTSVID refuses another audience")

	source, err := workloadapi.NewX509Source(ctx)
	if err == nil {
		_, err = source.GetX509SVID()
		source.Close()
	}
	if err := check("X509Source", err); err != nil {
		return err
	}
	jwtSource, err := workloadapi.NewJWTSource(ctx)
	if err == nil {
		_, err = jwtSource.FetchJWTSVID(ctx, jwtsvid.Params{Audience: *audience, Subject: id})
		jwtSource.Close()
	}
	if err := check("JWTSource", err); err != nil {
		return err
	}

	if *wit {
		witSVID, err := client.FetchWITSVID(ctx, "")
		if err == nil && witSVID.ID != id {
			err = fmt.Errorf("WIT for %s", witSVID.ID)
		}
		if err := check("FetchWITSVID", err); err != nil {
			return err
		}
		var witBundles *witbundle.Set
		witBundles, err = client.FetchWITBundles(ctx)
		if err == nil {
			_, err = witsvid.ParseAndValidate(witSVID.Marshal(), witBundles)
		}
		if err := check("FetchWITBundles and local validation", err); err != nil {
			return err
		}
	}

	if *write != "" {
		if err := writeFor(*write, id, svid, bundlesPEM(x509Context, id), token.Marshal(), jwtBundles); err != nil {
			return check("write", err)
		}
	}
	return nil
}

func bundlesPEM(x509Context *workloadapi.X509Context, id spiffeid.ID) []byte {
	bundle, ok := x509Context.Bundles.Get(id.TrustDomain())
	if !ok {
		return nil
	}
	pem, _ := bundle.Marshal()
	return pem
}

func writeFor(dir string, id spiffeid.ID, svid *x509svid.SVID, bundle []byte, token string, jwt *jwtbundle.Set) error {
	chain, key, err := svid.Marshal()
	if err != nil {
		return err
	}
	jwtBundle, ok := jwt.Get(id.TrustDomain())
	if !ok {
		return errors.New("no JWT bundle for the own trust domain")
	}
	jwks, err := jwtBundle.Marshal()
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"chain.pem": chain, "key.pem": key, "bundle.pem": bundle, "token.jwt": []byte(token), "jwks.json": jwks,
	} {
		if err := os.WriteFile(dir+"/"+name, content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// leafProfile holds what the X.509-SVID standard asks of a leaf.
func leafProfile(leaf *x509.Certificate) error {
	switch {
	case len(leaf.URIs) != 1:
		return fmt.Errorf("%d URI SANs", len(leaf.URIs))
	case leaf.IsCA || !leaf.BasicConstraintsValid:
		return errors.New("basic constraints")
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return errors.New("digitalSignature is missing")
	case leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return errors.New("may sign certificates")
	case len(leaf.SubjectKeyId) == 0 || len(leaf.AuthorityKeyId) == 0:
		return errors.New("key identifiers are missing")
	}
	return nil
}

// watcher counts what arrives on one stream, and each interruption of it.
type watcher struct {
	mu      sync.Mutex
	serials map[string]bool
	kids    map[string]bool
	roots   map[string]bool
	broken  []error
	changed chan struct{}
}

func (w *watcher) note(f func()) {
	w.mu.Lock()
	f()
	w.mu.Unlock()
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

func (w *watcher) OnX509ContextUpdate(c *workloadapi.X509Context) {
	w.note(func() {
		for _, svid := range c.SVIDs {
			w.serials[svid.Certificates[0].SerialNumber.String()] = true
		}
		for _, bundle := range c.Bundles.Bundles() {
			for _, root := range bundle.X509Authorities() {
				w.roots[string(root.Raw)] = true
			}
		}
	})
}
func (w *watcher) OnX509ContextWatchError(err error) {
	w.note(func() { w.broken = append(w.broken, err) })
}
func (w *watcher) OnJWTBundlesUpdate(set *jwtbundle.Set) {
	w.note(func() {
		for _, bundle := range set.Bundles() {
			for kid := range bundle.JWTAuthorities() {
				w.kids[kid] = true
			}
		}
	})
}
func (w *watcher) OnJWTBundlesWatchError(err error) {
	w.note(func() { w.broken = append(w.broken, err) })
}

// watch stays on its streams until it has seen the asked numbers of distinct
// SVIDs, roots and JWT keys. An interruption of a stream is a failure.
func watch(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("watch", flag.ExitOnError)
	serials := flags.Int("serials", 3, "distinct X.509-SVIDs to see")
	roots := flags.Int("roots", 1, "distinct X.509 authorities to see")
	kids := flags.Int("kids", 1, "distinct JWT keys to see")
	timeout := flags.Duration("timeout", time.Minute, "give up after this long")
	_ = flags.Parse(args)
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	client, err := workloadapi.New(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	w := &watcher{serials: map[string]bool{}, kids: map[string]bool{}, roots: map[string]bool{}, changed: make(chan struct{}, 1)}
	go func() { _ = client.WatchX509Context(ctx, w) }()
	go func() { _ = client.WatchJWTBundles(ctx, w) }()
	for {
		w.mu.Lock()
		seen := fmt.Sprintf("%d serials, %d roots, %d JWT keys, %d interruptions %v", len(w.serials), len(w.roots), len(w.kids), len(w.broken), w.broken)
		done := len(w.serials) >= *serials && len(w.roots) >= *roots && len(w.kids) >= *kids
		broken := len(w.broken) > 0
		w.mu.Unlock()
		if broken {
			return errors.New("a stream was interrupted: " + seen)
		}
		if done {
			fmt.Println("ok watch:", seen)
			return nil
		}
		select {
		case <-w.changed:
		case <-ctx.Done():
			return errors.New("gave up after " + seen)
		}
	}
}

// serve accepts mutual TLS and echoes one line per connection.
func serve(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	address := flags.String("address", "127.0.0.1:0", "where to listen")
	peer := flags.String("peer", "", "the only SPIFFE ID that may connect")
	_ = flags.Parse(args)
	id, err := spiffeid.FromString(*peer)
	if err != nil {
		return err
	}
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	listener, err := spiffetls.ListenWithMode(ctx, "tcp", *address, spiffetls.MTLSServerWithSource(tlsconfig.AuthorizeID(id), source))
	if err != nil {
		return err
	}
	go func() { <-ctx.Done(); listener.Close() }()
	fmt.Println("listening", listener.Addr())
	for {
		conn, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		go func() {
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			_, _ = io.Copy(conn, io.LimitReader(conn, 5))
		}()
	}
}

// dial makes a new mutual-TLS handshake every period and reports how many
// succeeded, how many failed, and how many different peer certificates it saw.
func dial(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("dial", flag.ExitOnError)
	address := flags.String("address", "", "where to connect")
	peer := flags.String("peer", "", "the SPIFFE ID that the server must have")
	period := flags.Duration("period", 50*time.Millisecond, "time between handshakes")
	length := flags.Duration("length", 10*time.Second, "how long to go on")
	_ = flags.Parse(args)
	id, err := spiffeid.FromString(*peer)
	if err != nil {
		return err
	}
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	var good, bad atomic.Int64
	own, theirs := map[string]bool{}, map[string]bool{}
	var firstError error
	deadline := time.Now().Add(*length)
	ticker := time.NewTicker(*period)
	defer ticker.Stop()
	for time.Now().Before(deadline) && ctx.Err() == nil {
		if svid, err := source.GetX509SVID(); err == nil {
			own[svid.Certificates[0].SerialNumber.String()] = true
		}
		serial, err := handshake(ctx, *address, id, source)
		if err != nil {
			bad.Add(1)
			if firstError == nil {
				firstError = fmt.Errorf("at %s: %w", time.Now().Format(time.RFC3339Nano), err)
			}
		} else {
			good.Add(1)
			theirs[serial] = true
		}
		<-ticker.C
	}
	report, _ := json.Marshal(map[string]any{"handshakes": good.Load(), "failed": bad.Load(), "own_svids": len(own), "peer_svids": len(theirs)})
	fmt.Println(string(report))
	if firstError != nil {
		return firstError
	}
	return nil
}

func handshake(ctx context.Context, address string, id spiffeid.ID, source *workloadapi.X509Source) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var leaf *x509.Certificate
	authorizer := func(actual spiffeid.ID, chains [][]*x509.Certificate) error {
		leaf = chains[0][0]
		return tlsconfig.AuthorizeID(id)(actual, chains)
	}
	conn, err := spiffetls.DialWithMode(ctx, "tcp", address, spiffetls.MTLSClientWithSource(authorizer, source),
		spiffetls.WithDialer(&net.Dialer{Timeout: 5 * time.Second}))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	// Under TLS 1.3 the client learns that its certificate was refused only by reading.
	if _, err := conn.Write([]byte("hello")); err != nil {
		return "", err
	}
	reply := make([]byte, 5)
	if _, err := io.ReadFull(conn, reply); err != nil {
		return "", err
	}
	return leaf.SerialNumber.String(), nil
}
