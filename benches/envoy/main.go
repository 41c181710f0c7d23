// The parts of the comparison of Envoy's authorizations that are not Envoy or a server: shims, by which SpiceDB
// and OpenFGA answer Envoy, and the load.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	spicedb "github.com/authzed/authzed-go/proto/authzed/api/v1"
	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	openfga "github.com/openfga/api/proto/openfga/v1"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) < 2 {
		log.Fatal("a command is missing: shim or load")
	}
	var err error
	switch command, arguments := os.Args[1], os.Args[2:]; command {
	case "shim":
		err = serveShim(arguments)
	case "load":
		err = load(arguments)
	default:
		err = fmt.Errorf("no such command: %s", command)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// isMember answers whether a user is a member of an organization.
type isMember func(ctx context.Context, user, organization string) (bool, error)

// shim answers Envoy for requests with the user in a header and the organization in the path.
type shim struct {
	auth.UnimplementedAuthorizationServer
	isMember isMember
}

func (s shim) Check(ctx context.Context, request *auth.CheckRequest) (*auth.CheckResponse, error) {
	attributes := request.GetAttributes().GetRequest().GetHttp()
	segments := strings.Split(attributes.GetPath(), "/")
	if len(segments) < 3 {
		return &auth.CheckResponse{Status: &status.Status{Code: int32(code.Code_PERMISSION_DENIED)}}, nil
	}
	yes, err := s.isMember(ctx, attributes.GetHeaders()["x-user"], segments[2])
	if err != nil {
		return nil, err
	}
	if !yes {
		return &auth.CheckResponse{Status: &status.Status{Code: int32(code.Code_PERMISSION_DENIED)}}, nil
	}
	return &auth.CheckResponse{Status: &status.Status{}, HttpResponse: &auth.CheckResponse_OkResponse{OkResponse: &auth.OkHttpResponse{}}}, nil
}

func serveShim(arguments []string) error {
	flags := flag.NewFlagSet("shim", flag.ExitOnError)
	listen := flags.String("listen", "", "address to listen on")
	backend := flags.String("backend", "", "spicedb or openfga")
	addr := flags.String("addr", "", "address of the backend")
	key := flags.String("key", "", "SpiceDB's preshared key")
	store := flags.String("store", "", "OpenFGA's store")
	model := flags.String("model", "", "OpenFGA's model")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	channel, err := grpc.NewClient(*addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	var ask isMember
	switch *backend {
	case "spicedb":
		client := spicedb.NewPermissionsServiceClient(channel)
		ask = func(ctx context.Context, user, organization string) (bool, error) {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+*key)
			response, err := client.CheckPermission(ctx, &spicedb.CheckPermissionRequest{
				Resource:   &spicedb.ObjectReference{ObjectType: "organization", ObjectId: organization},
				Permission: "at_least_member",
				Subject:    &spicedb.SubjectReference{Object: &spicedb.ObjectReference{ObjectType: "user", ObjectId: user}},
			})
			return response.GetPermissionship() == spicedb.CheckPermissionResponse_PERMISSIONSHIP_HAS_PERMISSION, err
		}
	case "openfga":
		client := openfga.NewOpenFGAServiceClient(channel)
		ask = func(ctx context.Context, user, organization string) (bool, error) {
			response, err := client.Check(ctx, &openfga.CheckRequest{
				StoreId:              *store,
				AuthorizationModelId: *model,
				TupleKey: &openfga.CheckRequestTupleKey{
					User: "user:" + user, Relation: "at_least_member", Object: "organization:" + organization,
				},
			})
			return response.GetAllowed(), err
		}
	default:
		return fmt.Errorf("no such backend: %q", *backend)
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	auth.RegisterAuthorizationServer(server, shim{isMember: ask})
	return server.Serve(listener)
}

// load sends requests of random members, and prints the median and the 99th percentile of their latencies in µs.
func load(arguments []string) error {
	flags := flag.NewFlagSet("load", flag.ExitOnError)
	addr := flags.String("addr", "", "address of Envoy")
	requests := flags.Int("requests", 1000, "number of requests")
	atOnce := flags.Int("at-once", 1, "requests at once")
	users := flags.Int("users", 50, "number of users")
	organizations := flags.Int("organizations", 20, "number of organizations")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: *atOnce}}
	latencies := make([]time.Duration, *requests)
	failed := make(chan error, *atOnce)
	var callers sync.WaitGroup
	for caller := range *atOnce {
		callers.Go(func() {
			for number := caller; number < *requests; number += *atOnce {
				url := fmt.Sprintf("http://%s/organizations/organization-%d/notes/7", *addr, rand.IntN(*organizations))
				request, err := http.NewRequest(http.MethodGet, url, nil)
				if err != nil {
					failed <- err
					return
				}
				request.Header.Set("x-user", fmt.Sprintf("user-%d", rand.IntN(*users)))
				request.Header.Set("x-role", "member")
				began := time.Now()
				response, err := client.Do(request)
				if err == nil {
					_, err = io.Copy(io.Discard, response.Body)
					response.Body.Close()
					if err == nil && response.StatusCode != http.StatusOK {
						err = fmt.Errorf("%s: %s", url, response.Status)
					}
				}
				if err != nil {
					failed <- err
					return
				}
				latencies[number] = time.Since(began)
			}
		})
	}
	callers.Wait()
	select {
	case err := <-failed:
		return err
	default:
	}
	slices.Sort(latencies)
	fmt.Println(latencies[len(latencies)/2].Microseconds(), latencies[len(latencies)*99/100].Microseconds())
	return nil
}
