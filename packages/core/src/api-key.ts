import { hash, randomBytes, timingSafeEqual } from "node:crypto";

/**
 * An API key as its holder has it: `atk_`, the key's id, `_`, and 256 random bits in base64url. The id is public: logs
 * and usage name it. The prefix lets scanners of leaked secrets recognize one.
 */
export interface ApiKey {
  readonly id: string;
  /** The whole, as it is sent. */
  readonly text: string;
}

const KEY = /^atk_([0-9a-z]{12})_[\w-]{43}$/;

export function newApiKey(id: string = newApiKeyId()): ApiKey {
  return { id, text: `atk_${id}_${randomBytes(32).toString("base64url")}` };
}

/** 60 random bits: far from a collision at any number of keys that a company has. */
function newApiKeyId(): string {
  return Array.from(randomBytes(12), (byte) => (byte % 32).toString(32)).join("");
}

/** Undefined where `text` does not have a key's form. */
export function readApiKey(text: string): ApiKey | undefined {
  const id = KEY.exec(text)?.[1];
  return id === undefined ? undefined : { id, text };
}

/**
 * What is kept of a key. One round of SHA-256 is enough: slow hashes make up for secrets that people choose, and of 256
 * random bits there is nothing to guess, while every request pays for the hash.
 */
export function hashApiKey({ text }: ApiKey): string {
  return `sha256:${hash("sha256", text)}`;
}

export const API_KEY_HASH = /^sha256:[0-9a-f]{64}$/;

/** In constant time. */
export function sameHash(a: string, b: string): boolean {
  return a.length === b.length && timingSafeEqual(Buffer.from(a), Buffer.from(b));
}
