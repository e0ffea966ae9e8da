import { Deadline, ServingError, seededRandom, systemClock } from "@atelier/core";
import sharp from "sharp";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { GenerationEvent } from "./generation.ts";
import { createPipeline, type Pipeline } from "./pipeline.ts";
import type { GenerationRequest } from "./request.ts";
import type { EncodedImage } from "./stages/image-file.ts";
import type { EmbeddingCounts } from "./stages/text-encode.ts";
import { TEST_BUNDLE } from "./testing/test-bundle.ts";

const NO_BACKLOG = { interactive: 0, standard: 0, bulk: 0 };

describe("a pipeline driven directly", () => {
  let pipeline: Pipeline;
  const ran: number[] = [];
  const embedded: EmbeddingCounts[] = [];

  beforeAll(async () => {
    pipeline = await createPipeline({
      bundleDirs: [TEST_BUNDLE],
      device: { kind: "onnx", provider: "cpu", threads: 1 },
      limits: { queueMax: 8, stepBatchMax: 2 },
      observer: { ran: ({ rows }) => ran.push(rows), stageTook: () => {}, embedded: (counts) => embedded.push(counts) },
      onFatal: (error) => {
        throw error;
      },
    });
  });
  afterAll(() => pipeline.close());

  it("gives raw pixels, which are those of the PNG", async () => {
    const [raw] = await images({ encoding: { format: "raw", quality: 90 } });
    const [png] = await images({ encoding: { format: "png", quality: 90 } });
    expect(raw!.data).toHaveLength(128 * 160 * 3);
    expect(Buffer.compare(await sharp(png!.data).raw().toBuffer(), raw!.data)).toBe(0);
  });

  it("never takes more images through the U-Net at once than the step batch holds, and every one of them", async () => {
    ran.length = 0;
    expect(await images({ numImages: 3, steps: 2 })).toHaveLength(3);
    expect(Math.max(...ran)).toBeLessThanOrEqual(4); // rows: two of an image with guidance
    expect(ran.reduce((sum, rows) => sum + rows, 0)).toBe(3 * 2 * 2);
  });

  it("runs one row for each image without guidance", async () => {
    ran.length = 0;
    await images({ guidanceScale: 1, steps: 2 });
    expect(ran).toEqual([1, 1]);
  });

  it("saves the text stage on prompts that it knows, and says so", async () => {
    embedded.length = 0;
    const prompts = { prompt: "a lamp nobody asked for", negativePrompt: "nor this" };
    const ask = () => generate(prompts, new AbortController().signal, () => {});
    expect((await ask()).embeddingsCached).toBe(false);
    expect((await ask()).embeddingsCached).toBe(true);
    expect(embedded).toEqual([
      { hit: 0, shared: 0, miss: 2 },
      { hit: 2, shared: 0, miss: 0 },
    ]);
  });

  it("makes different pictures for different samplers, prompts, negative prompts and guidance", async () => {
    const changes: Partial<GenerationRequest>[] = [
      {},
      { sampler: "euler_a" },
      { prompt: "a blue sofa" },
      { negativePrompt: "red" },
      { guidanceScale: 4 },
      { karras: true },
    ];
    const made = await Promise.all(
      changes.map((change) => images({ encoding: { format: "raw", quality: 90 }, ...change })),
    );
    const pictures = new Set(made.map(([image]) => Buffer.from(image!.data).toString("base64")));
    expect(pictures.size).toBe(changes.length);
  });

  it("shows the picture as it forms: early in its colours, at last in its shapes too", async () => {
    const previews: Uint8Array[] = [];
    let final: EncodedImage | undefined;
    const wishes = { prompt: "a red mug on a blue background", width: 256, height: 256, steps: 12, seed: 5n };
    await generate({ ...wishes, previewEverySteps: 4 }, new AbortController().signal, (event) => {
      if (event.type === "image") final = event.image;
      if (event.type === "progress" && event.preview !== undefined) previews.push(event.preview);
    });
    const small = await sharp(final!.data).resize(32, 32, { kernel: "linear" }).raw().toBuffer();
    const [early, , last] = await Promise.all(
      previews.map(async (png) => likenessOf(await sharp(png).raw().toBuffer(), small)),
    );
    // Measured with six prompts: after 4 of 12 steps 22 to 25 dB and 0.93 to 0.98, after the last 28 to 33 dB and 0.99.
    expect(early!.colours).toBeGreaterThan(0.9);
    expect(last!.colours).toBeGreaterThan(0.97);
    expect(last!.psnrDb).toBeGreaterThan(26);
    expect(last!.psnrDb).toBeGreaterThan(early!.psnrDb);
  });

  it("makes an image from another, nearer to it the less strength", async () => {
    const size = { width: 256, height: 256, steps: 8, encoding: { format: "raw", quality: 90 } as const };
    const [from] = await images({ ...size, prompt: "a green sofa", encoding: { format: "png", quality: 90 } });
    const pixels = await sharp(from!.data).raw().toBuffer();
    const totals: number[] = [];
    const likeness = [];
    for (const strength of [0.25, 0.6, 1]) {
      const initImage = { bytes: from!.data, digest: "sha256:00", strength };
      let made: Uint8Array | undefined;
      await generate({ ...size, prompt: "a red mug", initImage }, new AbortController().signal, (event) => {
        if (event.type === "accepted") totals.push(event.stepsTotal);
        if (event.type === "image") made = event.image.data;
      });
      likeness.push(likenessOf(made!, pixels).psnrDb);
    }
    expect(totals).toEqual([2, 4, 8]);
    expect(likeness).toEqual(likeness.toSorted((a, b) => b - a));
  });

  it("accepts nothing on a picture that cannot be read, or with no step to take", async () => {
    const events: string[] = [];
    const refused = async (change: Partial<GenerationRequest>) =>
      generate(change, new AbortController().signal, ({ type }) => events.push(type)).catch((error) => error);
    const broken = { bytes: Buffer.from("no picture"), digest: "sha256:00", strength: 0.5 };
    expect(await refused({ initImage: broken })).toMatchObject({ code: "INVALID_REQUEST", field: "init_image" });
    const weak = { ...broken, strength: 0.1 };
    expect(await refused({ initImage: weak })).toMatchObject({ code: "INVALID_REQUEST", field: "strength" });
    expect(events).toEqual([]);
    expect(pipeline.state).toMatchObject({ requestsInFlight: 0, requestsFree: 8 });
  });

  it("makes previews at the size of each pass", async () => {
    const widths: number[] = [];
    await generate({ width: 336, height: 336, previewEverySteps: 2 }, new AbortController().signal, (event) => {
      if (event.type !== "progress" || event.preview === undefined) return;
      widths.push(Buffer.from(event.preview).readUInt32BE(16)); // of the PNG's header
    });
    expect(widths).toEqual([32, 42]);
  });

  it("fails a request with the reason for which it was taken back", async () => {
    const abort = new AbortController();
    const made = generate({ steps: 50 }, abort.signal, (event) => {
      if (event.type === "progress") abort.abort(new ServingError("DRAINING", "leaving"));
    });
    await expect(made).rejects.toMatchObject({ code: "DRAINING" });
    expect(pipeline.state).toMatchObject({ requestsInFlight: 0, backlogMs: NO_BACKLOG });
  });

  it("settles every request, and is idle after, whatever is taken back when", async () => {
    const random = seededRandom(3);
    const outcomes = new Map<string, number>();
    const one = async () => {
      const abort = new AbortController();
      let eventsLeft = Math.floor(random.next() * 12); // cancelled at the 12th event at the latest, or not at all
      const size = random.next() < 0.5 ? { width: 128 } : { width: 136, guidanceScale: 1 };
      const outcome = await generate({ ...size, numImages: 1 + Math.floor(random.next() * 3) }, abort.signal, () => {
        if (eventsLeft-- === 0) abort.abort(new ServingError("CANCELLED", "taken back"));
      }).then(
        () => "ok",
        (error: ServingError) => error.code,
      );
      outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
    };
    for (let wave = 0; wave < 4; wave++) await Promise.all(Array.from({ length: 10 }, one)); // 8 fit

    expect(pipeline.state).toMatchObject({ requestsInFlight: 0, requestsFree: 8, backlogMs: NO_BACKLOG });
    expect([...outcomes.keys()].toSorted()).toEqual(["CANCELLED", "OVERLOADED", "ok"]);
    expect(outcomes.get("OVERLOADED")).toBe(8);
  });

  it("admits nothing once it is stopped", async () => {
    pipeline.stop(new ServingError("DRAINING", "leaving"));
    await expect(images({})).rejects.toMatchObject({ code: "DRAINING" });
  });

  async function images(change: Partial<GenerationRequest>): Promise<EncodedImage[]> {
    const made: EncodedImage[] = [];
    await generate(change, new AbortController().signal, (event) => {
      if (event.type === "image") made[event.imageIndex] = event.image;
    });
    return made;
  }

  function generate(
    change: Partial<GenerationRequest>,
    signal: AbortSignal,
    onEvent: (event: GenerationEvent) => void,
  ) {
    const request: GenerationRequest = {
      id: `request-${Math.random()}`,
      model: "atelier-tiny",
      prompt: "a red mug",
      negativePrompt: "",
      width: 128,
      height: 160,
      steps: 3,
      guidanceScale: 2.5,
      sampler: "dpmpp_2m",
      karras: false,
      seed: 11n,
      numImages: 1,
      encoding: { format: "png", quality: 90 },
      ...change,
    };
    return pipeline.generate(request, { signal, deadline: Deadline.after(systemClock, 60_000), onEvent });
  }
});

/** How near one picture is to another of its size, over all and in its colours alone (red and blue against green). */
function likenessOf(actual: Uint8Array, expected: Uint8Array): { psnrDb: number; colours: number } {
  expect(actual.length).toBe(expected.length);
  const squares = actual.reduce((sum, value, i) => sum + (value - expected[i]!) ** 2, 0);
  return {
    psnrDb: 10 * Math.log10(255 ** 2 / (squares / actual.length)),
    colours: correlation(coloursOf(actual), coloursOf(expected)),
  };
}

function coloursOf(pixels: Uint8Array): readonly number[] {
  return [...pixels].flatMap((value, i) => (i % 3 === 1 ? [] : [value - pixels[i - (i % 3) + 1]!]));
}

/** Pearson's. */
function correlation(a: readonly number[], b: readonly number[]): number {
  const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [meanA, meanB] = [mean(a), mean(b)];
  const product = (x: readonly number[], y: readonly number[], mx: number, my: number) =>
    x.reduce((sum, value, i) => sum + (value - mx) * (y[i]! - my), 0);
  return product(a, b, meanA, meanB) / Math.sqrt(product(a, a, meanA, meanA) * product(b, b, meanB, meanB));
}
