// Answers HTTP/JSON in front of the account service, by the google.api.http
// options of the contract, and AuthZEN's Authorization API.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// Bounds of requests and connections.
const (
	// Largest body, in bytes: that of the service.
	maxBody = 1 << 20
	// Largest header, in bytes: that of the service's metadata.
	maxHeader = 16 << 10
	// Longest time for a request to arrive.
	readTimeout = 10 * time.Second
	// Longest time for a response, or for a part of a stream, to be received.
	writeTimeout = 30 * time.Second
	// Longest time without a request on a connection.
	idleTimeout = 60 * time.Second
	// Longest time for running requests after SIGTERM.
	drainTimeout = 10 * time.Second
)

type settings struct {
	listen        string
	adminListen   string
	insecure      bool
	stopDelay     time.Duration
	tlsCert       string
	tlsKey        string
	target        string
	serviceConfig string
	grpc          clientTLS
	authzen       string
}

func parse() settings {
	var s settings
	flag.StringVar(&s.listen, "listen", "127.0.0.1:8080", "address to answer HTTP on")
	flag.StringVar(&s.adminListen, "admin-listen", "", "address for /livez, /readyz and /metrics; without it, there are none")
	flag.BoolVar(&s.insecure, "insecure", false, "permit -listen and -grpc on other addresses than loopback without TLS")
	flag.DurationVar(&s.stopDelay, "stop-delay", 0, "time after SIGTERM in which requests are still accepted, while /readyz fails")
	flag.StringVar(&s.tlsCert, "tls-cert", "", "file with the certificate of this server, in PEM; read again when it changes")
	flag.StringVar(&s.tlsKey, "tls-key", "", "file with its key, in PEM")
	flag.StringVar(&s.target, "grpc", "127.0.0.1:50051", "the account service, as a target of gRPC")
	flag.StringVar(&s.serviceConfig, "service-config", "clients/service_config.json", "file with the retries and deadlines of calls")
	flag.BoolVar(&s.grpc.enabled, "grpc-tls", false, "call the service with TLS; implied by the other -grpc- flags")
	flag.StringVar(&s.grpc.ca, "grpc-ca", "", "file with the roots of the service's certificate, in PEM; else those of the system")
	flag.StringVar(&s.grpc.cert, "grpc-cert", "", "file with the client certificate for the service, in PEM; read again for each connection")
	flag.StringVar(&s.grpc.key, "grpc-key", "", "file with its key, in PEM")
	flag.StringVar(&s.grpc.serverName, "grpc-server-name", "", "name in the service's certificate, if it is not that of -grpc")
	flag.StringVar(&s.authzen, "authzen", "", "file with the actions of AuthZEN; without it, AuthZEN is not offered")
	flag.Parse()
	return s
}

func main() {
	if err := run(parse()); err != nil {
		log.Fatal(err)
	}
}

func run(s settings) error {
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	retries, err := os.ReadFile(s.serviceConfig)
	if err != nil {
		return err
	}
	credentials, err := s.grpc.credentials()
	if err != nil {
		return err
	}
	channel, err := grpc.NewClient(s.target,
		grpc.WithTransportCredentials(credentials),
		grpc.WithDefaultServiceConfig(string(retries)))
	if err != nil {
		return err
	}
	defer channel.Close()
	if err := s.checkService(); err != nil {
		return err
	}
	routes, err := newRoutes(stop, channel)
	if err != nil {
		return err
	}
	if err := addOpenAPI(routes); err != nil {
		return err
	}
	if s.authzen != "" {
		if err := addAuthZEN(routes, channel, s.authzen); err != nil {
			return fmt.Errorf("%s: %w", s.authzen, err)
		}
	}
	ending, end := context.WithCancel(context.Background())
	defer end()
	server, listener, err := listen(s, guard(routes, ending))
	if err != nil {
		return err
	}
	admin, err := serveAdmin(s.adminListen, grpc_health_v1.NewHealthClient(channel))
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	log.Printf("HTTP/JSON at %s", listener.Addr())
	select {
	case err := <-ended:
		return err
	case <-stop.Done():
	}
	log.Print("stopping")
	admin.stopping()
	time.Sleep(s.stopDelay)
	end()
	drain, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	if err := server.Shutdown(drain); err != nil {
		log.Printf("requests were still running after %s", drainTimeout)
		return server.Close()
	}
	return nil
}

// Requests to the service have tokens: beyond loopback, they need TLS.
func (s settings) checkService() error {
	host, _, err := net.SplitHostPort(s.target)
	isLocal := err == nil && (host == "localhost" || net.ParseIP(host).IsLoopback())
	if isLocal || s.insecure || s.grpc != (clientTLS{}) {
		return nil
	}
	return errors.New("-grpc is not on loopback: set -grpc-tls, or -insecure")
}

// The server, and its listener with TLS if there is a certificate.
func listen(s settings, handler http.Handler) (*http.Server, net.Listener, error) {
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
	}
	listener, err := net.Listen("tcp", s.listen)
	if err != nil {
		return nil, nil, err
	}
	if s.tlsCert != "" || s.tlsKey != "" {
		certificate := &reloaded{cert: s.tlsCert, key: s.tlsKey}
		if _, err := certificate.load(); err != nil {
			return nil, nil, err
		}
		config := &tls.Config{
			MinVersion:     tls.VersionTLS12,
			NextProtos:     []string{"h2", "http/1.1"},
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate.load() },
		}
		return server, tls.NewListener(listener, config), nil
	}
	addr, isTCP := listener.Addr().(*net.TCPAddr)
	if !s.insecure && !(isTCP && addr.IP.IsLoopback()) {
		return nil, nil, errors.New("-listen is not on loopback: set -tls-cert and -tls-key, or -insecure")
	}
	return server, listener, nil
}
