/** What can go wrong, each with a `code` for the program and a word on whether to ask again. */

export interface Advice {
  retryable?: boolean;
  retryAfterSecs?: number | undefined;
}

/**
 * Why there is no answer, or not the one that was wanted. No error holds a secret.
 *
 * `code` is one of the contract's where the worker refused, else one of this client's: each class below names its own. The client
 * has asked again by itself for as long as the request's time allowed.
 */
export class TokenkeeperError extends Error {
  readonly code: string;
  /** Whether the same request may succeed later. */
  readonly retryable: boolean;
  /** After how many seconds, where that is known. */
  readonly retryAfterSecs: number | undefined;

  constructor(code: string, message: string, { retryable = false, retryAfterSecs }: Advice = {}) {
    super(`${code}: ${message}`);
    this.name = new.target.name;
    this.code = code;
    this.retryable = retryable;
    this.retryAfterSecs = retryAfterSecs;
  }
}

/** The worker's own answer: `code` is one of the contract's error codes. */
export class RefusedError extends TokenkeeperError {
  /** More about `reauthorization_required`; somebody else's words, cut and without what is not printable, as `host`. */
  readonly reason: string | undefined;
  /** In a workspace's answer: the host without a token. */
  readonly host: string | undefined;

  constructor(
    code: string,
    message: string,
    more: Advice & { reason?: string | undefined; host?: string | undefined } = {},
  ) {
    super(code, message, more);
    this.reason = more.reason;
    this.host = more.host;
  }
}

/** No queue takes the message: no worker has ever declared it, or `prefix` or `partitioned` is wrong. */
export class UnroutableError extends TokenkeeperError {
  constructor(exchange: string, routingKey: string) {
    super("unroutable", `no worker has declared the queue behind exchange "${exchange}" for ${plain(routingKey)}`);
  }
}

/** The broker was there, and the request's time ran out before a reply came. */
export class NoReplyError extends TokenkeeperError {
  constructor(timeoutMs: number) {
    super("no_reply", `no reply came within ${timeoutMs} ms; check that a worker is running`, { retryable: true });
  }
}

/**
 * There was no connection to the broker in time; or a `store` or `report` was under way when it broke. Then nobody knows whether
 * the message arrived. It does no harm to send it again, unless a later login was stored since.
 */
export class ConnectionLostError extends TokenkeeperError {
  constructor(message: string) {
    super("connection_lost", message, { retryable: true });
  }
}

/** The broker does not let this user connect or publish, or could not take the message (then `retryable`). */
export class BrokerRefusedError extends TokenkeeperError {
  constructor(message: string, advice: Advice = {}) {
    super("broker_refused", message, advice);
  }
}

/** The reply is malformed, or about another user or host. It is not shown, because it may hold a token. */
export class BadReplyError extends TokenkeeperError {
  constructor(message: string, code = "bad_reply") {
    super(code, message);
  }
}

/** A sealed token was asked for, and one in clear came. It is thrown away: the broker has seen it. */
export class NotSealedError extends BadReplyError {
  constructor() {
    const message = "a sealed token was asked for, and one in clear came: the worker is older than sealed replies";
    super(message, "not_sealed");
  }
}

/** The client was closed before the reply came. */
export class ClosedError extends TokenkeeperError {
  constructor() {
    super("closed", "the client is closed");
  }
}

/** What the broker, the system or a worker says, as one line of printable characters. */
export function plain(said: string, most = 300): string {
  return said.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, " ").slice(0, most);
}
