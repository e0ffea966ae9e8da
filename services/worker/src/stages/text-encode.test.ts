import { Deadline, ManualClock, ServingError } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { type PromptReader, type TextEncodeJob, TextEncodeStage, type TokenIds } from "./text-encode.ts";

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

  it("forgets the prompt that was not used for the longest time", async () => {
    const { stage, runs } = textEncodeStage({ keptMax: 2 });
    for (const prompt of ["a", "b", "a", "c", "a", "b"]) {
      stage.enqueue(job(prompt, { prompt }));
      await stage.step();
    }
    expect(runs.flat()).toEqual(["a", "b", "c", "b"]);
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
      if (outcome.error !== undefined) throw outcome.error;
      const { prompt, negative } = outcome.encoded.conditioning;
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

/** Tokens of one chunk. */
const CHUNK = 16;

/** A reader for which "|" starts a chunk and a token is a UTF-16 unit, and an encoder whose embedding is the token. */
function textEncodeStage(
  options: { waitingMax?: number; chunksMax?: number; keptMax?: number; weights?: () => Float32Array } = {},
) {
  const { waitingMax = 10, chunksMax = 10, keptMax = 10, weights = () => new Float32Array(CHUNK).fill(1) } = options;
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
      return rows.map((row) => Float32Array.from(row));
    },
  };
  const models = new Map([["tiny", { reader, encoder, digest: "sha256:1" }]]);
  return { stage: new TextEncodeStage(models, { waitingMax, chunksMax, keptMax }), runs };
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

function textOf(outcome: Awaited<ReturnType<TextEncodeStage["step"]>>[number]) {
  if (outcome.error !== undefined) throw outcome.error;
  const { prompt, negative } = outcome.encoded.conditioning;
  return { prompt: decodeText(prompt), negative: negative && decodeText(negative) };
}
