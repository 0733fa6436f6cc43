// The other side of the conformance tests: Binary HTTP and HPKE as published on npm, and
// chunked Oblivious HTTP written on top of that HPKE, apart from Cloister's own code.
// One JSON command a line on standard input, one JSON answer a line on standard output.

import { createInterface } from "node:readline";
import { webcrypto } from "node:crypto";
import { Aes128Gcm, Aes256Gcm, CipherSuite, HkdfSha256 } from "@hpke/core";
import { Chacha20Poly1305 } from "@hpke/chacha20poly1305";
import { DhkemX25519HkdfSha256 } from "@hpke/dhkem-x25519";
import { XWing } from "@hpke/hybridkem-x-wing";
import { BHttpDecoder, BHttpEncoder } from "bhttp-js";

const bytes = (hex) => Uint8Array.from(Buffer.from(hex, "hex"));
const hex = (data) => Buffer.from(data).toString("hex");
const text = (value) => new TextEncoder().encode(value);
const concat = (...parts) => Uint8Array.from(parts.flatMap((part) => [...part]));

const KEMS = { 0x0020: DhkemX25519HkdfSha256, 0x647a: XWing };
const AEADS = { 1: Aes128Gcm, 2: Aes256Gcm, 3: Chacha20Poly1305 };

function suiteOf({ kem, aead }) {
  return new CipherSuite({ kem: new KEMS[kem](), kdf: new HkdfSha256(), aead: new AEADS[aead]() });
}

async function sender(command, info) {
  const suite = suiteOf(command);
  const recipientPublicKey = await suite.kem.deserializePublicKey(bytes(command.public).buffer);
  return suite.createSenderContext({ recipientPublicKey, info });
}

async function fieldsOf(message) {
  return {
    headers: [...message.headers],
    body: hex(await message.arrayBuffer()),
  };
}

// draft-ietf-ohai-chunked-ohttp-08; every length here fits one or two bytes.
const varint = (value) => (value < 64 ? [value] : [0x40 | (value >> 8), value & 255]);

let exchange = null; // the request that is waiting for its response

async function hkdf(secret, salt, info, length) {
  const key = await webcrypto.subtle.importKey("raw", secret, "HKDF", false, ["deriveBits"]);
  const algorithm = { name: "HKDF", hash: "SHA-256", salt, info };
  return new Uint8Array(await webcrypto.subtle.deriveBits(algorithm, key, 8 * length));
}

const commands = {
  async versions() {
    return { node: process.version };
  },

  async hpke_seal(command) {
    const context = await sender(command, bytes(command.info));
    const sealed = [];
    for (const message of command.messages) {
      sealed.push(hex(await context.seal(bytes(message), bytes(command.aad))));
    }
    const exported = hex(await context.export(text("context"), 48));
    return { enc: hex(context.enc), sealed, exported };
  },

  async hpke_open(command) {
    const suite = suiteOf(command);
    const recipientKey = await suite.kem.deserializePrivateKey(bytes(command.private).buffer);
    const context = await suite.createRecipientContext({
      recipientKey,
      enc: bytes(command.enc),
      info: bytes(command.info),
    });
    const opened = [];
    for (const message of command.sealed) {
      opened.push(hex(await context.open(bytes(message), bytes(command.aad))));
    }
    return { opened, exported: hex(await context.export(text("context"), 48)) };
  },

  async bhttp_decode_request(command) {
    const request = new BHttpDecoder().decodeRequest(bytes(command.message));
    return { method: request.method, url: request.url, ...(await fieldsOf(request)) };
  },

  async bhttp_decode_response(command) {
    const response = new BHttpDecoder().decodeResponse(bytes(command.message));
    return { status: response.status, ...(await fieldsOf(response)) };
  },

  async bhttp_encode_request({ method, url, headers, body }) {
    const request = new Request(url, { method, headers, body: body ? bytes(body) : undefined });
    return { message: hex(await new BHttpEncoder().encodeRequest(request)) };
  },

  async bhttp_encode_response({ status, headers, body }) {
    const response = new Response(bytes(body), { status, headers });
    return { message: hex(await new BHttpEncoder().encodeResponse(response)) };
  },

  async ohttp_request(command) {
    const pair = (value) => [value >> 8, value & 255];
    const header = [command.key_id, ...pair(command.kem), ...pair(1), ...pair(command.aead)];
    const info = concat(text("message/bhttp chunked request"), [0], header);
    const context = await sender(command, info);
    let message = concat(header, new Uint8Array(context.enc));
    const chunks = command.chunks.map(bytes);
    const last = chunks.pop();
    for (const chunk of chunks) {
      const sealed = new Uint8Array(await context.seal(chunk, new Uint8Array()));
      message = concat(message, varint(sealed.length), sealed);
    }
    const final = new Uint8Array(await context.seal(last, text("final")));
    exchange = { context, aead: command.aead };
    return { message: hex(concat(message, [0], final)) };
  },

  async ohttp_response(command) {
    const { context, aead } = exchange;
    const keySize = aead === 1 ? 16 : 32;
    const data = bytes(command.message);
    const secret = await context.export(text("message/bhttp chunked response"), keySize);
    const salt = concat(new Uint8Array(context.enc), data.subarray(0, keySize));
    const key = await hkdf(secret, salt, text("key"), keySize);
    const base = await hkdf(secret, salt, text("nonce"), 12);
    const cipher = new AEADS[aead]().createEncryptionContext(key);
    const opened = [];
    let at = keySize;
    for (let counter = 0; ; counter++) {
      const nonce = base.slice();
      nonce[11] ^= counter;
      const short = data[at] < 64;
      const length = short ? data[at] : ((data[at] & 63) << 8) | data[at + 1];
      at += short ? 1 : 2;
      const end = length === 0 ? data.length : at + length;
      const aad = length === 0 ? text("final") : new Uint8Array();
      opened.push(hex(await cipher.open(nonce, data.slice(at, end), aad)));
      at = end;
      if (length === 0) return { opened };
    }
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  let answer;
  try {
    answer = await commands[command.name](command);
  } catch (error) {
    answer = { error: `${error.name}: ${error.message}` };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
