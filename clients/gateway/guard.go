package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc/codes"
)

// Bounds requests, and refuses requests of pages of other sites. A browser sends forms and plain
// text for any page, and marks other requests with their site. Watches end with `ending`.
func guard(routes *runtime.ServeMux, ending context.Context) http.Handler {
	refuse := func(w http.ResponseWriter, r *http.Request, err error) {
		writeError(r.Context(), routes, marshaler, w, r, err)
	}
	crossOrigin := http.NewCrossOriginProtection()
	return observed(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// AuthZEN's clients get the identifier of their request back.
		if id := r.Header.Get("X-Request-ID"); id != "" && strings.HasPrefix(r.URL.Path, authZENPrefix) {
			w.Header().Set("X-Request-ID", id)
		}
		// grpc-gateway would hand on what a client claims.
		r.Header.Del("X-Forwarded-For")
		r.Header.Del("X-Forwarded-Host")
		// Responses are for their caller alone, and are data.
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if err := crossOrigin.Check(r); err != nil {
			refuse(w, r, refusal(http.StatusForbidden, codes.PermissionDenied, "the request comes from another site"))
			return
		}
		if err := checkQuery(r); err != nil {
			refuse(w, r, err)
			return
		}
		if takesBody(r.Method) && !isJSON(r.Header.Get("Content-Type")) {
			code := http.StatusUnsupportedMediaType
			if strings.HasPrefix(r.URL.Path, authZENPrefix) {
				// By the specification of AuthZEN.
				code = http.StatusBadRequest
			}
			refuse(w, r, refusal(code, codes.InvalidArgument, "the content type must be application/json"))
			return
		}
		body, err := readBody(w, r)
		if err != nil {
			refuse(w, r, err)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		if strings.HasSuffix(r.URL.Path, ":watch") {
			serveStream(routes, ending, w, r)
			return
		}
		routes.ServeHTTP(w, r)
	}))
}

// Serves a watch until its client, the service or the end of the gateway ends it. The service answers
// at once, or the watch ends with an error.
func serveStream(routes *runtime.ServeMux, ending context.Context, w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(ending, cancel)()
	start := time.AfterFunc(watchStart, cancel)
	defer start.Stop()
	stream := &streamWriter{ResponseWriter: w, control: http.NewResponseController(w), start: start}
	stream.extend()
	routes.ServeHTTP(stream, r.WithContext(ctx))
}

// Longest time until the first message of a watch. The service sends one every 10 s.
const watchStart = 20 * time.Second

// Refuses parameters that grpc-gateway would ignore: it does not parse the query of a call whose
// message is the whole body. The query of other calls is checked by strictQuery.
func checkQuery(r *http.Request) error {
	path := r.URL.Path
	isUpdate := r.Method == http.MethodPatch && (strings.HasSuffix(path, ":update") || !strings.Contains(path, "/members/"))
	if takesBody(r.Method) && !isUpdate && r.URL.RawQuery != "" {
		return refusal(http.StatusBadRequest, codes.InvalidArgument, "this call takes no parameters in the query")
	}
	if r.Header.Get("If-Match") != "" || r.Header.Get("If-None-Match") != "" && r.Method != http.MethodGet {
		return refusal(http.StatusBadRequest, codes.InvalidArgument, "send the etag in the body or in the query, not in a header")
	}
	return nil
}

// The body, which is one JSON value if the method takes one.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, refusal(http.StatusRequestEntityTooLarge, codes.InvalidArgument, "the body is too large")
	case err != nil:
		return nil, refusal(http.StatusRequestTimeout, codes.InvalidArgument, "the body did not arrive")
	case len(body) > 0 && !json.Valid(body):
		return nil, refusal(http.StatusBadRequest, codes.InvalidArgument, "the body is not one value of JSON")
	}
	return body, nil
}

func takesBody(method string) bool {
	return method == http.MethodPost || method == http.MethodPatch || method == http.MethodPut
}

func isJSON(contentType string) bool {
	kind, parameters, err := mime.ParseMediaType(contentType)
	charset, hasCharset := parameters["charset"]
	return err == nil && kind == "application/json" && (!hasCharset || strings.EqualFold(charset, "utf-8"))
}

// A response without an end: its deadline is that of its next part.
type streamWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	// Ends the stream. The first part stops it.
	start *time.Timer
}

func (w *streamWriter) Write(part []byte) (int, error) {
	w.start.Stop()
	w.extend()
	return w.ResponseWriter.Write(part)
}

func (w *streamWriter) Flush() {
	w.extend()
	// The end of the connection ends the stream.
	_ = w.control.Flush()
	// Until the next part, there is no deadline.
	_ = w.control.SetWriteDeadline(time.Time{})
}

func (w *streamWriter) extend() {
	// A connection without deadlines has ended.
	_ = w.control.SetWriteDeadline(time.Now().Add(writeTimeout))
}

// Unwrap is for http.ResponseController.
func (w *streamWriter) Unwrap() http.ResponseWriter {
	return w.ResponseWriter
}
