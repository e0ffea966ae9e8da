import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { Deadline, invariant, systemClock } from "@atelier/core";
import type { SamplerName } from "@atelier/diffusion";
import type { GenerationRequest, Pipeline } from "@atelier/worker";
import sharp from "sharp";

/** One case of `families.json`: a picture that diffusers made of one of the bundles in `families/`. */
export interface FamilyPicture {
  readonly bundle: string;
  readonly file: string;
  readonly prompt: string;
  readonly negativePrompt: string;
  readonly width: number;
  readonly height: number;
  readonly steps: number;
  readonly guidanceScale: number;
  readonly sampler: SamplerName;
  readonly karras: boolean;
  readonly seed: number;
}

/** The picture of one request as interleaved 8-bit RGB. */
export async function picture(
  pipeline: Pipeline,
  request: Omit<GenerationRequest, "encoding">,
  timeMaxMs: number,
): Promise<Uint8Array> {
  const made: Uint8Array[] = [];
  await pipeline.generate(
    { ...request, encoding: { format: "raw", quality: 100 } },
    {
      signal: new AbortController().signal,
      deadline: Deadline.after(systemClock, timeMaxMs),
      onEvent: (event) => {
        if (event.type === "image") made.push(event.image.data);
      },
    },
  );
  invariant(made.length === 1, "one picture was asked for");
  return made[0]!;
}

/** A golden picture as interleaved 8-bit RGB; `file` is relative to `data/`. */
export function goldenPicture(file: string): Promise<Uint8Array> {
  return sharp(fileURLToPath(new URL(`data/${file}`, import.meta.url)))
    .raw()
    .toBuffer();
}

export function readPictures<Pictures>(name: string): Pictures {
  return JSON.parse(readFileSync(new URL(`data/${name}.json`, import.meta.url), "utf8"));
}

/** Peak signal-to-noise ratio of 8-bit values; Infinity for equal ones. */
export function psnrDb(actual: Uint8Array, expected: Uint8Array): number {
  invariant(actual.length === expected.length, `${actual.length} values where ${expected.length} are expected`);
  const squares = actual.reduce((sum, value, i) => sum + (value - expected[i]!) ** 2, 0);
  return 10 * Math.log10(255 ** 2 / (squares / actual.length));
}
