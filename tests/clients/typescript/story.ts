// The tutorial's story with a client generated from proto/, a list by pages, a
// batch check, a retry, a watch that is resumed, and the code of an error.
//
// Usage: story.js HOST:PORT SERVICE_CONFIG

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";

import { type CallOptions, Metadata, type ServiceError, credentials, status } from "@grpc/grpc-js";

import {
  AccountServiceClient,
  AddUserToOrganizationRequest,
  type Change,
  CheckMembershipRequest,
  CountOrganizationMembersRequest,
  CreateOrganizationRequest,
  CreateUserRequest,
  DeleteUserRequest,
  EraseUserRequest,
  GetErasureRequest,
  GetOrganizationRequest,
  ListOrganizationMembersRequest,
  LookupOrganizationRequest,
  LookupUserRequest,
  UndeleteUserRequest,
  UpdateMembershipRequest,
  UpdateUserRequest,
  WatchChangesRequest,
} from "./gen/account/v1/account_service.js";
import { Role, State } from "./gen/account/v1/resources.js";

const [address, serviceConfig] = process.argv.slice(2);
const client = new AccountServiceClient(address, credentials.createInsecure(), {
  "grpc.service_config": readFileSync(serviceConfig, "utf8"),
  "grpc.keepalive_time_ms": 30_000,
  "grpc.keepalive_timeout_ms": 10_000,
});

type Unary<Req, Res> = (
  request: Req,
  metadata: Metadata,
  options: Partial<CallOptions>,
  done: (error: ServiceError | null, reply: Res) => void,
) => unknown;

/** Calls an RPC and waits for its reply, for 3 seconds at most. */
function call<Req, Res>(rpc: Unary<Req, Res>, request: Req): Promise<Res> {
  const options = { deadline: Date.now() + 3_000 };
  return new Promise((resolve, reject) => {
    rpc.call(client, request, new Metadata(), options, (error, reply) => (error ? reject(error) : resolve(reply)));
  });
}

async function walkThrough() {
  for (const username of ["ts-olivia", "ts-michael"]) {
    await call(client.createUser, CreateUserRequest.fromPartial({ username }));
  }
  await call(
    client.createOrganization,
    CreateOrganizationRequest.fromPartial({ organizationName: "ts-org", foundingUser: "ts-olivia" }),
  );
  const check = CheckMembershipRequest.fromPartial({ organizationName: "ts-org", username: "ts-michael" });
  assert.equal((await call(client.checkMembership, check)).isMember, false);
  await call(
    client.addUserToOrganization,
    AddUserToOrganizationRequest.fromPartial({
      organizationName: "ts-org",
      memberUsername: "ts-michael",
      role: Role.ROLE_MEMBER,
      addingUser: "ts-olivia",
      requestId: randomUUID(),
    }),
  );
  assert.equal((await call(client.checkMembership, check)).role, Role.ROLE_MEMBER);
  const checks = ["ts-olivia", "ts-michael", "ts-nobody"].map((username) => ({
    organizationName: "ts-org",
    username,
    minimumRole: Role.ROLE_ADMIN,
  }));
  const { results } = await call(client.batchCheckMemberships, { checks, consistency: undefined });
  assert.deepEqual(results.map((result) => result.satisfied), [true, false, false]);
}

async function page() {
  const names: string[] = [];
  let pageToken = "";
  do {
    const request = ListOrganizationMembersRequest.fromPartial({ organizationName: "ts-org", pageSize: 1, pageToken });
    const reply = await call(client.listOrganizationMembers, request);
    names.push(...reply.memberships.map((membership) => membership.memberUsername));
    pageToken = reply.nextPageToken;
  } while (pageToken !== "");
  assert.deepEqual(names, ["ts-michael", "ts-olivia"]);
}

async function sendTwice() {
  const create = CreateUserRequest.fromPartial({ username: "ts-once", requestId: randomUUID() });
  const first = await call(client.createUser, create);
  assert.deepEqual(await call(client.createUser, create), first);
}

/** The first `want` changes. */
async function changes(request: WatchChangesRequest, want: number): Promise<Change[]> {
  const seen: Change[] = [];
  const stream = client.watchChanges(request, { deadline: Date.now() + 20_000 });
  for await (const response of stream) {
    seen.push(...response.changes);
    if (seen.length >= want) {
      break;
    }
  }
  return seen.slice(0, want);
}

