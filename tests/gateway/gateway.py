"""The gateway as an operator and an attacker see it: content types, other sites, bounds, headers, TLS, health,
metrics and its stop.

Usage: gateway.py GATEWAY_BINARY GRPC_TARGET WORK_FOLDER
"""

import contextlib
import http.client
import json
import pathlib
import signal
import socket
import ssl
import subprocess
import sys
import time

GATEWAY, TARGET, WORK = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
LISTEN, ADMIN = 18090, 18091
PATIENCE = 60
JSON = {"Content-Type": "application/json"}


@contextlib.contextmanager
def gateway(*arguments):
    process = subprocess.Popen([GATEWAY, "-listen", f"127.0.0.1:{LISTEN}", "-grpc", TARGET,
                                "-admin-listen", f"127.0.0.1:{ADMIN}", *arguments],
                               stderr=open(WORK / "gateway-test.log", "w"))
    try:
        deadline = time.monotonic() + PATIENCE
        for port in (LISTEN, ADMIN):
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)


def call(method, path, body=None, headers=JSON, port=LISTEN):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    # The answer may come before the end of a body.
    with contextlib.suppress(BrokenPipeError):
        connection.request(method, path, json.dumps(body) if isinstance(body, dict) else body, headers)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, response.headers, text


def assert_refused(answer, status):
    code, headers, text = answer
    assert code == status, (code, text)
    assert headers["content-type"] == "application/json", headers.items()
    assert json.loads(text)["message"], text


def other_sites_and_other_content_types_are_refused():
    user = {"username": "gw-olivia"}
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "",
                 "application/json; charset=latin1"]:
        assert_refused(call("POST", "/users", user, {"Content-Type": kind}), 415)
    assert_refused(call("POST", "/users/gw-olivia:suspend", headers={}), 415)
    for site in [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}]:
        assert_refused(call("POST", "/users", user, JSON | site), 403)
        assert_refused(call("DELETE", "/users/gw-olivia", headers=site), 403)
    code, headers, _ = call("POST", "/users", user, {"Content-Type": "application/json; charset=UTF-8"})
    assert code == 200 and headers["cache-control"] == "no-store" and headers["x-content-type-options"] == "nosniff"


