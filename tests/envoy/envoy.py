"""Calls two services through Envoy, which asks the account service about each request.

Usage: envoy.py WORK_FOLDER
"""

import contextlib
import http.client
import http.server
import json
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from concurrent import futures

import grpc
import jwt
from account.v1 import account_service_pb2 as pb
from account.v1 import account_service_pb2_grpc as rpc
from account.v1 import resources_pb2 as resources
from cryptography.hazmat.primitives.asymmetric import rsa
from grpc_status import rpc_status

WORK = pathlib.Path(sys.argv[1])
ROOT = pathlib.Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "envoy"
SERVICE, FRONT, OPEN_FRONT, JSON = 50051, 10000, 10001, 10002
NOTES, NOTES_GRPC, METRICS = 18080, 18081, 19090
IDENTITY = ["x-account-user", "x-account-organization", "x-account-role"]
# Generous: the machine may be busy.
PATIENCE = 60

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def token(subject, key=KEY, **claims):
    claims = {"iss": "https://issuer.example", "aud": "notes", "sub": subject, "exp": time.time() + 600} | claims
    return jwt.encode(claims, key, algorithm="RS256", headers={"kid": "one"})


def is_for_others(bearer):
    """Envoy answers 403 to a token of another audience."""
    try:
        return jwt.decode(bearer, options={"verify_signature": False})["aud"] == "elsewhere"
    except jwt.PyJWTError:
        return False


def write_keys():
    key = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key()))
    (WORK / "keys.json").write_text(json.dumps({"keys": [key | {"kid": "one", "alg": "RS256", "use": "sig"}]}))


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers with the headers and the path that arrived."""

    protocol_version = "HTTP/1.1"
    # One packet for the headers and the body.
    wbufsize = 64 * 1024

    def do_GET(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = [(name.lower(), value) for name, value in self.headers.items()]
        body = json.dumps({"path": self.path, "headers": headers}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_):
        pass


class EchoGrpc(grpc.GenericRpcHandler):
    """Answers every call with its metadata."""

    def service(self, _):
        def call(_, context):
            return json.dumps(list(context.invocation_metadata())).encode()

        return grpc.unary_unary_rpc_method_handler(call)


def serve_upstreams():
    notes = http.server.ThreadingHTTPServer(("127.0.0.1", NOTES), Echo)
    threading.Thread(target=notes.serve_forever, daemon=True).start()
    notes_grpc = grpc.server(futures.ThreadPoolExecutor(4), handlers=[EchoGrpc()])
    notes_grpc.add_insecure_port(f"127.0.0.1:{NOTES_GRPC}")
    notes_grpc.start()
    return notes_grpc


def wait_for(port, process):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server for port {port} has ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise TimeoutError(f"port {port}")


@contextlib.contextmanager
def running(name, arguments, port):
    """A process that serves a port, until the end of the block."""
    with open(WORK / f"{name}.log", "w") as log:
        process = subprocess.Popen(arguments, cwd=WORK, stdout=log, stderr=log)
    try:
        wait_for(port, process)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)


def account_service():
    binary = ROOT / "target" / "debug" / "account-service"
    arguments = ["dev", "--ext-authz", DEPLOY / "routes.json", "--metrics-addr", f"127.0.0.1:{METRICS}"]
    return running("account-service", [binary, *arguments], SERVICE)


def envoy(name, config, port):
    arguments = ["envoy", "--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warning", "-c", config]
    return running(name, arguments, port)


def open_config():
    """The shipped configuration, with the other failure mode."""
    text = (DEPLOY / "envoy.yaml").read_text()
    for before, after in [(f"port_value: {FRONT}", f"port_value: {OPEN_FRONT}"),
                          ("failure_mode_allow: false", "failure_mode_allow: true")]:
        assert before in text, before
        text = text.replace(before, after)
    config = WORK / "open.yaml"
    config.write_text(text)
    return config


def call(path, subject=None, method="GET", port=FRONT, headers=(), bearer=None):
    """The status, the headers and the JSON body of a response."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.putrequest(method, path)
    bearer = bearer or (subject and token(subject))
    if bearer:
        connection.putheader("authorization", f"Bearer {bearer}")
    for name, value in headers:
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    body = response.read()
    connection.close()
    try:
        return response.status, response.headers, json.loads(body)
    except ValueError:
        return response.status, response.headers, body.decode()


def identity(echo):
    """The headers with an identity that reached the upstream."""
    return [value for name in IDENTITY for found, value in echo["headers"] if found == name]


def assert_denied(answer, status, reason):
    code, headers, body = answer
    assert code == status, answer
    assert headers["content-type"] == "application/json", headers.items()
    assert body["details"][0]["reason"] == reason, body


NOTES_PATH = "/organizations/acme/notes/7"
REPORTS_PATH = "/organizations/acme/reports/7"


