package main

import (
	_ "embed"
	"net/http"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
)

// The OpenAPI document, made by tests/gateway/run.
//
//go:embed openapi.json
var openAPI []byte

func addOpenAPI(routes *runtime.ServeMux) error {
	return routes.HandlePath(http.MethodGet, "/openapi.json", func(w http.ResponseWriter, _ *http.Request, _ map[string]string) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(openAPI)
	})
}
