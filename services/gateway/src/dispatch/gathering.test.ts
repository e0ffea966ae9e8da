import { Deadline, ManualClock } from "@atelier/core";
import { type GenerateResponse, GenerateResponseSchema, GenerationParametersSchema } from "@atelier/proto";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { describe, expect, it } from "vitest";
import { imageRequest } from "../testing/views.ts";
import { ByteBudget } from "./byte-budget.ts";
import { Gathering } from "./gathering.ts";
import { slicesOf } from "./slice.ts";

describe("slicesOf", () => {
  it("puts neighbours together", () => {
    expect(slicesOf([0, 1, 3, 5, 6, 7])).toEqual([
      { first: 0, count: 2 },
      { first: 3, count: 1 },
      { first: 5, count: 3 },
    ]);
    expect(slicesOf([])).toEqual([]);
  });
});

describe("what a request has come to", () => {
  it("is asked for in several calls where its states are too large for one message", () => {
    const gathering = gatheringOf(4);
    const whole = gathering.whole();
    for (const imageIndex of [0, 1, 2]) gathering.take(whole, "m", checkpoint(imageIndex, 18 * MIB));
    const slices = gathering.rest(whole);
    expect(slices).toEqual([
      { first: 0, count: 2 },
      { first: 2, count: 2 },
    ]);
    expect(slices.map((slice) => gathering.statesOf(slice, "m").length)).toEqual([2, 1]);
  });

  it("is asked for picture by picture where two states do not fit one message", () => {
    const gathering = gatheringOf(2);
    const whole = gathering.whole();
    for (const imageIndex of [0, 1]) gathering.take(whole, "m", checkpoint(imageIndex, 41 * MIB));
    expect(gathering.rest(whole)).toEqual([
      { first: 0, count: 1 },
      { first: 1, count: 1 },
    ]);
  });

  it("has nothing of pictures and states that were not asked for", () => {
    const gathering = gatheringOf(2);
    const whole = gathering.whole();
    gathering.take(whole, "m", image(0));
    const [second] = gathering.rest(whole);
    gathering.take(second!, "m", image(7));
    gathering.take(second!, "m", checkpoint(7, 16));
    gathering.take(second!, "m", completed());
    expect(gathering.complete(second!)).toBe(false);
    expect(gathering.missingText(second!)).toBe("0 of 1 images");
    gathering.take(second!, "m", image(0));
    expect(gathering.complete(second!)).toBe(true);
    expect(gathering.finish().pictures).toHaveLength(2);
  });
});

const MIB = 1024 * 1024;

function gatheringOf(numImages: number): Gathering {
  const limits = {
    order: { priority: "standard", tenant: "" } as const,
    deadline: new Deadline(new ManualClock(), 1_000),
    signal: new AbortController().signal,
  };
  return new Gathering(imageRequest({ numImages }), limits, new ByteBudget(1024 * MIB));
}

function checkpoint(imageIndex: number, bytes: number): GenerateResponse {
  return event({ case: "checkpoint", value: { state: { imageIndex, stepIndex: 1, latent: new Uint8Array(bytes) } } });
}

function image(imageIndex: number): GenerateResponse {
  return event({ case: "image", value: { imageIndex, data: new Uint8Array(1), mediaType: "image/png" } });
}

function completed(): GenerateResponse {
  const parameters = create(GenerationParametersSchema, { model: "m", sampler: 1, seed: 1n, numImages: 1 });
  return event({ case: "completed", value: { receipt: { parameters, workerId: "a" } } });
}

function event(event: NonNullable<MessageInitShape<typeof GenerateResponseSchema>["event"]>): GenerateResponse {
  return create(GenerateResponseSchema, { event });
}
