import { createHash } from "node:crypto";

export type Canonical = string | number | boolean | null | readonly Canonical[] | { readonly [key: string]: Canonical };

/**
 * One text for one meaning: keys sorted, strings in Unicode NFC, numbers as JSON writes them.
 * Source: RFC 8785 (JSON Canonicalization Scheme) with NFC on top, since "é" has two spellings that mean one prompt.
 */
export function canonicalText(value: Canonical): string {
  if (typeof value === "string") return JSON.stringify(value.normalize("NFC"));
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(canonicalText).join(",")}]`;
  const entries = Object.entries(value as { readonly [key: string]: Canonical });
  const sorted = entries.sort(([a], [b]) => (a < b ? -1 : 1));
  return `{${sorted.map(([key, item]) => `${canonicalText(key)}:${canonicalText(item)}`).join(",")}}`;
}

/** "sha256:" and the digest of `data` in lower-case hex. */
export function sha256(data: string | Uint8Array): string {
  return `sha256:${createHash("sha256").update(data).digest("hex")}`;
}

/** The digest that two requests share exactly when they ask for the same picture. */
export function canonicalDigest(value: Canonical): string {
  return sha256(canonicalText(value));
}
