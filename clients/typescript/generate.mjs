// Writes the types of messages, replies and events (src/wire.ts): node generate.mjs SCHEMA FILE
// scripts/clients.sh --generate runs this, and scripts/clients.sh compares.
import { readFileSync, writeFileSync } from "node:fs";
import { compile } from "json-schema-to-typescript";

const [from, to] = process.argv.slice(2);
const schema = JSON.parse(readFileSync(from, "utf8"));
// What a field is for stands in docs/contract.md; a line for each would make the file twice as long.
for (const type of Object.values(schema.$defs)) {
  for (const field of Object.values(type.properties ?? {})) delete field.description;
}
const bannerComment = "/** Generated from docs/schema/messages.json by generate.mjs. */";
const options = { additionalProperties: false, ignoreMinAndMaxItems: true, bannerComment, style: { printWidth: 120 } };
writeFileSync(to, await compile(schema, "Messages", options));
