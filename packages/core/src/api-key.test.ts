import { createHash } from "node:crypto";
import { describe, expect, it } from "vitest";
import { API_KEY_HASH, hashApiKey, newApiKey, readApiKey, sameHash } from "./api-key.ts";

describe("API keys", () => {
  it("have an id in them, and 256 random bits that no two share", () => {
    const keys = Array.from({ length: 200 }, () => newApiKey());
    for (const key of keys) expect(readApiKey(key.text)).toEqual(key);
    expect(new Set(keys.map(({ id }) => id)).size).toBe(200);
    const secrets = keys.map(({ text }) => text.slice(-43)); // they may hold underscores
    expect(new Set(secrets).size).toBe(200);
    expect(Buffer.from(newApiKey().text.slice(-43), "base64url")).toHaveLength(32);
  });

  it("are given another secret under the same id", () => {
    const key = newApiKey();
    const next = newApiKey(key.id);
    expect(next.id).toBe(key.id);
    expect(next.text).not.toBe(key.text);
  });

  it.each([
    ["of another service", "sk-0123456789"],
    ["cut short", newApiKey().text.slice(0, -1)],
    ["with something behind it", `${newApiKey().text} `],
    ["with an id in capitals", newApiKey().text.toUpperCase()],
    ["of nothing", ""],
  ])("are not read from a text %s", (_what, text) => {
    expect(readApiKey(text)).toBeUndefined();
  });

  it("are kept as the SHA-256 of the whole text", () => {
    const key = newApiKey();
    expect(hashApiKey(key)).toBe(`sha256:${createHash("sha256").update(key.text).digest("hex")}`);
    expect(hashApiKey(key)).toMatch(API_KEY_HASH);
    expect(sameHash(hashApiKey(key), hashApiKey(key))).toBe(true);
    expect(sameHash(hashApiKey(key), hashApiKey(newApiKey(key.id)))).toBe(false);
    expect(sameHash(hashApiKey(key), "sha256:")).toBe(false);
  });
});
