"""The core levels of AuthZEN's certification scenario: evaluation, batch, search and discovery.

Usage: authzen.py URL

alice is an Admin and bob a Member of record-1. `read` needs a Member, `write` an Admin.
"""

import json
import sys
import urllib.error
import urllib.request

BASE = sys.argv[1]
JSON = {"Content-Type": "application/json"}


def call(path, body=None, headers=JSON, method=None):
    """The code, the JSON body and the headers of the response."""
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(BASE + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.load(response), response.headers
    except urllib.error.HTTPError as error:
        return error.code, json.load(error), error.headers


def post(path, body):
    code, response, headers = call("/access/v1/" + path, body)
    assert code == 200, (path, body, code, response)
    assert headers["content-type"] == "application/json", headers
    return response


def user(name, **more):
    return {"type": "user", "id": name, **more}


def record(name, **more):
    return {"type": "record", "id": name, **more}


def question(subject, action, resource, **more):
    return {"subject": subject, "action": {"name": action}, "resource": resource, **more}


ALICE, BOB, RECORD = user("alice"), user("bob"), record("record-1")


def set_up():
    for username in ["alice", "bob", "founder"]:
        assert call("/users", {"username": username})[0] == 200
    for organization in ["record-1", "record-2"]:
        assert call("/organizations", {"organizationName": organization, "foundingUser": "founder"})[0] == 200
    for username, role in [("alice", "ROLE_ADMIN"), ("bob", "ROLE_MEMBER")]:
        adding = {"memberUsername": username, "role": role, "addingUser": "founder"}
        assert call("/organizations/record-1/members", adding)[0] == 200


def evaluation():
    for subject, action, resource, expected in [
        (ALICE, "read", RECORD, True),
        (ALICE, "write", RECORD, True),
        (BOB, "read", RECORD, True),
        (BOB, "write", RECORD, False),
        (BOB, "fly", RECORD, False),
        (ALICE, "read", record("record-2"), False),
        (ALICE, "read", record("nonexistent"), False),
        (user("nonexistent-user"), "read", RECORD, False),
        (user("a\u0001b"), "read", RECORD, False),
        (user("x" * 1000), "read", RECORD, False),
        ({"type": "spaceship", "id": "alice"}, "read", RECORD, False),
        (ALICE, "read", {"type": "spaceship", "id": "record-1"}, False),
    ]:
        body = question(subject, action, resource)
        for _ in range(2):
            assert post("evaluation", body) == {"decision": expected}, body
    rich = question(user("alice", properties={"role": "manager"}, other=1), "read",
                    record("record-1", properties={"owner": "bob"}), context={"time": "now"}, unknown={"a": 1})
    rich["action"]["properties"] = {"method": "GET"}
    assert post("evaluation", rich) == {"decision": True}


def malformed_requests():
    whole = question(ALICE, "read", RECORD)
    bad = [{key: value for key, value in whole.items() if key != left_out} for left_out in whole]
    bad += [whole | {"subject": {"id": "alice"}}, whole | {"subject": {"type": "user"}}, whole | {"subject": "alice"},
            whole | {"resource": {"id": "record-1"}}, whole | {"resource": {"type": "record"}},
            whole | {"action": {}}, whole | {"action": {"name": 123}}, whole | {"context": "x"}, [], "x", None]
    bad += [b"", b"{", b"null", b"\xff"]
    # Names that occur twice, or in another case.
    bad += [b'{"subject":{"type":"user","id":"bob","id":"alice"},"action":{"name":"write"},"resource":'
            b'{"type":"record","id":"record-1"}}',
            b'{"SUBJECT":{"type":"user","id":"alice"},"action":{"name":"write"},"resource":'
            b'{"type":"record","id":"record-1"}}']
    for body in bad:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        code, response, _ = call("/access/v1/evaluation", data, method="POST")
        assert code == 400 and response["message"], (body, code, response)
    code, response, _ = call("/access/v1/evaluation", json.dumps(whole).encode(), {"Content-Type": "text/plain"})
    assert code == 400, response
    other_case = question(user("bob", ID="alice"), "write", RECORD)
    assert post("evaluation", other_case) == {"decision": False}
    for kind in ["application/json", "text/plain"]:
        _, _, headers = call("/access/v1/evaluation", whole, {"Content-Type": kind, "X-Request-ID": "abc-123"})
        assert headers["X-Request-ID"] == "abc-123", headers


def batch():
    def decided(body):
        return [item["decision"] for item in post("evaluations", body)["evaluations"]]

    reads = [{"resource": RECORD}, {"resource": record("record-2"), "context": {"a": 1}}]
    assert decided({"subject": ALICE, "action": {"name": "read"}, "evaluations": reads}) == [True, False]
    actions = [{"action": {"name": "read"}}, {"action": {"name": "write"}}]
    assert decided({"subject": BOB, "resource": RECORD, "evaluations": actions}) == [True, False]
    assert decided({"evaluations": [question(ALICE, "write", RECORD), question(BOB, "write", RECORD)]}) == [True, False]
    partly = {"subject": ALICE, "action": {"name": "read"}, "evaluations": [{"resource": RECORD}, {}]}
    incomplete = post("evaluations", partly)["evaluations"]
    assert incomplete[0] == {"decision": True}, incomplete
    assert not incomplete[1]["decision"] and incomplete[1]["context"]["error"]["status"] == 400, incomplete
    whole = question(ALICE, "read", RECORD)
    for single in [whole, whole | {"evaluations": []}]:
        assert post("evaluations", single) == {"decision": True}, single
    three = {"resource": RECORD, "action": {"name": "write"},
             "evaluations": [{"subject": ALICE}, {"subject": BOB}, {"subject": ALICE}]}
    for semantic, expected in [("execute_all", [True, False, True]), ("deny_on_first_deny", [True, False]),
                               ("permit_on_first_permit", [True])]:
        assert decided(three | {"options": {"evaluations_semantic": semantic}}) == expected, semantic
    code, _, _ = call("/access/v1/evaluations", three | {"options": {"evaluations_semantic": "guess"}})
    assert code == 400
    code, _, _ = call("/access/v1/evaluations", {"evaluations": [whole] * 1001})
    assert code == 400


def searches():
    def ids(kind, body):
        return [found.get("id") or found["name"] for found in post("search/" + kind, body)["results"]]

    reading = question({"type": "user"}, "read", RECORD)
    assert ids("subject", reading) == ["alice", "bob", "founder"]
    assert ids("subject", reading | {"subject": user("ignored"), "context": {"a": 1}}) == ["alice", "bob", "founder"]
    assert ids("subject", question({"type": "user"}, "write", RECORD)) == ["alice", "founder"]
    assert ids("resource", question(ALICE, "read", {"type": "record"})) == ["record-1"]
    assert ids("resource", question(BOB, "write", record("ignored"))) == []
    assert ids("action", {"subject": ALICE, "resource": RECORD}) == ["read", "write"]
    assert ids("action", {"subject": BOB, "resource": RECORD}) == ["read"]
    listed, token = [], None
    while token != "":
        page = {"limit": 1} | ({"token": token} if token else {})
        response = post("search/subject", reading | {"page": page})
        assert len(response["results"]) <= 1, response
        listed += [found["id"] for found in response["results"]]
        token = response["page"]["next_token"]
    assert listed == ["alice", "bob", "founder"], listed
    # The page size of a token may be left out.
    first = post("search/subject", reading | {"page": {"limit": 1}})
    rest = post("search/subject", reading | {"page": {"token": first["page"]["next_token"]}})
    assert [found["id"] for found in rest["results"]] == ["bob", "founder"], rest
    ship = {"type": "spaceship", "id": "x"}
    assert ids("subject", question({"type": "spaceship"}, "read", RECORD)) == []
    assert ids("subject", question({"type": "user"}, "read", ship)) == []
    assert ids("resource", question(user("nonexistent-user"), "read", {"type": "record"})) == []
    assert ids("action", {"subject": user("nonexistent-user"), "resource": RECORD}) == []
    for kind, body in [
        ("subject", {"subject": {"type": "user"}, "resource": RECORD}),
        ("subject", question({"type": "user"}, "read", {"type": "record"})),
        ("resource", {"action": {"name": "read"}, "resource": {"type": "record"}}),
        ("resource", question({"type": "user"}, "read", {"type": "record"})),
        ("action", {"subject": ALICE}),
        ("action", {"subject": {"type": "user"}, "resource": RECORD}),
        ("subject", reading | {"page": {"limit": -1}}),
        ("subject", reading | {"page": {"token": "forged"}}),
    ]:
        code, response, _ = call("/access/v1/search/" + kind, body)
        assert code == 400, (kind, body, code, response)


def a_suspended_member_may_do_nothing():
    assert call("/users/bob:suspend", {})[0] == 200
    assert post("evaluation", question(BOB, "read", RECORD)) == {"decision": False}
    found = post("search/subject", question({"type": "user"}, "read", RECORD))["results"]
    assert user("bob") not in found, found
    assert call("/users/bob:resume", {})[0] == 200


def discovery():
    code, metadata, headers = call("/.well-known/authzen-configuration")
    assert code == 200 and headers["content-type"] == "application/json"
    base = metadata["policy_decision_point"]
    assert base.startswith("https://"), metadata
    for name, path in [("access_evaluation_endpoint", "evaluation"), ("access_evaluations_endpoint", "evaluations"),
                       ("search_subject_endpoint", "search/subject"), ("search_resource_endpoint", "search/resource"),
                       ("search_action_endpoint", "search/action")]:
        assert metadata[name] == f"{base}/access/v1/{path}", metadata


set_up()
for part in (evaluation, malformed_requests, batch, searches, a_suspended_member_may_do_nothing, discovery):
    part()
print("AuthZEN: the core levels of the certification scenario are passed")
