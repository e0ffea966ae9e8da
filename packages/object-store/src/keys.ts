import { ServingError } from "@atelier/core";

const KEY_CHARS_MAX = 512;
const PARTS_MAX = 16;
const PART = /^(?!\.{1,2}$)[A-Za-z0-9._-]{1,255}$/;

/**
 * Holds what a key may be, so that every key of one adapter is one of all others.
 *
 * @throws ServingError INVALID_REQUEST naming the key.
 */
export function checkKey(key: string): void {
  const parts = key.split("/");
  if (key.length <= KEY_CHARS_MAX && parts.length <= PARTS_MAX && parts.every((part) => PART.test(part))) return;
  const allowed = "names of letters, digits, '.', '_' and '-' with '/' between";
  throw new ServingError("INVALID_REQUEST", `${JSON.stringify(key.slice(0, 100))} is no object key: ${allowed}`);
}

/** @throws ServingError INVALID_REQUEST where `prefix` is not a key's beginning up to a "/", nor empty. */
export function checkPrefix(prefix: string): void {
  if (prefix === "") return;
  if (!prefix.endsWith("/")) {
    throw new ServingError("INVALID_REQUEST", `${JSON.stringify(prefix.slice(0, 100))} is no prefix: it ends in "/"`);
  }
  checkKey(prefix.slice(0, -1));
}
