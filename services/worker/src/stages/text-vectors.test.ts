import { Deadline, ManualClock, ServingError } from "@atelier/core";
import { describe, expect, it } from "vitest";
import type { EncodedText, TextModel, TextTower, TokenIds } from "./text-encode.ts";
import { TextVectorStage } from "./text-vectors.ts";

const [BEGIN, END] = [90, 91];
const LENGTH = 5;

describe("TextVectorStage", () => {
  it("asks the CLIP pair where there is one", async () => {
    const clip = towerOf((ids) => ({ hidden: Float32Array.of(3 * ids[1]!, 4 * ids[1]!) }));
    const never = towerOf(() => expect.fail("the prompt's own encoder is not asked"));
    const [vector] = await vectors({ towers: [never], clipTower: clip }, ["7"]);
    expect([...vector!]).toEqual([expect.closeTo(0.6), expect.closeTo(0.8)]);
  });

  it("takes the embedding of the whole text without one, of the last encoder", async () => {
    const never = towerOf(() => expect.fail("the first encoder gives none"));
    const last = towerOf(() => ({ hidden: new Float32Array(LENGTH), pooled: Float32Array.of(0, 2) }));
    expect(await vectors({ towers: [never, last] }, ["7"])).toEqual([Float32Array.of(0, 1)]);
  });

  it("takes the hidden state at the end of the text where no encoder embeds whole texts", async () => {
    const hidden = (ids: TokenIds) => Float32Array.from([...ids].flatMap((id, at) => [id === END ? at : -50, 0]));
    const tower = towerOf((ids) => ({ hidden: hidden(ids) }));
    expect(await vectors({ towers: [tower] }, ["7", "7 7"])).toEqual([Float32Array.of(1, 0), Float32Array.of(1, 0)]);
  });

  it("takes the mean of a long text's chunks, and no more chunks at once than it may", async () => {
    const runs: number[] = [];
    const clip = towerOf((ids) => ({ hidden: ids[1] === 1 ? Float32Array.of(3, 0) : Float32Array.of(0, 4) }), runs);
    const [one, both] = await vectors({ towers: [], clipTower: clip }, ["1", "1|2"]);
    expect(runs).toEqual([2, 1]);
    expect(one).toEqual(Float32Array.of(1, 0));
    expect([...both!]).toEqual([expect.closeTo(0.6), expect.closeTo(0.8)]);
  });

  it("refuses what is beyond its limit, late, taken back or of no length", async () => {
    const zeros = towerOf(() => ({ hidden: new Float32Array(2) }));
    const stage = stageOf({ towers: [], clipTower: zeros });
    const clock = new ManualClock();
    for (const id of ["late", "cancelled", "zeros"]) stage.enqueue({ ...job, id, deadline: Deadline.after(clock, 10) });
    expect(() => stage.enqueue({ ...job, id: "fourth", deadline: Deadline.after(clock, 10) })).toThrow(/OVERLOADED/);
    stage.cancel("cancelled");
    clock.advance(20);
    expect((await stage.step())?.error?.code).toBe("DEADLINE_EXCEEDED");
    expect((await stage.step())?.error?.code).toBe("CANCELLED");
    stage.enqueue({ ...job, id: "in time", deadline: Deadline.after(clock, 10) });
    expect((await stage.step())?.error?.code).toBe("DEADLINE_EXCEEDED");
    expect((await stage.step())?.error?.code).toBe("NUMERIC_FAILURE");
    expect(stage.busy).toBe(false);
    expect(await stage.step()).toBeUndefined();
  });

  it("answers a list whose text it cannot read, and goes on with the next", async () => {
    const stage = stageOf({ towers: [], clipTower: towerOf(() => ({ hidden: Float32Array.of(1) })) });
    const deadline = Deadline.after(new ManualClock(), 10);
    stage.enqueue({ ...job, texts: ["1", "bad"], deadline });
    stage.enqueue({ ...job, deadline });
    expect((await stage.step())?.error).toMatchObject({ code: "INVALID_REQUEST", field: "texts[1]" });
    expect(await stage.step()).toMatchObject({ vectors: [Float32Array.of(1)] });
  });
});

const job = { id: "a", model: "tiny", texts: ["1"] };

async function vectors(model: Pick<TextModel, "towers" | "clipTower">, texts: readonly string[]) {
  const stage = stageOf(model);
  stage.enqueue({ ...job, texts, deadline: Deadline.after(new ManualClock(), 10) });
  const outcome = await stage.step();
  if (outcome?.error !== undefined) throw outcome.error;
  return outcome!.vectors;
}

function stageOf(model: Pick<TextModel, "towers" | "clipTower">): TextVectorStage {
  const models = new Map([["tiny", { ...model, zeroEmptyNegative: false, digest: "d" }]]);
  return new TextVectorStage(models, { waitingMax: 3, chunksMax: 2 });
}

/** Texts are numbers with blanks between, chunks of them with bars. The encoder's arrays are overwritten by its next run. */
function towerOf(encode: (ids: TokenIds) => EncodedText, runs: number[] = []): TextTower {
  const chunk = (text: string) => {
    const words = text.split(" ").filter((word) => word !== "");
    const ids = [BEGIN, ...words.map(Number), END];
    return {
      ids: Int32Array.from({ length: LENGTH }, (_, i) => ids[i] ?? END),
      weights: new Float32Array(LENGTH).fill(1),
    };
  };
  let last: EncodedText[] = [];
  return {
    reader: {
      chunks(text, field) {
        if (text === "bad") throw new ServingError("INVALID_REQUEST", `${field} is bad`, { field });
        return text.split("|").map(chunk);
      },
      emptyChunk: chunk(""),
      applyWeights: (embedding) => embedding,
    },
    encoder: {
      async encode(rows) {
        runs.push(rows.length);
        for (const { hidden } of last) hidden.fill(99);
        last = rows.map(encode);
        return last;
      },
    },
  };
}
