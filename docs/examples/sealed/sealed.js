#!/usr/bin/env node
// Sealed replies and logins in Node, with libsodium (npm install libsodium-wrappers).
//
//   sealed.js keypair                           a key pair, as JSON
//   SECRET_KEY=… sealed.js open USER HOST       the token of the token.reply on standard input
//   PUBLIC_KEY=… sealed.js seal                 the token.store on standard input, sealed

const fs = require("node:fs");
const sodium = require("libsodium-wrappers");

const toBase64 = (bytes) => Buffer.from(bytes).toString("base64");
const fromBase64 = (text) => new Uint8Array(Buffer.from(text, "base64"));

function keypair() {
  const { privateKey, publicKey } = sodium.crypto_box_keypair();
  // public_key: the field reply_public_key of a token.request or a workspace.start.
  return { secret_key: toBase64(privateKey), public_key: toBase64(publicKey) };
}

function openToken(secretKey, reply, userId, host) {
  const secret = fromBase64(secretKey);
  const box = fromBase64(reply.token.sealed);
  const opened = sodium.crypto_box_seal_open(box, sodium.crypto_scalarmult_base(secret), secret);
  const token = JSON.parse(sodium.to_string(opened));
  // Compare with what you asked for. The reply itself may have been exchanged on its way.
  if (token.user_id !== userId || token.host !== host) {
    throw new Error("the token is of another user or host");
  }
  return token.value;
}

function sealLogin(publicKey, login) {
  const sealed = sodium.crypto_box_seal(JSON.stringify(login), fromBase64(publicKey));
  return { user_id: login.user_id, host: login.host, sealed: toBase64(sealed) };
}

async function main([command, userId, host]) {
  await sodium.ready;
  const input = () => JSON.parse(fs.readFileSync(0, "utf8"));
  if (command === "keypair") {
    console.log(JSON.stringify(keypair()));
  } else if (command === "open") {
    console.log(openToken(process.env.SECRET_KEY, input(), userId, host));
  } else if (command === "seal") {
    console.log(JSON.stringify(sealLogin(process.env.PUBLIC_KEY, input())));
  } else {
    console.error("usage: sealed.js keypair | open USER HOST | seal");
    process.exitCode = 1;
  }
}

main(process.argv.slice(2));
