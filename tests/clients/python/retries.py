"""Creates a user. The first attempt is applied, and its response is lost.

    python retries.py SERVICE_CONFIG HOST:PORT USERNAME [REQUEST_ID]

Without a request id, the library must not retry: the user would exist already. With one,
it retries, and receives the user that its first attempt created.
"""

import sys

import grpc
from account.v1 import account_service_pb2 as pb
from account.v1 import account_service_pb2_grpc as rpc


def main():
    config, address, username, *request_id = sys.argv[1:]
    options = [("grpc.service_config", open(config).read())]
    request = pb.CreateUserRequest(username=username, request_id="".join(request_id))
    with grpc.insecure_channel(address, options) as channel:
        accounts = rpc.AccountServiceStub(channel)
        try:
            user = accounts.CreateUser(request, timeout=10).user
            print("created", user.username)
        except grpc.RpcError as error:
            print("failed", error.code().name)


main()
