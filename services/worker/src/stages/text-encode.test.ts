import { Deadline, ManualClock, ServingError } from "@atelier/core";
import { describe, expect, it } from "vitest";
import {
  type EncodedText,
  type PromptReader,
  type TextEncodeJob,
  type TextEncodeLimits,
  TextEncodeStage,
  type TextOutcome,
  type TokenIds,
} from "./text-encode.ts";

describe("TextEncodeStage", () => {
  it("encodes everything that waits in one run, each prompt once", async () => {
    const { stage, runs } = textEncodeStage();
    stage.enqueue(job("a", { prompt: "mug", negativePrompt: "bad" }));
    stage.enqueue(job("b", { prompt: "sofa", negativePrompt: "bad" }));
    const outcomes = await stage.step();

    expect(runs).toEqual([["mug", "bad", "sofa"]]);
    expect(outcomes.map(({ job: { id } }) => id)).toEqual(["a", "b"]);
    expect(textOf(outcomes[1]!)).toEqual({ prompt: "sofa", negative: "bad" });
  });

  it("keeps embeddings, and runs nothing for prompts that it knows", async () => {
    const { stage, runs } = textEncodeStage();
    stage.enqueue(job("a", { prompt: "mug" }));
    await stage.step();
    stage.enqueue(job("b", { prompt: "mug" }));
    const [outcome] = await stage.step();

    expect(runs).toEqual([["mug"]]);
    expect(textOf(outcome!)).toEqual({ prompt: "mug", negative: undefined });
  });

  it("says of each request how many of its prompts were kept, shared with another, or encoded", async () => {
    const { stage } = textEncodeStage();
    stage.enqueue(job("a", { prompt: "mug", negativePrompt: "bad" }));
    await stage.step();
    stage.enqueue(job("b", { prompt: "sofa", negativePrompt: "bad" }));
    stage.enqueue(job("c", { prompt: "sofa", negativePrompt: "bad" }));
    const outcomes = await stage.step();
    expect(outcomes.map((outcome) => encodedOf(outcome).embeddings)).toEqual([
      { hit: 1, shared: 0, miss: 1 },
      { hit: 1, shared: 1, miss: 0 },
    ]);
  });

  it("forgets the prompt that was not used for the longest time, to stay within its bytes", async () => {
    const { stage, runs } = textEncodeStage({ keptBytesMax: 2 * CHUNK * 4 });
    for (const prompt of ["a", "b", "a", "c", "a", "b"]) {
      stage.enqueue(job(prompt, { prompt }));
      await stage.step();
    }
    expect(runs.flat()).toEqual(["a", "b", "c", "b"]);
  });

  it("does not keep an embedding that is larger than all that it may keep, nor throw others out for it", async () => {
    const { stage, runs } = textEncodeStage({ keptBytesMax: CHUNK * 4 });
    for (const prompt of ["a", "one|two", "a", "one|two"]) {
      stage.enqueue(job(prompt, { prompt }));
      await stage.step();
    }
    expect(runs).toEqual([["a"], ["one", "two"], ["one", "two"]]);
  });

  it("brings both prompts to one number of chunks", async () => {
    const { stage, runs } = textEncodeStage();
    stage.enqueue(job("a", { prompt: "one|two|three", negativePrompt: "bad" }));
    const [outcome] = await stage.step();

    expect(runs).toEqual([["one", "two", "three", "bad", "", ""]]);
    expect(outcome).toMatchObject({ encoded: { promptChunks: 3, conditioning: { sequenceLength: 3 * CHUNK } } });
    expect(textOf(outcome!)).toEqual({ prompt: "onetwothree", negative: "bad" });
  });

  it("does not take the embedding of one length for another", async () => {
    const { stage } = textEncodeStage();
    stage.enqueue(job("a", { prompt: "mug", negativePrompt: "bad" }));
    stage.enqueue(job("b", { prompt: "one|two", negativePrompt: "bad" }));
    stage.enqueue(job("c", { prompt: "mug", negativePrompt: "one|two" }));
    const outcomes = await stage.step();
    const lengths = outcomes.map((outcome) => {
      const { prompt, negative } = conditioningOf(outcome);
      return [prompt.length, negative?.length];
    });
    expect(lengths).toEqual([CHUNK, 2 * CHUNK, 2 * CHUNK].map((length) => [length, length]));
  });

  it("gives the encoder no more chunks at once than it may", async () => {
    const { stage, runs } = textEncodeStage({ chunksMax: 2 });
    stage.enqueue(job("a", { prompt: "one|two|three" }));
    const [outcome] = await stage.step();
    expect(runs).toEqual([["one", "two"], ["three"]]);
    expect(textOf(outcome!).prompt).toBe("onetwothree");
  });

  it("scales by the prompt's weights", async () => {
    const { stage } = textEncodeStage({ weights: () => new Float32Array(CHUNK).fill(2) });
    stage.enqueue(job("a", { prompt: "mug" }));
    const [outcome] = await stage.step();
    expect(outcome!.error ?? outcome!.encoded.conditioning.prompt[0]).toBe(2 * "m".charCodeAt(0));
  });

  it("encodes nothing for an empty negative prompt that stands for zeros", async () => {
    const { stage, runs } = textEncodeStage({ zeroEmptyNegative: true });
    stage.enqueue(job("a", { prompt: "one|two", negativePrompt: "" }));
    const [outcome] = await stage.step();
    expect(runs).toEqual([["one", "two"]]);
    expect(conditioningOf(outcome!).negative).toEqual(new Float32Array(2 * CHUNK));
    expect(encodedOf(outcome!).embeddings).toEqual({ hit: 0, shared: 0, miss: 1 });
  });

  it("encodes an empty negative prompt where it stands for itself, and any other everywhere", async () => {
    const plain = textEncodeStage();
    plain.stage.enqueue(job("a", { prompt: "mug", negativePrompt: "" }));
    await plain.stage.step();
    expect(plain.runs).toEqual([["mug", ""]]);
    const zero = textEncodeStage({ zeroEmptyNegative: true });
    zero.stage.enqueue(job("a", { prompt: "mug", negativePrompt: "bad" }));
    await zero.stage.step();
    expect(zero.runs).toEqual([["mug", "bad"]]);
  });

  it("fails a prompt that cannot be read, and no other", async () => {
    const { stage } = textEncodeStage();
    stage.enqueue(job("bad", { prompt: "unreadable" }));
    stage.enqueue(job("good", { prompt: "mug" }));
    const outcomes = await stage.step();
    expect(outcomes.map(({ job: { id }, error }) => [id, error?.code])).toEqual([
      ["bad", "INVALID_REQUEST"],
      ["good", undefined],
    ]);
  });

  it("drops what was cancelled or is too late", async () => {
    const clock = new ManualClock();
    const { stage, runs } = textEncodeStage();
    stage.enqueue(job("cancelled", { prompt: "a" }));
    stage.enqueue(job("late", { prompt: "b", deadline: Deadline.after(clock, 5) }));
    stage.cancel("cancelled");
    clock.advance(5);
    const outcomes = await stage.step();
    expect(outcomes.map(({ error }) => error?.code)).toEqual(["CANCELLED", "DEADLINE_EXCEEDED"]);
    expect(runs).toEqual([]);
  });

  it("refuses a job when the waiting room is full", () => {
    const { stage } = textEncodeStage({ waitingMax: 1 });
    stage.enqueue(job("a"));
    expect(() => stage.enqueue(job("b"))).toThrow(/OVERLOADED.*1 prompts/);
  });
});

