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
    connection.request(method, path, body if body is None or isinstance(body, bytes) else json.dumps(body), headers)
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
    assert_refused(call("POST", "/users", b'"' + b"x" * (2 << 20) + b'"'), 413)
    assert call("GET", "/users/gw-olivia", headers={"X-Long": "x" * (32 << 10)})[0] == 431
    assert_refused(call("PUT", "/users/gw-olivia", {}), 405)
    assert_refused(call("GET", "/nowhere"), 404)
    # A request that does not arrive ends, and others are served meanwhile.
    slow = socket.create_connection(("127.0.0.1", LISTEN), PATIENCE)
    slow.sendall(b"POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
    assert call("GET", "/users/gw-olivia")[0] == 200
    slow.settimeout(PATIENCE)
    slow.recv(1 << 16)
    assert slow.recv(1 << 16) == b"", "the connection is still open"


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
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", LISTEN), 1).close()
    process.wait(PATIENCE)
    connection.close()


def tls_is_required_beyond_loopback():
    for arguments, fails in [(["-listen", "0.0.0.0:18092"], True), (["-grpc-cert", "missing.pem"], True)]:
        ended = subprocess.run([GATEWAY, "-grpc", TARGET, *arguments], capture_output=True, timeout=PATIENCE)
        assert (ended.returncode != 0) == fails, ended
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


with gateway() as process:
    other_sites_and_other_content_types_are_refused()
    requests_are_bounded()
    health_and_metrics_are_served_apart(process)
    a_stop_lets_running_requests_end(process)
tls_is_required_beyond_loopback()
print("the gateway is bounded, and refuses other sites")
