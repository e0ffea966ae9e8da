import { describe, expect, it } from "vitest";
import { generationOf } from "../testing/cache-world.ts";
import { type KeptResult, readKept, sizeOf, writeKept } from "./kept-result.ts";

const kept: KeptResult = {
  generation: generationOf({
    seed: 7,
    pictures: [Uint8Array.of(1, 2, 3), new Uint8Array(0), new Uint8Array(1_000).fill(9)],
  }),
  subject: { keeper: "t", model: "m", adapters: ["brand"], prompt: "国潮" },
  bornAt: 3,
  untilMs: 9_000,
};

describe("a kept result as bytes", () => {
  const bytes = writeKept("key", kept);

  it("reads as it was written", () => {
    expect(JSON.parse(JSON.stringify(plain(readKept("key", bytes)!)))).toEqual(JSON.parse(JSON.stringify(plain(kept))));
  });

  it("holds the pictures as they are, and little else", () => {
    expect(bytes.includes(Buffer.alloc(1_000, 9))).toBe(true);
    expect(bytes.length).toBeLessThan(1_003 + 2_000);
  });

  it("is nothing under another key", () => {
    expect(readKept("key2", bytes)).toBeUndefined();
  });

  it("is nothing once any one bit is another, or any part of its end is missing", () => {
    for (let at = 0; at < bytes.length; at++) {
      const damaged = Buffer.from(bytes);
      damaged[at]! ^= 1 << (at % 8);
      expect(readKept("key", damaged)).toBeUndefined();
    }
    for (let length = 0; length < bytes.length; length++)
      expect(readKept("key", bytes.subarray(0, length))).toBeUndefined();
  });

  it("is nothing with something behind it", () => {
    expect(readKept("key", Buffer.concat([bytes, Buffer.alloc(1)]))).toBeUndefined();
  });

  it("weighs more than its pictures and their base64", () => {
    expect(sizeOf(kept)).toBeGreaterThan((1 + 4 / 3) * 1_003);
  });
});

/** Pictures as plain arrays: a Buffer and a Uint8Array of the same bytes are not equal. */
function plain({ generation, ...about }: KeptResult) {
  const pictures = generation.pictures.map((picture) => ({ ...picture, data: [...picture.data] }));
  return { ...about, receipt: generation.receipt, pictures };
}
