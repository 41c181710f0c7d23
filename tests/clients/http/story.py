"""The tutorial's story by HTTP/JSON, and every RPC at its path.

Usage: story.py URL [envoy]

`envoy`: Envoy transcodes, instead of grpc-gateway. docs/http.md lists the differences.
"""

import json
import sys
import urllib.error
import urllib.request

BASE = sys.argv[1]
IS_ENVOY = sys.argv[2:] == ["envoy"]
ORGANIZATION = "/organizations/http-org"
MICHAEL = ORGANIZATION + "/members/http-michael"


def call(method, path, body=None):
    """The code and the JSON body of the response."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(BASE + path, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        text = error.read()
        # Envoy's own errors are plain text.
        is_json = error.headers["content-type"] == "application/json"
        return error.code, json.loads(text) if is_json or not IS_ENVOY else text.decode()


def ok(method, path, body=None):
    code, response = call(method, path, body)
    assert code == 200, (method, path, code, response)
    return response


def has(response, **fields):
    assert fields.items() <= response.items(), response


def the_tutorials_calls():
    olivia = {"username": "http-olivia", "firstName": "Olivia", "lastName": "Smith"}
    michael = {"username": "http-michael", "firstName": "Michael", "lastName": "Scott"}
    has(ok("POST", "/users", olivia)["user"], **olivia)
    has(ok("POST", "/users", michael)["user"], **michael)
    organization = {"organizationName": "http-org", "foundingUser": "http-olivia"}
    has(ok("POST", "/organizations", organization)["organization"], **organization)
    owner = ok("GET", ORGANIZATION + "/members/http-olivia")["membership"]
    has(owner, organizationName="http-org", memberUsername="http-olivia", role="ROLE_OWNER")
    code, response = call("GET", MICHAEL)
    assert code == 404, response
    assert [detail.get("reason") for detail in response["details"]][0] == "MEMBERSHIP_NOT_FOUND", response
    adding = {"memberUsername": "http-michael", "role": "ROLE_MEMBER", "addingUser": "http-olivia"}
    has(ok("POST", ORGANIZATION + "/members", adding)["membership"], memberUsername="http-michael", role="ROLE_MEMBER")
    member = ok("GET", MICHAEL)["membership"]
    has(member, organizationName="http-org", memberUsername="http-michael", role="ROLE_MEMBER")


def users():
    has(ok("GET", "/users/http-olivia")["user"], firstName="Olivia")
    changed = ok("PATCH", "/users/http-olivia", {"displayName": "Liv", "email": "liv@example.com"})["user"]
    has(changed, displayName="Liv", firstName="Olivia")
    has(ok("GET", "/users:lookup?email=liv@example.com")["user"], username="http-olivia")
    user = ok("PATCH", "/users/http-olivia", {"externalId": "http-00u1"})["user"]
    has(ok("GET", "/users:lookup?externalId=http-00u1")["user"], uid=user["uid"])
    has(ok("GET", "/users:lookup?uid=" + user["uid"])["user"], username="http-olivia")
    found = ok("GET", "/users:batchGet?usernames=http-olivia&usernames=http-nobody")
    has(found, notFound=["http-nobody"])
    assert ok("GET", "/users?pageSize=1").keys() == {"users", "nextPageToken"}
    has(ok("POST", "/users/http-michael:suspend", {})["user"], state="STATE_SUSPENDED")
    has(ok("GET", MICHAEL + ":check"), isMember=False)
    has(ok("POST", "/users/http-michael:resume", {})["user"], state="STATE_ACTIVE")
    has(ok("DELETE", "/users/http-michael?undeleteWindow=86400s")["user"], state="STATE_DELETED")
    has(ok("GET", MICHAEL + ":check"), isMember=False)
    has(ok("POST", "/users/http-michael:undelete", {})["user"], state="STATE_ACTIVE")
    ok("POST", "/users", {"username": "http-erased"})
    erasure = ok("POST", "/users/http-erased:erase", {})["erasure"]
    has(ok("GET", "/erasures/" + erasure["erasureId"])["erasure"], pseudonym=erasure["pseudonym"])
    listed = ok("GET", "/users/http-michael/organizations")["memberships"]
    assert len(listed) == 1, listed


def organizations():
    found = ok("GET", ORGANIZATION)["organization"]
    has(found, foundingUser="http-olivia")
    has(ok("GET", "/organizations:lookup?uid=" + found["uid"])["organization"], organizationName="http-org")
    path = ORGANIZATION + "?actingUser=http-olivia"
    has(ok("PATCH", path, {"labels": {"tier": "gold"}})["organization"], labels={"tier": "gold"})
    counted = ok("GET", ORGANIZATION + "/members:count")
    has(counted, ownerCount="1")
    assert ok("GET", "/users/http-olivia/organizations:count")["organizationCount"] == "1"
    found = ok("GET", "/organizations:batchGet?organizationNames=http-org")["organizations"]
    assert len(found) == 1, found
    assert ok("GET", "/organizations?pageSize=1").keys() == {"organizations", "nextPageToken"}
    has(ok("POST", ORGANIZATION + ":suspend", {})["organization"], state="STATE_SUSPENDED")
    has(ok("POST", ORGANIZATION + ":resume", {})["organization"], state="STATE_ACTIVE")
    deleted = ok("DELETE", path + "&undeleteWindow=86400s")["organization"]
    has(deleted, state="STATE_DELETED")
    undeleting = {"actingUser": "http-olivia", "etag": deleted["etag"]}
    has(ok("POST", ORGANIZATION + ":undelete", undeleting)["organization"], state="STATE_ACTIVE")


def memberships():
    has(ok("GET", MICHAEL + ":check?minimumRole=ROLE_ADMIN"), isMember=True, role="ROLE_MEMBER", satisfied=False)
    changing = {"role": "ROLE_ADMIN", "actingUser": "http-olivia"}
    has(ok("PATCH", MICHAEL, changing)["membership"], role="ROLE_ADMIN")
    path = MICHAEL + ":update?actingUser=http-olivia"
    has(ok("PATCH", path, {"labels": {"job": "nurse"}})["membership"], labels={"job": "nurse"})
    ending = {"expireTime": "2099-01-01T00:00:00Z"}
    has(ok("PATCH", path, ending)["membership"], labels={"job": "nurse"}, **ending)
    has(ok("GET", MICHAEL + ":check?withLabels=true"), labels={"job": "nurse"}, **ending)
    checks = {"checks": [{"organizationName": "http-org", "username": "http-michael"}]}
    has(ok("POST", "/memberships:batchCheck", checks)["results"][0], role="ROLE_ADMIN")
    owners = ok("GET", ORGANIZATION + "/members?filter=role%20%3D%20ROLE_OWNER")["memberships"]
    assert [member["memberUsername"] for member in owners] == ["http-olivia"], owners
    members = ok("GET", ORGANIZATION + "/members")["memberships"]
    assert [member["memberUsername"] for member in members] == ["http-michael", "http-olivia"], members
    handing_over = {"newOwner": "http-michael", "actingUser": "http-olivia"}
    handed_over = ok("POST", ORGANIZATION + ":transferOwnership", handing_over)
    has(handed_over["newOwner"], role="ROLE_OWNER")
    has(ok("DELETE", ORGANIZATION + "/members/http-olivia?actingUser=http-olivia")["membership"], role="ROLE_ADMIN")


def a_resource_is_sent_back_as_a_whole():
    """Read, edit, send back: the etag is honoured, and fields that cannot be changed are ignored."""
    member = "http-member"
    ok("POST", "/users", {"username": member})
    adding = {"memberUsername": member, "role": "ROLE_MEMBER", "addingUser": "http-michael"}
    ok("POST", ORGANIZATION + "/members", adding)
    by_michael = "?actingUser=http-michael"
    for path, patch_path, name, change in [
        ("/users/" + member, "/users/" + member + "?", "user", {"displayName": "M"}),
        (ORGANIZATION, ORGANIZATION + by_michael, "organization", {"displayName": "O"}),
        (f"{ORGANIZATION}/members/{member}", f"{ORGANIZATION}/members/{member}:update{by_michael}", "membership",
         {"labels": {"job": "nurse"}}),
    ]:
        read = ok("GET", path)[name]
        has(ok("PATCH", patch_path, read | change)[name], **change)
        for stale in [read | change, {"etag": read["etag"]} | change]:
            code, response = call("PATCH", patch_path, stale)
            assert (code, response["details"][0]["reason"]) == (409, "ETAG_MISMATCH"), response
        # The etag in the query is honoured by the gateway, and refused by Envoy.
        code, response = call("PATCH", f"{patch_path}&etag={read['etag']}", change)
        assert code == (400 if IS_ENVOY else 409), response
        # Masks by the names in JSON, and by those in the contract.
        current = ok("GET", path)[name]
        field = next(iter(change))
        for mask in [field, {"displayName": "display_name"}.get(field, field)]:
            emptied = ok("PATCH", f"{patch_path}&updateMask={mask}", {"etag": current["etag"]})[name]
            assert not emptied[field], emptied
            current = emptied
    role = ok("GET", f"{ORGANIZATION}/members/{member}")["membership"] | {"role": "ROLE_OWNER"}
    code, response = call("PATCH", f"{ORGANIZATION}/members/{member}:update{by_michael}", role)
    assert code == 400 and "ChangeMemberRole" in response["message"], response
    ok("DELETE", f"{ORGANIZATION}/members/{member}{by_michael}")
    ok("DELETE", "/users/" + member)


def unknown_parameters_are_refused():
    for method, path, body in [
        ("GET", "/users/http-michael?verbose=1", None),
        ("GET", "/users/http-michael?consistency.maxStalenes=1s", None),
        ("DELETE", "/users/http-michael?etagg=x", None),
        ("POST", "/users?verbose=1", {"username": "http-lost"}),
    ]:
        code, response = call(method, path, body)
        assert code == 400, (method, path, code, response)
    # Beside a whole message as the body, Envoy takes fields from the query, too.
    code, response = call("POST", "/users/http-michael:suspend?etag=stale", {})
    assert code == (409 if IS_ENVOY else 400), response
    # Envoy takes the etag of the body from this parameter, too.
    code, response = call("PATCH", "/users/http-michael?user.etag=x", {"displayName": "lost"})
    assert code == (409 if IS_ENVOY else 400), response
    has(ok("GET", "/users/http-michael?consistency.maxStaleness=1s")["user"], displayName="")


def errors():
    code, response = call("POST", "/users", {"username": "Bad Name"})
    assert code == 400, response
    assert response["details"][1]["fieldViolations"][0]["field"] == "username", response
    code, response = call("POST", "/users", {"usrname": "misspelt"})
    assert code == 400, response
    # Envoy ignores the unknown field: the service rejects the missing name.
    assert ("username: must not be empty" in response["message"]) == IS_ENVOY, response
    code, response = call("PATCH", ORGANIZATION + "?actingUser=http-olivia", {"displayName": "Mine"})
    assert code == 403, response


def changes():
    with urllib.request.urlopen(BASE + "/changes:watch?oldest=true&organizationName=http-org", timeout=20) as lines:
        for line in lines:
            response = json.loads(line)
            for change in (response if IS_ENVOY else response["result"]).get("changes", []):
                assert change["organization"]["after"]["organizationName"] == "http-org", change
                return


def the_end():
    has(ok("DELETE", ORGANIZATION + "?actingUser=http-michael")["organization"], organizationName="http-org")
    has(ok("DELETE", "/users/http-michael")["user"], username="http-michael")


for part in (
    the_tutorials_calls,
    users,
    organizations,
    memberships,
    a_resource_is_sent_back_as_a_whole,
    unknown_parameters_are_refused,
    errors,
    changes,
    the_end,
):
    part()
print("HTTP/JSON: the story is complete" + (", through Envoy" if IS_ENVOY else ""))
