"""Calls replicas with the recommended settings until its input ends; fails if a call fails.

    python rolling.py SERVICE_CONFIG HOST:PORT...
"""

import sys
import threading
import time
import uuid

import grpc
from account.v1 import account_service_pb2 as pb
from account.v1 import account_service_pb2_grpc as rpc
from account.v1 import resources_pb2 as resources

CALLERS = 4
FOUNDER = "founder"


def main():
    config, *replicas = sys.argv[1:]
    options = [
        ("grpc.service_config", open(config).read()),
        ("grpc.keepalive_time_ms", 30_000),
        # HTTP/2 does not allow a list of addresses as authority.
        ("grpc.default_authority", "accounts"),
    ]
    with grpc.insecure_channel("ipv4:" + ",".join(replicas), options) as channel:
        accounts = rpc.AccountServiceStub(channel)
        create_user(accounts, FOUNDER)
        over = threading.Event()
        counts = [0] * CALLERS
        failures = []
        callers = [
            threading.Thread(target=call, args=(accounts, number, over, counts, failures))
            for number in range(CALLERS)
        ]
        for caller in callers:
            caller.start()
        while not failures and min(counts) == 0:
            time.sleep(0.05)
        print("under way", flush=True)
        sys.stdin.read()
        over.set()
        for caller in callers:
            caller.join()
    print(f"{sum(counts)} rounds of five calls, {len(failures)} failures {failures[:3]}")
    sys.exit(1 if failures or min(counts) == 0 else 0)


def create_user(accounts, name):
    accounts.CreateUser(pb.CreateUserRequest(username=name, request_id=str(uuid.uuid4())))


def call(accounts, number, over, counts, failures):
    user, organization = f"rolling-{number}", f"rolling-{number}"
    try:
        create_user(accounts, user)
        accounts.CreateOrganization(
            pb.CreateOrganizationRequest(
                organization_name=organization, founding_user=FOUNDER, request_id=str(uuid.uuid4())
            )
        )
        while not over.is_set():
            accounts.AddUserToOrganization(
                pb.AddUserToOrganizationRequest(
                    organization_name=organization,
                    member_username=user,
                    role=resources.ROLE_MEMBER,
                    adding_user=FOUNDER,
                    request_id=str(uuid.uuid4()),
                )
            )
            check = pb.CheckMembershipRequest(organization_name=organization, username=user)
            assert accounts.CheckMembership(check).is_member
            accounts.RemoveUserFromOrganization(
                pb.RemoveUserFromOrganizationRequest(
                    organization_name=organization,
                    member_username=user,
                    acting_user=FOUNDER,
                    request_id=str(uuid.uuid4()),
                )
            )
            for _ in range(2):
                assert not accounts.CheckMembership(check).is_member
            counts[number] += 1
    except Exception as failure:
        failures.append(repr(failure))


main()
