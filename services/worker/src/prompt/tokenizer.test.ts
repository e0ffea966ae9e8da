import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { ServingError, seededRandom } from "@atelier/core";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { parsePrompt } from "./parse-prompt.ts";
import { CHUNKS_MAX, PromptTokenizer } from "./tokenizer.ts";
import type { TokenizerFiles } from "./tokenizer-files.ts";

// Exact ids on 500 texts, against transformers and the embedded model's vocabulary, are test/golden/tokens.test.ts.

describe("PromptTokenizer cuts text as CLIP does", () => {
  // Token names in place of ids: what is in the vocabulary comes out whole, all else byte by byte.
  it.each([
    ["Red  MUG\n", "red</w> mug</w>"],
    ["mug's isn't", "mug</w> '|s</w> i|s|n</w> '|t</w>"],
    ["2026", "2</w> 0</w> 2</w> 6</w>"],
    ["red-mug", "red</w> -</w> mug</w>"],
    ["a!?red", "a</w> !|?</w> red</w>"],
    ["红", "ç|º|¢</w>"],
    ["e\u0301", "Ã|©</w>"], // NFC
    ["a\u0085b", "a</w> b</w>"], // a line break in Unicode, though not to JavaScript's \s
    ["a\ufeffb", "a</w> ï|»|¿</w> b</w>"], // the other way round
    ["ΟΣ", "Î|¿|Ï|ĥ</w>"], // σ, never ς
    ["İ", "i</w> Ì|ĩ</w>"],
    ["a\u200db", "a</w> â|Ģ|į</w> b</w>"],
    ["", ""],
    [" \t ", ""],
  ])("%j as %s", (text, expected) => {
    expect(named(toy(), text)).toBe(expected.replaceAll(/[ |]/g, " ").trim());
  });

  it("takes special tokens' names for the tokens, as transformers does, and in capitals for text", () => {
    expect(named(toy(), "a<|endoftext|>b")).toBe("a</w> <|endoftext|> b</w>");
    expect(named(toy(), "<|ENDOFTEXT|>!")).toBe("< |</w> e n d o f t e x t</w> | ></w> !</w>");
  });

  it("looks for a special token after normalizing where its file says so", () => {
    const files = toyFiles();
    const added = files.added.map((token) => ({ ...token, normalized: true }));
    expect(named(new PromptTokenizer({ ...files, added }), "a<|ENDOFTEXT|>b")).toBe("a</w> <|endoftext|> b</w>");
  });

  it("gives what is in no vocabulary the unknown token", () => {
    const files = toyFiles();
    const { "!": _, "!</w>": __, ...vocabulary } = files.vocabulary;
    expect(named(new PromptTokenizer({ ...files, vocabulary }), "a!")).toBe("a</w> <|endoftext|>");
  });
});

