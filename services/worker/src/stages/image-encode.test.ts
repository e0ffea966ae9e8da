import { Deadline, ManualClock } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { type EncodeJob, type EncodeWork, fromRgb, ImageEncodeStage, latentDistribution } from "./image-encode.ts";

const SHAPE = { channels: 2, height: 1, width: 1 };
const UNSCALED = { scalingFactor: 1, shiftFactor: 0 };

describe("fromRgb", () => {
  it("maps 0..255 to -1..1, colour by colour", () => {
    const picture = { data: Uint8Array.of(0, 255, 51, 255, 0, 204), width: 2, height: 1 };
    const expected = [-1, 1, /* green */ 1, -1, /* blue */ -0.6, 0.6].map(Math.fround);
    expect([...fromRgb(picture)]).toEqual(expected);
  });
});

describe("latentDistribution", () => {
  it("takes means and logarithms of variances, and scales and shifts both", () => {
    const encoded = { values: Float32Array.of(1, 2, /* ln of 4 and 1 */ Math.log(4), 0), ...SHAPE, channels: 4 };
    const { mean, std } = latentDistribution(encoded, SHAPE, { scalingFactor: 0.5, shiftFactor: 0.25 });
    expect([...mean]).toEqual([0.375, 0.875]);
    expect([...std!].map((x) => Math.round(x * 1e6) / 1e6)).toEqual([1, 0.5]);
  });

  it("clamps the logarithms of variances as diffusers does", () => {
    const encoded = { values: Float32Array.of(0, 0, -1000, 1000), ...SHAPE, channels: 4 };
    const { std } = latentDistribution(encoded, SHAPE, UNSCALED);
    expect([...std!]).toEqual([Math.fround(Math.exp(-15)), Math.fround(Math.exp(10))]);
  });

  it("takes means alone from an encoder that gives no variances", () => {
    const { mean, std } = latentDistribution({ values: Float32Array.of(3, 4), ...SHAPE }, SHAPE, UNSCALED);
    expect([...mean]).toEqual([3, 4]);
    expect(std).toBeUndefined();
  });

  it("fails on NaN and infinities", () => {
    for (const bad of [Number.NaN, -Infinity]) {
      const encoded = { values: Float32Array.of(0, bad), ...SHAPE };
      expect(() => latentDistribution(encoded, SHAPE, UNSCALED)).toThrow(/NUMERIC_FAILURE/);
    }
  });
});

describe("ImageEncodeStage", () => {
  it("encodes oldest first", async () => {
    const { stage, encoded } = imageEncodeStage();
    for (const id of ["a", "b"]) stage.enqueue(job(id));
    expect((await stage.step())?.job.id).toBe("a");
    expect((await stage.step())?.job.id).toBe("b");
    expect(await stage.step()).toBeUndefined();
    expect(encoded).toMatchObject([
      { model: "tiny", width: 8, height: 8 },
      { model: "tiny", width: 8, height: 8 },
    ]);
  });

  it("drops what was cancelled or is too late, without encoding it", async () => {
    const clock = new ManualClock();
    const { stage, encoded } = imageEncodeStage();
    stage.enqueue(job("cancelled"));
    stage.enqueue(job("late", { deadline: Deadline.after(clock, 5) }));
    stage.cancel("cancelled");
    clock.advance(5);
    expect((await stage.step())?.error?.code).toBe("CANCELLED");
    expect((await stage.step())?.error?.code).toBe("DEADLINE_EXCEEDED");
    expect(encoded).toEqual([]);
  });

  it("refuses a picture when the waiting room is full", () => {
    const { stage } = imageEncodeStage({ waitingMax: 1 });
    stage.enqueue(job("a"));
    expect(() => stage.enqueue(job("b"))).toThrow(/OVERLOADED.*1 pictures/);
  });
});

function imageEncodeStage({ waitingMax = 10 } = {}) {
  const encoded: EncodeWork[] = [];
  const vae = {
    async encode(work: EncodeWork) {
      encoded.push(work);
      return { values: Float32Array.of(1, 2), ...SHAPE };
    },
  };
  return { stage: new ImageEncodeStage(vae, { waitingMax }), encoded };
}

function job(id: string, options: Partial<EncodeJob> = {}): EncodeJob {
  return {
    id,
    model: "tiny",
    picture: { data: new Uint8Array(8 * 8 * 3), width: 8, height: 8 },
    shape: SHAPE,
    scaling: UNSCALED,
    deadline: Deadline.after(new ManualClock(), 1000),
    ...options,
  };
}
