package main

import (
	"errors"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc/codes"
)

// Bounds requests, and refuses those that a page of another site can send without asking the
// browser: forms, plain text, and requests that the browser marks as of another site.
func guard(routes *runtime.ServeMux) http.Handler {
	refuse := func(w http.ResponseWriter, r *http.Request, err error) {
		writeError(r.Context(), routes, marshaler, w, r, err)
	}
	crossOrigin := http.NewCrossOriginProtection()
	return observed(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Responses are for their caller alone, and are data.
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if err := crossOrigin.Check(r); err != nil {
			refuse(w, r, refusal(http.StatusForbidden, codes.PermissionDenied, "the request comes from another site"))
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
		if r.ContentLength > maxBody {
			refuse(w, r, refusal(http.StatusRequestEntityTooLarge, codes.InvalidArgument, "the body is too large"))
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		if strings.HasSuffix(r.URL.Path, ":watch") {
			w = &streamWriter{ResponseWriter: w, control: http.NewResponseController(w)}
		}
		routes.ServeHTTP(w, r)
	}))
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
}

func (w *streamWriter) Write(part []byte) (int, error) {
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
	err := w.control.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err != nil && !errors.Is(err, http.ErrNotSupported) {
		return
	}
}

// Unwrap is for http.ResponseController.
func (w *streamWriter) Unwrap() http.ResponseWriter {
	return w.ResponseWriter
}
