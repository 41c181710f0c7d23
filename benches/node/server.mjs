// The check as a team writes it in Node.js: @grpc/grpc-js, the SDKs of AWS and Momento,
// read-aside. It has no code that keeps the cache coherent.
import { readFileSync } from "node:fs";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";
import { BatchGetItemCommand, DynamoDBClient } from "@aws-sdk/client-dynamodb";
import {
  CacheClient,
  CacheGetBatchResponse,
  CacheGetResponse,
  Configurations,
  CredentialProvider,
  StaticGrpcConfiguration,
  StaticTransportStrategy,
} from "@gomomento/sdk";

const { MOMENTO_SECRET, CACHE_NAME, TABLE_NAME } = process.env;
const secret = JSON.parse(MOMENTO_SECRET);
const endpoint = new URL(secret.MOMENTO_ENDPOINT);
const credentials = CredentialProvider.forMomentoLocal({
  hostname: endpoint.hostname,
  port: Number(endpoint.port),
});
credentials.getAuthToken = () => secret.MOMENTO_API_KEY;
const cache = await CacheClient.create({
  configuration: Configurations.InRegion.Default.latest(),
  credentialProvider: credentials,
  defaultTtlSeconds: 3600,
});
const table = new DynamoDBClient({
  endpoint: process.env.AWS_ENDPOINT_URL_DYNAMODB,
});

// By their numbers in the API.
const ROLES = ["", "owner", "admin", "member"];

function keysOf(organization, user) {
  return [
    { PK: `ORGMEMBERS#${organization}`, SK: `MEMBER#${user}` },
    { PK: `ORG#${organization}`, SK: `ORG#${organization}` },
    { PK: `USER#${user}`, SK: `USER#${user}` },
  ];
}

const cacheKey = (key) => `node/${key.PK}/${key.SK}`;

async function readTable(keys) {
  const answer = await table.send(
    new BatchGetItemCommand({
      RequestItems: {
        [TABLE_NAME]: {
          ConsistentRead: true,
          Keys: keys.map(({ PK, SK }) => ({ PK: { S: PK }, SK: { S: SK } })),
        },
      },
    }),
  );
  const items = answer.Responses[TABLE_NAME];
  return keys.map((key) => {
    const item = items.find((it) => it.PK.S === key.PK && it.SK.S === key.SK);
    return item
      ? { role: item.role?.S, suspended: item.state?.S === "SUSPENDED" }
      : null;
  });
}

async function read(keys) {
  const cacheKeys = keys.map(cacheKey);
  const answer = await cache.getBatch(CACHE_NAME, cacheKeys);
  const found = keys.map(() => undefined);
  if (answer.type === CacheGetBatchResponse.Success) {
    answer.results().forEach((result, place) => {
      if (result.type === CacheGetResponse.Hit) {
        found[place] = JSON.parse(result.valueString());
      }
    });
  }
  if (found.every((record) => record !== undefined)) return [found, 1];
  const records = await readTable(keys);
  await Promise.all(
    records.map((record, place) =>
      cache.set(CACHE_NAME, cacheKeys[place], JSON.stringify(record)),
    ),
  );
  return [records, 2];
}

async function checkMembership(call, callback) {
  const { organization_name, username, minimum_role } = call.request;
  if (!organization_name || !username) {
    callback({ code: grpc.status.INVALID_ARGUMENT });
    return;
  }
  try {
    const [[membership, organization, user], source] = await read(
      keysOf(organization_name, username),
    );
    const isMember = Boolean(
      membership && organization && user && !organization.suspended && !user.suspended,
    );
    const role = isMember ? ROLES.indexOf(membership.role.toLowerCase()) : 0;
    callback(null, {
      is_member: isMember,
      role,
      satisfied: isMember && (minimum_role === 0 || role <= minimum_role),
      source,
    });
  } catch (error) {
    callback({ code: grpc.status.UNAVAILABLE, details: String(error) });
  }
}

const definition = loader.loadSync("account/v1/account_service.proto", {
  includeDirs: ["../../proto", "../../third_party/googleapis"].map(
    (folder) => new URL(folder, import.meta.url).pathname,
  ),
  keepCase: true,
  enums: Number,
});
const { AccountService } = grpc.loadPackageDefinition(definition).account.v1;
const server = new grpc.Server();
server.addService(AccountService.service, { CheckMembership: checkMembership });
server.bindAsync(
  "127.0.0.1:0",
  grpc.ServerCredentials.createInsecure(),
  (error, port) => {
    if (error) throw error;
    console.log(`serving on 127.0.0.1:${port}`);
  },
);
