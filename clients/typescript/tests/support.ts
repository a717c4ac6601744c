/** What the tests stand on: a worker that answers as the test says, and a wire that can be cut. */

import { randomUUID } from "node:crypto";
import { once } from "node:events";
import net from "node:net";
import type { TestContext } from "node:test";
import amqplib from "amqplib";
import type { Channel, ChannelModel, ConsumeMessage } from "amqplib";

import { Client, type ClientOptions } from "../src/index.js";

export const AMQP_URL = process.env["AMQP_URL"] ?? "amqp://guest:guest@127.0.0.1:5672/%2f";
/** The broker's user that the tests are connected as. */
export const USER = decodeURIComponent(new URL(AMQP_URL).username) || "guest";
export const HOST = "git.example.org";
const KINDS = {
  "token.request": "token-requests",
  "workspace.start": "workspace-starts",
  "token.store": "token-stores",
  "token.report": "token-reports",
};

export type Body = any;
type Rule = (body: Body, message: ConsumeMessage) => Body | Buffer | undefined | Promise<Body | Buffer | undefined>;

/** An ok reply, in clear. */
export const granted = (userId: string, host: string, value = "s3cret-token"): Body => ({
  status: "ok",
  user_id: userId,
  host,
  token: {
    value,
    username: "x-token-auth",
    userinfo: `x-token-auth:${value}`,
    scopes: ["repo"],
    updated_at: "2020-01-01T01:00:00.000Z",
    expires_at: null,
    reserved_until: "2020-01-01T01:05:00.000Z",
  },
  refresh: "none",
  warnings: [],
});

export const refused = (code: string, retryable = false, more: object = {}): Body => ({
  status: "error",
  error: { code, message: "m", retryable, ...more },
});

/** A copy of a body in which the field at this path is changed; without a value it is taken away. */
export function changed(body: Body, path: string, value?: unknown): Body {
  const copy = structuredClone(body);
  const names = path.split(".");
  const last = names.pop()!;
  const inner = names.reduce((it, name) => it[name], copy);
  if (value === undefined) delete inner[last];
  else inner[last] = value;
  return copy;
}

/** Consumes the contract's queues under a prefix of its own, and answers by a rule: a token for everybody, until a test says else. */
export class ScriptedWorker {
  readonly prefix = `tk-clients-${randomUUID().slice(0, 13)}`;
  readonly messages: ConsumeMessage[] = [];
  rule: Rule = (body) => granted(body.user_id, body.host);
  channel!: Channel;
  #connection!: ChannelModel;
  #arrivals: (() => void)[] = [];

  async start(): Promise<void> {
    this.#connection = await amqplib.connect(AMQP_URL);
    this.channel = await this.#connection.createChannel();
    await this.channel.assertExchange(this.prefix, "direct", { durable: true });
    await this.channel.assertExchange(`${this.prefix}.events`, "topic", { durable: true });
    for (const [kind, name] of Object.entries(KINDS)) {
      const { queue } = await this.channel.assertQueue(`${this.prefix}.${name}`, { durable: true });
      await this.channel.bindQueue(queue, this.prefix, kind);
      await this.channel.consume(queue, (message) => this.#onMessage(message), { noAck: true });
    }
  }

  async stop(): Promise<void> {
    for (const name of Object.values(KINDS)) await this.channel.deleteQueue(`${this.prefix}.${name}`);
    for (const name of [this.prefix, `${this.prefix}.events`]) await this.channel.deleteExchange(name);
    await this.#connection.close();
  }

  /** The bodies that came. */
  get bodies(): Body[] {
    return this.messages.map(({ content }) => JSON.parse(content.toString()));
  }

  /** Waits until so many messages have come. */
  async arrived(count: number): Promise<void> {
    while (this.messages.length < count) await new Promise<void>((resolve) => this.#arrivals.push(resolve));
  }

  /** Publishes a reply; `to` is a correlation id other than the message's. */
  reply(message: ConsumeMessage, body: Body | Buffer, to?: string): void {
    const { replyTo, correlationId } = message.properties;
    const content = Buffer.isBuffer(body) ? body : Buffer.from(JSON.stringify(body));
    this.channel.publish("", replyTo, content, { correlationId: to ?? correlationId });
  }

  /** Publishes an event, routed by its name. */
  event(body: Body | Buffer, messageId?: string): void {
    const content = Buffer.isBuffer(body) ? body : Buffer.from(JSON.stringify(body));
    this.channel.publish(`${this.prefix}.events`, String(body.event), content, { ...(messageId && { messageId }) });
  }

  async #onMessage(message: ConsumeMessage | null): Promise<void> {
    if (message === null) return;
    this.messages.push(message);
    this.#arrivals.splice(0).forEach((wake) => wake());
    const body = await this.rule(JSON.parse(message.content.toString()), message);
    if (body !== undefined) this.reply(message, body);
  }
}

/** A TCP proxy to the broker, which can be cut. */
export class Wire {
  connections = 0;
  isOpen = true;
  /** How many bytes of the broker's the next connection lets through, and no more. */
  cutAfter = Number.POSITIVE_INFINITY;
  #near: net.Socket[] = [];
  #far: net.Socket[] = [];
  readonly #server = net.createServer((near) => {
    near.on("error", () => {});
    if (!this.isOpen) return near.destroy();
    this.connections += 1;
    const broker = new URL(AMQP_URL);
    const far = net.connect(Number(broker.port) || 5672, broker.hostname);
    far.on("error", () => {});
    near.on("close", () => far.destroy());
    far.on("close", () => near.destroy());
    this.#near.push(near);
    this.#far.push(far);
    let left = this.cutAfter;
    this.cutAfter = Number.POSITIVE_INFINITY;
    near.on("data", (data) => far.write(data));
    far.on("data", (data) => {
      near.write(data.subarray(0, Math.min(left, data.length)));
      left -= data.length;
      if (left <= 0) near.end(() => near.destroy());
    });
  });

  async start(): Promise<void> {
    await once(this.#server.listen(0, "127.0.0.1"), "listening");
  }

  get url(): string {
    const url = new URL(AMQP_URL);
    url.host = `127.0.0.1:${(this.#server.address() as net.AddressInfo).port}`;
    return url.href;
  }

  /** Breaks every connection without a word. New ones are let through. */
  cut(): void {
    for (const socket of [...this.#near.splice(0), ...this.#far.splice(0)]) socket.destroy();
  }

  /** Nothing that the clients, or the broker, say arrives any more; until the wire is released. New connections are let through. */
  hold(side: "clients" | "broker"): void {
    for (const socket of side === "clients" ? this.#near : this.#far) socket.pause();
  }

  /** What was held goes on. */
  release(): void {
    for (const socket of [...this.#near, ...this.#far]) socket.resume();
  }

  stop(): void {
    this.#server.close();
    this.cut();
  }
}

/** A scripted worker, and a way to make clients for it; by themselves these take their tokens in clear. */
export async function scripted(t: TestContext) {
  const worker = new ScriptedWorker();
  await worker.start();
  t.after(() => worker.stop());
  const clientAt = (url: string, options: ClientOptions = {}): Client => {
    const client = new Client(url, { prefix: worker.prefix, sealed: false, timeoutMs: 10_000, ...options });
    t.after(() => client.close());
    return client;
  };
  return { worker, client: clientAt(AMQP_URL), clientAt };
}
