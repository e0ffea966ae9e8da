import { createHash } from "node:crypto";
import type { SamplerName } from "@atelier/diffusion";
import {
  type DenoiseState,
  DenoiseStateSchema,
  type GenerationParameters,
  GenerationParametersSchema,
  Sampler,
} from "@atelier/proto";
import { clone, create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { describe, expect, it } from "vitest";
import type { Phases } from "../phases.ts";
import { checkMovedImage } from "./check-moved-image.ts";
import { type MovedImage, readDenoiseState, writeDenoiseState } from "./denoise-state.ts";

describe("a DenoiseState", () => {
  it("carries an image through bytes and back, unchanged to the bit", () => {
    const { imageIndex, image } = readDenoiseState(throughBytes(state()), PARAMETERS);
    expect(imageIndex).toBe(1);
    expect(image).toEqual(IMAGE);
  });

  it("is about 64 KiB for each array at 512x512", () => {
    const array = () => new Float32Array(4 * 64 * 64).fill(0.5);
    const snapshot = { ...IMAGE.snapshot, latent: array(), history: [array()] };
    const bytes = toBinary(DenoiseStateSchema, state({ ...IMAGE, snapshot }));
    expect(bytes.length / 1024).toBeGreaterThan(128);
    expect(bytes.length / 1024).toBeLessThan(129);
  });

  it("belongs to the image of its seed in another request: what is left of four can be asked for alone", () => {
    const alone = create(GenerationParametersSchema, { ...PARAMETERS, seed: PARAMETERS.seed + 1n, numImages: 1 });
    expect(readDenoiseState(state(), alone).imageIndex).toBe(0);
  });

  it("that was cut anywhere is refused", () => {
    const bytes = toBinary(DenoiseStateSchema, state());
    for (let length = 0; length < bytes.length; length += 7) {
      const read = () => readDenoiseState(fromBinary(DenoiseStateSchema, bytes.subarray(0, length)), PARAMETERS);
      expect(read, `${length} of ${bytes.length} bytes`).toThrow();
    }
  });

  it("with any one bit turned over is refused, or says the same", () => {
    const bytes = toBinary(DenoiseStateSchema, state());
    let same = 0;
    for (let at = 0; at < bytes.length; at += 3) {
      const damaged = bytes.slice();
      damaged[at]! ^= 1 << (at % 8);
      try {
        // A tag may be spelled in two ways.
        expect(readDenoiseState(fromBinary(DenoiseStateSchema, damaged), PARAMETERS).image, `byte ${at}`).toEqual(
          IMAGE,
        );
        same += 1;
      } catch (error) {
        expect(error, `byte ${at}`).toBeInstanceOf(Error);
        if ((error as Error).name === "AssertionError") throw error;
      }
    }
    expect(same).toBeLessThan(bytes.length / 100);
  });

  it.each<[string, (state: DenoiseState) => void, RegExp]>([
    [
      "another schema",
      (s) => {
        s.schemaVersion = 2;
      },
      /schema_version 2; this worker reads 1/,
    ],
    [
      "no parameters",
      (s) => {
        delete s.parameters;
      },
      /has no parameters/,
    ],
    [
      "no noise position",
      (s) => {
        delete s.noise;
      },
      /has no noise position/,
    ],
    [
      "scalars that no sampler keeps",
      (s) => {
        s.historyScalars = [1];
      },
      /has 1 history_scalars, and no sampler keeps any/,
    ],
    [
      "no shape",
      (s) => {
        delete s.shape;
      },
      /has no shape/,
    ],
    [
      "another prompt",
      (s) => {
        s.parameters!.prompt = "a cap";
      },
      /begun with prompt "a cap", the request has "a mug"/,
    ],
    [
      "another sampler",
      (s) => {
        s.parameters!.sampler = Sampler.DDIM;
      },
      /begun with sampler 5, the request has 1/,
    ],
    [
      "noise of another seed",
      (s) => {
        s.noise!.seed = 99n;
      },
      /draws noise of seed 99, and its image's seed is 8/,
    ],
    ["a seed outside the request", moveSeed, /is of seed 109, and the request's images have the seeds 7 to 10/],
    [
      "a phase that there is not",
      (s) => {
        s.phase = 2;
      },
      /is in phase 2/,
    ],
    [
      "half a number",
      (s) => {
        s.latent = s.latent.subarray(1);
      },
      /latent of 255 bytes, no whole floats/,
    ],
    [
      "an unknown way to upscale",
      (s) => {
        s.refine!.upscale = "magic";
      },
      /upscales by "magic"/,
    ],
  ])("of %s is refused, its digest right or not", (_, change, reason) => {
    const forged = clone(DenoiseStateSchema, state());
    change(forged);
    expect(() => readDenoiseState(withDigest(forged), PARAMETERS)).toThrow(reason);
    expect(() => readDenoiseState(forged, PARAMETERS)).toThrow(/INVALID_REQUEST.*resume_from/);
  });

  it("with fields of a later version is refused rather than read without them", () => {
    const unknown = new Uint8Array([0xfa, 0x01, 0x01, 0x2a]); // field 31, one byte
    const later = fromBinary(DenoiseStateSchema, Buffer.concat([toBinary(DenoiseStateSchema, state()), unknown]));
    expect(() => readDenoiseState(later, PARAMETERS)).toThrow(/holds fields that this worker does not know/);
  });
});

describe("checkMovedImage", () => {
  it("passes what this worker would have made itself", () => {
    expect(() => checkMovedImage(IMAGE, PLANNED)).not.toThrow();
  });

  it.each<[string, Partial<MovedImage> | { snapshot: Partial<MovedImage["snapshot"]> }, RegExp]>([
    ["of another model", { modelDigest: "sha256:other" }, /begun on model sha256:other, here the model is sha256:this/],
    [
      "that this worker plans in one phase",
      { refine: undefined },
      /has nothing as its second phase, this worker plans/,
    ],
    ["of another latent size", { shape: { channels: 4, height: 4, width: 2 } }, /latent shape 4x4x2, the request's is/],
    ["beyond its last step", { snapshot: { stepIndex: 10 } }, /stands at step 10, this phase has 0 to 9/],
    ["before its phase's first step", { snapshot: { phase: 1, stepIndex: 3 } }, /latent shape|stands at step 3/],
    ["with a short latent", { snapshot: { latent: floats(63) } }, /latent of 63 numbers, its shape has 64/],
    ["with a long history", { snapshot: { history: [floats(65)] } }, /history\[0\] of 65 numbers/],
    [
      "with too much history",
      { snapshot: { history: Array(4).fill(floats(64)) } },
      /4 arrays of history; after 3 steps dpmpp_2m keeps 1/,
    ],
    ["with NaN in it", { snapshot: { latent: floats(64, Number.NaN) } }, /NaN or an infinity/],
    ["with an infinity in its history", { snapshot: { history: [floats(64, Infinity)] } }, /NaN or an infinity/],
    [
      "with draws that would take minutes to skip",
      { snapshot: { noise: { seed: 8n, draws: 2 ** 50 } } },
      /at most \d+/,
    ],
  ])("refuses a state %s", (_, change, reason) => {
    const snapshot = { ...IMAGE.snapshot, ...("snapshot" in change ? change.snapshot : {}) };
    const forged = { ...IMAGE, ...change, snapshot } as MovedImage;
    expect(() => checkMovedImage(forged, PLANNED)).toThrow(reason);
  });

  // An invariant of a sampler ended the whole process on each of these, and the caller was told to try the next worker.
  it.each<[SamplerName, number, number]>([
    ["unipc", 2, 1],
    ["unipc", 1, 3],
    ["unipc", 0, 3],
    ["dpmpp_2m", 0, 1],
    ["dpmpp_2m_sde", 0, 1],
    ["dpmpp_2m", 2, 0],
    ["euler", 2, 1],
  ])("refuses history that %s could not have left: at step %i, of %i arrays", (sampler, stepIndex, arrays) => {
    const snapshot = { ...IMAGE.snapshot, stepIndex, history: Array<Float32Array>(arrays).fill(floats(64)) };
    const planned = { ...PLANNED, plan: { sampler, stepCount: 10 } };
    expect(() => checkMovedImage({ ...IMAGE, snapshot }, planned)).toThrow(
      `${arrays} arrays of history; after ${stepIndex} steps ${sampler} keeps`,
    );
  });

  it("counts a second phase's history from its own first step", () => {
    const snapshot = { ...IMAGE.snapshot, phase: 1, latent: floats(256) } as const;
    const at = (stepIndex: number, history: Float32Array[]) => () =>
      checkMovedImage({ ...IMAGE, shape: LARGE, snapshot: { ...snapshot, stepIndex, history } }, PLANNED);
    expect(at(8, [])).not.toThrow();
    expect(at(9, [floats(256)])).not.toThrow();
    expect(at(8, [floats(256)])).toThrow(/1 arrays of history; after 0 steps/);
  });
});

const SHAPE = { channels: 4, height: 4, width: 4 };
const LARGE = { channels: 4, height: 8, width: 8 };
const IMAGE: MovedImage = {
  modelDigest: "sha256:this",
  shape: SHAPE,
  refine: { shape: LARGE, upscale: "bicubic", firstStep: 8 },
  snapshot: { phase: 0, stepIndex: 3, latent: floats(64), history: [floats(64, -2.5)], noise: { seed: 8n, draws: 64 } },
};
const PHASES: Phases = { shape: SHAPE, firstStep: 0, refine: IMAGE.refine, hiresFix: undefined, steps: 12 };
const PLANNED = { modelDigest: "sha256:this", plan: { sampler: "dpmpp_2m", stepCount: 10 }, phases: PHASES } as const;
const PARAMETERS: GenerationParameters = create(GenerationParametersSchema, {
  model: "tiny",
  prompt: "a mug",
  width: 64,
  height: 64,
  steps: 10,
  guidanceScale: 2.5,
  sampler: Sampler.DPMPP_2M,
  seed: 7n,
  numImages: 4,
});

/** The second image of `PARAMETERS`. */
function state(image = IMAGE): DenoiseState {
  return writeDenoiseState(image, { parameters: PARAMETERS, imageIndex: 1, device: "cpu" });
}

function throughBytes(message: DenoiseState): DenoiseState {
  return fromBinary(DenoiseStateSchema, toBinary(DenoiseStateSchema, message));
}

/** What a forger who knows the format can do. */
function withDigest(message: DenoiseState): DenoiseState {
  const bare = { ...message, digest: new Uint8Array() };
  return { ...message, digest: createHash("sha256").update(toBinary(DenoiseStateSchema, bare)).digest() };
}

function moveSeed(message: DenoiseState): void {
  message.parameters!.seed = 108n;
  message.noise!.seed = 109n;
}

function floats(length: number, value = 1.25): Float32Array {
  return new Float32Array(length).fill(value);
}
