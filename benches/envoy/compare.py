"""Latency and CPU time that an authorization adds to each request of Envoy.

Usage: compare.py WORK_FOLDER. Envoy answers by itself, so that only its filters differ: none, its own RBAC filter, which
decides by a header, and external authorization by the service, and by SpiceDB and OpenFGA behind a shim.
"""

import contextlib
import http.client
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import time

import grpc
from account.v1 import account_service_pb2 as pb
from account.v1 import account_service_pb2_grpc as rpc
from account.v1 import resources_pb2 as resources

WORK = pathlib.Path(sys.argv[1])
ROOT = pathlib.Path(__file__).parents[2]
TARGET = ROOT / "target"
USERS, ORGANIZATIONS = 50, 20
ROUNDS = 5
SEQUENTIAL, CONCURRENT, AT_ONCE = 2000, 8000, 16
PATIENCE = 60
TICK = os.sysconf("SC_CLK_TCK")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port):
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def start(stack, name, arguments, port, environment=None):
    log = stack.enter_context(open(WORK / f"{name}.log", "w"))
    environment = {**os.environ, **(environment or {})}
    process = subprocess.Popen([str(it) for it in arguments], stdout=log, stderr=log, env=environment)

    def stop():
        process.terminate()
        process.wait(PATIENCE)

    stack.callback(stop)
    wait_for(port)
    return process


