/** The client with a live worker and a simulated source-code host. `TOKENKEEPER_WORLD` says where they are. */

import assert from "node:assert/strict";
import { type TestContext, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { Client, type ClientOptions, type Login, RefusedError, Token, UnroutableError } from "../src/index.js";

const given = process.env["TOKENKEEPER_WORLD"];
const world = given === undefined ? undefined : JSON.parse(given);
const skip = world ? false : "TOKENKEEPER_WORLD is not set: scripts/clients.sh runs this with a live worker";

/** The pair that the host has issued to this user. */
function login(userId: string): Login {
  const { auth_id: authId, token } = world.logins[userId];
  return {
    userId,
    host: world.host,
    authId,
    value: token.value,
    ...(token.refresh_token && { refreshToken: token.refresh_token }),
    expiresAt: new Date(token.expires_at),
    username: token.username,
    scopes: token.scopes,
  };
}

function connected(t: TestContext, options: ClientOptions = {}): Client {
  const keys = { storeKey: world.public_key, storeKeyId: world.key_id };
  const client = new Client(world.amqp_url, { prefix: world.prefix, ...keys, ...options });
  t.after(() => client.close());
  return client;
}

test("a login is stored and handed out, sealed and in clear", { skip }, async (t) => {
  const sealed = connected(t);
  const clear = new Client(world.amqp_url, { prefix: world.prefix, sealed: false });
  t.after(() => clear.close());
  for (const [client, user] of [[sealed, "sealed"], [clear, "clear"]] as const) {
    await client.store(login(user));
    for (const other of [sealed, clear]) {
      const token = await other.token(user, world.host, 600);
      assert.deepEqual([token.value, token.refresh], [login(user).value, "none"]);
      assert.match(token.userinfo, /^x-access-token:/);
    }
  }
});

test("each refusal has the code of the contract", { skip }, async (t) => {
  const client = connected(t);
  await client.store(login("short"));
  await assert.rejects(client.token("nobody", world.host), { code: "user_not_found" });
  await assert.rejects(client.token("short", "git.example.org"), { code: "unknown_host" });
  await assert.rejects(client.token("short", world.host, 86_401), { code: "invalid_request" });
  await assert.rejects(client.token("short", world.host, 86_400), { code: "not_refreshable", retryable: false });
});

test("a refresh is an event", { skip }, async (t) => {
  const client = connected(t);
  let event: unknown;
  const heard = client.events("token.refreshed").next().then(({ value }) => (event = value));
  // Nobody says when the queue is bound, and a refresh before is missed.
  for (let number = 0; event === undefined && number < 20; number += 1) {
    await client.store(login(`expired-${number}`));
    assert.equal((await client.token(`expired-${number}`, world.host)).refresh, "required");
    await Promise.race([heard, sleep(300)]);
  }
  const { event: name, host, user_id: user } = event as Record<string, unknown>;
  assert.deepEqual([name, host], ["token.refreshed", world.host]);
  assert.match(String(user), /^expired-/);
});

test("a report says what came of it", { skip }, async (t) => {
  const client = connected(t);
  await client.store(login("reported"));
  const token = await client.token("reported", world.host, 600);
  assert.equal(await client.report("reported", world.host, "another"), "not_current");
  assert.equal(await client.report("reported", world.host, token.value), "held");
});

test("a workspace gets what there is", { skip }, async (t) => {
  const client = connected(t);
  await client.store(login("workspace"));
  const repositories = [`https://${world.host}/scm/p/r.git`, "https://git.example.org/scm/p/r.git"];
  const [there, missing] = await client.workspaceStart("ws-1", "workspace", repositories, 600);
  assert.ok(there instanceof Token && missing instanceof RefusedError);
  assert.deepEqual([there.value, there.host], [login("workspace").value, world.host]);
  assert.deepEqual([missing.code, missing.host], ["unknown_host", "git.example.org"]);
});

test("partitions are another way to the same answer", { skip }, async (t) => {
  const client = connected(t, { partitioned: true });
  await client.store(login("partitioned"));
  assert.equal((await client.token("partitioned", world.host, 600)).value, login("partitioned").value);
});

test("five hundred requests get their sealed tokens", { skip }, async (t) => {
  const client = connected(t);
  await client.store(login("busy"));
  const asked = Array.from({ length: 500 }, () => client.token("busy", world.host, 60));
  const values = (await Promise.all(asked)).map(({ value }) => value);
  assert.deepEqual(new Set(values), new Set([login("busy").value]));
});

test("where no worker ever was, a request is unroutable", { skip }, async (t) => {
  const client = connected(t, { prefix: `${world.prefix}-nobody` });
  await assert.rejects(client.token("u-1", world.host), UnroutableError);
});
