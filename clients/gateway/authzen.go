package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"sort"
	"strings"
	"unicode"

	pb "gateway/gen/account/v1"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Paths of AuthZEN's Authorization API 1.0.
const (
	authZENPrefix    = "/access/v1/"
	evaluationPath   = authZENPrefix + "evaluation"
	evaluationsPath  = authZENPrefix + "evaluations"
	searchPath       = authZENPrefix + "search/"
	discoveryPath    = "/.well-known/authzen-configuration"
	maxEvaluations   = 1000
	defaultPageLimit = 100
	maxPageLimit     = 1000
	maxNameBytes     = 256
)

// The file of AuthZEN: the roles that actions need.
type authZENFile struct {
	// URL of this gateway, in the discovery document.
	PolicyDecisionPoint string `json:"policy_decision_point"`
	// Type of subjects. "user" if missing.
	SubjectType string `json:"subject_type"`
	// Type of resources. "organization" if missing.
	ResourceType string `json:"resource_type"`
	// The least role of each action.
	Actions map[string]string `json:"actions"`
}

// Answers AuthZEN's requests by checks of memberships. A subject is a user, a resource is an
// organization, and an action needs a role.
type authZEN struct {
	routes       *runtime.ServeMux
	service      pb.AccountServiceClient
	base         string
	subjectType  string
	resourceType string
	actions      map[string]pb.Role
}

type entity struct {
	Type       *string                    `json:"type"`
	ID         *string                    `json:"id"`
	Properties map[string]json.RawMessage `json:"properties"`
}

type action struct {
	Name       *string                    `json:"name"`
	Properties map[string]json.RawMessage `json:"properties"`
}

type evaluation struct {
	Subject  *entity                    `json:"subject"`
	Action   *action                    `json:"action"`
	Resource *entity                    `json:"resource"`
	Context  map[string]json.RawMessage `json:"context"`
}

type evaluations struct {
	evaluation
	Evaluations []evaluation `json:"evaluations"`
	Options     struct {
		Semantic string `json:"evaluations_semantic"`
	} `json:"options"`
}

type search struct {
	evaluation
	Page struct {
		Token string `json:"token"`
		Limit *int32 `json:"limit"`
	} `json:"page"`
}

type decision struct {
	Decision bool `json:"decision"`
	// Why an evaluation of several failed.
	Context *failure `json:"context,omitempty"`
}

type failure struct {
	Error failureStatus `json:"error"`
}

type failureStatus struct {
	Status  int    `json:"status"`
	Message string `json:"message"`
}

type page struct {
	NextToken string `json:"next_token"`
}

type found struct {
	Type string `json:"type,omitempty"`
	ID   string `json:"id,omitempty"`
	Name string `json:"name,omitempty"`
}

type results struct {
	Page    *page   `json:"page,omitempty"`
	Results []found `json:"results"`
}

// Adds the routes of AuthZEN.
func addAuthZEN(routes *runtime.ServeMux, channel grpc.ClientConnInterface, file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	a, err := parseAuthZEN(text)
	if err != nil {
		return err
	}
	a.routes, a.service = routes, pb.NewAccountServiceClient(channel)
	for path, handle := range map[string]func(context.Context, []byte) (any, error){
		evaluationPath:          a.evaluate,
		evaluationsPath:         a.evaluateAll,
		searchPath + "subject":  a.searchSubjects,
		searchPath + "resource": a.searchResources,
		searchPath + "action":   a.searchActions,
	} {
		if err := routes.HandlePath(http.MethodPost, path, a.handler(handle)); err != nil {
			return err
		}
	}
	return routes.HandlePath(http.MethodGet, discoveryPath, a.discover)
}

