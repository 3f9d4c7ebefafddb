package main

import (
	"context"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/debug/v1"
	delegatedv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/logger/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

// subject says who is meant, and what it must get.
type subject struct {
	pid       int
	selectors []*types.Selector
	ids       []string
}

func subjectFlags(flags *flag.FlagSet) func() (subject, error) {
	pid := flags.Int("pid", 0, "the process that is meant")
	selectors := flags.String("selectors", "", "its selectors, with commas between them")
	ids := flags.String("expect", "", "the SPIFFE IDs that it must get, with commas between them, in their order")
	return func() (subject, error) {
		found := subject{pid: *pid, ids: strings.Split(*ids, ",")}
		for _, text := range strings.Split(*selectors, ",") {
			kind, value, ok := strings.Cut(text, ":")
			if !ok {
				return subject{}, fmt.Errorf("not a selector: %q", text)
			}
			found.selectors = append(found.selectors, &types.Selector{Type: kind, Value: value})
		}
		return found, nil
	}
}

func sameIDs(found, expected []string) error {
	if strings.Join(found, ",") != strings.Join(expected, ",") {
		return fmt.Errorf("got %v instead of %v", found, expected)
	}
	return nil
}

func refusedAs(err error, code codes.Code, message string) error {
	if status.Code(err) != code || !strings.Contains(status.Convert(err).Message(), message) {
		return fmt.Errorf("ended with %v instead of %s %q", err, code, message)
	}
	return nil
}

// delegate asks on the admin socket for the SVIDs of another process, named
// by its number and by its selectors, and verifies all that it gets.
func delegate(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("delegate", flag.ExitOnError)
	socket := flags.String("admin", "", "the agent's admin socket")
	refused := flags.String("refused", "", "the words with which this process must be refused")
	subjectOf := subjectFlags(flags)
	_ = flags.Parse(args)
	who, err := subjectOf()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+*socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	client := delegatedv1.NewDelegatedIdentityClient(conn)
	byPID := &delegatedv1.SubscribeToX509SVIDsRequest{Pid: int32(who.pid)}
	bySelectors := &delegatedv1.SubscribeToX509SVIDsRequest{Selectors: who.selectors}

	if *refused != "" {
		return delegateRefused(ctx, client, byPID, *refused)
	}
	bundles, keys, err := delegatedBundles(ctx, client)
	if err := check("bundles", err); err != nil {
		return err
	}
	for name, request := range map[string]*delegatedv1.SubscribeToX509SVIDsRequest{"pid": byPID, "selectors": bySelectors} {
		if err := check("SubscribeToX509SVIDs by "+name, delegatedSVIDs(ctx, client, request, who.ids, bundles)); err != nil {
			return err
		}
		tokens, err := client.FetchJWTSVIDs(ctx, &delegatedv1.FetchJWTSVIDsRequest{
			Audience: []string{"one", "two"}, Selectors: request.Selectors, Pid: request.Pid,
		})
		if err == nil {
			err = delegatedTokens(tokens.Svids, who.ids, keys)
		}
		if err := check("FetchJWTSVIDs by "+name, err); err != nil {
			return err
		}
	}
	for name, request := range map[string]*delegatedv1.SubscribeToX509SVIDsRequest{
		"neither": {}, "both": {Pid: int32(who.pid), Selectors: who.selectors},
	} {
		stream, err := client.SubscribeToX509SVIDs(ctx, request)
		if err == nil {
			_, err = stream.Recv()
		}
		err = refusedAs(err, codes.InvalidArgument, "must provide either selectors or non-zero PID, but not both")
		if err := check("refuses "+name, err); err != nil {
			return err
		}
	}
	return adminServices(ctx, conn)
}

func delegateRefused(ctx context.Context, client delegatedv1.DelegatedIdentityClient, request *delegatedv1.SubscribeToX509SVIDsRequest, words string) error {
	// What was registered a moment ago may not have reached the agent.
	var err error
	for ctx.Err() == nil {
		var stream grpc.ServerStreamingClient[delegatedv1.SubscribeToX509SVIDsResponse]
		if stream, err = client.SubscribeToX509SVIDs(ctx, request); err == nil {
			_, err = stream.Recv()
		}
		if refusedAs(err, codes.PermissionDenied, words) == nil || err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err := check("SubscribeToX509SVIDs is refused", refusedAs(err, codes.PermissionDenied, words)); err != nil {
		return err
	}
	_, err = client.FetchJWTSVIDs(ctx, &delegatedv1.FetchJWTSVIDsRequest{Audience: []string{"x"}, Pid: request.Pid})
	if err := check("FetchJWTSVIDs is refused", refusedAs(err, codes.PermissionDenied, words)); err != nil {
		return err
	}
	x509, err := client.SubscribeToX509Bundles(ctx, &delegatedv1.SubscribeToX509BundlesRequest{})
	if err == nil {
		_, err = x509.Recv()
	}
	if err := check("SubscribeToX509Bundles is refused", refusedAs(err, codes.PermissionDenied, words)); err != nil {
		return err
	}
	jwt, err := client.SubscribeToJWTBundles(ctx, &delegatedv1.SubscribeToJWTBundlesRequest{})
	if err == nil {
		_, err = jwt.Recv()
	}
	return check("SubscribeToJWTBundles is refused", refusedAs(err, codes.PermissionDenied, words))
}

func delegatedBundles(ctx context.Context, client delegatedv1.DelegatedIdentityClient) (*x509bundle.Set, *jwtbundle.Set, error) {
	var first *delegatedv1.SubscribeToX509BundlesResponse
	for {
		stream, err := client.SubscribeToX509Bundles(ctx, &delegatedv1.SubscribeToX509BundlesRequest{})
		if err == nil {
			first, err = stream.Recv()
		}
		if err == nil {
			break
		}
		// The entry that makes this process a delegate takes a moment to reach the agent.
		if status.Code(err) != codes.PermissionDenied || ctx.Err() != nil {
			return nil, nil, err
		}
		time.Sleep(50 * time.Millisecond)
	}
	x509, err := x509Set(first.CaCertificates)
	if err != nil {
		return nil, nil, err
	}
	stream, err := client.SubscribeToJWTBundles(ctx, &delegatedv1.SubscribeToJWTBundlesRequest{})
	if err != nil {
		return nil, nil, err
	}
	keys, err := stream.Recv()
	if err != nil {
		return nil, nil, err
	}
	jwt, err := jwtSet(keys.Bundles)
	return x509, jwt, err
}

// byTrustDomain hands each entry of a map from spiffe://td to bytes to add; there must be one.
func byTrustDomain(of map[string][]byte, add func(spiffeid.TrustDomain, []byte) error) error {
	for name, document := range of {
		td, err := spiffeid.TrustDomainFromString(name)
		if err != nil || !strings.HasPrefix(name, "spiffe://") {
			return fmt.Errorf("key %q: %v", name, err)
		}
		if err := add(td, document); err != nil {
			return err
		}
	}
	if len(of) == 0 {
		return errors.New("no bundle")
	}
	return nil
}

func x509Set(of map[string][]byte) (*x509bundle.Set, error) {
	set := x509bundle.NewSet()
	return set, byTrustDomain(of, func(td spiffeid.TrustDomain, der []byte) error {
		bundle, err := x509bundle.ParseRaw(td, der)
		if err == nil {
			set.Add(bundle)
		}
		return err
	})
}

func jwtSet(of map[string][]byte) (*jwtbundle.Set, error) {
	set := jwtbundle.NewSet()
	return set, byTrustDomain(of, func(td spiffeid.TrustDomain, document []byte) error {
		bundle, err := jwtbundle.Parse(td, document)
		if err == nil {
			set.Add(bundle)
		}
		return err
	})
}

// delegatedSVIDs waits for the message that holds the expected identities and verifies it.
func delegatedSVIDs(ctx context.Context, client delegatedv1.DelegatedIdentityClient, request *delegatedv1.SubscribeToX509SVIDsRequest, ids []string, bundles *x509bundle.Set) error {
	stream, err := client.SubscribeToX509SVIDs(ctx, request)
	if err != nil {
		return err
	}
	var seen error
	for {
		message, err := stream.Recv()
		if err != nil {
			return errors.Join(err, seen)
		}
		var found []string
		for _, svid := range message.X509Svids {
			var der []byte
			for _, certificate := range svid.X509Svid.CertChain {
				der = append(der, certificate...)
			}
			parsed, err := x509svid.ParseRaw(der, svid.X509SvidKey)
			if err != nil {
				return err
			}
			verified, _, err := x509svid.Verify(parsed.Certificates, bundles)
			if err != nil {
				return err
			}
			if svid.X509Svid.ExpiresAt != parsed.Certificates[0].NotAfter.Unix() {
				return fmt.Errorf("expires_at is %d, the certificate says %s", svid.X509Svid.ExpiresAt, parsed.Certificates[0].NotAfter)
			}
			if named := "spiffe://" + svid.X509Svid.Id.TrustDomain + svid.X509Svid.Id.Path; named != verified.String() {
				return fmt.Errorf("named %s, verified as %s", named, verified)
			}
			found = append(found, verified.String())
		}
		if seen = sameIDs(found, ids); seen == nil {
			return nil
		}
	}
}

func delegatedTokens(svids []*types.JWTSVID, ids []string, keys *jwtbundle.Set) error {
	var found []string
	for _, svid := range svids {
		token, err := jwtsvid.ParseAndValidate(svid.Token, keys, []string{"two"})
		if err != nil {
			return err
		}
		if svid.ExpiresAt != token.Expiry.Unix() || svid.IssuedAt == 0 || svid.IssuedAt >= svid.ExpiresAt {
			return fmt.Errorf("from %d to %d, the token ends at %s", svid.IssuedAt, svid.ExpiresAt, token.Expiry)
		}
		found = append(found, token.ID.String())
	}
	return sameIDs(found, ids)
}

// adminServices calls what else the admin socket offers.
func adminServices(ctx context.Context, conn grpc.ClientConnInterface) error {
	info, err := debugv1.NewDebugClient(conn).GetInfo(ctx, &debugv1.GetInfoRequest{})
	if err == nil && (len(info.SvidChain) == 0 || info.SvidChain[0].Id == nil || info.CachedX509SvidsCount < 1 ||
		info.CachedJwtSvidsCount < 1 || time.Now().Unix()-info.LastSyncSuccess > 60) {
		err = fmt.Errorf("got %v", info)
	}
	if err := check("Debug GetInfo", err); err != nil {
		return err
	}
	logger := loggerv1.NewLoggerClient(conn)
	levels := func(found *types.Logger, err error, current types.LogLevel) error {
		if err == nil && (found.CurrentLevel != current || found.LaunchLevel != types.LogLevel_INFO) {
			err = fmt.Errorf("got %v", found)
		}
		return err
	}
	found, err := logger.GetLogger(ctx, &loggerv1.GetLoggerRequest{})
	if err := check("Logger GetLogger", levels(found, err, types.LogLevel_INFO)); err != nil {
		return err
	}
	found, err = logger.SetLogLevel(ctx, &loggerv1.SetLogLevelRequest{NewLevel: types.LogLevel_DEBUG})
	if err := check("Logger SetLogLevel", levels(found, err, types.LogLevel_DEBUG)); err != nil {
		return err
	}
	found, err = logger.ResetLogLevel(ctx, &loggerv1.ResetLogLevelRequest{})
	if err := check("Logger ResetLogLevel", levels(found, err, types.LogLevel_INFO)); err != nil {
		return err
	}
	_, err = logger.SetLogLevel(ctx, &loggerv1.SetLogLevelRequest{})
	if status.Code(err) != codes.InvalidArgument {
		return fmt.Errorf("SetLogLevel without a level ended with %v", err)
	}
	return nil
}

// brokerClient gets its own SVID from the Workload API and asks the agent,
// over mutual TLS, for what another process is entitled to.
func brokerClient(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("broker", flag.ExitOnError)
	socket := flags.String("socket", "", "the agent's broker socket")
	agent := flags.String("agent", "", "the SPIFFE ID of the agent")
	refused := flags.Bool("refused", false, "whether this process must be refused")
	subjectOf := subjectFlags(flags)
	_ = flags.Parse(args)
	who, err := subjectOf()
	if err != nil {
		return err
	}
	agentID, err := spiffeid.FromString(*agent)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	config := tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(agentID))
	conn, err := grpc.NewClient("unix://"+*socket, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		return err
	}
	defer conn.Close()
	client := broker.NewAPIClient(conn)
	named, err := anypb.New(&broker.WorkloadPIDReference{Pid: int32(who.pid)})
	if err != nil {
		return err
	}
	reference := &broker.WorkloadReference{Reference: named}
	if *refused {
		_, err = client.FetchJWTSVID(withHeader(ctx), &broker.FetchJWTSVIDRequest{Reference: reference, Audience: []string{"x"}})
		return check("the handshake is refused", refusedAs(err, codes.Unavailable, ""))
	}
	_, err = client.FetchJWTSVID(ctx, &broker.FetchJWTSVIDRequest{Reference: reference, Audience: []string{"x"}})
	if err := check("wants the header", refusedAs(err, codes.InvalidArgument, "security header missing from request")); err != nil {
		return err
	}
	ctx = withHeader(ctx)
	bundles, err := client.SubscribeToX509Bundles(ctx, &broker.SubscribeToX509BundlesRequest{Reference: reference})
	var roots *x509bundle.Set
	if err == nil {
		var message *broker.SubscribeToX509BundlesResponse
		if message, err = bundles.Recv(); err == nil {
			roots, err = x509Set(message.Bundles)
		}
	}
	if err := check("SubscribeToX509Bundles", err); err != nil {
		return err
	}
	if err := check("SubscribeToX509SVID", brokeredSVIDs(ctx, client, reference, who.ids, roots)); err != nil {
		return err
	}
	documents, err := client.SubscribeToJWTBundles(ctx, &broker.SubscribeToJWTBundlesRequest{Reference: reference})
	var keys *jwtbundle.Set
	if err == nil {
		var message *broker.SubscribeToJWTBundlesResponse
		if message, err = documents.Recv(); err == nil {
			keys, err = jwtSet(message.Bundles)
		}
	}
	if err := check("SubscribeToJWTBundles", err); err != nil {
		return err
	}
	tokens, err := client.FetchJWTSVID(ctx, &broker.FetchJWTSVIDRequest{Reference: reference, Audience: []string{"one"}})
	if err == nil {
		var found []string
		for _, svid := range tokens.Svids {
			token, invalid := jwtsvid.ParseAndValidate(svid.Svid, keys, []string{"one"})
			if invalid != nil {
				return invalid
			}
			found = append(found, token.ID.String())
		}
		err = sameIDs(found, who.ids)
	}
	if err := check("FetchJWTSVID", err); err != nil {
		return err
	}
	nobody, err := anypb.New(&broker.WorkloadPIDReference{Pid: 1 << 30})
	if err == nil {
		_, err = client.FetchJWTSVID(ctx, &broker.FetchJWTSVIDRequest{
			Reference: &broker.WorkloadReference{Reference: nobody}, Audience: []string{"x"},
		})
	}
	return check("a process that is not there", refusedAs(err, codes.NotFound, ""))
}

func withHeader(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "broker.spiffe.io", "true")
}

func brokeredSVIDs(ctx context.Context, client broker.APIClient, reference *broker.WorkloadReference, ids []string, bundles *x509bundle.Set) error {
	stream, err := client.SubscribeToX509SVID(ctx, &broker.SubscribeToX509SVIDRequest{Reference: reference})
	if err != nil {
		return err
	}
	var seen error
	for {
		message, err := stream.Recv()
		if err != nil {
			return errors.Join(err, seen)
		}
		var found []string
		for _, svid := range message.Svids {
			parsed, err := x509svid.ParseRaw(svid.X509Svid, svid.X509SvidKey)
			if err != nil {
				return err
			}
			if _, err := x509.ParseCertificates(svid.Bundle); err != nil {
				return err
			}
			verified, _, err := x509svid.Verify(parsed.Certificates, bundles)
			if err != nil {
				return err
			}
			if verified.String() != svid.SpiffeId {
				return fmt.Errorf("named %s, verified as %s", svid.SpiffeId, verified)
			}
			found = append(found, svid.SpiffeId)
		}
		if seen = sameIDs(found, ids); seen == nil {
			return nil
		}
	}
}