def set_up(accounts):
    for username in ["olivia", "michael", "hannah"]:
        accounts.CreateUser(pb.CreateUserRequest(username=username))
    accounts.CreateOrganization(pb.CreateOrganizationRequest(organization_name="acme", founding_user="olivia"))
    add_michael(accounts)


def add_michael(accounts):
    accounts.AddUserToOrganization(pb.AddUserToOrganizationRequest(
        organization_name="acme", member_username="michael", role=resources.ROLE_MEMBER, adding_user="olivia"))


def remove_michael(accounts):
    accounts.RemoveUserFromOrganization(pb.RemoveUserFromOrganizationRequest(
        organization_name="acme", member_username="michael", acting_user="olivia"))


def members_are_allowed_and_others_denied():
    code, _, echo = call(NOTES_PATH, "michael")
    assert code == 200 and identity(echo) == ["michael", "acme", "ROLE_MEMBER"], echo
    code, _, echo = call(NOTES_PATH, "olivia", method="POST")
    assert code == 200 and identity(echo) == ["olivia", "acme", "ROLE_OWNER"], echo
    assert_denied(call(NOTES_PATH, "michael", method="POST"), 403, "ROLE_TOO_LOW")
    assert_denied(call(NOTES_PATH, "hannah"), 404, "NOT_A_MEMBER")
    assert_denied(call("/organizations/other/notes", "olivia"), 404, "NOT_A_MEMBER")


def a_request_needs_a_valid_token():
    answer = call(NOTES_PATH)
    assert_denied(answer, 401, "SUBJECT_MISSING")
    assert answer[1]["www-authenticate"] == "Bearer", answer[1].items()
    forged = token("olivia", rsa.generate_private_key(public_exponent=65537, key_size=2048))
    for bearer in [forged, token("olivia", exp=time.time() - 600), token("olivia", aud="elsewhere"), "a.b.c"]:
        code, _, body = call(NOTES_PATH, bearer=bearer)
        assert code == (403 if bearer.count(".") == 2 and is_for_others(bearer) else 401), (code, body)


def forged_headers_do_not_reach_the_upstream():
    forged = [(name, "olivia") for name in IDENTITY] + [("X-Account-User", "hannah"), ("x-account-role", "ROLE_OWNER")]
    code, _, echo = call(NOTES_PATH, "michael", headers=forged)
    assert code == 200 and identity(echo) == ["michael", "acme", "ROLE_MEMBER"], echo
    code, _, echo = call("/healthz", headers=forged)
    assert code == 200 and identity(echo) == [], echo
    # Many servers read this as the header with hyphens.
    code, _, body = call(NOTES_PATH, "michael", headers=[("X_Account_User", "olivia")])
    assert code == 400, (code, body)
    # Would be denied: allowed by the dry run, without an identity.
    for subject in ["michael", "hannah", None]:
        code, _, echo = call(REPORTS_PATH, subject, headers=forged)
        assert code == 200 and identity(echo) == [], echo
    code, _, echo = call(REPORTS_PATH, "olivia", headers=forged)
    assert code == 200 and identity(echo) == ["olivia", "acme", "ROLE_OWNER"], echo


def paths_that_could_mean_another_organization_are_denied():
    for path, expected in [
        # Envoy normalizes these: the decision is about the path that the upstream sees.
        ("/organizations/acme//notes/7", 200),
        ("//organizations/acme/notes/7", 200),
        ("/organizations/acme/notes/../../other/notes", 404),
        # Envoy rejects these.
        ("/organizations/acme%2Fnotes/notes/7", 400),
        ("/organizations/acme%5Cother/notes/7", 400),
        # The service denies these.
        ("/organizations/acme/notes/%252e%252e%252f%252e%252e%252fother/notes", 404),
        ("/organizations/acme/notes/%252e%252e/7", 404),
        ("/organizations/acme;x/notes/7", 404),
    ]:
        code, _, body = call(path, "olivia")
        assert code == expected, (path, code, body)
        if code == 200:
            assert body["path"] == NOTES_PATH and identity(body) == ["olivia", "acme", "ROLE_OWNER"], (path, body)


def a_removed_member_is_denied_by_the_next_request(accounts):
    for _ in range(5):
        assert call(NOTES_PATH, "michael")[0] == 200
        remove_michael(accounts)
        assert_denied(call(NOTES_PATH, "michael"), 404, "NOT_A_MEMBER")
        add_michael(accounts)