describe("PromptTokenizer lays prompts out in chunks", () => {
  it("puts a short prompt between the start and the end token and fills up with the padding token", () => {
    const { chunks } = toy().tokenize(parsePrompt("a red mug"));
    expect(chunks).toHaveLength(1);
    expect(names(chunks[0]!.ids).slice(0, 7)).toEqual([
      "<|startoftext|>",
      "a</w>",
      "red</w>",
      "mug</w>",
      "<|endoftext|>",
      "<|endoftext|>",
      "<|endoftext|>",
    ]);
    expect(chunks[0]!.ids).toHaveLength(77);
  });

  it("pads with the token that the files name: Stable Diffusion 2 takes '!'", () => {
    const files = toyFiles();
    const tokenizer = new PromptTokenizer({ ...files, special: { ...files.special, pad: "!" } });
    const [chunk] = tokenizer.tokenize(parsePrompt("a")).chunks;
    expect(names(chunk!.ids).slice(1, 5)).toEqual(["a</w>", "<|endoftext|>", "!", "!"]);
  });

  it("makes one chunk of an empty prompt", () => {
    const { chunks } = toy().tokenize(parsePrompt(""));
    expect(chunks.map(({ ids }) => names(ids).slice(0, 2))).toEqual([["<|startoftext|>", "<|endoftext|>"]]);
  });

  it("gives each token the weight of its stretch, and start, end and padding the weight 1", () => {
    const [chunk] = toy().tokenize(parsePrompt("a (red:1.5) mug")).chunks;
    expect([...chunk!.weights]).toEqual([1, 1, 1.5, ...Array(74).fill(1)]);
  });

  it("fills a chunk with 75 tokens and starts another for the 76th", () => {
    expect(lengths("a ".repeat(75))).toEqual([75]);
    expect(lengths("a ".repeat(76))).toEqual([75, 1]);
    expect(lengths("a ".repeat(200))).toEqual([75, 75, 50]);
  });

  it("ends a chunk at the last comma among its last 20 tokens, and not at one before", () => {
    expect(lengths(`${"a ".repeat(60)}, ${"b ".repeat(30)}`)).toEqual([61, 30]);
    expect(lengths(`${"a ".repeat(60)}, b, ${"b ".repeat(30)}`)).toEqual([63, 30]);
    expect(lengths(`${"a ".repeat(55)}, ${"b ".repeat(30)}`)).toEqual([56, 30]);
    expect(lengths(`${"a ".repeat(54)}, ${"b ".repeat(30)}`)).toEqual([75, 10]);
    expect(lengths(`${"a ".repeat(74)}, ${"b ".repeat(30)}`)).toEqual([75, 30]);
    expect(lengths(`${"a ".repeat(60)}, ${"b ".repeat(14)}`)).toEqual([75]); // fits, so nothing is broken
  });

  it.each(["，", "、", "。", ";", "!"])("ends a chunk at %s as well", (mark) => {
    const before = toy().ids(`${"a ".repeat(60)}${mark}`).length;
    expect(lengths(`${"a ".repeat(60)}${mark} ${"b ".repeat(30)}`)).toEqual([before, 30]);
  });

  it("ends it after a whole word where there is no comma, and inside one only where that is too long", () => {
    expect(lengths(`${"a ".repeat(70)} xxxxxxxxxx`)).toEqual([70, 10]);
    expect(lengths("x".repeat(100))).toEqual([75, 25]);
    expect(lengths(`${"a ".repeat(50)}${"x".repeat(100)}`)).toEqual([75, 75]);
  });

  it("drops nothing and changes no order, however a prompt falls apart", () => {
    const tokenizer = toy();
    for (let seed = 0; seed < 300; seed++) {
      const prompt = randomPrompt(seed);
      const { chunks } = tokenizer.tokenize(parsePrompt(prompt));
      const joined = chunks.flatMap(({ ids }) => textOf(ids));
      expect(joined, prompt).toEqual(tokenizer.ids(prompt));
      for (const { ids } of chunks) expect(ids, prompt).toHaveLength(77);
      for (const { ids } of chunks.slice(0, -1)) expect(textOf(ids).length, prompt).toBeGreaterThanOrEqual(56);
    }
  });

  it(`refuses a prompt of more than ${CHUNKS_MAX} chunks, naming field and length, rather than cut it`, () => {
    expect(lengths("a ".repeat(75 * CHUNKS_MAX))).toHaveLength(CHUNKS_MAX);
    const error = refusal(() =>
      toy().tokenize(parsePrompt("a ".repeat(75 * CHUNKS_MAX + 1)), { field: "negative_prompt" }),
    );
    expect(error).toMatchObject({ code: "INVALID_REQUEST", field: "negative_prompt" });
    expect(error.message).toContain("negative_prompt is 1201 tokens long; at most 16 chunks of 75 fit");
  });
});

