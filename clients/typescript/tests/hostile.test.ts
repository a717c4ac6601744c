/** What comes from outside may be anything: it breaks nobody's request but the one that it answers. */

import assert from "node:assert/strict";
import { type TestContext, test } from "node:test";
import { inspect } from "node:util";
import sodium from "libsodium-wrappers";

import { BadReplyError, Client, NotSealedError, RefusedError } from "../src/index.js";
import { AMQP_URL, type Body, changed, granted, HOST, refused, scripted } from "./support.js";

const OK = granted("u-1", HOST);
const NO_REPLIES: Record<string, Body | Buffer> = {
  "nothing": Buffer.from(""),
  "no JSON": Buffer.from("{"),
  "no UTF-8": Buffer.from(JSON.stringify(granted("no UTF-8", HOST)).replace("repo", "\xff"), "latin1"),
  "no object": Buffer.from('["ok"]'),
  "a number of many digits": Buffer.from("1".repeat(100_000)),
  "deep": Buffer.from('{"status":'.repeat(200_000)),
  "huge": changed(OK, "padding", "x".repeat(5 * 1024 * 1024)),
  "no status": changed(OK, "status"),
  "an unknown status": changed(OK, "status", "perhaps"),
  "a status that is no text": changed(OK, "status", { ok: true }),
  "another user": changed(OK, "user_id", "u-2"),
  "another host": changed(OK, "host", "evil.example"),
  "an error about another user": { ...refused("internal"), user_id: "u-2" },
  "an error about another host": { ...refused("internal"), host: "evil.example" },
  "an error about a user that is no text": { ...refused("internal"), user_id: ["s3cret"] },
  "no token": changed(OK, "token"),
  "a token that is no object": changed(OK, "token", "s3cret"),
  "a value that is no text": changed(OK, "token.value", 7),
  "no userinfo": changed(OK, "token.userinfo"),
  "scopes that are no list": changed(OK, "token.scopes", "repo"),
  "a malformed date": changed(OK, "token.reserved_until", "s3cret"),
  "a date without a zone": changed(OK, "token.reserved_until", "2020-01-01"),
  "no error": { status: "error" },
  "an error that is a text": { status: "error", error: "s3cret" },
  "a malformed code": refused("Ünknown code\n"),
  "an error without a message": { status: "error", error: { code: "internal" } },
};

const showsNoSecret = (kind: new (...all: never[]) => Error, name = "") => (error: unknown) => {
  assert.ok(error instanceof kind, `${name}: ${inspect(error)}`);
  assert.ok(!inspect(error, { depth: 9, showHidden: true }).includes("s3cret"), name);
  return true;
};

test("what is no reply is an error for one request, and others are served", async (t) => {
  const { worker, client } = await scripted(t);
  worker.rule = (body) => {
    const reply = NO_REPLIES[body.user_id] ?? OK;
    // Wrong in no other way than its name says.
    return reply.user_id === "u-1" ? changed(reply, "user_id", body.user_id) : reply;
  };
  const hostile = Object.keys(NO_REPLIES).map((name) =>
    assert.rejects(client.token(name, HOST), showsNoSecret(BadReplyError, name)),
  );
  const bystanders = Array.from({ length: 100 }, (_, n) => client.token(`u-${n}`, HOST));
  await Promise.all([...hostile, ...bystanders]);
  assert.equal(new Set(worker.messages.map(({ properties }) => properties.replyTo)).size, 1);
});

test("a well-formed error of another kind is taken as it is", async (t) => {
  const { worker, client } = await scripted(t);
  worker.rule = () => refused("a_newer_code", false, { retry_after_secs: 1e300, message: "a\r\n\x1b[2Jb" });
  await assert.rejects(client.token("u-1", HOST), (error) => {
    assert.ok(error instanceof RefusedError);
    assert.deepEqual([error.code, error.retryAfterSecs], ["a_newer_code", undefined]);
    assert.match(error.message, /^[ -~]*$/);
    return true;
  });
});

