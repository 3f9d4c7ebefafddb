package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strings"
	"time"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
)

// What a controller that keeps a server in line with declarations asks for at once.
const (
	entriesPerPage   = 200
	entriesPerChange = 50
	entriesPerDelete = 200
)

// registrar makes the calls, in their order and with their sizes, by which
// spire-controller-manager keeps entries and relationships as declared, and
// follows the answers as it does: it takes for granted that each result has a
// status, and that AlreadyExists comes with the entry that is there.
func registrar(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("registrar", flag.ExitOnError)
	socket := flags.String("socket", "", "the server's local socket")
	td := flags.String("td", "example.org", "the trust domain")
	_ = flags.Parse(args)
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+*socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		return err
	}
	defer conn.Close()
	entries := entryClient{entryv1.NewEntryClient(conn), *td}
	if err := check("probe for fields", entries.probe(ctx)); err != nil {
		return err
	}

	const number = 2*entriesPerPage + 3
	wanted := make([]*types.Entry, number)
	for i := range wanted {
		wanted[i] = entries.declared(i)
	}
	if err := check("create", entries.create(ctx, wanted, codes.OK)); err != nil {
		return err
	}
	stored, err := entries.list(ctx)
	if err == nil && len(stored) != number {
		err = fmt.Errorf("%d entries instead of %d", len(stored), number)
	}
	if err := check("list", err); err != nil {
		return err
	}
	for _, entry := range wanted {
		if err := entries.same(stored[entry.Id], entry); err != nil {
			return err
		}
	}
	if err := check("create what is there", entries.create(ctx, wanted[:3], codes.AlreadyExists)); err != nil {
		return err
	}
	// The whole entry, and no mask: what is left out goes.
	for _, entry := range wanted[:120] {
		entry.Hint, entry.DnsNames, entry.Admin = "", nil, !entry.Admin
	}
	if err := check("update", entries.update(ctx, wanted[:120])); err != nil {
		return err
	}
	stored, err = entries.list(ctx)
	if err != nil {
		return err
	}
	for i, entry := range wanted {
		if err := entries.same(stored[entry.Id], entry); err != nil {
			return err
		}
		revision := int64(0)
		if i < 120 {
			revision = 1
		}
		if found := stored[entry.Id].RevisionNumber; found != revision {
			return fmt.Errorf("%s has revision %d", entry.Id, found)
		}
	}
	// One of them has gone meanwhile.
	if err := entries.remove(ctx, []string{wanted[0].Id}, codes.OK); err != nil {
		return err
	}
	var ids []string
	for _, entry := range wanted[1:] {
		ids = append(ids, entry.Id)
	}
	if err := check("delete", entries.remove(ctx, ids, codes.OK)); err != nil {
		return err
	}
	if err := check("delete again", entries.remove(ctx, ids[:2], codes.NotFound)); err != nil {
		return err
	}
	if stored, err = entries.list(ctx); err == nil && len(stored) != 0 {
		err = fmt.Errorf("%d entries are left", len(stored))
	}
	if err := check("nothing is left", err); err != nil {
		return err
	}
	return relationships(ctx, conn)
}

type entryClient struct {
	api entryv1.EntryClient
	td  string
}

func (c entryClient) id(path string) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: c.td, Path: path}
}

