// Asks for a token until there is one, or it is certain that there will be none: request.mjs USER HOST (npm install amqplib).
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import amqplib from "amqplib";

const [user, host] = process.argv.slice(2);
const deadline = performance.now() + 30_000; // not by Date, which jumps when the machine's clock is set
const waiting = new Map();
const connection = await amqplib.connect(process.env.AMQP_URL ?? "amqp://guest:guest@127.0.0.1:5672/%2f").catch(fail);
const channel = await connection.createConfirmChannel();
for (const it of [connection, channel]) it.on("error", fail).on("close", () => fail({ message: "the connection broke" }));
channel.on("return", () => fail({ message: "unroutable: no worker has declared the queue" }));
// Direct reply-to needs no queue. Consume it first, on the channel that publishes, without acks.
const settle = (reply) => waiting.get(reply?.properties.correlationId)?.(reply.content);
await channel.consume("amq.rabbitmq.reply-to", settle, { noAck: true });

function fail({ message }) {
  console.error(message);
  process.exit(1);
}

async function ask() {
  const [correlationId, left] = [randomUUID(), deadline - performance.now()];
  const body = { user_id: user, host, requested_lifetime_secs: 300 };
  const properties = { replyTo: "amq.rabbitmq.reply-to", correlationId, expiration: Math.floor(left), mandatory: true };
  const replied = new Promise((resolve) => waiting.set(correlationId, resolve));
  channel.publish(process.env.PREFIX ?? "tokenkeeper", "token.request", Buffer.from(JSON.stringify(body)), properties);
  sleep(left + 1000).then(() => fail({ message: "no reply in time: does a worker run?" })); // its last word may come a bit late
  return JSON.parse(await replied);
}

let reply;
while ((reply = await ask()).status === "error") {
  const { code, message, retryable, retry_after_secs: pause = 1 } = reply.error;
  if (!retryable || performance.now() + pause * 1000 >= deadline) fail({ message: `${code}: ${message}` });
  await sleep(pause * 1000);
}
console.log("a token until", reply.token.reserved_until); // git clone https://${reply.token.userinfo}@${host}/…
process.exit(0);