test("the words of an error are cut and printable, and null is no word", async (t) => {
  const { worker, client } = await scripted(t);
  const words = `a\r\n\x1b[2Jb${"x".repeat(100_000)}`;
  const failed = { ...refused("unknown_host", false, { reason: words, message: words }), user_id: "u-1", host: words };
  const silent = { ...refused("internal", false, { reason: null }), user_id: null, host: null };
  worker.rule = () => ({ status: "error", workspace_id: "ws-1", user_id: "u-1", tokens: [failed, silent] });
  const [first, second] = await client.workspaceStart("ws-1", "u-1", ["…"]);
  assert.ok(first instanceof RefusedError && second instanceof RefusedError);
  for (const text of [first.reason, first.host, first.message.replace("unknown_host: ", "")]) assert.match(text!, /^[ -~]{500}$/);
  assert.deepEqual([second.reason, second.host], [undefined, undefined]);
  worker.rule = () => silent;
  await assert.rejects(client.token("u-1", HOST), { name: "RefusedError", reason: undefined, host: undefined });
});

test("an error of a login or a report is about the one that was sent", async (t) => {
  const { worker, client } = await scripted(t);
  const login = { userId: "u-1", host: HOST, value: "s3cret" };
  for (const about of [{ user_id: "u-2", host: HOST }, { user_id: "u-1", host: "evil.example" }]) {
    worker.rule = () => ({ ...refused("user_not_found"), ...about });
    await assert.rejects(client.store(login), showsNoSecret(BadReplyError, inspect(about)));
    await assert.rejects(client.report("u-1", HOST, "s3cret"), showsNoSecret(BadReplyError, inspect(about)));
  }
  worker.rule = () => ({ ...refused("user_not_found"), user_id: "u-1", host: HOST });
  await assert.rejects(client.store(login), showsNoSecret(RefusedError));
});

test("a reply with another correlation id answers nobody", async (t) => {
  const { worker, client } = await scripted(t);
  worker.rule = (_, message) => {
    for (const wrong of ["", "0".repeat(32), "x".repeat(255), "__proto__"]) {
      worker.reply(message, granted("u-1", HOST, "forged"), wrong);
    }
    return granted("u-1", HOST, "genuine");
  };
  assert.equal((await client.token("u-1", HOST)).value, "genuine");
});

test("only the first of two replies counts", async (t) => {
  const { worker, client } = await scripted(t);
  worker.rule = (body, message) => {
    worker.reply(message, granted(body.user_id, HOST, "first"));
    return granted(body.user_id, HOST, "second");
  };
  const tokens = await Promise.all(Array.from({ length: 50 }, (_, n) => client.token(`u-${n}`, HOST)));
  assert.deepEqual(new Set(tokens.map(({ value }) => value)), new Set(["first"]));
});

test("workspaces and reports are read as carefully", async (t) => {
  const { worker, client } = await scripted(t);
  const ok = { status: "ok", workspace_id: "ws-1", user_id: "u-1", tokens: [granted("u-1", HOST)] };
  for (const reply of [
    changed(ok, "tokens", []),
    changed(ok, "tokens", "s3cret"),
    changed(ok, "tokens", ["s3cret"]),
    changed(ok, "tokens", [granted("u-2", HOST)]),
    changed(ok, "workspace_id", "ws-2"),
    changed(ok, "tokens", [refused("identity_not_found")]),
    changed(ok, "status", "error"),
    { ...ok, status: "error", tokens: [...ok.tokens, { ...refused("internal"), user_id: "u-2" }] },
    { ...refused("internal"), workspace_id: "ws-2" },
    { ...refused("internal"), user_id: "u-2" },
  ]) {
    worker.rule = () => reply;
    const asked = client.workspaceStart("ws-1", "u-1", [`https://${HOST}/r`]);
    await assert.rejects(asked, showsNoSecret(BadReplyError, inspect(reply)));
  }
  worker.rule = () => ({ status: "ok", result: ["s3cret"] });
  await assert.rejects(client.report("u-1", HOST, "s3cret"), showsNoSecret(BadReplyError));
});

test("a malformed or unknown event is passed over", async (t) => {
  const { worker, client } = await scripted(t);
  const good = { event: "provider.recovered", host: HOST, at: "2020-01-01T01:00:00.000Z" };
  const bad = [Buffer.from("{"), Buffer.from("[]"), {}, changed(good, "event", "of.tomorrow"), changed(good, "event", "toString"),
    changed(good, "host"), changed(good, "at", 7), changed(good, "event", "token.refreshed")];
  const events = client.events();
  // Nobody says when the queue is bound, and an event before is missed.
  const early = changed(good, "host", "early.example.org");
  const publishing = setInterval(() => worker.event(early), 20);
  let { value } = await events.next().finally(() => clearInterval(publishing));
  for (const body of [...bad, good]) worker.event(body);
  while (value?.host === early.host) ({ value } = await events.next());
  assert.deepEqual(value, good);
});

