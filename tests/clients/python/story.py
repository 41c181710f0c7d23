"""The tutorial's story with a client generated from proto/, lists by pages, a
retry, a watch that is resumed, and the codes and details of errors.

Usage: story.py HOST:PORT SERVICE_CONFIG, with the generated modules on the path.
"""

import sys
import time
import uuid

import grpc
from account.v1 import account_service_pb2 as pb
from account.v1 import account_service_pb2_grpc as rpc
from account.v1 import resources_pb2 as resources
from google.protobuf import duration_pb2, timestamp_pb2
from google.rpc import error_details_pb2 as details
from grpc_status import rpc_status


def refused(call, request):
    """Calls, expects an error, and returns its code, reason and details."""
    try:
        call(request, timeout=5)
    except grpc.RpcError as error:
        found = {}
        for packed in rpc_status.from_call(error).details:
            for kind in (
                details.ErrorInfo,
                details.BadRequest,
                details.ResourceInfo,
                details.PreconditionFailure,
            ):
                if packed.Is(kind.DESCRIPTOR):
                    unpacked = kind()
                    packed.Unpack(unpacked)
                    found[kind.DESCRIPTOR.name] = unpacked
        assert found["ErrorInfo"].domain == "account.v1"
        return error.code(), found["ErrorInfo"].reason, found
    raise AssertionError(f"{request} was not refused")


def walk_through(accounts):
    """The walk-through."""
    olivia = accounts.CreateUser(
        pb.CreateUserRequest(username="py-olivia", first_name="Olivia", last_name="Smith"),
        timeout=5,
    ).user
    assert (olivia.first_name, olivia.last_name) == ("Olivia", "Smith")
    accounts.CreateUser(pb.CreateUserRequest(username="py-michael"), timeout=5)
    founded = accounts.CreateOrganization(
        pb.CreateOrganizationRequest(organization_name="py-org", founding_user="py-olivia"),
        timeout=5,
    ).organization
    assert founded.founding_user == "py-olivia"

    check = pb.CheckMembershipRequest(organization_name="py-org", username="py-michael")
    assert not accounts.CheckMembership(check, timeout=5).is_member
    accounts.AddUserToOrganization(
        pb.AddUserToOrganizationRequest(
            organization_name="py-org",
            member_username="py-michael",
            role=resources.ROLE_MEMBER,
            adding_user="py-olivia",
        ),
        timeout=5,
    )
    response = accounts.CheckMembership(check, timeout=5)
    assert response.is_member and response.role == resources.ROLE_MEMBER

    batch = pb.BatchCheckMembershipsRequest(
        checks=[
            pb.MembershipCheck(
                organization_name="py-org",
                username=username,
                minimum_role=resources.ROLE_ADMIN,
            )
            for username in ("py-olivia", "py-michael", "py-nobody")
        ]
    )
    results = accounts.BatchCheckMemberships(batch, timeout=5).results
    assert [result.satisfied for result in results] == [True, False, False]

    remove = pb.RemoveUserFromOrganizationRequest(
        organization_name="py-org", member_username="py-michael", acting_user="py-olivia"
    )
    accounts.RemoveUserFromOrganization(remove, timeout=5)
    assert not accounts.CheckMembership(check, timeout=5).is_member


def page(accounts):
    """A list, page by page."""
    request = pb.ListUserOrganizationsRequest(username="py-olivia", page_size=2)
    names = [f"py-org-{number}" for number in range(5)]
    for name in names:
        accounts.CreateOrganization(
            pb.CreateOrganizationRequest(organization_name=name, founding_user="py-olivia"),
            timeout=5,
        )
    listed, pages = [], 0
    while True:
        response = accounts.ListUserOrganizations(request, timeout=5)
        listed += [membership.organization_name for membership in response.memberships]
        pages += 1
        request.page_token = response.next_page_token
        if not request.page_token:
            break
    assert listed == ["py-org", *names] and pages >= 3, listed


def send_twice(accounts):
    """A write that is sent again, as after a lost response."""
    create = pb.CreateUserRequest(username="py-once", request_id=str(uuid.uuid4()))
    first = accounts.CreateUser(create, timeout=5).user
    assert accounts.CreateUser(create, timeout=5).user == first
    create.first_name = "Another"
    code, reason, _ = refused(accounts.CreateUser, create)
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")


def watch(accounts):
    """The changes so far, in two parts: the second resumes after the first."""
    whole = []
    cursor = None
    for want in (2, 4):
        request = pb.WatchChangesRequest(organization_name="py-org", oldest=True)
        if cursor:
            request = pb.WatchChangesRequest(organization_name="py-org", cursor=cursor)
        stream = accounts.WatchChanges(request, timeout=20)
        while len(whole) < want:
            for change in next(stream).changes:
                if len(whole) < want:
                    whole.append(change)
                    cursor = change.cursor
        stream.cancel()
    kinds = sorted((change.WhichOneof("resource"), change.kind) for change in whole)
    assert kinds == [
        ("membership", pb.CHANGE_KIND_CREATED),
        ("membership", pb.CHANGE_KIND_CREATED),
        ("membership", pb.CHANGE_KIND_DELETED),
        ("organization", pb.CHANGE_KIND_CREATED),
    ], kinds


