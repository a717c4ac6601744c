/** Asks tokenkeeper for OAuth tokens over RabbitMQ. See README.md. */

export { type CallOptions, Client, type ClientOptions, type Login } from "./client.js";
export {
  BadReplyError,
  BrokerRefusedError,
  ClosedError,
  ConnectionLostError,
  NoReplyError,
  NotSealedError,
  RefusedError,
  TokenkeeperError,
  UnroutableError,
} from "./errors.js";
export { Token } from "./replies.js";
export type { Event } from "./wire.js";
