/** A connection that breaks, at any time. */

import assert from "node:assert/strict";
import { type TestContext, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { inspect } from "node:util";

import { ClosedError, ConnectionLostError, type Event, NoReplyError, RefusedError, Token } from "../src/index.js";
import { UNCONFIRMED_MOST } from "../src/link.js";
import { granted, HOST, refused, scripted, Wire } from "./support.js";

async function wired(t: TestContext) {
  const wire = new Wire();
  await wire.start();
  const { worker, client, clientAt } = await scripted(t);
  t.after(() => wire.stop());
  return { wire, worker, bystander: client, client: clientAt(wire.url), clientAt };
}

test("reads that were in flight are asked again", async (t) => {
  const { wire, worker, client } = await wired(t);
  let isAnswering = false;
  worker.rule = (body) => (isAnswering ? granted(body.user_id, body.host) : undefined);
  const asked = Array.from({ length: 100 }, (_, n) => client.token(`u-${n}`, HOST));
  await worker.arrived(100);
  isAnswering = true;
  wire.cut();
  const tokens = await Promise.all(asked);
  assert.deepEqual(tokens.map(({ userId }) => userId), tokens.map((_, n) => `u-${n}`));
  assert.deepEqual([worker.messages.length, wire.connections], [200, 2]);
});

test("a connection that breaks again and again costs time and no request", async (t) => {
  const { wire, worker, client } = await wired(t);
  // Each connection has an address of its own for replies.
  const arrived = new Map<string, number>();
  worker.rule = (body, { properties: { replyTo } }) => {
    const count = (arrived.get(replyTo) ?? 0) + 1;
    arrived.set(replyTo, count);
    if (count === 50 && wire.connections <= 5) wire.cut();
    return granted(body.user_id, body.host);
  };
  const ask = (n: number) => client.token(`u-${n % 7}`, HOST, undefined, { timeoutMs: 60_000 });
  const tokens = await Promise.all(Array.from({ length: 300 }, (_, n) => ask(n)));
  assert.ok(tokens.every((it) => it instanceof Token));
  assert.equal(wire.connections, 6);
});

test("a connection that breaks while it is made is made again", async (t) => {
  const { wire, clientAt } = await wired(t);
  // The broker's part of the handshake takes some 650 bytes.
  for (let most = 0; most < 760; most += 40) {
    wire.cutAfter = most;
    const client = clientAt(wire.url);
    await client.token("u-1", HOST);
    await client.close();
  }
  assert.ok(wire.connections > 25, `${wire.connections}`);
});

test("a login that was in flight is not sent twice", async (t) => {
  const { wire, worker, client } = await wired(t);
  worker.rule = () => undefined;
  const stored = assert.rejects(client.store({ userId: "u-1", host: HOST, value: "s3cret" }), (error) => {
    assert.ok(error instanceof ConnectionLostError && error.retryable, inspect(error));
    assert.ok(!inspect(error).includes("s3cret"));
    return true;
  });
  await worker.arrived(1);
  wire.cut();
  await stored;
  assert.equal(worker.messages.length, 1);
});

test("a login whose confirm does not come is not sent twice", async (t) => {
  const { wire, worker, client } = await wired(t);
  await client.token("u-1", HOST);
  wire.hold("broker");
  const stored = assert.rejects(client.store({ userId: "u-1", host: HOST, value: "s3cret" }), ConnectionLostError);
  await worker.arrived(2);
  wire.cut();
  await stored;
  await client.token("u-1", HOST);
  assert.equal(worker.messages.length, 3);
});

const MANY = UNCONFIRMED_MOST + 200;

test("what a broker does not take is bounded, and goes on when it takes it again", async (t) => {
  const { wire, worker, client } = await wired(t);
  await client.token("u-1", HOST);
  wire.hold("clients");
  const late = Array.from({ length: MANY }, (_, n) =>
    assert.rejects(client.token(`u-${n}`, HOST, undefined, { timeoutMs: 2000 }), NoReplyError),
  );
  await Promise.all(late);
  wire.release();
  await client.token("u-1", HOST);
  // Nothing of the others was kept for later.
  assert.ok(worker.messages.length <= 1 + UNCONFIRMED_MOST + 1, `${worker.messages.length}`);
});

test("who waits for a turn is asked over the next connection", async (t) => {
  const { wire, client } = await wired(t);
  await client.token("u-1", HOST);
  wire.hold("clients");
  const ask = (n: number) => client.token(`u-${n}`, HOST, undefined, { timeoutMs: 60_000 });
  const asked = Array.from({ length: MANY }, (_, n) => ask(n));
  await new Promise(setImmediate);
  wire.cut();
  const tokens = await Promise.all(asked);
  assert.deepEqual(tokens.map(({ userId }) => userId), tokens.map((_, n) => `u-${n}`));
});

test("nobody waits for a pause of a client that is closed", { timeout: 20_000 }, async (t) => {
  const { worker, client } = await wired(t);
  worker.rule = () => refused("provider_unavailable", true, { retry_after_secs: 3600 });
  const asked = assert.rejects(client.token("u-1", HOST, undefined, { timeoutMs: 86_400_000 }), ClosedError);
  // Its reply came before this one's, which has no time for the pause.
  await assert.rejects(client.token("u-1", HOST, undefined, { timeoutMs: 5000 }), RefusedError);
  await client.close();
  await asked;
});

test("others are served while one connection is down", async (t) => {
  const { wire, client, bystander } = await wired(t);
  await client.token("u-1", HOST);
  wire.isOpen = false;
  wire.cut();
  const down = assert.rejects(client.token("u-1", HOST, undefined, { timeoutMs: 500 }), ConnectionLostError);
  for (let count = 0; count < 20; count += 1) await bystander.token("u-2", HOST);
  await down;
  wire.isOpen = true;
  await client.token("u-1", HOST);
});

test("events come again as soon after the seventh break as after the first", async (t) => {
  const { wire, worker, client } = await wired(t);
  const heard: Event[] = [];
  const listening = (async () => {
    for await (const event of client.events()) heard.push(event);
  })();
  let began = 0;
  for (let count = 1; count <= 8; count += 1) {
    while (heard.length < count) {
      worker.event({ event: "provider.recovered", host: HOST, at: "2020-01-01T01:00:00.000Z" }, `m-${count}`);
      await sleep(10);
    }
    if (count === 8) break;
    began = performance.now();
    wire.cut();
  }
  // Pauses that go on growing have come to four seconds by now.
  assert.ok(performance.now() - began < 3000, `${performance.now() - began}`);
  await client.close();
  await listening;
});

test("events come again after a break, and never twice", async (t) => {
  const { wire, worker, client } = await wired(t);
  const heard: Event[] = [];
  const listening = (async () => {
    for await (const event of client.events("provider.*")) heard.push(event);
  })();
  const publishUntil = async (count: number) => {
    while (heard.length < count) {
      const event = { event: "provider.recovered", host: `h-${count}`, at: "2020-01-01T01:00:00.000Z" };
      worker.event(event, `m-${count}`);
      worker.event(event, `m-${count}`);
      worker.event({ ...event, event: "token.refreshed" });
      await sleep(10);
    }
  };
  await publishUntil(1);
  wire.cut();
  await publishUntil(2);
  assert.deepEqual(heard.map(({ host }) => host), ["h-1", "h-2"]);
  await client.close();
  await listening;
});