def update_membership(accounts):
    """A membership with an end and labels."""
    expires = timestamp_pb2.Timestamp(seconds=int(time.time()) + 3600)
    membership = resources.Membership(
        organization_name="py-org-0",
        member_username="py-michael",
        expire_time=expires,
        labels={"job": "nurse"},
    )
    accounts.AddUserToOrganization(
        pb.AddUserToOrganizationRequest(
            organization_name="py-org-0",
            member_username="py-michael",
            role=resources.ROLE_MEMBER,
            adding_user="py-olivia",
        ),
        timeout=5,
    )
    accounts.UpdateMembership(
        pb.UpdateMembershipRequest(membership=membership, acting_user="py-olivia"), timeout=5
    )
    check = pb.CheckMembershipRequest(
        organization_name="py-org-0", username="py-michael", with_labels=True
    )
    response = accounts.CheckMembership(check, timeout=5)
    assert response.expire_time == expires and response.labels == {"job": "nurse"}, response


def look_up(accounts):
    """Look-ups by external id and by uid, a filtered list, and counts."""
    user = resources.User(username="py-olivia", external_id="py-00u1")
    accounts.UpdateUser(pb.UpdateUserRequest(user=user), timeout=5)
    request = pb.LookupUserRequest(external_id="py-00u1")
    assert accounts.LookupUser(request, timeout=5).user.username == "py-olivia"
    organization = accounts.GetOrganization(
        pb.GetOrganizationRequest(organization_name="py-org"), timeout=5
    ).organization
    request = pb.LookupOrganizationRequest(uid=organization.uid)
    assert accounts.LookupOrganization(request, timeout=5).organization == organization
    owners = pb.ListOrganizationMembersRequest(
        organization_name="py-org-0", filter='role = ROLE_OWNER AND member_username = "py-*"'
    )
    members = accounts.ListOrganizationMembers(owners, timeout=5).memberships
    assert [member.member_username for member in members] == ["py-olivia"], members
    count = pb.CountOrganizationMembersRequest(organization_name="py-org-1")
    counted = accounts.CountOrganizationMembers(count, timeout=5)
    assert counted.owner_count == counted.total_count == 1 and counted.cursor, counted


def undelete(accounts):
    """A deletion for a day, and its undeletion."""
    request = pb.DeleteUserRequest(
        username="py-michael", undelete_window=duration_pb2.Duration(seconds=86400)
    )
    assert accounts.DeleteUser(request, timeout=5).user.state == resources.STATE_DELETED
    check = pb.CheckMembershipRequest(organization_name="py-org-0", username="py-michael")
    assert not accounts.CheckMembership(check, timeout=5).is_member
    listed = accounts.ListUsers(
        pb.ListUsersRequest(filter='username = "py-michael"', show_deleted=True), timeout=5
    )
    assert [user.state for user in listed.users] == [resources.STATE_DELETED], listed
    accounts.UndeleteUser(pb.UndeleteUserRequest(username="py-michael"), timeout=5)
    assert accounts.CheckMembership(check, timeout=5).is_member


def erase(accounts):
    """An erasure and its report."""
    accounts.CreateUser(pb.CreateUserRequest(username="py-erased"), timeout=5)
    erasure = accounts.EraseUser(pb.EraseUserRequest(username="py-erased"), timeout=5).erasure
    found = accounts.GetErasure(pb.GetErasureRequest(erasure_id=erasure.erasure_id), timeout=5)
    assert found.erasure.pseudonym == "erased:" + erasure.erasure_id, found
    assert found.erasure.remainders, found


def err(accounts):
    """Errors, with the codes and reasons that a client can branch on."""
    code, reason, found = refused(accounts.CreateUser, pb.CreateUserRequest(username="a#b"))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert found["BadRequest"].field_violations[0].field == "username"

    code, reason, found = refused(accounts.CreateUser, pb.CreateUserRequest(username="py-olivia"))
    assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "USER_ALREADY_EXISTS")
    assert found["ResourceInfo"].resource_name == "py-olivia"

    code, reason, _ = refused(accounts.GetUser, pb.GetUserRequest(username="py-nobody"))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "USER_NOT_FOUND")

    outsider = pb.RemoveUserFromOrganizationRequest(
        organization_name="py-org", member_username="py-olivia", acting_user="py-michael"
    )
    code, reason, _ = refused(accounts.RemoveUserFromOrganization, outsider)
    assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "NOT_PERMITTED")

    leave = pb.RemoveUserFromOrganizationRequest(
        organization_name="py-org", member_username="py-olivia", acting_user="py-olivia"
    )
    code, reason, found = refused(accounts.RemoveUserFromOrganization, leave)
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "LAST_OWNER")
    assert found["PreconditionFailure"].violations[0].subject == "py-org"


def main():
    """Runs the story, then the errors."""
    with open(sys.argv[2], encoding="utf-8") as file:
        options = [
            ("grpc.service_config", file.read()),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        ]
    with grpc.insecure_channel(sys.argv[1], options) as channel:
        accounts = rpc.AccountServiceStub(channel)
        walk_through(accounts)
        page(accounts)
        send_twice(accounts)
        watch(accounts)
        update_membership(accounts)
        look_up(accounts)
        undelete(accounts)
        erase(accounts)
        err(accounts)
    print("python: the story is complete, the errors are as documented")


if __name__ == "__main__":
    main()
