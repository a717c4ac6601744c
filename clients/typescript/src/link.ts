/** One connection to the broker: requests out, replies in by direct reply-to, any number in flight. */

import amqplib from "amqplib";
import type { Channel, ChannelModel, ConfirmChannel, ConsumeMessage, Options, SocketOptions } from "amqplib";

import { BrokerRefusedError, plain, UnroutableError } from "./errors.js";

export const DIRECT_REPLY_TO = "amq.rabbitmq.reply-to";
// amqplib does not notice every end of a connection that is being made.
const CONNECT_MS = 5000;
// A connection whose other end is gone without a word is noticed after two of these.
const HEARTBEAT_SECS = 10;
// Exclusive queues of events that nobody reads in time forget the oldest.
const EVENTS_MOST = 10_000;
const EVENTS_IN_HAND = 100;
// So many messages may wait for the broker's confirm. A broker whose memory is full confirms none, and takes none.
export const UNCONFIRMED_MOST = 4096;
// What a channel is closed with over what was published: access refused, not found, precondition failed.
const REFUSALS: readonly unknown[] = [403, 404, 406];

/** The connection or its channel broke. The question may have arrived if it was `sent`. */
export class LinkLost extends Error {
  constructor(readonly sent: boolean) {
    super("the connection to the broker broke");
  }
}

/** The time ran out. */
export class TooLate extends Error {}

interface Question {
  readonly exchange: string;
  readonly routingKey: string;
  confirmed: boolean;
  answer(body: Buffer): void;
  fail(error: Error): void;
}

