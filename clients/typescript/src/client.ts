/** The client: the contract's four messages as methods, and events as a stream. */

import { createHash, randomUUID } from "node:crypto";
import { setMaxListeners } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import type { ConsumeMessage, Options, SocketOptions } from "amqplib";

import {
  BrokerRefusedError,
  ClosedError,
  ConnectionLostError,
  NoReplyError,
  RefusedError,
  TokenkeeperError,
} from "./errors.js";
import { before, DIRECT_REPLY_TO, Link, LinkLost, TooLate, words } from "./link.js";
import { event, type Fields, granted, parse, text, Token, workspace } from "./replies.js";
import { checkPublicKey, ReplyKey, seal } from "./sealed.js";
import type * as wire from "./wire.js";

export interface ClientOptions {
  /** The workers' `broker.prefix`. */
  prefix?: string;
  /** Whether to publish to the workers' partitions (`broker.partitions`). */
  partitioned?: boolean;
  /** Whether tokens come sealed (yes). */
  sealed?: boolean;
  /** The deployment's public key, as `tokenkeeper keys public` prints it. With it logins are sealed too. */
  storeKey?: string;
  /** Its id, as `tokenkeeper keys public --json` prints it. */
  storeKeyId?: string;
  /** How long a request takes at most, in ms, retries included: 1 to 86,400,000 (30,000). */
  timeoutMs?: number;
  /** The AMQP property `user_id`: by default the URL's user. `""` leaves it out. */
  publisher?: string;
  /** For amqplib: TLS and the like. */
  socketOptions?: SocketOptions;
  /** Whether `amqp://` may go to another machine, with the password in clear. */
  plainText?: boolean;
}

export interface CallOptions {
  /** How long this request takes at most, in ms, retries included: by default the client's `timeoutMs`. */
  timeoutMs?: number;
  /** W3C Trace Context, for the worker's logs. A malformed one is left out. */
  traceparent?: string | undefined;
}

/** A pair that a login flow obtained. */
export interface Login {
  /** Whose pair it is, in the words of your platform. */
  userId: string;
  /** The source-code host, as it stands in clone URLs, with a port where there is one. */
  host: string;
  /** The access token. */
  value: string;
  /** Without it the pair cannot be refreshed. */
  refreshToken?: string;
  /** When the access token ends. Left out: never. */
  expiresAt?: Date;
  /** When the refresh token ends. Left out: not known. */
  refreshTokenExpiresAt?: Date;
  /** What git sends as the user name. Left out: the one of the host's provider. */
  username?: string;
  /** What the host allowed the token to do. Left out: not known. */
  scopes?: string[];
  /** The user's id at the host. Left out: `userId`. */
  authId?: string;
  /** The user's name at the host, for people. */
  authName?: string;
}

type Kind = "token.request" | "workspace.start" | "token.store" | "token.report";
type Message = wire.TokenRequest | wire.WorkspaceStart | wire.TokenStore | wire.TokenReport;

const HASH_EXCHANGES: { readonly [kind in Kind]?: string } = {
  "token.request": "token-requests",
  "workspace.start": "workspace-starts",
  "token.store": "token-stores",
};

// The broker counts a request's time in milliseconds. Node takes a longer time than 2^31 of them for none.
const LONGEST_MS = 86_400_000;

/** Asks tokenkeeper's workers, over one connection that comes back by itself. Any number of requests may be in flight. */
export class Client {
  readonly #url: string;
  readonly #options: ClientOptions;
  readonly #publisher: string;
  readonly #timeoutMs: number;
  readonly #closed = new AbortController();
  #link: Link | undefined;
  #connecting: Promise<Link> | undefined;
  #trouble = "it is not there yet";

