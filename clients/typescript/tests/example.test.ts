/** The plain example, where it cannot get an answer. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { text } from "node:stream/consumers";
import { test } from "node:test";

import { AMQP_URL, HOST, scripted, Wire } from "./support.js";

// scripts/clients.sh copies it beside the package.
const EXAMPLE = ["request.mjs", "../examples/request.mjs"].find((file) => existsSync(file))!;

/** How the example ends, in a working folder that has amqplib. */
async function run(url: string, prefix: string): Promise<{ code: number; said: string }> {
  const env = { ...process.env, AMQP_URL: url, PREFIX: prefix };
  const child = spawn(process.execPath, ["--input-type=module", "-", "u-1", HOST], { env });
  child.stdin.end(readFileSync(EXAMPLE));
  const [[code], said] = await Promise.all([once(child, "close"), text(child.stderr)]);
  return { code, said };
}

test("an exchange that is not there is said in one line", async () => {
  const { code, said } = await run(AMQP_URL, "tk-clients-nobody");
  assert.deepEqual([code, said.split("\n").length], [1, 2], said);
  assert.match(said, /no exchange 'tk-clients-nobody'/);
});

test("a connection that breaks is said in one line", async (t) => {
  const wire = new Wire();
  await wire.start();
  t.after(() => wire.stop());
  const { worker } = await scripted(t);
  worker.rule = () => wire.cut();
  const { code, said } = await run(wire.url, worker.prefix);
  assert.deepEqual([code, said.split("\n").length], [1, 2], said);
});
