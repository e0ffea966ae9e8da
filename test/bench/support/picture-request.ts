import type { SamplerName } from "@atelier/diffusion";

/** One picture, as every side of a bench is asked for it. */
export interface PictureRequest {
  readonly prompt: string;
  readonly negativePrompt: string;
  readonly width: number;
  readonly height: number;
  readonly steps: number;
  readonly guidanceScale: number;
  readonly sampler: SamplerName;
  readonly seed: number;
}

/** Makes one picture and gives its file's bytes. */
export type Draw = (request: PictureRequest) => Promise<Uint8Array>;

const PROMPTS = [
  "国潮风T恤, 白色背景",
  "a blue mug on a wooden table",
  "红色灯笼，喜庆背景",
  "a green sofa, Nordic style",
];
// At most the pixels from which the model's second pass would begin, so that every side does the same work.
const SIZES = [
  [256, 256],
  [192, 256],
  [256, 384],
  [320, 320],
] as const;
const STEPS = [25, 20, 30, 15];
// Only those that all sides have.
const SAMPLERS: readonly SamplerName[] = ["dpmpp_2m", "euler", "euler_a", "ddim", "unipc"];

/**
 * Requests that differ in size, steps, sampler, guidance and prompt; the same every time. Four numbers that share no
 * factor with one another walk the lists, so that no two features go together.
 */
export function mixedRequests(count: number): PictureRequest[] {
  return Array.from({ length: count }, (_, i) => {
    const [width, height] = SIZES[(i * 3) % 4]!;
    return {
      prompt: `${PROMPTS[(i * 7) % 4]} ${i}`, // another text each: no cache of embeddings helps
      negativePrompt: "低分辨率, 模糊",
      width,
      height,
      steps: STEPS[Math.floor(i / 4) % 4]!,
      guidanceScale: i % 8 === 7 ? 1 : 2.5,
      sampler: SAMPLERS[i % 5]!,
      seed: 1000 + i,
    };
  });
}

/** Draws all of `requests`, `inFlight` at a time. Returns the files in order, and wall times in ms. */
export async function drawAll(requests: readonly PictureRequest[], inFlight: number, draw: Draw) {
  const files: Uint8Array[] = [];
  const latenciesMs: number[] = [];
  const startedMs = performance.now();
  let next = 0;
  let lastAskedMs = startedMs;
  const client = async () => {
    while (next < requests.length) {
      const i = next++;
      const askedMs = performance.now();
      lastAskedMs = askedMs;
      files[i] = await draw(requests[i]!);
      latenciesMs[i] = performance.now() - askedMs;
    }
  };
  await Promise.all(Array.from({ length: Math.min(inFlight, requests.length) }, client));
  // `lastAskedMs`: until then as many were in flight as may be.
  return { files, latenciesMs, ms: performance.now() - startedMs, lastAskedMs };
}
