/** Sealed boxes (libsodium's `crypto_box_seal`): tokens that the broker cannot read. */

import { createPublicKey, diffieHellman, generateKeyPairSync } from "node:crypto";
import sodium from "libsodium-wrappers";

import { BadReplyError } from "./errors.js";

const fromBase64 = (text: string): Uint8Array => sodium.from_base64(text, sodium.base64_variants.ORIGINAL);
const toBase64 = (bytes: Uint8Array): string => sodium.to_base64(bytes, sodium.base64_variants.ORIGINAL);

/** A key pair for one request. Its secret half is nowhere but here. */
export class ReplyKey {
  readonly #pair = sodium.crypto_box_keypair();
  readonly publicKey = toBase64(this.#pair.publicKey);

  static async generate(): Promise<ReplyKey> {
    await sodium.ready;
    return new ReplyKey();
  }

  /** What lies in the box. Throws `BadReplyError`. */
  open(sealed: string): unknown {
    try {
      const { publicKey, privateKey } = this.#pair;
      return JSON.parse(sodium.to_string(sodium.crypto_box_seal_open(fromBase64(sealed), publicKey, privateKey)));
    } catch {
      throw new BadReplyError("the sealed token does not open");
    }
  }
}

/** Checks a key as `tokenkeeper keys public` prints it. Throws a `TypeError`. */
export function checkPublicKey(text: string): void {
  // 32 bytes are 43 digits and one sign of padding.
  if (!/^[A-Za-z0-9+/]{43}=$/.test(text)) throw new TypeError("the public key must be 32 bytes in base64");
  const x = Buffer.from(text, "base64").toString("base64url");
  const publicKey = createPublicKey({ key: { kty: "OKP", crv: "X25519", x }, format: "jwk" });
  try {
    // Every private key has the same secret with one of low order. That is refused, as RFC 7748 has it.
    diffieHellman({ privateKey: generateKeyPairSync("x25519").privateKey, publicKey });
  } catch {
    throw new TypeError("the public key is of low order: everybody could open the login");
  }
}

/** A box over this content, for a message. */
export async function seal(publicKey: string, content: unknown): Promise<string> {
  await sodium.ready;
  return toBase64(sodium.crypto_box_seal(JSON.stringify(content), fromBase64(publicKey)));
}