def post(port, path, body, token=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
    connection.request("POST", path, json.dumps(body), headers)
    response = connection.getresponse()
    text = response.read()
    assert response.status < 300, (path, response.status, text)
    return json.loads(text)


def pairs():
    return [(f"user-{user}", f"organization-{organization}") for user in range(USERS) for organization in range(ORGANIZATIONS)]


def service(stack):
    """The service, with memberships in its memory."""
    backends = subprocess.Popen(
        [TARGET / "bench/release/backends"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    stack.callback(backends.terminate)
    environment = {}
    for line in backends.stdout:
        if not line.strip():
            break
        name, _, value = line.strip().partition("=")
        environment[name] = value
    environment |= {"AWS_ACCESS_KEY_ID": "embedded", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_REGION": "us-east-1"}
    environment["PEER_ADDR"] = f"127.0.0.1:{free_port()}"
    route = {
        "subject": {"header": "x-user"},
        "organization": {"path": "/organizations/{organization}/notes/**"},
        "minimum_role": "ROLE_MEMBER",
    }
    routes = WORK / "routes.json"
    routes.write_text(json.dumps({"routes": {"notes": route}}))
    port = free_port()
    arguments = [TARGET / "account-service", "serve", "--listen-addr", f"127.0.0.1:{port}", "--ext-authz", routes]
    process = start(stack, "service", arguments, port, environment)
    accounts = rpc.AccountServiceStub(grpc.insecure_channel(f"127.0.0.1:{port}"))
    for user in range(USERS):
        accounts.CreateUser(pb.CreateUserRequest(username=f"user-{user}"), wait_for_ready=True, timeout=PATIENCE)
    for organization in range(ORGANIZATIONS):
        name = f"organization-{organization}"
        accounts.CreateOrganization(pb.CreateOrganizationRequest(organization_name=name, founding_user="user-0"))
    for user, organization in pairs():
        if user != "user-0":
            member = pb.AddUserToOrganizationRequest(
                organization_name=organization, member_username=user, role=resources.ROLE_MEMBER, adding_user="user-0"
            )
            accounts.AddUserToOrganization(member)
    # A replica serves from memory some seconds after it has joined the directory.
    end = time.monotonic() + PATIENCE
    check = pb.CheckMembershipRequest(organization_name="organization-0", username="user-1")
    while accounts.CheckMembership(check).source != pb.SOURCE_MEMORY:
        assert time.monotonic() < end, "the service does not serve from its memory"
        time.sleep(0.2)
    return port, [process]


SPICEDB_SCHEMA = """
definition user {}
definition organization {
  relation owner: user
  relation admin: user
  relation member: user
  permission at_least_member = owner + admin + member
}"""


def spicedb(stack):
    """SpiceDB in memory, behind a shim."""
    port, web = free_port(), free_port()
    arguments = [
        TARGET / "peers/bin/spicedb", "serve", "--datastore-engine=memory", "--grpc-preshared-key=bench",
        f"--grpc-addr=127.0.0.1:{port}", "--http-enabled", f"--http-addr=127.0.0.1:{web}",
        f"--dispatch-cluster-addr=127.0.0.1:{free_port()}", f"--metrics-addr=127.0.0.1:{free_port()}",
        "--telemetry-endpoint=", "--skip-release-check", "--log-level=error",
    ]  # fmt: skip
    process = start(stack, "spicedb", arguments, port)
    wait_for(web)
    post(web, "/v1/schema/write", {"schema": SPICEDB_SCHEMA}, "bench")
    updates = [
        {
            "operation": "OPERATION_TOUCH",
            "relationship": {
                "resource": {"objectType": "organization", "objectId": organization},
                "relation": "member",
                "subject": {"object": {"objectType": "user", "objectId": user}},
            },
        }
        for user, organization in pairs()
    ]
    post(web, "/v1/relationships/write", {"updates": updates}, "bench")
    return shim(stack, "spicedb", port, process, "-key=bench")


def openfga(stack):
    """OpenFGA in memory with its caches of checks, behind a shim."""
    port, web = free_port(), free_port()
    arguments = [
        TARGET / "peers/bin/openfga", "run", "--datastore-engine=memory", "--playground-enabled=false",
        "--metrics-enabled=false", "--log-level=error", "--check-query-cache-enabled=true",
        "--check-query-cache-ttl=1h", "--check-iterator-cache-enabled=true",
        f"--grpc-addr=127.0.0.1:{port}", f"--http-addr=127.0.0.1:{web}",
    ]  # fmt: skip
    process = start(stack, "openfga", arguments, port)
    wait_for(web)
    store = post(web, "/stores", {"name": "bench"})["id"]
    roles = ["owner", "admin", "member"]
    direct = {"directly_related_user_types": [{"type": "user"}]}
    union = {"union": {"child": [{"computedUserset": {"relation": role}} for role in roles]}}
    organization = {
        "type": "organization",
        "relations": {role: {"this": {}} for role in roles} | {"at_least_member": union},
        "metadata": {"relations": {role: direct for role in roles} | {"at_least_member": {}}},
    }
    model = {"schema_version": "1.1", "type_definitions": [{"type": "user"}, organization]}
    model = post(web, f"/stores/{store}/authorization-models", model)["authorization_model_id"]
    keys = [{"user": f"user:{user}", "relation": "member", "object": f"organization:{it}"} for user, it in pairs()]
    for some in (keys[begin : begin + 50] for begin in range(0, len(keys), 50)):
        post(web, f"/stores/{store}/write", {"writes": {"tuple_keys": some}})
    return shim(stack, "openfga", port, process, f"-store={store}", f"-model={model}")


def shim(stack, backend, port, process, *arguments):
    listen = free_port()
    arguments = [f"-backend={backend}", f"-addr=127.0.0.1:{port}", f"-listen=127.0.0.1:{listen}", *arguments]
    return listen, [process, start(stack, f"shim-{backend}", [WORK / "envoybench", "shim", *arguments], listen)]


def typed(kind, **fields):
    return {"@type": f"type.googleapis.com/envoy.{kind}", **fields}


def envoy(stack, name, filters, authorizer=None):
    """An Envoy on one thread that answers each request itself, behind these filters."""
    port = free_port()
    router = {"name": "router", "typed_config": typed("extensions.filters.http.router.v3.Router")}
    route = {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "ok"}}}
    manager = typed(
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="front",
        http_filters=[*filters, router],
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
    )
    listener = {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    clusters = []
    if authorizer:
        settings = typed(
            "extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute",
            check_settings={"context_extensions": {"route": "notes"}},
        )
        route["typed_per_filter_config"] = {"ext_authz": settings}
        http2 = typed(
            "extensions.upstreams.http.v3.HttpProtocolOptions", explicit_http_config={"http2_protocol_options": {}}
        )
        address = {"socket_address": {"address": "127.0.0.1", "port_value": authorizer}}
        clusters.append(
            {
                "name": "authorizer",
                "connect_timeout": "0.5s",
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2
                },
                "load_assignment": {
                    "cluster_name": "authorizer",
                    "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
                },
            }
        )
    config = WORK / f"envoy-{name}.json"
    config.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": clusters}}))
    arguments = ["envoy", "-c", config, "--concurrency", 1, "--log-level", "error", "--disable-hot-restart"]
    return port, start(stack, f"envoy-{name}", arguments, port)


def rbac():
    member = {"header": {"name": "x-role", "string_match": {"exact": "member"}}}
    policy = {"permissions": [{"any": True}], "principals": [member]}
    rules = {"action": "ALLOW", "policies": {"members": policy}}
    return {"name": "rbac", "typed_config": typed("extensions.filters.http.rbac.v3.RBAC", rules=rules)}


def ext_authz():
    config = typed(
        "extensions.filters.http.ext_authz.v3.ExtAuthz",
        transport_api_version="V3",
        grpc_service={"envoy_grpc": {"cluster_name": "authorizer"}, "timeout": "0.5s"},
        allowed_headers={"patterns": [{"exact": "x-user"}]},
    )
    return {"name": "ext_authz", "typed_config": config}


def cpu_ticks(processes):
    def of(process):
        fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    return sum(of(process) for process in processes)


def load(port, requests, at_once):
    arguments = [WORK / "envoybench", "load", f"-addr=127.0.0.1:{port}", f"-requests={requests}", f"-at-once={at_once}"]
    output = subprocess.run([str(it) for it in arguments], stdout=subprocess.PIPE, text=True, check=True).stdout
    return [int(number) for number in output.split()]


def main():
    with contextlib.ExitStack() as stack:
        subjects = {}
        subjects["Envoy alone"] = (*envoy(stack, "alone", []), [])
        subjects["its RBAC filter, by a header"] = (*envoy(stack, "rbac", [rbac()]), [])
        for name, server in [("this service", service), ("SpiceDB behind a shim", spicedb), ("OpenFGA behind a shim", openfga)]:
            authorizer, processes = server(stack)
            label = server.__name__
            subjects[name] = (*envoy(stack, label, [ext_authz()], authorizer), processes)
        rows = {name: [] for name in subjects}
        for name, (port, *_) in subjects.items():
            load(port, SEQUENTIAL, AT_ONCE)
        for number in range(ROUNDS):
            order = list(subjects.items())
            for name, (port, process, others) in order if number % 2 else reversed(order):
                p50, p99 = load(port, SEQUENTIAL, 1)
                before, before_others = cpu_ticks([process]), cpu_ticks(others)
                load(port, CONCURRENT, AT_ONCE)
                cpu = [cpu_ticks([process]) - before, cpu_ticks(others) - before_others]
                rows[name].append([p50, p99, *(ticks / TICK * 1e6 / CONCURRENT for ticks in cpu)])
        print("| authorization | p50, µs | p99, µs | CPU time of Envoy, µs | CPU time of the authorizer, µs |")
        print("|---|---|---|---|---|")
        for name, measured in rows.items():
            print(f"| {name} |", " | ".join(f"{statistics.median(column):.0f}" for column in zip(*measured)), "|")


main()
