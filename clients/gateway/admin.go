package main

import (
	"context"
	"log"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// Longest time for the service to answer a health check.
const healthTimeout = 2 * time.Second

var (
	duration = promauto.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "account_gateway_request_duration_seconds",
		Help:    "Time from the arrival of a request to the end of its response, by method and code.",
		Buckets: []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 3, 10},
	}, []string{"method", "code"})
	underWay = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "account_gateway_requests_under_way",
		Help: "Running requests.",
	})
)

// Health and metrics, on an address of their own.
type admin struct {
	service    grpc_health_v1.HealthClient
	isStopping atomic.Bool
}

func serveAdmin(listen string, service grpc_health_v1.HealthClient) (*admin, error) {
	a := &admin{service: service}
	if listen == "" {
		return a, nil
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, err
	}
	routes := http.NewServeMux()
	routes.HandleFunc("GET /livez", func(http.ResponseWriter, *http.Request) {})
	routes.HandleFunc("GET /readyz", a.ready)
	routes.Handle("GET /metrics", promhttp.Handler())
	server := &http.Server{
		Handler:           routes,
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
	}
	go func() { log.Fatal(server.Serve(listener)) }()
	log.Printf("health and metrics at %s", listener.Addr())
	return a, nil
}

// Ready is a gateway that is not stopping, in front of a service that is serving.
func (a *admin) ready(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), healthTimeout)
	defer cancel()
	health, err := a.service.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	isServing := err == nil && health.Status == grpc_health_v1.HealthCheckResponse_SERVING
	if a.isStopping.Load() || !isServing {
		http.Error(w, "not ready", http.StatusServiceUnavailable)
	}
}

func (a *admin) stopping() {
	a.isStopping.Store(true)
}

// Counts and times the requests of a handler.
func observed(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		underWay.Inc()
		defer underWay.Dec()
		began := time.Now()
		recorder := &statusWriter{ResponseWriter: w, code: http.StatusOK}
		handler.ServeHTTP(recorder, r)
		duration.WithLabelValues(method(r.Method), strconv.Itoa(recorder.code)).Observe(time.Since(began).Seconds())
	})
}

// The method as a label: callers can send any text.
func method(name string) string {
	switch name {
	case http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodDelete:
		return name
	}
	return "other"
}

type statusWriter struct {
	http.ResponseWriter
	code int
}

func (w *statusWriter) WriteHeader(code int) {
	w.code = code
	w.ResponseWriter.WriteHeader(code)
}

// Flush is for grpc-gateway's streams.
func (w *statusWriter) Flush() {
	if flusher, ok := w.ResponseWriter.(http.Flusher); ok {
		flusher.Flush()
	}
}

// Unwrap is for http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter {
	return w.ResponseWriter
}