describe("TextEncodeStage with two encoders", () => {
  it("joins each token's embeddings along the width, and takes the first chunk's pooled embedding", async () => {
    const { stage } = twoTowerStage();
    stage.enqueue(job("a", { prompt: "ab|c", negativePrompt: "n" }));
    const [outcome] = await stage.step();
    const { sequenceLength, prompt, negative, pooled } = conditioningOf(outcome!);
    expect(sequenceLength).toBe(4);
    // The first encoder gives [t], the second [10 t, 100 t] of token t; two tokens a chunk.
    expect([...prompt]).toEqual([..."abc\0"].flatMap(tokenOfTwo));
    expect([...negative!]).toEqual([..."n\0\0\0"].flatMap(tokenOfTwo));
    expect([...pooled!.prompt]).toEqual(["a".charCodeAt(0) + "b".charCodeAt(0)]);
    expect([...pooled!.negative!]).toEqual(["n".charCodeAt(0)]);
  });

  it("zeroes the pooled embedding of an empty negative prompt as well", async () => {
    const { stage } = twoTowerStage();
    stage.enqueue(job("a", { prompt: "ab", negativePrompt: "" }));
    const [outcome] = await stage.step();
    const { negative, pooled } = conditioningOf(outcome!);
    expect([negative, pooled!.negative]).toEqual([new Float32Array(6), new Float32Array(1)]);
  });

  it("scales what each encoder says of a token by its weight, and leaves the pooled embedding alone", async () => {
    const plain = twoTowerStage();
    const weighted = twoTowerStage({ weight: 3 });
    for (const { stage } of [plain, weighted]) stage.enqueue(job("a", { prompt: "ab" }));
    const [before, after] = [await plain.stage.step(), await weighted.stage.step()].map(([one]) =>
      conditioningOf(one!),
    );
    expect(after!.prompt).toEqual(before!.prompt.map((value) => 3 * value));
    expect(after!.pooled).toEqual(before!.pooled);
  });

  it("runs neither for a prompt that it knows", async () => {
    const { stage, runs } = twoTowerStage();
    for (const id of ["a", "b"]) {
      stage.enqueue(job(id, { prompt: "ab", negativePrompt: "n" }));
      await stage.step();
    }
    expect(runs).toEqual(["first", "second"]);
  });

  it("has no pooled embedding of a negative prompt where there is none", async () => {
    const { stage } = twoTowerStage();
    stage.enqueue(job("a", { prompt: "ab" }));
    const [outcome] = await stage.step();
    expect(conditioningOf(outcome!)).toMatchObject({ negative: undefined, pooled: { negative: undefined } });
  });
});

