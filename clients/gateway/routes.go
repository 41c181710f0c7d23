package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	pb "gateway/gen/account/v1"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/grpc-ecosystem/grpc-gateway/v2/utilities"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// A "no" is in the response, not left out, and a misspelt field is an error.
var marshaler = &runtime.JSONPb{
	MarshalOptions:   protojson.MarshalOptions{EmitDefaultValues: true},
	UnmarshalOptions: protojson.UnmarshalOptions{DiscardUnknown: false},
}

// The routes of the contract.
func newRoutes(ctx context.Context, channel grpc.ClientConnInterface) (*runtime.ServeMux, error) {
	routes := runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, marshaler),
		runtime.SetQueryParameterParser(strictQuery{}),
		runtime.WithIncomingHeaderMatcher(forwarded),
		runtime.WithOutgoingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithErrorHandler(writeError),
		runtime.WithRoutingErrorHandler(writeRoutingError),
	)
	err := pb.RegisterAccountServiceHandlerClient(ctx, routes, pb.NewAccountServiceClient(channel))
	return routes, err
}

// The headers that reach the service, besides `authorization`, which always does.
func forwarded(header string) (string, bool) {
	switch name := strings.ToLower(header); name {
	case "traceparent", "tracestate":
		return name, true
	}
	return "", false
}

// Refuses query parameters that the call would ignore, and takes the etag of an update from
// the query, too.
type strictQuery struct{}

func (strictQuery) Parse(request proto.Message, values url.Values, bound *utilities.DoubleArray) error {
	message := request.ProtoReflect().Descriptor()
	parameters := url.Values{}
	for name, value := range values {
		first, rest, isNested := strings.Cut(name, ".")
		field := fieldOf(message, first)
		switch {
		case field == nil && name == "etag" && len(value) == 1 && value[0] != "":
			if err := setEtag(request.ProtoReflect(), value[0]); err != nil {
				return err
			}
		case field == nil || isNested && !hasPath(field.Message(), rest):
			return fmt.Errorf("%q is not a parameter of this call", name)
		case bound.HasCommonPrefix([]string{string(field.Name())}):
			return fmt.Errorf("%q belongs into the path or the body", name)
		case len(value) > 1 && !field.IsList():
			return fmt.Errorf("%q occurs several times", name)
		default:
			parameters[name] = value
		}
	}
	return (&runtime.DefaultQueryParser{}).Parse(request, parameters, bound)
}

// The field with this name in JSON or in the contract, or nil.
func fieldOf(message protoreflect.MessageDescriptor, name string) protoreflect.FieldDescriptor {
	if field := message.Fields().ByJSONName(name); field != nil {
		return field
	}
	return message.Fields().ByTextName(name)
}

// Whether a message has this path of fields, such as maxStaleness.
func hasPath(message protoreflect.MessageDescriptor, path string) bool {
	for _, name := range strings.Split(path, ".") {
		if message == nil {
			return false
		}
		field := fieldOf(message, name)
		if field == nil {
			return false
		}
		message = field.Message()
	}
	return true
}

// Sets the etag of the resource in the body, unless the body has another one.
func setEtag(request protoreflect.Message, etag string) error {
	fields := request.Descriptor().Fields()
	for _, resource := range []protoreflect.Name{"user", "organization", "membership"} {
		field := fields.ByName(resource)
		if field == nil || field.Message() == nil {
			continue
		}
		of := request.Mutable(field).Message()
		tag := field.Message().Fields().ByName("etag")
		if found := of.Get(tag).String(); found != "" && found != etag {
			return errors.New("the etag of the query is not that of the body")
		}
		of.Set(tag, protoreflect.ValueOfString(etag))
		return nil
	}
	return errors.New(`"etag" is not a parameter of this call`)
}

// Answers with an error of the service or of this gateway. `Retry-After` has the time of a
// RetryInfo, in seconds.
func writeError(ctx context.Context, mux *runtime.ServeMux, marshal runtime.Marshaler, w http.ResponseWriter, r *http.Request, err error) {
	var own *runtime.HTTPStatusError
	// A status without details comes from the channel: its message names addresses.
	if code := status.Code(err); !errors.As(err, &own) && len(status.Convert(err).Details()) == 0 &&
		(code == codes.Unavailable || code == codes.DeadlineExceeded || code == codes.Canceled) {
		log.Printf("the service did not answer: %v", err)
		err = status.Error(codes.Unavailable, "the service did not answer")
		w.Header().Set("Retry-After", "1")
	}
	if status.Code(err) == codes.Unauthenticated {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	for _, detail := range status.Convert(err).Details() {
		if retry, ok := detail.(*errdetails.RetryInfo); ok {
			seconds := math.Ceil(retry.GetRetryDelay().AsDuration().Seconds())
			w.Header().Set("Retry-After", strconv.Itoa(int(seconds)))
		}
	}
	runtime.DefaultHTTPErrorHandler(ctx, mux, marshal, w, r, err)
}

func writeRoutingError(ctx context.Context, mux *runtime.ServeMux, marshal runtime.Marshaler, w http.ResponseWriter, r *http.Request, code int) {
	if code == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", "GET, POST, PATCH, DELETE")
		writeError(ctx, mux, marshal, w, r, refusal(code, codes.Unimplemented, "this path has no such method"))
		return
	}
	runtime.DefaultRoutingErrorHandler(ctx, mux, marshal, w, r, code)
}

// An error with an HTTP status of its own.
func refusal(httpStatus int, code codes.Code, message string) error {
	return &runtime.HTTPStatusError{HTTPStatus: httpStatus, Err: status.Error(code, message)}
}