// probe asks which fields the server knows: what it says of an entry with all of them.
func (c entryClient) probe(ctx context.Context) error {
	const path = "/spire-controller-manager/unsupported-fields-test"
	request := &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{{
		ParentId: c.id(path), SpiffeId: c.id(path), Selectors: []*types.Selector{{Type: "a", Value: "1"}},
		X509SvidTtl: 60, JwtSvidTtl: 60, StoreSvid: true, Hint: "hint",
	}}}
	var first string
	// The second time as after a controller that died between its two calls.
	for _, code := range []codes.Code{codes.OK, codes.AlreadyExists} {
		response, err := c.api.BatchCreateEntry(ctx, request)
		if err != nil {
			return err
		}
		result := response.Results[0]
		if codes.Code(result.Status.Code) != code {
			return fmt.Errorf("ended with %v", result.Status)
		}
		if result.Entry.JwtSvidTtl == 0 || result.Entry.Hint == "" || !result.Entry.StoreSvid {
			return fmt.Errorf("a field is missing: %v", result.Entry)
		}
		if first == "" {
			first = result.Entry.Id
		}
		if result.Entry.Id != first {
			return errors.New("another entry than the one that is there")
		}
	}
	return c.remove(ctx, []string{first}, codes.OK)
}

func (c entryClient) declared(i int) *types.Entry {
	return &types.Entry{
		Id: fmt.Sprintf("scm.%04d", i), SpiffeId: c.id(fmt.Sprintf("/ns/a/sa/%d", i)),
		ParentId:    c.id("/spire/agent/k8s_psat/cluster/node"),
		Selectors:   []*types.Selector{{Type: "k8s", Value: fmt.Sprintf("pod-uid:%d", i)}, {Type: "k8s", Value: "ns:a"}},
		X509SvidTtl: 3600, JwtSvidTtl: 300, DnsNames: []string{fmt.Sprintf("z-%d.test", i), "a.test"},
		Hint: "hint", Admin: i%7 == 0, Downstream: i%11 == 0,
	}
}

func (c entryClient) same(found, wanted *types.Entry) error {
	if found == nil {
		return fmt.Errorf("%s is missing", wanted.Id)
	}
	text := func(of *types.Entry) string {
		selectors := map[string]bool{}
		for _, selector := range of.Selectors {
			selectors[selector.Type+":"+selector.Value] = true
		}
		// Maps are printed in order.
		return fmt.Sprint(of.SpiffeId, of.ParentId, selectors, of.X509SvidTtl, of.JwtSvidTtl, of.DnsNames, of.Hint,
			of.Admin, of.Downstream, of.FederatesWith, of.StoreSvid)
	}
	if text(found) != text(wanted) {
		return fmt.Errorf("%s is %v instead of %v", wanted.Id, found, wanted)
	}
	return nil
}

func (c entryClient) create(ctx context.Context, all []*types.Entry, code codes.Code) error {
	for len(all) > 0 {
		part := all[:min(entriesPerChange, len(all))]
		all = all[len(part):]
		response, err := c.api.BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: part})
		if err != nil {
			return err
		}
		for i, result := range response.Results {
			if codes.Code(result.Status.Code) != code || result.Entry.Id != part[i].Id {
				return fmt.Errorf("%s ended with %v", part[i].Id, result)
			}
		}
	}
	return nil
}

func (c entryClient) update(ctx context.Context, all []*types.Entry) error {
	for len(all) > 0 {
		part := all[:min(entriesPerChange, len(all))]
		all = all[len(part):]
		response, err := c.api.BatchUpdateEntry(ctx, &entryv1.BatchUpdateEntryRequest{Entries: part})
		if err != nil {
			return err
		}
		for i, result := range response.Results {
			if codes.Code(result.Status.Code) != codes.OK {
				return fmt.Errorf("%s ended with %v", part[i].Id, result.Status)
			}
		}
	}
	return nil
}

func (c entryClient) remove(ctx context.Context, all []string, code codes.Code) error {
	for len(all) > 0 {
		part := all[:min(entriesPerDelete, len(all))]
		all = all[len(part):]
		response, err := c.api.BatchDeleteEntry(ctx, &entryv1.BatchDeleteEntryRequest{Ids: part})
		if err != nil {
			return err
		}
		for i, result := range response.Results {
			if codes.Code(result.Status.Code) != code || result.Id != part[i] {
				return fmt.Errorf("%s ended with %v", part[i], result)
			}
		}
	}
	return nil
}