/** Chunks of two tokens, split at "|"; a token is a UTF-16 unit. */
function twoTowerStage({ weight = 1 } = {}) {
  const runs: string[] = [];
  const chunk = (text: string) => ({
    ids: Int32Array.of(text.charCodeAt(0) || 0, text.charCodeAt(1) || 0),
    weights: Float32Array.of(weight, weight),
  });
  const reader: PromptReader = {
    chunks: (prompt) => prompt.split("|").map(chunk),
    emptyChunk: chunk(""),
    applyWeights: (embedding, [scale]) => embedding.map((value) => value * scale!),
  };
  const encoder = (name: string, encodeRow: (ids: TokenIds) => EncodedText) => ({
    async encode(rows: readonly TokenIds[]) {
      runs.push(name);
      return rows.map(encodeRow);
    },
  });
  const first = encoder("first", (ids) => ({ hidden: Float32Array.from(ids) }));
  const second = encoder("second", (ids) => ({
    hidden: Float32Array.from([...ids].flatMap((id) => [10 * id, 100 * id])),
    pooled: Float32Array.of(ids[0]! + ids[1]!),
  }));
  const towers = [first, second].map((one) => ({ reader, encoder: one }));
  const models = new Map([["tiny", { towers, digest: "sha256:1", zeroEmptyNegative: true }]]);
  return { stage: new TextEncodeStage(models, { waitingMax: 10, chunksMax: 10, keptBytesMax: 10_000 }), runs };
}

function tokenOfTwo(character: string): number[] {
  const id = character.charCodeAt(0);
  return [id, 10 * id, 100 * id];
}

/** Tokens of one chunk. */
const CHUNK = 16;

/** A reader for which "|" starts a chunk and a token is a UTF-16 unit, and an encoder whose embedding is the token. */
function textEncodeStage(
  options: Partial<TextEncodeLimits> & { weights?: () => Float32Array; zeroEmptyNegative?: boolean } = {},
) {
  const { waitingMax = 10, chunksMax = 10, keptBytesMax = 10_000, zeroEmptyNegative = false } = options;
  const { weights = () => new Float32Array(CHUNK).fill(1) } = options;
  const runs: string[][] = [];
  const chunk = (text: string) => ({ ids: idsOf(text), weights: weights() });
  const reader: PromptReader = {
    chunks(prompt, field) {
      if (prompt === "unreadable") throw new ServingError("INVALID_REQUEST", "cannot be read", { field });
      return prompt.split("|").map(chunk);
    },
    emptyChunk: chunk(""),
    applyWeights: (embedding, scale) => embedding.map((value, i) => value * scale[i]!),
  };
  const encoder = {
    async encode(rows: readonly TokenIds[]) {
      runs.push(rows.map((row) => decodeText(Float32Array.from(row))));
      return rows.map((row) => ({ hidden: Float32Array.from(row) }));
    },
  };
  const models = new Map([["tiny", { towers: [{ reader, encoder }], digest: "sha256:1", zeroEmptyNegative }]]);
  return { stage: new TextEncodeStage(models, { waitingMax, chunksMax, keptBytesMax }), runs };
}

function job(id: string, options: Partial<TextEncodeJob> = {}): TextEncodeJob {
  const deadline = Deadline.after(new ManualClock(), 1000);
  return { id, model: "tiny", prompt: id, negativePrompt: undefined, deadline, ...options };
}

function idsOf(text: string): Int32Array {
  return Int32Array.from({ length: CHUNK }, (_, i) => (i < text.length ? text.charCodeAt(i) : 0));
}

function decodeText(values: Float32Array): string {
  return String.fromCharCode(...values.filter((value) => value !== 0));
}

function encodedOf(outcome: TextOutcome) {
  if (outcome.error !== undefined) throw outcome.error;
  return outcome.encoded;
}

function conditioningOf(outcome: TextOutcome) {
  return encodedOf(outcome).conditioning;
}

function textOf(outcome: TextOutcome) {
  const { prompt, negative } = conditioningOf(outcome);
  return { prompt: decodeText(prompt), negative: negative && decodeText(negative) };
}