func parseAuthZEN(text []byte) (*authZEN, error) {
	decoder := json.NewDecoder(strings.NewReader(string(text)))
	decoder.DisallowUnknownFields()
	file := authZENFile{SubjectType: "user", ResourceType: "organization"}
	if err := decoder.Decode(&file); err != nil {
		return nil, err
	}
	base, err := url.Parse(file.PolicyDecisionPoint)
	if err != nil || base.Scheme != "https" || base.Host == "" || base.RawQuery != "" || base.Fragment != "" || strings.Trim(base.Path, "/") != "" {
		return nil, errors.New("policy_decision_point must be the https URL of a host")
	}
	if len(file.Actions) == 0 {
		return nil, errors.New("actions must not be empty")
	}
	actions := map[string]pb.Role{}
	for name, role := range file.Actions {
		value, isRole := pb.Role_value[role]
		if !isRole || value == 0 {
			return nil, fmt.Errorf("the role of action %q must be ROLE_OWNER, ROLE_ADMIN or ROLE_MEMBER", name)
		}
		actions[name] = pb.Role(value)
	}
	return &authZEN{
		base:         strings.TrimSuffix(file.PolicyDecisionPoint, "/"),
		subjectType:  file.SubjectType,
		resourceType: file.ResourceType,
		actions:      actions,
	}, nil
}

// A handler that reads the body, and writes the response as JSON.
func (a *authZEN) handler(handle func(context.Context, []byte) (any, error)) runtime.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request, _ map[string]string) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			a.fail(w, r, status.Error(codes.InvalidArgument, "the body cannot be read"))
			return
		}
		ctx, err := runtime.AnnotateContext(r.Context(), a.routes, r, "/authzen")
		if err != nil {
			a.fail(w, r, err)
			return
		}
		response, err := handle(ctx, body)
		if err != nil {
			a.fail(w, r, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(response)
	}
}

func (a *authZEN) fail(w http.ResponseWriter, r *http.Request, err error) {
	writeError(r.Context(), a.routes, marshaler, w, r, err)
}

func (a *authZEN) discover(w http.ResponseWriter, _ *http.Request, _ map[string]string) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]string{
		"policy_decision_point":       a.base,
		"access_evaluation_endpoint":  a.base + evaluationPath,
		"access_evaluations_endpoint": a.base + evaluationsPath,
		"search_subject_endpoint":     a.base + searchPath + "subject",
		"search_resource_endpoint":    a.base + searchPath + "resource",
		"search_action_endpoint":      a.base + searchPath + "action",
	})
}

func (a *authZEN) evaluate(ctx context.Context, body []byte) (any, error) {
	var request evaluation
	if err := decode(body, &request); err != nil {
		return nil, err
	}
	return a.evaluateOne(ctx, request)
}

func (a *authZEN) evaluateOne(ctx context.Context, request evaluation) (any, error) {
	decisions, err := a.decide(ctx, []evaluation{request})
	if err != nil {
		return nil, err
	}
	if failed := decisions[0].Context; failed != nil {
		return nil, status.Error(codes.InvalidArgument, failed.Error.Message)
	}
	return decisions[0], nil
}

func (a *authZEN) evaluateAll(ctx context.Context, body []byte) (any, error) {
	var request evaluations
	if err := decode(body, &request); err != nil {
		return nil, err
	}
	if len(request.Evaluations) == 0 {
		return a.evaluateOne(ctx, request.evaluation)
	}
	if len(request.Evaluations) > maxEvaluations {
		return nil, status.Errorf(codes.InvalidArgument, "evaluations must not have more than %d entries", maxEvaluations)
	}
	last := map[string]*bool{"": nil, "execute_all": nil, "deny_on_first_deny": new(false), "permit_on_first_permit": new(true)}
	stop, isKnown := last[request.Options.Semantic]
	if !isKnown {
		return nil, status.Error(codes.InvalidArgument, "options.evaluations_semantic is unknown")
	}
	for i := range request.Evaluations {
		request.Evaluations[i].inherit(request.evaluation)
	}
	decisions, err := a.decide(ctx, request.Evaluations)
	if err != nil {
		return nil, err
	}
	for i, decision := range decisions {
		if stop != nil && decision.Decision == *stop {
			decisions = decisions[:i+1]
			break
		}
	}
	return map[string]any{"evaluations": decisions}, nil
}