func (c entryClient) list(ctx context.Context) (map[string]*types.Entry, error) {
	found := map[string]*types.Entry{}
	token := ""
	for {
		response, err := c.api.ListEntries(ctx, &entryv1.ListEntriesRequest{PageToken: token, PageSize: entriesPerPage})
		if err != nil {
			return nil, err
		}
		for _, entry := range response.Entries {
			// Those of others are left alone.
			if !strings.HasPrefix(entry.Id, "scm.") {
				continue
			}
			if found[entry.Id] != nil {
				return nil, fmt.Errorf("%s stands on two pages", entry.Id)
			}
			found[entry.Id] = entry
		}
		if token = response.NextPageToken; token == "" {
			return found, nil
		}
	}
}

func relationships(ctx context.Context, conn grpc.ClientConnInterface) error {
	api := trustdomainv1.NewTrustDomainClient(conn)
	bundle, err := bundlev1.NewBundleClient(conn).GetBundle(ctx, &bundlev1.GetBundleRequest{})
	if err := check("GetBundle", err); err != nil {
		return err
	}
	web := func(name string) *types.FederationRelationship {
		return &types.FederationRelationship{TrustDomain: name, BundleEndpointUrl: "https://127.0.0.1:1",
			BundleEndpointProfile: &types.FederationRelationship_HttpsWeb{HttpsWeb: &types.HTTPSWebProfile{}}}
	}
	spiffe := web("spiffe.test")
	spiffe.BundleEndpointProfile = &types.FederationRelationship_HttpsSpiffe{
		HttpsSpiffe: &types.HTTPSSPIFFEProfile{EndpointSpiffeId: "spiffe://spiffe.test/spire/server"}}
	bundle.TrustDomain = "spiffe.test"
	spiffe.TrustDomainBundle = bundle
	own := web("example.org")
	created, err := api.BatchCreateFederationRelationship(ctx, &trustdomainv1.BatchCreateFederationRelationshipRequest{
		FederationRelationships: []*types.FederationRelationship{web("web.test"), spiffe, own},
	})
	if err == nil {
		for i, code := range []codes.Code{codes.OK, codes.OK, codes.InvalidArgument} {
			if codes.Code(created.Results[i].Status.Code) != code {
				err = fmt.Errorf("got %v", created.Results[i])
			}
		}
	}
	if err := check("create relationships", err); err != nil {
		return err
	}
	changed := web("spiffe.test")
	updated, err := api.BatchUpdateFederationRelationship(ctx, &trustdomainv1.BatchUpdateFederationRelationshipRequest{
		FederationRelationships: []*types.FederationRelationship{changed},
	})
	if err == nil && codes.Code(updated.Results[0].Status.Code) != codes.OK {
		err = fmt.Errorf("got %v", updated.Results[0])
	}
	if err := check("update relationships", err); err != nil {
		return err
	}
	profiles := ""
	token := ""
	for {
		page, err := api.ListFederationRelationships(ctx, &trustdomainv1.ListFederationRelationshipsRequest{PageToken: token, PageSize: entriesPerPage})
		if err != nil {
			return err
		}
		for _, one := range page.FederationRelationships {
			profiles += fmt.Sprintf("%s %v;", one.TrustDomain, one.GetHttpsWeb() != nil)
		}
		if token = page.NextPageToken; token == "" {
			break
		}
	}
	if profiles != "web.test true;spiffe.test true;" && profiles != "spiffe.test true;web.test true;" {
		return fmt.Errorf("list relationships: got %s", profiles)
	}
	removed, err := api.BatchDeleteFederationRelationship(ctx, &trustdomainv1.BatchDeleteFederationRelationshipRequest{
		TrustDomains: []string{"web.test", "spiffe.test"},
	})
	if err == nil {
		for _, result := range removed.Results {
			if codes.Code(result.Status.Code) != codes.OK {
				err = fmt.Errorf("got %v", result)
			}
		}
	}
	return check("delete relationships", err)
}
