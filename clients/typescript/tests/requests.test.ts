/** Requests and their answers, with a worker that answers as the test says. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { inspect } from "node:util";

import {
  BrokerRefusedError,
  Client,
  ClosedError,
  ConnectionLostError,
  NoReplyError,
  RefusedError,
  Token,
  TokenkeeperError,
  UnroutableError,
} from "../src/index.js";
import { canMean, TooLate, words } from "../src/link.js";
import { AMQP_URL, type Body, granted, HOST, refused, scripted, USER } from "./support.js";

const NO_BROKER = "amqp://127.0.0.1:1/";
const FULL = { "x-max-length": 0, "x-overflow": "reject-publish" };
const CODES = {
  invalid_request: false,
  forbidden: false,
  unknown_host: false,
  user_not_found: false,
  identity_not_found: false,
  token_not_found: false,
  not_refreshable: false,
  reauthorization_required: false,
  provider_misconfigured: false,
  provider_unavailable: true,
  refresh_timeout: true,
  deadline_exceeded: true,
  internal: true,
};

const numbered = (count: number) => Array.from({ length: count }, (_, n) => n);
const isError = (kind: new (...all: never[]) => Error) => (error: unknown) => {
  assert.ok(error instanceof kind, inspect(error));
  return true;
};

test("a token is asked for as the contract says", async (t) => {
  const { worker, client } = await scripted(t);
  const traceparent = `00-${"a".repeat(32)}-${"b".repeat(16)}-01`;
  const token = await client.token("u-1", HOST, 600, { timeoutMs: 8000, traceparent });
  assert.deepEqual([token.value, token.expiresAt], ["s3cret-token", null]);
  assert.equal(token.reservedUntil.toISOString(), "2020-01-01T01:05:00.000Z");
  assert.deepEqual(worker.bodies, [{ user_id: "u-1", host: HOST, requested_lifetime_secs: 600 }]);
  const { headers, userId, expiration } = worker.messages[0]!.properties;
  assert.deepEqual([headers?.["traceparent"], userId], [traceparent, USER]);
  // Half a second less than the deadline, less the time to connect.
  assert.ok(Number(expiration) > 3000 && Number(expiration) <= 7500, expiration);
});

test("a malformed traceparent is left out", async (t) => {
  const { worker, client } = await scripted(t);
  await client.token("u-1", HOST, undefined, { traceparent: "00-x".repeat(100_000) });
  assert.equal(worker.messages[0]!.properties.headers?.["traceparent"], undefined);
});

test("each error code is an error that says whether to ask again", async (t) => {
  const { worker, client } = await scripted(t);
  // Later than the request's deadline, so that it is not asked again.
  worker.rule = ({ user_id: code }: { user_id: keyof typeof CODES }) =>
    refused(code, CODES[code], CODES[code] ? { retry_after_secs: 60 } : {});
  for (const [code, retryable] of Object.entries(CODES)) {
    await assert.rejects(client.token(code, HOST), (error) => {
      assert.ok(error instanceof RefusedError);
      const { retryAfterSecs } = error;
      assert.deepEqual([error.code, error.retryable, retryAfterSecs], [code, retryable, retryable ? 60 : undefined]);
      return true;
    });
  }
  assert.equal(worker.messages.length, Object.keys(CODES).length);
});

test("a retry waits as long as the worker says", async (t) => {
  const { worker, client } = await scripted(t);
  const asked: number[] = [];
  worker.rule = (body) => {
    const first = asked.push(performance.now()) === 1;
    return first ? refused("provider_unavailable", true, { retry_after_secs: 1 }) : granted(body.user_id, body.host);
  };
  await client.token("u-1", HOST);
  assert.equal(asked.length, 2);
  assert.ok(asked[1]! - asked[0]! >= 1000, `${asked}`);
});

test("without a pause from the worker, retries come within the deadline", async (t) => {
  const { worker, client } = await scripted(t);
  worker.rule = () => refused("internal", true);
  const began = performance.now();
  await assert.rejects(client.token("u-1", HOST, undefined, { timeoutMs: 1000 }), isError(RefusedError));
  assert.ok(performance.now() - began < 3000);
  assert.ok(worker.messages.length > 2);
});

for (const [step, hours] of [["forward", 1], ["back", -1]] as const) {
  test(`a clock that is set ${step} neither ends a request nor prolongs it`, { timeout: 20_000 }, async (t) => {
    const { worker, client } = await scripted(t);
    const { now } = Date;
    t.mock.method(Date, "now", () => now() + (worker.messages.length > 0 ? hours * 3_600_000 : 0));
    worker.rule = (body) =>
      worker.messages.length < 3 || body.user_id === "late" ? refused("internal", true) : granted(body.user_id, HOST);
    const began = performance.now();
    await Promise.all([
      client.token("in time", HOST),
      assert.rejects(client.token("late", HOST, undefined, { timeoutMs: 1000 }), isError(TokenkeeperError)),
    ]);
    assert.ok(performance.now() - began < 10_000);
  });
}

test("a request that nobody answers ends with its time, and others are served", async (t) => {
  const { worker, client } = await scripted(t);
  worker.rule = (body) => (body.user_id === "silent" ? undefined : granted(body.user_id, body.host));
  const silent = assert.rejects(client.token("silent", HOST, undefined, { timeoutMs: 700 }), (error) => {
    assert.ok(error instanceof NoReplyError);
    assert.deepEqual([error.code, error.retryable], ["no_reply", true]);
    return true;
  });
  for (const _ of numbered(20)) await client.token("u-1", HOST);
  await silent;
});

test("a message without a queue is unroutable, and others are served", async (t) => {
  const { worker, client } = await scripted(t);
  await worker.channel.unbindQueue(`${worker.prefix}.token-reports`, worker.prefix, "token.report");
  await assert.rejects(client.report("u-1", HOST, "t"), (error) => {
    assert.ok(error instanceof UnroutableError);
    assert.match(error.message, /no worker has declared the queue/);
    return true;
  });
  await client.token("u-1", HOST);
});

test("a message that a full queue refuses is sent again in its time, and others are served", async (t) => {
  const { worker, client } = await scripted(t);
  const { queue } = await worker.channel.assertQueue("", { exclusive: true, arguments: FULL });
  await worker.channel.bindQueue(queue, worker.prefix, "token.report");
  // The other queue takes each.
  worker.rule = (body, { fields }) => (fields.routingKey === "token.report" ? undefined : granted(body.user_id, HOST));
  // The sixth try would be later than this in any case, and the fifth is over by then.
  await assert.rejects(client.report("u-1", HOST, "t", { timeoutMs: 4500 }), (error) => {
    assert.ok(error instanceof BrokerRefusedError && error.retryable, inspect(error));
    return true;
  });
  assert.ok(worker.messages.length > 1);
  await client.token("u-1", HOST);
});

test("an exchange that is not there costs nobody else the channel", async (t) => {
  const { worker, clientAt } = await scripted(t);
  const client = clientAt(AMQP_URL, { partitioned: true });
  const { promise, resolve } = later<Body>();
  worker.rule = () => promise;
  // Reports have no partitions, so this one is on its way while the others find no exchange.
  const bystander = client.report("u-1", HOST, "t");
  await worker.arrived(1);
  await assert.rejects(client.token("u-1", HOST), isError(UnroutableError));
  resolve({ status: "ok", result: "held" });
  assert.equal(await bystander, "held");
  assert.equal(worker.messages.length, 1);
});

test("an exchange that is gone is unroutable, as one that never was", async (t) => {
  const { worker, client } = await scripted(t);
  await client.token("u-1", HOST);
  await worker.channel.deleteExchange(worker.prefix);
  for (const _ of numbered(2)) await assert.rejects(client.token("u-1", HOST), isError(UnroutableError));
});

test("a refusal is told to those whom the broker can have meant", () => {
  for (const [said, expected] of [
    ["NOT_FOUND - no exchange 'tk' in vhost '/'", true],
    ["ACCESS_REFUSED - access to exchange 'tk' in vhost '/' refused for user 'u'", true],
    ["ACCESS_REFUSED - access to exchange 'tk.events' in vhost '/' refused for user 'tk'", false],
    ["PRECONDITION_FAILED - user_id property set to 'a' but authenticated user was 'b'", true],
  ] as const) {
    assert.equal(canMean(said, "tk"), expected, said);
  }
});

test("a timeout that cannot work is refused before anything is sent", async (t) => {
  const { worker, client } = await scripted(t);
  for (const timeoutMs of [0, -1, Number.NaN, Number.POSITIVE_INFINITY, 86_400_001, 2 ** 31]) {
    const refusal = { name: "RangeError", message: "a timeout must be from 1 ms to 86400000 ms" };
    assert.throws(() => new Client(AMQP_URL, { timeoutMs }), refusal);
    await assert.rejects(client.token("u-1", HOST, undefined, { timeoutMs }), refusal);
  }
  await client.token("u-1", HOST, undefined, { timeoutMs: 86_400_000 });
  assert.equal(worker.messages.length, 1);
});

test("a broker that cannot be reached is told in words", async (t) => {
  const client = new Client(NO_BROKER, { timeoutMs: 500 });
  t.after(() => client.close());
  await assert.rejects(client.token("u-1", HOST), { message: /within 500 ms: .*ECONNREFUSED/ });
  // What Node says where a name has several addresses, and what comes of a broker that accepts and is silent.
  assert.equal(words(new AggregateError([new Error("connect ECONNREFUSED ::1:1")])), "connect ECONNREFUSED ::1:1");
  assert.equal(words(new TooLate()), "the broker does not answer");
});

test("a publisher that the broker does not know is refused", async (t) => {
  const client = (await scripted(t)).clientAt(AMQP_URL, { publisher: "somebody-else" });
  await assert.rejects(client.token("u-1", HOST), (error) => {
    assert.ok(error instanceof BrokerRefusedError, inspect(error));
    assert.equal(error.retryable, false);
    return true;
  });
});

test("a refused login is said at once and shows no password", async (t) => {
  const url = new URL(AMQP_URL);
  url.password = "wr0ng-password";
  const client = new Client(url.href);
  t.after(() => client.close());
  const began = performance.now();
  await assert.rejects(client.token("u-1", HOST), (error) => {
    assert.ok(error instanceof BrokerRefusedError, inspect(error));
    assert.ok(!inspect([error, client], { depth: 9 }).includes("wr0ng-password"));
    return true;
  });
  assert.ok(performance.now() - began < 10_000);
});

test("a malformed URL, or one that shows the password, is refused", () => {
  for (const url of ["amqp://u:s3cret@broker.example.org/", "http://u:s3cret@127.0.0.1/", "amqp://u:s3cret@[::1/"]) {
    assert.throws(() => new Client(url), (error) => error instanceof TypeError && !inspect(error).includes("s3cret"));
  }
  new Client("amqp://u:s3cret@broker.example.org/", { plainText: true });
  new Client("amqps://u:s3cret@broker.example.org/");
});

test("a broker that is not there costs the deadline and no more", async (t) => {
  const client = new Client(NO_BROKER, { timeoutMs: 500 });
  t.after(() => client.close());
  await assert.rejects(client.token("u-1", HOST), isError(ConnectionLostError));
});

test("five hundred requests are in flight at once over one connection", async (t) => {
  const { worker, client } = await scripted(t);
  worker.rule = async (body) => {
    await worker.arrived(500);
    return granted(body.user_id, body.host, `token-of-${body.user_id}`);
  };
  const tokens = await Promise.all(numbered(500).map((n) => client.token(`u-${n}`, HOST)));
  assert.deepEqual(tokens.map(({ value }) => value), numbered(500).map((n) => `token-of-u-${n}`));
  assert.equal(new Set(worker.messages.map(({ properties }) => properties.replyTo)).size, 1);
});

test("a workspace gets a token for each host, or why there is none", async (t) => {
  const { worker, client } = await scripted(t);
  const repositories = ["https://a.example.org/r", "https://b.example.org/r"];
  const missing = { ...refused("identity_not_found"), user_id: "u-1", host: "b.example.org" };
  const tokens = [granted("u-1", "a.example.org"), missing];
  worker.rule = () => ({ status: "error", workspace_id: "ws-1", user_id: "u-1", tokens });
  const [first, second] = await client.workspaceStart("ws-1", "u-1", repositories, 600);
  assert.deepEqual(worker.bodies[0].repositories, repositories);
  assert.ok(first instanceof Token && second instanceof RefusedError);
  assert.deepEqual([first.host, second.code, second.host], ["a.example.org", "identity_not_found", "b.example.org"]);
});

test("a workspace keeps the tokens it got when the rest stays away", async (t) => {
  const { worker, client } = await scripted(t);
  const away = { ...refused("provider_unavailable", true), user_id: "u-1", host: "b.example.org" };
  const tokens = [granted("u-1", "a.example.org"), away];
  worker.rule = () => ({ status: "error", workspace_id: "ws-1", user_id: "u-1", tokens });
  const got = await client.workspaceStart("ws-1", "u-1", ["…"], 600, { timeoutMs: 1000 });
  assert.ok(got[0] instanceof Token && got[1] instanceof RefusedError);
  assert.ok(worker.messages.length > 1);
});

test("an invalid message is refused, with a broker and without", async (t) => {
  const { worker, client, clientAt } = await scripted(t);
  for (const it of [client, clientAt(NO_BROKER, { timeoutMs: 500 })]) {
    await assert.rejects(it.token("x".repeat(70_000), HOST), { code: "invalid_request" });
  }
  await client.token("u-1", HOST);
  assert.equal(worker.messages.length, 1);
});

test("a client that is closed answers everybody", async (t) => {
  const { worker, client } = await scripted(t);
  worker.rule = () => undefined;
  const asked = assert.rejects(client.token("u-1", HOST), isError(ClosedError));
  await worker.arrived(1);
  await client.close();
  await asked;
  await assert.rejects(client.token("u-1", HOST), isError(ClosedError));
});

test("no text form shows a secret", async (t) => {
  const token = await (await scripted(t)).client.token("u-1", HOST);
  assert.equal(token.userinfo, "x-token-auth:s3cret-token");
  const shown = [inspect(token, { showHidden: true, depth: 9 }), JSON.stringify(token), `${token}`, { ...token }];
  assert.ok(!JSON.stringify(shown).includes("s3cret"));
});

function later<T>() {
  let resolve!: (value: T) => void;
  const promise = new Promise<T>((settle) => (resolve = settle));
  return { promise, resolve };
}
