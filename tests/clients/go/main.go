// The tutorial's story with a client generated from proto/, a list by pages, a
// batch check, a retry, a watch that is resumed, and the details of an error.
//
// Usage: main HOST:PORT SERVICE_CONFIG
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	pb "accounts/gen/account/v1"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// must returns the response of a call that has to succeed.
func must[T any](response T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return response
}

func assert(isTrue bool, what string, values ...any) {
	if !isTrue {
		log.Fatalf("%s: %v", what, values)
	}
}

// reason returns the code and the ErrorInfo reason of an error.
func reason(err error) (codes.Code, string) {
	found := status.Convert(err)
	for _, detail := range found.Details() {
		if info, is := detail.(*errdetails.ErrorInfo); is {
			return found.Code(), info.GetReason()
		}
	}
	return found.Code(), ""
}

func walkThrough(ctx context.Context, accounts pb.AccountServiceClient) {
	must(accounts.CreateUser(ctx, &pb.CreateUserRequest{Username: "go-olivia", FirstName: "Olivia", LastName: "Smith"}))
	must(accounts.CreateUser(ctx, &pb.CreateUserRequest{Username: "go-michael"}))
	must(accounts.CreateOrganization(ctx, &pb.CreateOrganizationRequest{OrganizationName: "go-org", FoundingUser: "go-olivia"}))
	check := &pb.CheckMembershipRequest{OrganizationName: "go-org", Username: "go-michael"}
	assert(!must(accounts.CheckMembership(ctx, check)).GetIsMember(), "a member before the addition")
	must(accounts.AddUserToOrganization(ctx, &pb.AddUserToOrganizationRequest{
		OrganizationName: "go-org", MemberUsername: "go-michael", Role: pb.Role_ROLE_MEMBER, AddingUser: "go-olivia",
	}))
	assert(must(accounts.CheckMembership(ctx, check)).GetRole() == pb.Role_ROLE_MEMBER, "no member")
	batch := &pb.BatchCheckMembershipsRequest{}
	for _, username := range []string{"go-olivia", "go-michael", "go-nobody"} {
		batch.Checks = append(batch.Checks, &pb.MembershipCheck{
			OrganizationName: "go-org", Username: username, MinimumRole: pb.Role_ROLE_ADMIN,
		})
	}
	results := must(accounts.BatchCheckMemberships(ctx, batch)).GetResults()
	assert(results[0].GetSatisfied() && !results[1].GetSatisfied() && !results[2].GetSatisfied(), "batch", results)
}

func page(ctx context.Context, accounts pb.AccountServiceClient) {
	var names []string
	request := &pb.ListOrganizationMembersRequest{OrganizationName: "go-org", PageSize: 1}
	for {
		response := must(accounts.ListOrganizationMembers(ctx, request))
		for _, membership := range response.GetMemberships() {
			names = append(names, membership.GetMemberUsername())
		}
		if request.PageToken = response.GetNextPageToken(); request.PageToken == "" {
			break
		}
	}
	assert(fmt.Sprint(names) == "[go-michael go-olivia]", "pages", names)
}

func sendTwice(ctx context.Context, accounts pb.AccountServiceClient) {
	create := &pb.CreateUserRequest{Username: "go-once", RequestId: uuid.NewString()}
	first := must(accounts.CreateUser(ctx, create)).GetUser()
	again := must(accounts.CreateUser(ctx, create)).GetUser()
	assert(proto.Equal(first, again), "another outcome", first, again)
}

func watch(ctx context.Context, accounts pb.AccountServiceClient) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	request := &pb.WatchChangesRequest{
		OrganizationName: "go-org", Start: &pb.WatchChangesRequest_Oldest{Oldest: true},
	}
	seen := map[string]bool{}
	for _, want := range []int{1, 3} {
		stream := must(accounts.WatchChanges(ctx, request))
		for len(seen) < want {
			for _, change := range must(stream.Recv()).GetChanges() {
				if len(seen) < want {
					seen[change.GetCursor()] = true
					request.Start = &pb.WatchChangesRequest_Cursor{Cursor: change.GetCursor()}
				}
			}
		}
	}
	// The organization and two memberships, each once.
	assert(len(seen) == 3, "changes", seen)
}