describe("PromptTokenizer.load", () => {
  let dir: string;
  beforeEach(async () => {
    dir = join(await mkdtemp(join(tmpdir(), "bundle-")), "tokenizer_2");
    await mkdir(dir);
  });
  afterEach(() => rm(dirname(dir), { recursive: true }));
  const write = (files: Record<string, unknown>) =>
    Promise.all(
      Object.entries(files).map(([name, contents]) =>
        writeFile(join(dir, name), typeof contents === "string" ? contents : JSON.stringify(contents)),
      ),
    );

  const { vocabulary: vocab, merges } = toyFiles();
  const mergesTxt = `#version: 0.2 - Trained by huggingface/tokenizers\n${merges.map((pair) => pair.join(" ")).join("\n")}\n`;
  const tokenizerJson = (change: object = {}) => ({
    model: { type: "BPE", vocab, merges, end_of_word_suffix: "</w>", ...change },
  });

  it("reads tokenizer.json with merges as pairs or as lines, or vocab.json and merges.txt, to one effect", async () => {
    const expected = toy().ids("red mug 红");
    await write({ "vocab.json": vocab, "merges.txt": mergesTxt });
    expect((await PromptTokenizer.load(dir)).ids("red mug 红")).toEqual(expected);
    await write({ "vocab.json": {}, "tokenizer.json": tokenizerJson() });
    expect((await PromptTokenizer.load(dir)).ids("red mug 红")).toEqual(expected);
    await write({ "tokenizer.json": tokenizerJson({ merges: merges.map((pair) => pair.join(" ")) }) });
    expect((await PromptTokenizer.load(dir)).ids("red mug 红")).toEqual(expected);
  });

  it("lets special_tokens_map.json override, and added_tokens_decoder end all doubt, as transformers does", async () => {
    const config = { tokenizer_class: "CLIPTokenizer", pad_token: "<|endoftext|>" };
    await write({ "tokenizer.json": tokenizerJson(), "tokenizer_config.json": config });
    await write({ "special_tokens_map.json": { pad_token: { content: "!", normalized: false } } });
    expect(padding(await PromptTokenizer.load(dir))).toBe("!");
    await write({ "tokenizer_config.json": { ...config, added_tokens_decoder: {} } });
    expect(padding(await PromptTokenizer.load(dir))).toBe("<|endoftext|>");
  });

  it.each([
    ["nothing at all", {}, "tokenizer.json: is missing, and there are no vocab.json and merges.txt in its place"],
    ["damaged JSON", { "tokenizer.json": "{" }, "tokenizer.json: is not JSON"],
    ["another kind of model", { "tokenizer.json": tokenizerJson({ type: "Unigram" }) }, "tokenizer.json: model.type"],
    [
      "another end of words",
      { "tokenizer.json": tokenizerJson({ end_of_word_suffix: "" }) },
      "tokenizer.json: model.end_of_word_suffix",
    ],
    [
      "ids that are none",
      { "tokenizer.json": tokenizerJson({ vocab: { a: -1, b: "x" } }) },
      "tokenizer.json: model.vocab.a: ",
    ],
    [
      "damaged merges",
      { "vocab.json": vocab, "merges.txt": "a b c\n" },
      'merges.txt: its merge "a b c" is not two tokens',
    ],
    [
      "a special token without an id",
      { "tokenizer.json": tokenizerJson(), "special_tokens_map.json": { pad_token: "<pad>" } },
      'special_tokens_map.json: its special token "<pad>" has no id',
    ],
    [
      "another class",
      { "tokenizer.json": tokenizerJson(), "tokenizer_config.json": { tokenizer_class: "T5Tokenizer" } },
      "tokenizer_config.json: tokenizer_class",
    ],
  ])("refuses %s with INVALID_BUNDLE, naming the file and its folder", async (_, files, expected) => {
    await write(files);
    const error = await PromptTokenizer.load(dir).then(
      () => undefined,
      (reason: unknown) => reason,
    );
    expect(error).toMatchObject({
      code: "INVALID_BUNDLE",
      message: expect.stringContaining(`tokenizer_2/${expected}`),
    });
  });

  function padding(tokenizer: PromptTokenizer): string {
    return names(tokenizer.tokenize(parsePrompt("")).chunks[0]!.ids)[76]!;
  }
});

const toy = () => new PromptTokenizer(toyFiles());

/** All bytes, alone and ending a word, and two merged words. */
function toyFiles(): TokenizerFiles {
  const bytes = Array.from({ length: 256 }, (_, byte) => byte);
  const printable = (byte: number) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  const spare = bytes.filter((byte) => !printable(byte));
  const letters = bytes.map((byte) => String.fromCharCode(printable(byte) ? byte : 256 + spare.indexOf(byte)));
  const merges = [
    ["r", "e"],
    ["re", "d</w>"],
    ["m", "u"],
    ["mu", "g</w>"],
  ] as const;
  const tokens = [
    ...letters,
    ...letters.map((letter) => `${letter}</w>`),
    ...merges.map((pair) => pair.join("")),
    "<|startoftext|>",
    "<|endoftext|>",
  ];
  const vocabulary = Object.fromEntries(tokens.map((token, id) => [token, id]));
  const [bos, eos] = ["<|startoftext|>", "<|endoftext|>"];
  const added = [bos, eos].map((content) => ({ content, id: vocabulary[content]!, normalized: false }));
  return { vocabulary, merges, special: { bos, eos, unk: eos, pad: eos }, added };
}

const NAMES: ReadonlyMap<number, string> = new Map(
  Object.entries(toyFiles().vocabulary).map(([name, id]) => [id, name]),
);

function names(ids: Iterable<number>): string[] {
  return Array.from(ids, (id) => NAMES.get(id) ?? `${id}`);
}

function named(tokenizer: PromptTokenizer, text: string): string {
  return names(tokenizer.ids(text)).join(" ");
}

/** The ids between the start and the end token. */
function textOf(ids: Int32Array): number[] {
  const end = names(ids).indexOf("<|endoftext|>");
  return [...ids.slice(1, end)];
}

/** How many tokens of text each chunk holds. */
function lengths(prompt: string): number[] {
  return toy()
    .tokenize([{ text: prompt, weight: 1 }])
    .chunks.map(({ ids }) => textOf(ids).length);
}

function randomPrompt(seed: number): string {
  const random = seededRandom(seed);
  const words = ["red", "mug", "a", ",", "，", "红色的", "xxxxxxxxxxxxxxxxxxxxxxxxx", "👗", "2026"];
  const count = Math.floor(random.next() * 120);
  return Array.from({ length: count }, () => words[Math.floor(random.next() * words.length)]).join(
    random.next() < 0.3 ? "" : " ",
  );
}

function refusal(run: () => void): ServingError {
  try {
    run();
  } catch (error) {
    if (error instanceof ServingError) return error;
    throw error;
  }
  throw new Error("nothing was refused");
}
