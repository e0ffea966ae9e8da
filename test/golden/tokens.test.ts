import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { PromptTokenizer } from "@atelier/worker";
import { beforeAll, describe, expect, it } from "vitest";

interface Tokens {
  readonly tokenizer: Readonly<Record<string, string>>; // SHA-256 of the files that the ids were made with
  readonly cases: readonly { readonly text: string; readonly ids: readonly number[] }[];
}

const golden: Tokens = JSON.parse(readFileSync(new URL("data/tokens.json", import.meta.url), "utf8"));
const folder = new URL("../../deploy/models/atelier-tiny/tokenizer/", import.meta.url);

describe("PromptTokenizer", () => {
  let tokenizer: PromptTokenizer;
  beforeAll(async () => {
    tokenizer = await PromptTokenizer.load(fileURLToPath(folder));
  });

  it.each(Object.entries(golden.tokenizer))("is tested with the %s that the golden ids belong to", (file, sha256) => {
    expect(
      createHash("sha256")
        .update(readFileSync(new URL(file, folder)))
        .digest("hex"),
    ).toBe(sha256);
  });

  it(`makes of each of ${golden.cases.length} texts, in many scripts and over-long, the ids that transformers makes`, () => {
    const differing = golden.cases.flatMap(({ text, ids }) => {
      const made = tokenizer.ids(text);
      const expected = ids.slice(1, -1); // without the start and the end token
      return made.join() === expected.join() ? [] : [{ text, made, expected }];
    });
    expect(differing).toEqual([]);
  });
});
