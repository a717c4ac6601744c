/** Reads replies and events. They come from outside, so that nothing in them is taken for granted. */

import { BadReplyError, NotSealedError, plain, RefusedError } from "./errors.js";
import type { ReplyKey } from "./sealed.js";
import type { Event } from "./wire.js";

// A workspace's sixteen tokens of 32 KiB, percent-encoded and sealed, take less.
const MOST_BYTES = 4 * 1024 * 1024;
// How much of an error's words is kept, in characters.
const MOST_WORDS = 500;

export type Fields = Readonly<Record<string, unknown>>;

/** A token that works until `reservedUntil` at least. Neither `JSON.stringify` nor `console.log` shows its secrets. */
export class Token {
  readonly userId: string;
  readonly host: string;
  /** The user name for git, beside `value`. */
  readonly username: string;
  readonly scopes: readonly string[];
  /** When the pair was stored or refreshed. */
  readonly updatedAt: Date;
  /** `null`: it never expires. */
  readonly expiresAt: Date | null;
  /** Until then nobody refreshes it away. */
  readonly reservedUntil: Date;
  /** What this request did: none, reserved, opportunistic or required. */
  readonly refresh: string;
  /** The contract's words for what is not as it was asked for. */
  readonly warnings: readonly string[];
  readonly #value: string;
  readonly #userinfo: string;

  /** The token of an ok reply for this user, and this host where it is known; sealed to this key, if there is one. */
  constructor(reply: Fields, userId: string, host: string | undefined, key: ReplyKey | undefined) {
    if (reply["user_id"] !== userId || (host !== undefined && reply["host"] !== host)) {
      throw new BadReplyError("the reply is about another user or host");
    }
    this.userId = userId;
    this.host = text(reply, "host");
    const granted = fields(reply["token"], "token");
    let secret = granted;
    if (key !== undefined) {
      if ("value" in granted || "userinfo" in granted || !("sealed" in granted)) throw new NotSealedError();
      secret = fields(key.open(text(granted, "sealed")), "the sealed token");
      if (secret["user_id"] !== userId || secret["host"] !== this.host) {
        throw new BadReplyError("the sealed token is of another user or host");
      }
    }
    this.#value = text(secret, "value");
    this.#userinfo = text(secret, "userinfo");
    this.username = text(granted, "username");
    this.scopes = texts(granted, "scopes");
    this.updatedAt = date(granted, "updated_at");
    this.expiresAt = granted["expires_at"] == null ? null : date(granted, "expires_at");
    this.reservedUntil = date(granted, "reserved_until");
    this.refresh = text(reply, "refresh");
    this.warnings = texts(reply, "warnings");
  }

  /** The token as it is, for the host's API. */
  get value(): string {
    return this.#value;
  }

  /** User name and value, percent-encoded for a clone URL: `https://USERINFO@HOST/…`. */
  get userinfo(): string {
    return this.#userinfo;
  }
}

/** The object in a body. */
export function parse(body: Buffer): Fields {
  if (body.length > MOST_BYTES) throw new BadReplyError(`the reply is over ${MOST_BYTES} bytes`);
  let parsed: unknown;
  try {
    parsed = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(body));
  } catch {
    throw new BadReplyError("the reply is not JSON");
  }
  return fields(parsed, "the reply");
}

/** Whether the status is `ok`; false where it is `error`. */
function succeeded(reply: Fields): boolean {
  const status = reply["status"];
  if (status !== "ok" && status !== "error") throw new BadReplyError("the reply has an unknown status");
  return status === "ok";
}

/** The reply, where it is ok. Throws what the worker says where it is not. */
export function granted(reply: Fields, userId: string, host: string): Fields {
  check(reply, { user_id: userId, host });
  if (!succeeded(reply)) throw refusal(reply);
  return reply;
}

/** What a reply says of whom it is about must be right. An error may say nothing; so does an ok one to a login or a report. */
function check(reply: Fields, asked: Readonly<Record<string, string>>): void {
  for (const [name, value] of Object.entries(asked)) {
    if (reply[name] != null && reply[name] !== value) {
      throw new BadReplyError(`the reply is about another ${name.replace(/_id$/, "")}`);
    }
  }
}

