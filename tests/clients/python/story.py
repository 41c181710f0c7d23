"""The tutorial's story with a client generated from proto/: what it answers, and
which codes and details its errors carry.

Usage: story.py HOST:PORT, with the generated modules on the path.
"""

import sys

import grpc
from account.v1 import account_service_pb2 as pb
from account.v1 import account_service_pb2_grpc as rpc
from account.v1 import resources_pb2 as resources
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


def tell(accounts):
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
    answer = accounts.CheckMembership(check, timeout=5)
    assert answer.is_member and answer.role == resources.ROLE_MEMBER

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


def err(accounts):
    """Errors, with what a client can branch on."""
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
    """Tells the story, then errs."""
    with grpc.insecure_channel(sys.argv[1]) as channel:
        accounts = rpc.AccountServiceStub(channel)
        tell(accounts)
        err(accounts)
    print("python: the story is told, the errors are as documented")


if __name__ == "__main__":
    main()