/** A connection with the channel that publishes and gets the replies. Once it is lost it stays so. */
export class Link {
  #isLost = false;
  #sayLost = () => {};
  /**
   * amqplib leaves some of what it was asked unanswered when the connection breaks: so that nobody waits for that. Whoever waits for
   * this one is remembered for as long as the connection lives, so that a request must not, in the ordinary case.
   */
  readonly #lost = new Promise<void>((resolve) => (this.#sayLost = resolve)).then(() => {
    throw new LinkLost(false);
  });
  readonly #over: Promise<void>;
  readonly #connection: ChannelModel;
  readonly #channel: ConfirmChannel;
  readonly #waiting = new Map<string, Question>();
  readonly #looks = new Map<string, Promise<void>>();
  readonly #seen = new Set<string>();
  #unconfirmed = 0;
  /** Who waits for the confirm of another message, in the order in which they came. */
  readonly #turns = new Set<() => void>();

  private constructor(connection: ChannelModel, channel: ConfirmChannel) {
    this.#connection = connection;
    this.#channel = channel;
    this.#over = new Promise((resolve) => connection.on("close", () => resolve()));
    this.#lost.catch(() => {});
    connection.on("close", () => this.#lose(undefined));
    channel.on("error", (error) => this.#lose(error));
    channel.on("close", () => this.#lose(undefined));
    channel.on("return", ({ properties }) => {
      const question = this.#waiting.get(properties.correlationId);
      question?.fail(new UnroutableError(question.exchange, question.routingKey));
    });
  }

  /** Connects. Rejects with what `words` puts into words. */
  static async open(url: string, socketOptions: SocketOptions): Promise<Link> {
    const to = new URL(url);
    if (!to.searchParams.has("heartbeat")) to.searchParams.set("heartbeat", String(HEARTBEAT_SECS));
    const connecting = amqplib.connect(to.href, { noDelay: true, timeout: CONNECT_MS, ...socketOptions });
    const connection = await before(performance.now() + CONNECT_MS, connecting).catch((error) => {
      // One that comes too late is not wanted.
      connecting.then((late) => late.close()).catch(() => {});
      throw error;
    });
    // Without a listener it would end the process. "close" follows.
    connection.on("error", () => {});
    try {
      const opening = connection.createConfirmChannel().then(async (channel) => {
        const link = new Link(connection, channel);
        // Without acks, and over the channel that publishes: so the broker wants it.
        const consuming = channel.consume(DIRECT_REPLY_TO, (reply) => link.#onReply(reply), { noAck: true });
        await Promise.race([consuming, link.#lost]);
        return link;
      });
      return await before(performance.now() + CONNECT_MS, opening);
    } catch (error) {
      connection.close().catch(() => {});
      throw error;
    }
  }

  get isLost(): boolean {
    return this.#isLost;
  }

  /**
   * Publishes with the options that are asked for when its turn comes, and gives the body of the reply; rejects with `TooLate` at
   * the deadline.
   */
  async ask(
    exchange: string,
    routingKey: string,
    content: Buffer,
    optionsNow: () => Options.Publish & { correlationId: string },
    deadline: number,
  ): Promise<Buffer> {
    if (!this.#seen.has(exchange)) await before(deadline, Promise.race([this.#see(exchange, routingKey), this.#lost]));
    await this.#enter(deadline);
    let options: ReturnType<typeof optionsNow>;
    try {
      if (this.#isLost) throw new LinkLost(false);
      options = optionsNow();
    } catch (error) {
      this.#leave();
      throw error;
    }
    const answer = new Promise<Buffer>((answer, fail) => {
      const question: Question = { exchange, routingKey, confirmed: false, answer, fail };
      this.#waiting.set(options.correlationId, question);
      const confirmed = (error: unknown) => {
        this.#leave();
        if (error === null) question.confirmed = true;
        // Where the channel closes, amqplib says so to all of them first, and then to `#lose`, which knows why.
        else queueMicrotask(() => fail(new BrokerRefusedError("the broker could not take the message", { retryable: true })));
      };
      try {
        this.#channel.publish(exchange, routingKey, content, { ...options, mandatory: true }, confirmed);
      } catch {
        this.#leave();
        fail(new LinkLost(false));
      }
    });
    try {
      return await before(deadline, answer);
    } finally {
      this.#waiting.delete(options.correlationId);
    }
  }

  /** Waits until one more message may be unconfirmed. Where the channel closes none is, and so everybody's turn comes. */
  async #enter(deadline: number): Promise<void> {
    if (this.#unconfirmed < UNCONFIRMED_MOST) {
      this.#unconfirmed += 1;
      return;
    }
    let take = () => {};
    const turn = new Promise<void>((resolve) => (take = resolve));
    this.#turns.add(take);
    try {
      await before(deadline, turn);
    } finally {
      this.#turns.delete(take);
    }
  }

  /** One less is: its place goes to who waits for one. */
  #leave(): void {
    const [next] = this.#turns;
    if (next === undefined) {
      this.#unconfirmed -= 1;
      return;
    }
    this.#turns.delete(next);
    next();
  }

  /** Looks for the exchange, once: publishing to none costs the channel, and all that wait on it. */
  async #see(exchange: string, routingKey: string): Promise<void> {
    const look = this.#looks.get(exchange) ?? this.#look(exchange);
    this.#looks.set(exchange, look);
    try {
      await look;
      this.#seen.add(exchange);
    } catch (error) {
      this.#looks.delete(exchange);
      throw hasCode(error, [404]) ? new UnroutableError(exchange, routingKey) : new LinkLost(false);
    }
  }

  async #look(exchange: string): Promise<void> {
    const channel = await this.#connection.createChannel();
    channel.on("error", () => {});
    await channel.checkExchange(exchange);
    await channel.close();
  }

  /** Calls `heard` with the events of these patterns from now on, each to be acked; with null when there will be no more. */
  async listen(
    exchange: string,
    patterns: readonly string[],
    heard: (event: ConsumeMessage | null) => void,
  ): Promise<Channel> {
    const listening = this.#connection.createChannel().then(async (channel) => {
      channel.on("error", () => {});
      channel.on("close", () => heard(null));
      await channel.prefetch(EVENTS_IN_HAND);
      const { queue } = await channel.assertQueue("", { exclusive: true, maxLength: EVENTS_MOST });
      for (const pattern of patterns) await channel.bindQueue(queue, exchange, pattern);
      await channel.consume(queue, heard);
      return channel;
    });
    try {
      return await Promise.race([listening, this.#lost]);
    } catch (error) {
      if (hasCode(error, [404])) throw new UnroutableError(exchange, "events");
      if (hasCode(error, [403])) throw new BrokerRefusedError(words(error));
      throw new LinkLost(false);
    }
  }

  /** Closes it. Who still waits gets `LinkLost`. */
  async close(): Promise<void> {
    this.#lose(undefined);
    // A second one is an error. A broker that is gone says nothing any more.
    this.#connection.close().catch(() => {});
    await before(performance.now() + 2000, this.#over).catch(() => {});
  }

  #onReply(reply: ConsumeMessage | null): void {
    if (reply === null) this.#lose(undefined);
    // A reply that nobody waits for is a late one, or somebody else's guess.
    else this.#waiting.get(reply.properties.correlationId)?.answer(reply.content);
  }

  #lose(cause: unknown): void {
    // Where the channel alone broke, the next connection brings another one.
    if (!this.#isLost) setImmediate(() => this.close());
    this.#isLost = true;
    this.#sayLost();
    for (const question of this.#waiting.values()) {
      const { exchange, routingKey, confirmed } = question;
      const isAtFault = !confirmed && hasCode(cause, REFUSALS) && canMean(words(cause), exchange);
      if (!isAtFault) question.fail(new LinkLost(true));
      // It was there when the link looked for it.
      else if (hasCode(cause, [404])) question.fail(new UnroutableError(exchange, routingKey));
      else question.fail(new BrokerRefusedError(words(cause)));
    }
  }
}

/** What this comes to, or `TooLate` at the deadline, which is of `performance.now()`: the machine's clock may be set meanwhile. */
export async function before<T>(deadline: number, work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new TooLate()), Math.max(0, deadline - performance.now()));
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** What an error of the system, of amqplib or of the broker says, as it may be shown. */
export function words(cause: unknown): string {
  if (cause instanceof TooLate || !(cause instanceof Error)) return "the broker does not answer";
  // Where a name has several addresses, each has an error, and the whole has no words.
  if (cause instanceof AggregateError && cause.errors.length > 0) return words(cause.errors[0]);
  return plain(cause.message || cause.name);
}

/** Whether the broker, which closes a channel with these words, can mean what was published to this exchange. */
export function canMean(said: string, exchange: string): boolean {
  return said.includes(`exchange '${exchange}'`) || !said.includes("exchange '");
}

function hasCode(error: unknown, codes: readonly unknown[]): boolean {
  return error instanceof Error && "code" in error && codes.includes(error.code);
}