def grpc_calls_are_decided_too():
    channel = grpc.insecure_channel(f"127.0.0.1:{FRONT}")
    get = channel.unary_unary("/notes.v1.NotesService/GetNote")

    def metadata(subject, organization):
        return [("authorization", f"Bearer {token(subject)}"), ("x-organization", organization),
                ("x-account-user", "forged")]

    answered = json.loads(get(b"", metadata=metadata("michael", "acme"), timeout=PATIENCE))
    assert identity({"headers": answered}) == ["michael", "acme", "ROLE_MEMBER"], answered
    for given, code, reason in [
        (metadata("hannah", "acme"), grpc.StatusCode.PERMISSION_DENIED, "NOT_A_MEMBER"),
        (metadata("michael", "acme")[1:], grpc.StatusCode.UNAUTHENTICATED, "SUBJECT_MISSING"),
        (metadata("michael", "acme")[:1], grpc.StatusCode.PERMISSION_DENIED, "ORGANIZATION_MISSING"),
        # Of two organizations, none is certain.
        (metadata("michael", "acme") + [("x-organization", "other")], grpc.StatusCode.PERMISSION_DENIED,
         "ORGANIZATION_MISSING"),
    ]:
        try:
            get(b"", metadata=given, timeout=PATIENCE)
            raise AssertionError(f"{reason}: the call was allowed")
        except grpc.RpcError as error:
            assert error.code() == code, error
            details = rpc_status.from_call(error).details
            assert reason.encode() in details[0].value, details
    channel.close()


def without_the_service_the_failure_mode_decides():
    code, headers, body = call(NOTES_PATH, "michael")
    assert code == 503, (code, headers.items(), body)
    forged = [(name, "olivia") for name in IDENTITY]
    code, _, echo = call(NOTES_PATH, "michael", port=OPEN_FRONT, headers=forged)
    assert code == 200 and identity(echo) == [], echo


def again_with_the_service_requests_are_decided(accounts):
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            set_up(accounts)
            break
        except grpc.RpcError:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    while call(NOTES_PATH, "michael")[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert_denied(call(NOTES_PATH, "hannah"), 404, "NOT_A_MEMBER")


def decisions_are_counted_and_dry_runs_are_logged():
    metrics = call("/metrics", port=METRICS)[2]
    for route, mode, outcome in [
        ("read-notes", "enforced", "ALLOWED"),
        ("read-notes", "enforced", "NOT_A_MEMBER"),
        ("write-notes", "enforced", "ROLE_TOO_LOW"),
        ("read-reports", "dry_run", "ALLOWED"),
        ("read-reports", "dry_run", "SUBJECT_MISSING"),
    ]:
        labels = f'route="{route}",mode="{mode}",outcome="{outcome}"'
        assert f"account_ext_authz_decisions_total{{{labels}}}" in metrics, (labels, metrics)
    log = (WORK / "account-service.log").read_text()
    assert "a dry run allowed a request that would be denied" in log, log
    # The greeting has an example with another name.
    assert "michael" not in log.replace("membermichael", ""), log


def report_latency(accounts):
    """Latency of requests one after another, on one connection. No assertion: figures depend on the machine."""
    check = pb.CheckMembershipRequest(organization_name="acme", username="michael")
    deadline = time.monotonic() + PATIENCE
    # Some seconds after its start, the service decides from its memory.
    while accounts.CheckMembership(check).source != pb.SOURCE_MEMORY:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    requests = 1000
    medians = {}
    for name, path in [("without", "/healthz"), ("with", NOTES_PATH)] * 2:
        connection = http.client.HTTPConnection("127.0.0.1", FRONT, timeout=PATIENCE)
        authorization = {"authorization": f"Bearer {token('michael')}"}
        took = []
        for _ in range(requests):
            began = time.perf_counter()
            connection.request("GET", path, headers=authorization)
            response = connection.getresponse()
            response.read()
            took.append((time.perf_counter() - began) * 1e6)
            assert response.status == 200
        connection.close()
        medians[name] = statistics.median(took)
        p99 = statistics.quantiles(took, n=100)[98]
        print(f"{name} external authorization: median {medians[name]:.0f} us, p99 {p99:.0f} us")
    print(f"external authorization adds {medians['with'] - medians['without']:.0f} us")


def transcode():
    story = ROOT / "tests" / "clients" / "http" / "story.py"
    with envoy("transcoder", DEPLOY / "transcoder.yaml", JSON):
        subprocess.run([sys.executable, story, f"http://127.0.0.1:{JSON}", "envoy"], check=True)


def main():
    write_keys()
    upstreams = serve_upstreams()
    accounts = rpc.AccountServiceStub(grpc.insecure_channel(f"127.0.0.1:{SERVICE}"))
    with envoy("front", DEPLOY / "envoy.yaml", FRONT), envoy("open", open_config(), OPEN_FRONT):
        with account_service():
            set_up(accounts)
            members_are_allowed_and_others_denied()
            a_request_needs_a_valid_token()
            forged_headers_do_not_reach_the_upstream()
            paths_that_could_mean_another_organization_are_denied()
            a_removed_member_is_denied_by_the_next_request(accounts)
            grpc_calls_are_decided_too()
            decisions_are_counted_and_dry_runs_are_logged()
            report_latency(accounts)
            transcode()
        without_the_service_the_failure_mode_decides()
        with account_service():
            again_with_the_service_requests_are_decided(accounts)
    upstreams.stop(None)
    print("Envoy: requests are decided, and transcoded")


main()