// updateMembership gives a membership an end and labels.
func updateMembership(ctx context.Context, accounts pb.AccountServiceClient) {
	end := timestamppb.New(time.Now().Add(time.Hour).Truncate(time.Second))
	must(accounts.UpdateMembership(ctx, &pb.UpdateMembershipRequest{
		Membership: &pb.Membership{
			OrganizationName: "go-org", MemberUsername: "go-michael",
			ExpireTime: end, Labels: map[string]string{"job": "nurse"},
		},
		ActingUser: "go-olivia",
	}))
	check := must(accounts.CheckMembership(ctx, &pb.CheckMembershipRequest{
		OrganizationName: "go-org", Username: "go-michael", WithLabels: true,
	}))
	assert(proto.Equal(check.GetExpireTime(), end), "end", check)
	assert(check.GetLabels()["job"] == "nurse", "labels", check)
}

// lookUp finds a user by external id and an organization by uid, filters a list, and counts members.
func lookUp(ctx context.Context, accounts pb.AccountServiceClient) {
	must(accounts.UpdateUser(ctx, &pb.UpdateUserRequest{
		User: &pb.User{Username: "go-olivia", ExternalId: "go-00u1"},
	}))
	user := must(accounts.LookupUser(ctx, &pb.LookupUserRequest{ExternalId: "go-00u1"}))
	assert(user.GetUser().GetUsername() == "go-olivia", "external id", user)
	organization := must(accounts.GetOrganization(ctx, &pb.GetOrganizationRequest{OrganizationName: "go-org"}))
	found := must(accounts.LookupOrganization(ctx, &pb.LookupOrganizationRequest{
		Uid: organization.GetOrganization().GetUid(),
	}))
	assert(proto.Equal(found.GetOrganization(), organization.GetOrganization()), "uid", found)
	owners := must(accounts.ListOrganizationMembers(ctx, &pb.ListOrganizationMembersRequest{
		OrganizationName: "go-org", Filter: "role = ROLE_OWNER",
	}))
	assert(len(owners.GetMemberships()) == 1, "owners", owners)
	counted := must(accounts.CountOrganizationMembers(ctx, &pb.CountOrganizationMembersRequest{
		OrganizationName: "go-org",
	}))
	assert(counted.GetOwnerCount() == 1 && counted.GetCursor() != "", "counts", counted)
}

// undelete deletes a user for a day, and brings the user back with its membership.
func undelete(ctx context.Context, accounts pb.AccountServiceClient) {
	deleted := must(accounts.DeleteUser(ctx, &pb.DeleteUserRequest{
		Username: "go-michael", UndeleteWindow: durationpb.New(24 * time.Hour),
	}))
	assert(deleted.GetUser().GetState() == pb.State_STATE_DELETED, "deleted", deleted)
	check := &pb.CheckMembershipRequest{OrganizationName: "go-org", Username: "go-michael"}
	assert(!must(accounts.CheckMembership(ctx, check)).GetIsMember(), "a member after the deletion")
	must(accounts.UndeleteUser(ctx, &pb.UndeleteUserRequest{Username: "go-michael"}))
	assert(must(accounts.CheckMembership(ctx, check)).GetIsMember(), "no member after the undeletion")
}

// erase erases a user, and reads the report.
func erase(ctx context.Context, accounts pb.AccountServiceClient) {
	must(accounts.CreateUser(ctx, &pb.CreateUserRequest{Username: "go-erased"}))
	erased := must(accounts.EraseUser(ctx, &pb.EraseUserRequest{Username: "go-erased"}))
	id := erased.GetErasure().GetErasureId()
	found := must(accounts.GetErasure(ctx, &pb.GetErasureRequest{ErasureId: id}))
	assert(found.GetErasure().GetPseudonym() == "erased:"+id, "pseudonym", found)
}

func main() {
	config := must(os.ReadFile(os.Args[2]))
	channel := must(grpc.NewClient(os.Args[1],
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(string(config)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
	))
	defer channel.Close()
	accounts := pb.NewAccountServiceClient(channel)
	ctx := context.Background()
	walkThrough(ctx, accounts)
	page(ctx, accounts)
	sendTwice(ctx, accounts)
	watch(ctx, accounts)
	updateMembership(ctx, accounts)
	lookUp(ctx, accounts)
	undelete(ctx, accounts)
	erase(ctx, accounts)
	_, err := accounts.CreateUser(ctx, &pb.CreateUserRequest{Username: "go-olivia"})
	code, why := reason(err)
	assert(code == codes.AlreadyExists && why == "USER_ALREADY_EXISTS", "error", err)
	fmt.Println("go: the story is complete, the errors are as documented")
}