  /** Throws a `TypeError` or a `RangeError` where the URL or an option cannot work. */
  constructor(url: string, options: ClientOptions = {}) {
    if (!URL.canParse(url) || !/^amqps?:$/.test(new URL(url).protocol)) {
      throw new TypeError("the URL of the broker must begin with amqp:// or amqps://");
    }
    const { protocol, hostname, username } = new URL(url);
    const isHere = /^(localhost|\[::1\]|127(\.\d+){3})$/.test(hostname);
    if (protocol === "amqp:" && !isHere && !options.plainText) {
      throw new TypeError("amqp:// to another machine shows the password: use amqps://, or plainText");
    }
    if (options.storeKey !== undefined) checkPublicKey(options.storeKey);
    // Every request that pauses listens to it.
    setMaxListeners(0, this.#closed.signal);
    this.#timeoutMs = checked(options.timeoutMs ?? 30_000);
    this.#url = url;
    this.#options = options;
    this.#publisher = options.publisher ?? (decodeURIComponent(username) || "guest");
  }

  /** A token that works for so many seconds: 300, if it is left out. */
  token(userId: string, host: string, lifetimeSecs?: number, call: CallOptions = {}): Promise<Token> {
    const request: wire.TokenRequest = { user_id: userId, host };
    if (lifetimeSecs !== undefined) request.requested_lifetime_secs = lifetimeSecs;
    const read = (reply: Fields, key: ReplyKey | undefined) => new Token(granted(reply, userId, host), userId, host, key);
    return this.#ask("token.request", request, read, call);
  }

  /** A token for each host of these clone URLs, in the order of first appearance; an error in place of one there is not. */
  async workspaceStart(
    workspaceId: string,
    userId: string,
    repositories: wire.WorkspaceStart["repositories"],
    lifetimeSecs?: number,
    call: CallOptions = {},
  ): Promise<(Token | RefusedError)[]> {
    const request: wire.WorkspaceStart = { workspace_id: workspaceId, user_id: userId, repositories };
    if (lifetimeSecs !== undefined) request.requested_lifetime_secs = lifetimeSecs;
    let last: (Token | RefusedError)[] | undefined;
    const read = (reply: Fields, key: ReplyKey | undefined) => {
      last = workspace(reply, workspaceId, userId, key);
      const retryable = last.find((it) => it instanceof RefusedError && it.retryable);
      if (retryable) throw retryable;
      return last;
    };
    try {
      return await this.#ask("workspace.start", request, read, call);
    } catch (error) {
      // The time for retries is over: some tokens are better than none.
      if (last !== undefined && error instanceof TokenkeeperError && error.retryable) return last;
      throw error;
    }
  }

  /** Hands over a pair. tokenkeeper owns it from then on. Sealed, if the client has a `storeKey`. */
  async store(login: Login, call: CallOptions = {}): Promise<void> {
    const { storeKey, storeKeyId } = this.#options;
    let message = storeBody(login);
    if (storeKey !== undefined) {
      message = { user_id: login.userId, host: login.host, sealed: await seal(storeKey, message) };
      if (storeKeyId !== undefined) message.key_id = storeKeyId;
    }
    await this.#ask("token.store", message, (reply) => granted(reply, login.userId, login.host), call);
  }

  /** Says that the host rejected this token; only its digest is sent. Gives what came of it, as the contract has it. */
  report(userId: string, host: string, token: string, call: CallOptions = {}): Promise<string> {
    const digest = createHash("sha256").update(token).digest("hex");
    const message: wire.TokenReport = { user_id: userId, host, token_sha256: digest };
    return this.#ask("token.report", message, (reply) => text(granted(reply, userId, host), "result"), call);
  }

  /**
   * The events whose names match one of these patterns (all of them), from now on until the client is closed. What is published
   * while there is no connection is missed: events are news, and replies are the truth.
   */
  async *events(...patterns: string[]): AsyncGenerator<wire.Event, void, void> {
    const seen = new Set<unknown>();
    let pausing = pauses();
    const isLive = () => {
      pausing = pauses();
    };
    for (;;) {
      try {
        const link = await this.#connected();
        const names = patterns.length ? patterns : ["#"];
        for await (const message of listened(link, `${this.#prefix}.events`, names, isLive)) {
          const { messageId } = message.properties;
          const read = event(message.content);
          if (read === undefined || seen.has(messageId)) continue;
          if (messageId !== undefined) seen.add(messageId);
          // The oldest is the first.
          if (seen.size > 1000) seen.delete(seen.values().next().value);
          yield read;
        }
      } catch (error) {
        if (error instanceof ClosedError) return;
        if (!(error instanceof LinkLost)) throw error;
      }
      await this.#pause(pausing.next().value);
      if (this.#closed.signal.aborted) return;
    }
  }

  /** Closes the connection. What is in flight fails with `ClosedError`. */
  async close(): Promise<void> {
    this.#closed.abort();
    await this.#link?.close();
  }

  // --- Asking, within the deadline ---

  async #ask<T>(
    kind: Kind,
    request: Message,
    read: (reply: Fields, key: ReplyKey | undefined) => T,
    call: CallOptions,
  ): Promise<T> {
    const isRead = kind === "token.request" || kind === "workspace.start";
    const timeoutMs = checked(call.timeoutMs ?? this.#timeoutMs);
    const deadline = performance.now() + timeoutMs;
    for (let pause of pauses()) {
      const key = isRead && this.#options.sealed !== false ? await ReplyKey.generate() : undefined;
      const body = key ? { ...request, reply_public_key: key.publicKey } : request;
      try {
        return read(parse(await this.#attempt(kind, body, deadline, call.traceparent)), key);
      } catch (error) {
        if (this.#closed.signal.aborted) throw new ClosedError();
        if (error instanceof TooLate) throw this.#late(timeoutMs);
        if (error instanceof LinkLost) {
          if (error.sent && !isRead) throw new ConnectionLostError(`the connection broke while a ${kind} was under way`);
          pause = Math.min(pause, Math.max(0, deadline - performance.now()));
        } else if (error instanceof TokenkeeperError && error.retryable) {
          pause += (error.retryAfterSecs ?? 0) * 1000;
          if (performance.now() + pause >= deadline) throw error;
        } else throw error;
      }
      // A client that is closed meanwhile finds out in the next attempt.
      await this.#pause(pause);
    }
    throw new Error("pauses do not end");
  }

  #late(timeoutMs: number): TokenkeeperError {
    if (this.#link !== undefined && !this.#link.isLost) return new NoReplyError(timeoutMs);
    return new ConnectionLostError(`no connection to the broker within ${timeoutMs} ms: ${this.#trouble}`);
  }

  async #attempt(kind: Kind, body: Message, deadline: number, traceparent: string | undefined): Promise<Buffer> {
    const content = Buffer.from(JSON.stringify(body));
    const most = kind === "token.store" ? 128 : 64;
    if (content.length > most * 1024) {
      throw new RefusedError("invalid_request", `not sent: a ${kind} is at most ${most} KiB`);
    }
    const link = await before(deadline, this.#connected());
    const [exchange, routingKey] = this.#route(kind, body.user_id);
    return await link.ask(exchange, routingKey, content, () => this.#properties(deadline, traceparent), deadline);
  }

  #properties(deadline: number, traceparent: string | undefined): Options.Publish & { correlationId: string } {
    const left = deadline - performance.now();
    if (left <= 0) throw new TooLate();
    return {
      contentType: "application/json",
      replyTo: DIRECT_REPLY_TO,
      correlationId: randomUUID(),
      // A little less than there is, so that the worker's last word still comes in time.
      expiration: Math.max(1, Math.floor(left - Math.min(500, left / 4))),
      ...(this.#publisher && { userId: this.#publisher }),
      // Malformed, it is left out, as W3C's Trace Context says.
      ...(isTraceparent(traceparent) && { headers: { traceparent } }),
    };
  }

  get #prefix(): string {
    return this.#options.prefix ?? "tokenkeeper";
  }

  #route(kind: Kind, userId: string): [string, string] {
    const hashed = this.#options.partitioned ? HASH_EXCHANGES[kind] : undefined;
    // A routing key takes 255 bytes. A longer user goes where everybody may go.
    return hashed !== undefined && Buffer.byteLength(userId) <= 255
      ? [`${this.#prefix}.${hashed}`, userId]
      : [this.#prefix, kind];
  }

  /** Waits, unless the client is closed. */
  async #pause(ms: number): Promise<void> {
    await sleep(ms, undefined, { signal: this.#closed.signal }).catch(() => {});
  }

  // --- The connection ---

  async #connected(): Promise<Link> {
    if (this.#closed.signal.aborted) throw new ClosedError();
    if (this.#link !== undefined && !this.#link.isLost) return this.#link;
    this.#connecting ??= this.#connect().finally(() => {
      this.#connecting = undefined;
    });
    return await this.#connecting;
  }

  async #connect(): Promise<Link> {
    for (const pause of pauses()) {
      try {
        const link = await Link.open(this.#url, this.#options.socketOptions ?? {});
        this.#link = link;
        if (this.#closed.signal.aborted) await link.close();
        else return link;
      } catch (error) {
        this.#trouble = words(error);
        // Once it was let in, a refusal may be a broker that is starting.
        const isRefusal = /ACCESS_REFUSED|ACCESS-REFUSED|NOT_ALLOWED|NOT-ALLOWED/.test(this.#trouble);
        if (this.#link === undefined && isRefusal) throw new BrokerRefusedError(this.#trouble);
      }
      await this.#pause(pause);
      if (this.#closed.signal.aborted) throw new ClosedError();
    }
    throw new Error("pauses do not end");
  }
}

/** How long to wait before the next try, in ms: longer each time, and never the same for many at once. */
function* pauses(): Generator<number, never, void> {
  for (let pause = 100; ; pause = Math.min(pause * 2, 5000)) yield pause * (0.75 + Math.random() / 2);
}

function checked(timeoutMs: number): number {
  // Also false of what is not a number.
  if (timeoutMs >= 1 && timeoutMs <= LONGEST_MS) return timeoutMs;
  throw new RangeError(`a timeout must be from 1 ms to ${LONGEST_MS} ms`);
}

/** The events of one connection. Calls `isLive` once it has subscribed to them. */
async function* listened(
  link: Link,
  exchange: string,
  patterns: readonly string[],
  isLive: () => void,
): AsyncGenerator<ConsumeMessage, void, void> {
  const heard: (ConsumeMessage | null)[] = [];
  let wake = () => {};
  const channel = await link.listen(exchange, patterns, (message) => {
    heard.push(message);
    wake();
  });
  isLive();
  try {
    for (;;) {
      if (heard.length === 0) await new Promise<void>((resolve) => (wake = resolve));
      const message = heard.shift();
      if (message == null) return;
      // A channel that has closed meanwhile throws, and ends the list with null.
      try {
        channel.ack(message);
      } catch {}
      yield message;
    }
  } finally {
    await channel.close().catch(() => {});
  }
}

function isTraceparent(text: string | undefined): text is string {
  return text !== undefined && /^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$/.test(text);
}

function storeBody(login: Login): wire.TokenStore {
  return {
    user_id: login.userId,
    host: login.host,
    ...(login.authId !== undefined && { auth_id: login.authId }),
    ...(login.authName !== undefined && { auth_name: login.authName }),
    token: {
      value: login.value,
      ...(login.refreshToken !== undefined && { refresh_token: login.refreshToken }),
      ...(login.username !== undefined && { username: login.username }),
      ...(login.scopes !== undefined && { scopes: login.scopes }),
      ...(login.expiresAt && { expires_at: login.expiresAt.toISOString() }),
      ...(login.refreshTokenExpiresAt && { refresh_token_expires_at: login.refreshTokenExpiresAt.toISOString() }),
    },
  };
}