// Takes over the parts that the evaluation does not have itself.
func (e *evaluation) inherit(from evaluation) {
	if e.Subject == nil {
		e.Subject = from.Subject
	}
	if e.Action == nil {
		e.Action = from.Action
	}
	if e.Resource == nil {
		e.Resource = from.Resource
	}
}

// Decides evaluations, in their order. One that is not complete is a denial with a reason.
func (a *authZEN) decide(ctx context.Context, evaluations []evaluation) ([]decision, error) {
	decisions := make([]decision, len(evaluations))
	var checks []*pb.MembershipCheck
	var positions []int
	for i, evaluation := range evaluations {
		if err := evaluation.check(); err != nil {
			decisions[i].Context = &failure{failureStatus{http.StatusBadRequest, err.Error()}}
			continue
		}
		role, isKnown := a.actions[*evaluation.Action.Name]
		if !isKnown || !a.isUser(evaluation.Subject) || !a.isOrganization(evaluation.Resource) {
			continue
		}
		checks = append(checks, &pb.MembershipCheck{
			OrganizationName: *evaluation.Resource.ID,
			Username:         *evaluation.Subject.ID,
			MinimumRole:      role,
		})
		positions = append(positions, i)
	}
	if len(checks) == 0 {
		return decisions, nil
	}
	response, err := a.service.BatchCheckMemberships(ctx, &pb.BatchCheckMembershipsRequest{Checks: checks})
	if err != nil {
		return nil, err
	}
	for i, result := range response.Results {
		decisions[positions[i]].Decision = result.Satisfied
	}
	return decisions, nil
}

func (a *authZEN) searchSubjects(ctx context.Context, body []byte) (any, error) {
	var request search
	if err := decode(body, &request); err != nil {
		return nil, err
	}
	if err := firstOf(request.Subject.checkType("subject"), request.Action.check(), request.Resource.check("resource")); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	least, isKnown := a.actions[*request.Action.Name]
	if !isKnown || *request.Subject.Type != a.subjectType || !a.isOrganization(request.Resource) {
		return results{Results: []found{}}, nil
	}
	limit, err := request.limit()
	if err != nil {
		return nil, err
	}
	response, err := a.service.ListOrganizationMembers(ctx, &pb.ListOrganizationMembersRequest{
		OrganizationName: *request.Resource.ID,
		PageSize:         limit,
		PageToken:        request.Page.Token,
	})
	return searched(response, err, least, func(membership *pb.Membership) found {
		return found{Type: a.subjectType, ID: membership.MemberUsername}
	})
}

func (a *authZEN) searchResources(ctx context.Context, body []byte) (any, error) {
	var request search
	if err := decode(body, &request); err != nil {
		return nil, err
	}
	if err := firstOf(request.Subject.check("subject"), request.Action.check(), request.Resource.checkType("resource")); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	least, isKnown := a.actions[*request.Action.Name]
	if !isKnown || !a.isUser(request.Subject) || *request.Resource.Type != a.resourceType {
		return results{Results: []found{}}, nil
	}
	limit, err := request.limit()
	if err != nil {
		return nil, err
	}
	response, err := a.service.ListUserOrganizations(ctx, &pb.ListUserOrganizationsRequest{
		Username:  *request.Subject.ID,
		PageSize:  limit,
		PageToken: request.Page.Token,
	})
	return searched(response, err, least, func(membership *pb.Membership) found {
		return found{Type: a.resourceType, ID: membership.OrganizationName}
	})
}

// A page of memberships of the service.
type membershipPage interface {
	GetMemberships() []*pb.Membership
	GetNextPageToken() string
}