// --- Sealed replies and logins, with a worker that does them wrong ---

const toBase64 = (bytes: Uint8Array) => Buffer.from(bytes).toString("base64");
const fromBase64 = (text: string) => new Uint8Array(Buffer.from(text, "base64"));
const seal = (publicKey: string, content: unknown) =>
  toBase64(sodium.crypto_box_seal(JSON.stringify(content), fromBase64(publicKey)));

/** An ok reply with this box in it. */
const boxed = (box: string) => changed(changed(changed(OK, "token.value"), "token.userinfo"), "token.sealed", box);
const CONTENT = { user_id: "u-1", host: HOST, value: "s3cret", userinfo: "x:s3cret" };

async function sealing(t: TestContext) {
  await sodium.ready;
  const { worker, clientAt } = await scripted(t);
  const deployment = sodium.crypto_box_keypair();
  const storeKey = toBase64(deployment.publicKey);
  return { worker, deployment, client: clientAt(AMQP_URL, { sealed: true, storeKey, storeKeyId: "k-1" }) };
}

test("a sealed token is opened, and each request has a key of its own", async (t) => {
  const { worker, client } = await sealing(t);
  worker.rule = (body) => boxed(seal(body.reply_public_key, CONTENT));
  const tokens = await Promise.all([1, 2, 3].map(() => client.token("u-1", HOST)));
  assert.deepEqual(tokens.map(({ value }) => value), ["s3cret", "s3cret", "s3cret"]);
  assert.equal(new Set(worker.bodies.map((body) => body.reply_public_key)).size, 3);
});

test("a token in clear is refused where a sealed one was asked for", async (t) => {
  const { worker, client } = await sealing(t);
  const clear = granted("u-1", HOST, "s3cret");
  worker.rule = () => clear;
  await assert.rejects(client.token("u-1", HOST), showsNoSecret(NotSealedError));
  worker.rule = () => ({ status: "ok", workspace_id: "ws-1", user_id: "u-1", tokens: [clear] });
  await assert.rejects(client.workspaceStart("ws-1", "u-1", [`https://${HOST}/r`]), showsNoSecret(NotSealedError));
});

test("a box with something else in it, or that does not open, is refused", async (t) => {
  const { worker, client } = await sealing(t);
  const contents = [changed(CONTENT, "user_id", "u-2"), changed(CONTENT, "host", "evil.example"),
    changed(CONTENT, "value"), changed(CONTENT, "userinfo", 7), "s3cret", null];
  for (const content of contents) {
    worker.rule = (body) => boxed(seal(body.reply_public_key, content));
    await assert.rejects(client.token("u-1", HOST), showsNoSecret(BadReplyError, inspect(content)));
  }
  const other = toBase64(sodium.crypto_box_keypair().publicKey);
  for (const box of [seal(other, CONTENT), "", "no base64 ü", "AAAA"]) {
    worker.rule = () => boxed(box);
    await assert.rejects(client.token("u-1", HOST), showsNoSecret(BadReplyError, box));
  }
});

test("a sealed login shows the broker nothing but user and host", async (t) => {
  const { worker, client, deployment } = await sealing(t);
  worker.rule = () => ({ status: "ok" });
  await client.store({ userId: "u-1", host: HOST, value: "s3cret", refreshToken: "s3cret-refresh", authId: "jdoe" });
  const { sealed, ...shown } = worker.bodies[0];
  assert.deepEqual(shown, { user_id: "u-1", host: HOST, key_id: "k-1" });
  const { publicKey, privateKey } = deployment;
  const opened = JSON.parse(sodium.to_string(sodium.crypto_box_seal_open(fromBase64(sealed), publicKey, privateKey)));
  const token = { value: "s3cret", refresh_token: "s3cret-refresh" };
  assert.deepEqual(opened, { user_id: "u-1", host: HOST, auth_id: "jdoe", token });
});

test("an invalid key is refused before anything is sent", () => {
  // Everybody could open what is sealed to these, if it could be: zero, one, and zero with the bit that X25519 ignores.
  const lowOrder = [{ 0: 0 }, { 0: 1 }, { 31: 0x80 }].map((set) => toBase64(Object.assign(new Uint8Array(32), set)));
  for (const storeKey of ["", "AAAA", "no base64 ü", ...lowOrder]) {
    assert.throws(() => new Client(AMQP_URL, { storeKey }), { name: "TypeError", message: /^the public key/ }, storeKey);
  }
});