def requests_are_bounded():
    large = b'"' + b"x" * (2 << 20) + b'"'
    assert_refused(call("POST", "/users", large), 413)
    # In chunks: without a length.
    chunks = [large[at:at + 65536] for at in range(0, len(large), 65536)]
    assert_refused(call("POST", "/users", iter(chunks), JSON), 413)
    assert_refused(call("POST", "/users", b'{"username":"gw-one"} {"username":"gw-two"}'), 400)
    assert call("GET", "/users/gw-olivia", headers={"X-Long": "x" * (32 << 10)})[0] == 431
    assert_refused(call("PUT", "/users/gw-olivia", {}), 405)
    assert_refused(call("GET", "/nowhere"), 404)
    # A request that does not arrive ends, and others are served meanwhile.
    slow = socket.create_connection(("127.0.0.1", LISTEN), PATIENCE)
    slow.sendall(b"POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
    assert call("GET", "/users/gw-olivia")[0] == 200
    slow.settimeout(PATIENCE)
    answer = b""
    while part := slow.recv(1 << 16):
        answer += part
    assert answer.startswith(b"HTTP/1.1 408") and b"127.0.0.1" not in answer, answer


def preconditions_are_honoured_or_refused():
    user = json.loads(call("GET", "/users/gw-olivia")[2])["user"]
    change = {"displayName": "O"}
    assert_refused(call("PATCH", "/users/gw-olivia", change, JSON | {"If-Match": '"stale"'}), 400)
    assert_refused(call("PATCH", "/users/gw-olivia?etag=", change), 400)
    assert_refused(call("POST", "/users/gw-olivia:suspend?etag=stale", {}), 400)
    assert call("PATCH", f"/users/gw-olivia?etag={user['etag']}", change)[0] == 200
    assert_refused(call("PATCH", f"/users/gw-olivia?etag={user['etag']}", change), 409)


def health_and_metrics_are_served_apart(process):
    assert call("GET", "/livez", port=ADMIN)[0] == 200
    deadline = time.monotonic() + PATIENCE
    while call("GET", "/readyz", port=ADMIN)[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    metrics = call("GET", "/metrics", port=ADMIN)[2].decode()
    assert 'account_gateway_request_duration_seconds_count{code="415",method="POST"}' in metrics, metrics
    assert call("GET", "/metrics")[0] == 404


def a_stop_lets_running_requests_end(process):
    # A stream of changes is a running request.
    connection = http.client.HTTPConnection("127.0.0.1", LISTEN, timeout=PATIENCE)
    connection.request("GET", "/changes:watch?oldest=true")
    response = connection.getresponse()
    assert response.readline()
    process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE
    while call("GET", "/readyz", port=ADMIN)[0] != 503:
        assert time.monotonic() < deadline
    # Still served, for the delay of the stop.
    assert call("GET", "/users/gw-olivia")[0] == 200
    *_, last = response.read().splitlines()
    assert "error" in json.loads(last), last
    connection.close()
    assert process.wait(PATIENCE) == 0
    try:
        socket.create_connection(("127.0.0.1", LISTEN), 1)
        raise AssertionError("connections are still accepted")
    except ConnectionRefusedError:
        pass


def without_the_service_errors_are_unavailable():
    with gateway("-grpc", "127.0.0.1:1"):
        assert call("GET", "/livez", port=ADMIN)[0] == 200
        assert call("GET", "/readyz", port=ADMIN)[0] == 503
        for path in ["/users/gw-olivia", "/changes:watch"]:
            answer = call("GET", path)
            assert_refused(answer, 503)
            assert b"127.0.0.1" not in answer[2] and answer[1]["retry-after"] == "1", answer


def tls_is_required_beyond_loopback():
    for arguments, error in [
        (["-listen", "0.0.0.0:18092"], "-listen is not on loopback"),
        (["-grpc", "accounts.example:50051"], "-grpc is not on loopback"),
        (["-grpc-key", "key.pem"], "-grpc-cert and -grpc-key belong together"),
        (["-grpc-cert", "missing.pem", "-grpc-key", "missing.pem"], "missing.pem"),
        (["-service-config", "missing.json"], "missing.json"),
        (["-authzen", __file__], "gateway.py"),
    ]:
        ended = subprocess.run([GATEWAY, "-grpc", TARGET, *arguments], capture_output=True, timeout=PATIENCE, text=True)
        assert ended.returncode == 1 and error in ended.stderr, ended
    key, cert = WORK / "gateway.key", WORK / "gateway.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                    "-keyout", key, "-out", cert, "-subj", "/CN=localhost", "-addext",
                    "subjectAltName=DNS:localhost", "-days", "2"], check=True, capture_output=True)
    with gateway("-tls-cert", cert, "-tls-key", key):
        context = ssl.create_default_context(cafile=str(cert))
        raw = socket.create_connection(("127.0.0.1", LISTEN), PATIENCE)
        with context.wrap_socket(raw, server_hostname="localhost") as tls:
            tls.sendall(b"GET /users/gw-olivia HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert tls.recv(1 << 16).startswith(b"HTTP/1.1 200"), "not served over TLS"


with gateway("-stop-delay", "5s") as process:
    other_sites_and_other_content_types_are_refused()
    requests_are_bounded()
    preconditions_are_honoured_or_refused()
    health_and_metrics_are_served_apart(process)
    a_stop_lets_running_requests_end(process)
without_the_service_errors_are_unavailable()
tls_is_required_beyond_loopback()
print("the gateway is bounded, and refuses other sites")