// The entries of a page whose role suffices. Nothing is found where the user or the organization does
// not exist.
func searched(listed membershipPage, err error, least pb.Role, entry func(*pb.Membership) found) (any, error) {
	if status.Code(err) == codes.NotFound {
		return results{Results: []found{}}, nil
	}
	if err != nil {
		return nil, err
	}
	response := results{Page: &page{listed.GetNextPageToken()}, Results: []found{}}
	for _, membership := range listed.GetMemberships() {
		if suffices(membership, least) {
			response.Results = append(response.Results, entry(membership))
		}
	}
	return response, nil
}

func (a *authZEN) searchActions(ctx context.Context, body []byte) (any, error) {
	var request search
	if err := decode(body, &request); err != nil {
		return nil, err
	}
	if err := firstOf(request.Subject.check("subject"), request.Resource.check("resource")); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	listed := results{Results: []found{}}
	if !a.isUser(request.Subject) || !a.isOrganization(request.Resource) {
		return listed, nil
	}
	response, err := a.service.CheckMembership(ctx, &pb.CheckMembershipRequest{
		OrganizationName: *request.Resource.ID,
		Username:         *request.Subject.ID,
	})
	if err != nil {
		return nil, err
	}
	for name, least := range a.actions {
		if response.IsMember && reaches(response.Role, least) {
			listed.Results = append(listed.Results, found{Name: name})
		}
	}
	sort.Slice(listed.Results, func(i, j int) bool { return listed.Results[i].Name < listed.Results[j].Name })
	return listed, nil
}

// A higher role has a lower number.
func reaches(role, least pb.Role) bool {
	return role != pb.Role_ROLE_UNSPECIFIED && role <= least
}

func suffices(membership *pb.Membership, least pb.Role) bool {
	return membership.State == pb.State_STATE_ACTIVE && reaches(membership.Role, least)
}

// Whether an entity can be a user.
func (a *authZEN) isUser(subject *entity) bool {
	return *subject.Type == a.subjectType && isName(*subject.ID)
}

// Whether an entity can be an organization.
func (a *authZEN) isOrganization(resource *entity) bool {
	return *resource.Type == a.resourceType && isName(*resource.ID)
}

// Whether a text can be a name of the service. No user and no organization has another one.
func isName(name string) bool {
	return len(name) <= maxNameBytes && !strings.ContainsFunc(name, unicode.IsControl)
}

func (e *evaluation) check() error {
	return firstOf(e.Subject.check("subject"), e.Action.check(), e.Resource.check("resource"))
}

func (e *entity) checkType(name string) error {
	if e == nil || e.Type == nil || *e.Type == "" {
		return fmt.Errorf("%s.type must be set", name)
	}
	return nil
}

func (e *entity) check(name string) error {
	if err := e.checkType(name); err != nil {
		return err
	}
	if e.ID == nil || *e.ID == "" {
		return fmt.Errorf("%s.id must be set", name)
	}
	return nil
}

func (a *action) check() error {
	if a == nil || a.Name == nil || *a.Name == "" {
		return errors.New("action.name must be set")
	}
	return nil
}

// The size of a page.
func (s *search) limit() (int32, error) {
	switch limit := s.Page.Limit; {
	case limit == nil || *limit == 0:
		return defaultPageLimit, nil
	case *limit < 0:
		return 0, status.Error(codes.InvalidArgument, "page.limit must not be negative")
	default:
		return min(*limit, maxPageLimit), nil
	}
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func decode(body []byte, request any) error {
	if len(body) == 0 || body[0] == 'n' {
		return status.Error(codes.InvalidArgument, "the body must be a JSON object")
	}
	// Names are exact, and none occurs twice: the caller and the service see the same request.
	if err := jsonv2.Unmarshal(body, request); err != nil {
		return status.Errorf(codes.InvalidArgument, "the body is not valid: %v", err)
	}
	return nil
}
