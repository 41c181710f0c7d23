// Answers HTTP/JSON in front of the account service, by the google.api.http
// options of the contract.
package main

import (
	"context"
	"flag"
	"log"
	"net/http"
	"os"
	"time"

	pb "gateway/gen/account/v1"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	// So that responses include the details of errors.
	_ "google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
)

// What the service takes, in bytes.
const maxBody = 1 << 20

func main() {
	listen := flag.String("listen", "127.0.0.1:8080", "where to answer HTTP")
	target := flag.String("grpc", "127.0.0.1:50051", "where the account service is")
	config := flag.String("service-config", "clients/service_config.json", "retries and deadlines of the channel")
	flag.Parse()

	retries, err := os.ReadFile(*config)
	if err != nil {
		log.Fatal(err)
	}
	channel, err := grpc.NewClient(*target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(string(retries)))
	if err != nil {
		log.Fatal(err)
	}
	// A "no" is said, not left out, and a misspelt field is an error.
	json := &runtime.JSONPb{
		MarshalOptions:   protojson.MarshalOptions{EmitDefaultValues: true},
		UnmarshalOptions: protojson.UnmarshalOptions{DiscardUnknown: false},
	}
	routes := runtime.NewServeMux(runtime.WithMarshalerOption(runtime.MIMEWildcard, json))
	if err := pb.RegisterAccountServiceHandler(context.Background(), routes, channel); err != nil {
		log.Fatal(err)
	}
	server := &http.Server{
		Addr:              *listen,
		Handler:           http.MaxBytesHandler(routes, maxBody),
		ReadHeaderTimeout: 5 * time.Second,
	}
	log.Printf("HTTP/JSON at http://%s", *listen)
	log.Fatal(server.ListenAndServe())
}