async function watch() {
  const begin = WatchChangesRequest.fromPartial({ organizationName: "ts-org", start: { $case: "oldest", value: true } });
  const [first] = await changes(begin, 1);
  const resumed = WatchChangesRequest.fromPartial({
    organizationName: "ts-org",
    start: { $case: "cursor", value: first.cursor },
  });
  const rest = await changes(resumed, 2);
  const kinds = [first, ...rest].map((change) => change.resource?.$case).sort();
  assert.deepEqual(kinds, ["membership", "membership", "organization"]);
}

/** A membership with an end and labels. */
async function updateMembership() {
  const [organizationName, username] = ["ts-org", "ts-michael"];
  const expireTime = new Date(Math.floor(Date.now() / 1000) * 1000 + 3_600_000);
  const membership = { organizationName, memberUsername: username, expireTime, labels: { job: "nurse" } };
  await call(client.updateMembership, UpdateMembershipRequest.fromPartial({ membership, actingUser: "ts-olivia" }));
  const check = CheckMembershipRequest.fromPartial({ organizationName, username, withLabels: true });
  const checked = await call(client.checkMembership, check);
  assert.deepEqual(checked.expireTime, expireTime);
  assert.deepEqual(checked.labels, { job: "nurse" });
}

/** Look-ups by external id and by uid, a filtered list, and counts. */
async function lookUp() {
  const user = { username: "ts-olivia", externalId: "ts-00u1" };
  await call(client.updateUser, UpdateUserRequest.fromPartial({ user }));
  const byExternalId = LookupUserRequest.fromPartial({ externalId: "ts-00u1" });
  assert.equal((await call(client.lookupUser, byExternalId)).user?.username, "ts-olivia");
  const organizationName = "ts-org";
  const { organization } = await call(client.getOrganization, GetOrganizationRequest.fromPartial({ organizationName }));
  const byUid = LookupOrganizationRequest.fromPartial({ uid: organization?.uid });
  assert.deepEqual((await call(client.lookupOrganization, byUid)).organization, organization);
  const owners = ListOrganizationMembersRequest.fromPartial({ organizationName, filter: "role = ROLE_OWNER" });
  const { memberships } = await call(client.listOrganizationMembers, owners);
  assert.deepEqual(memberships.map((membership) => membership.memberUsername), ["ts-olivia"]);
  const count = CountOrganizationMembersRequest.fromPartial({ organizationName });
  assert.equal(Number((await call(client.countOrganizationMembers, count)).ownerCount), 1);
}

/** A deletion for a day, and its undeletion. */
async function undelete() {
  const username = "ts-michael";
  const remove = DeleteUserRequest.fromPartial({ username, undeleteWindow: { seconds: 86400 } });
  assert.equal((await call(client.deleteUser, remove)).user?.state, State.STATE_DELETED);
  const check = CheckMembershipRequest.fromPartial({ organizationName: "ts-org", username });
  assert.equal((await call(client.checkMembership, check)).isMember, false);
  await call(client.undeleteUser, UndeleteUserRequest.fromPartial({ username }));
  assert.equal((await call(client.checkMembership, check)).isMember, true);
}

/** An erasure and its report. */
async function erase() {
  const username = "ts-erased";
  await call(client.createUser, CreateUserRequest.fromPartial({ username }));
  const { erasure } = await call(client.eraseUser, EraseUserRequest.fromPartial({ username }));
  const report = GetErasureRequest.fromPartial({ erasureId: erasure?.erasureId });
  const found = await call(client.getErasure, report);
  assert.equal(found.erasure?.pseudonym, `erased:${erasure?.erasureId}`);
}

async function err() {
  const refused = call(client.createUser, CreateUserRequest.fromPartial({ username: "ts-olivia" }));
  const error: ServiceError = await refused.then(
    () => assert.fail("not refused"),
    (error: ServiceError) => error,
  );
  assert.equal(error.code, status.ALREADY_EXISTS);
  // A google.rpc.Status; its first detail is the ErrorInfo.
  const [details] = error.metadata.get("grpc-status-details-bin");
  assert.match(details.toString(), /USER_ALREADY_EXISTS/);
}

await walkThrough();
await page();
await sendTwice();
await watch();
await updateMembership();
await lookUp();
await undelete();
await erase();
await err();
client.close();
console.log("typescript: the story is complete, the errors are as documented");
