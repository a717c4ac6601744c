// Runs the tools for Node on the documents: node check.mjs DOCS OUT
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname, join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

import { Parser } from "@asyncapi/parser";
import addFormats from "ajv-formats";
import Ajv from "ajv/dist/2020.js";
import { compile } from "json-schema-to-typescript";
import { InputData, JSONSchemaInput, quicktype } from "quicktype-core";

const [docs, out] = process.argv.slice(2).map((path) => resolve(path));
const read = (path) => readFileSync(join(docs, path), "utf8");
const examples = JSON.parse(read("schema/examples.json"));
const bundle = JSON.parse(read("schema/messages.json"));
const named = Object.entries(examples).flatMap(([message, all]) => all.map((example) => ({ message, ...example })));
const title = (message) => bundle.properties[message].$ref.replace("#/$defs/", "");

/** No tool may take this: it has a code that the contract does not have. */
const wrong = structuredClone(examples["token.reply"].find(({ name }) => name === "error_internal").body);
wrong.error.code = "no_such_code";

// The document is good, and its examples are those of the schemas.
async function asyncapi() {
  const { document, diagnostics } = await new Parser().parse(read("asyncapi.yaml"));
  const serious = diagnostics.filter(({ severity }) => severity < 2);
  assert.deepEqual(serious.map(({ message, path }) => `${path.join("/")}: ${message}`), []);
  const inDocument = document.components().messages().all().flatMap((message) => message.examples().all());
  const payloads = (all) => all.map((payload) => JSON.stringify(payload)).sort();
  const expected = named.filter(({ message }) => message !== "token.sealed").map(({ body }) => body);
  assert.deepEqual(payloads(inDocument.map((example) => example.payload())), payloads(expected));
  assert.equal(document.operations().all().filter((operation) => operation.reply()).length, 4);
  return `${document.operations().length} operations, ${inDocument.length} examples`;
}

// Each schema is one in the strict mode, and takes its examples.
function ajv() {
  const files = readdirSync(join(docs, "schema")).filter((file) => file !== "examples.json");
  const validators = new Map();
  for (const file of files) {
    const strict = new Ajv({ strict: true, allErrors: true });
    addFormats(strict);
    validators.set(basename(file, ".json"), strict.compile(JSON.parse(read(`schema/${file}`))));
  }
  for (const { message, name, body } of named) {
    const validate = validators.get(message);
    assert(validate(body), `${message}, ${name}: ${JSON.stringify(validate.errors)}`);
    const all = validators.get("messages");
    assert(all({ [message]: body }), `${message}, ${name}: ${JSON.stringify(all.errors)}`);
  }
  assert(!validators.get("token.reply")(wrong) && !validators.get("messages")({ "token.reply": wrong }));
  return `${files.length} schemas, ${named.length} examples`;
}

// Every example has the type that is generated of the bundle, and that of its message's own schema.
async function jsonSchemaToTypescript() {
  const options = { bannerComment: "", format: false };
  writeFileSync(join(out, "bundle.d.ts"), await compile(structuredClone(bundle), "Messages", options));
  const lines = [`import type * as bundle from "./bundle.js";`];
  for (const message of Object.keys(examples)) {
    const code = await compile(JSON.parse(read(`schema/${message}.json`)), title(message), options);
    writeFileSync(join(out, `${message}.d.ts`), code);
    lines.push(`import type * as ${title(message)} from "./${message}.js";`);
  }
  named.forEach(({ message, body }, place) => {
    const type = title(message);
    lines.push(`export const example${place}: bundle.${type} & ${type}.${type} = ${JSON.stringify(body)};`);
  });
  // The union tells its variants apart, and neither token nor error is lost.
  lines.push(
    `export function told(reply: bundle.TokenReply): bundle.ErrorCode | bundle.GrantedToken {`,
    `  return reply.status === "ok" ? reply.token : reply.error.code;`,
    `}`,
    `// @ts-expect-error`,
    `export const wrong: bundle.TokenReply = ${JSON.stringify(wrong)};`,
  );
  writeFileSync(join(out, "examples.ts"), lines.join("\n"));
}

async function quick() {
  const schemas = new JSONSchemaInput();
  await schemas.addSource({ name: "Messages", schema: JSON.stringify(bundle) });
  const inputData = new InputData();
  inputData.addInput(schemas);
  const { lines } = await quicktype({ inputData, lang: "typescript" });
  writeFileSync(join(out, "quicktype.ts"), lines.join("\n"));
}

function typescript() {
  const tsc = join(dirname(createRequire(import.meta.url).resolve("typescript/package.json")), "bin/tsc");
  writeFileSync(join(out, "package.json"), `{"type": "module"}`);
  const options = ["--strict", "--module", "nodenext", "--target", "es2022", "--types", "", "--skipLibCheck", "false"];
  const files = ["examples.ts", "quicktype.ts"].map((file) => join(out, file));
  execFileSync(process.execPath, [tsc, ...options, "--outDir", join(out, "js"), ...files], { stdio: "inherit" });
  return "all compile, and every example has its type";
}

// Decoding and encoding gives every example back.
async function decode() {
  const { Convert } = await import(pathToFileURL(join(out, "js/quicktype.js")).href);
  for (const { message, body } of named) {
    const text = JSON.stringify({ [message]: body });
    assert.deepEqual(JSON.parse(Convert.messagesToJson(Convert.toMessages(text))), { [message]: body });
  }
  assert.throws(() => Convert.toMessages(JSON.stringify({ "token.reply": wrong })));
  return `decodes ${named.length} examples`;
}

mkdirSync(out, { recursive: true });
console.log("AsyncAPI parser:", await asyncapi());
console.log("Ajv, strict:", ajv());
await Promise.all([jsonSchemaToTypescript(), quick()]);
console.log("json-schema-to-typescript, quicktype:", typescript());
console.log("quicktype:", await decode());