function refusal(reply: Fields): RefusedError {
  const error = fields(reply["error"], "error");
  const [code, message, after] = [text(error, "code"), text(error, "message"), error["retry_after_secs"]];
  if (!/^[a-z_]{1,64}$/.test(code)) throw new BadReplyError("error.code is malformed");
  const known = typeof after === "number" && Number.isInteger(after) && after >= 0 && after <= 86400;
  return new RefusedError(code, plain(message, MOST_WORDS), {
    retryable: error["retryable"] === true,
    retryAfterSecs: known ? after : undefined,
    reason: optionalText(error, "reason"),
    host: optionalText(reply, "host"),
  });
}

/** One element for each host, as they came. */
export function workspace(
  reply: Fields,
  workspaceId: string,
  userId: string,
  key: ReplyKey | undefined,
): (Token | RefusedError)[] {
  const [ok, elements] = [succeeded(reply), reply["tokens"]];
  check(reply, { workspace_id: workspaceId, user_id: userId });
  const isEmpty = !Array.isArray(elements) || elements.length === 0;
  if (!ok && (reply["error"] != null || isEmpty)) throw refusal(reply);
  if (reply["workspace_id"] !== workspaceId || reply["user_id"] !== userId) {
    throw new BadReplyError("the reply is about another workspace or user");
  }
  if (isEmpty) throw new BadReplyError("tokens is missing or not a list");
  const read = elements.map((element) => {
    const it = fields(element, "an element of tokens");
    check(it, { user_id: userId });
    return succeeded(it) ? new Token(it, userId, undefined, key) : refusal(it);
  });
  if (ok !== read.every((it) => it instanceof Token)) {
    throw new BadReplyError("the status of the reply is not that of its tokens");
  }
  return read;
}

// The fields of each event, by its name. A name that the contract has and this table has not is an error of the compiler.
const EVENTS: { readonly [name in Event["event"]]: readonly Exclude<keyof (Event & { event: name }), "event">[] } = {
  "token.refreshed": ["host", "at", "user_id", "generation", "cause", "expires_at"],
  "token.reauthorization_required": ["host", "at", "user_id", "generation", "reason"],
  "provider.unavailable": ["host", "at", "retry_after_secs", "reason"],
  "provider.recovered": ["host", "at"],
  "provider.misconfigured": ["host", "at", "since", "reason"],
};

/** The event in a body. `undefined` where it is malformed, or unknown to this version. */
export function event(body: Buffer): Event | undefined {
  try {
    const read = parse(body);
    const name = text(read, "event");
    if (!Object.hasOwn(EVENTS, name) || !EVENTS[name as Event["event"]].every((field) => field in read)) return undefined;
    text(read, "host");
    date(read, "at");
    return read as unknown as Event;
  } catch (error) {
    if (error instanceof BadReplyError) return undefined;
    throw error;
  }
}

function fields(value: unknown, name: string): Fields {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new BadReplyError(`${name} is missing or not an object`);
  }
  return value as Fields;
}

export function text(of: Fields, name: string): string {
  const value = of[name];
  if (typeof value !== "string") throw new BadReplyError(`${name} is missing or not a string`);
  return value;
}

function optionalText(of: Fields, name: string): string | undefined {
  return of[name] == null ? undefined : plain(text(of, name), MOST_WORDS);
}

function texts(of: Fields, name: string): readonly string[] {
  const values = of[name];
  if (!Array.isArray(values) || !values.every((value) => typeof value === "string")) {
    throw new BadReplyError(`${name} is missing or not a list of strings`);
  }
  return values;
}

function date(of: Fields, name: string): Date {
  const value = of[name];
  const hasZone = typeof value === "string" && /^\d{4}-\d\d-\d\dT.*(Z|[+-]\d\d:\d\d)$/.test(value);
  const read = new Date(hasZone ? value : Number.NaN);
  if (Number.isNaN(read.getTime())) throw new BadReplyError(`${name} is missing or not RFC 3339`);
  return read;
}
