import { createHash } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { SAMPLERS, type SamplerName } from "@atelier/diffusion";
import { type DenoiseState, DenoiseStateSchema, ServiceOrderSchema } from "@atelier/proto";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import sharp from "sharp";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { wireSampler } from "../server/wire.ts";
import { copyBundle } from "../testing/copied-bundle.ts";
import { type SpawnedWorker, spawnWorker } from "../testing/spawn-worker.ts";
import { type Generation, WorkerClient } from "../testing/worker-client.ts";

/** Small pictures: one of one phase, one above the native size of the model as it is copied here, so of two. */
const ONE_PHASE = { width: 128, height: 128, steps: 5 };
const TWO_PHASES = { width: 192, height: 160, steps: 10 };
const CASES = SAMPLERS.flatMap((sampler) => [1, 2.5].map((guidanceScale) => ({ sampler, guidanceScale })));
const SMALL_SIZES = {
  nativeSize: { width: 128, height: 128 },
  hiresFix: { abovePixels: 128 * 128, strength: 0.2, upscale: "bicubic" },
};
let folder: string;
let bundle: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "atelier-moving-"));
  bundle = await copyBundle(join(folder, "atelier-tiny"), "atelier-tiny", SMALL_SIZES);
});
afterAll(() => rm(folder, { recursive: true }));

describe("an image that is moved to another worker process", () => {
  let first: { worker: SpawnedWorker; client: WorkerClient };
  let second: { worker: SpawnedWorker; client: WorkerClient };
  beforeAll(async () => {
    [first, second] = await Promise.all([startWorker({ ATELIER_THREADS: "2" }), startWorker()]);
  });
  afterAll(() => Promise.all([stopWorker(first), stopWorker(second)]));

  it.each(CASES)(
    "has the same pixels from every step on: $sampler, guidance scale $guidanceScale",
    async ({ sampler, guidanceScale }) => {
      const { digest, states } = await checkpointed({ ...ONE_PHASE, sampler, guidanceScale });
      expect(states.map(({ stepIndex }) => stepIndex)).toEqual([1, 2, 3, 4]);
      const resumed = await Promise.all(states.map((state) => resume(state)));
      expect(resumed).toEqual(states.map(() => digest));
    },
  );

  it.each(CASES)("has the same pixels from either phase on: $sampler, guidance scale $guidanceScale", async (wish) => {
    const { digest, states } = await checkpointed({ ...TWO_PHASES, ...wish });
    expect(states.map(({ phase }) => phase)).toContain(1);
    const lastOfFirst = states.findLast(({ phase }) => phase === 0)!;
    const lastOfSecond = states.findLast(({ phase }) => phase === 1)!;
    expect(await Promise.all([resume(lastOfFirst), resume(lastOfSecond)])).toEqual([digest, digest]);
  });

  it("tells at which step it went on, and counts the steps that were made elsewhere", async () => {
    const { states } = await checkpointed({ ...ONE_PHASE, sampler: "euler_a", guidanceScale: 2.5 });
    const generation = second.client.generate(states[2]!.parameters, { resumeFrom: [states[2]!] });
    await generation.ended;
    expect(generation.all("accepted")[0]!.stepsTotal).toBe(5);
    expect(generation.all("completed")[0]!.receipt!.resumedAtSteps).toEqual([3]);
    expect(generation.all("progress").find(({ stepsDone }) => stepsDone > 0)!.stepsDone).toBe(4);
  });

  it("needs no init image where it began from one", async () => {
    const initImage = await sharp({ create: { width: 128, height: 128, channels: 3, background: "#c33" } })
      .png()
      .toBuffer();
    const parameters = { ...ONE_PHASE, sampler: wireSampler("euler_a"), seed: 21n, strength: 0.7 };
    const whole = first.client.generate(parameters, { initImage, checkpointEverySteps: 1 });
    await whole.ended;
    const states = whole.all("checkpoint").map(({ state }) => state!);
    expect(states.map(({ stepIndex }) => stepIndex)).toEqual([3, 4]); // of 5 steps, image to image starts at 2
    expect(await Promise.all(states.map((state) => resume(state)))).toEqual(states.map(() => picturesOf(whole)[0]));
  });

  it("is one of several: the others of its request start from noise", async () => {
    const parameters = { ...ONE_PHASE, sampler: wireSampler("euler"), seed: 40n, numImages: 3 };
    const whole = first.client.generate(parameters, { checkpointEverySteps: 2 });
    await whole.ended;
    const state = whole.all("checkpoint").find(({ state }) => state!.imageIndex === 1)!.state!;
    const resumed = second.client.generate(parameters, { resumeFrom: [state] });
    await resumed.ended;
    expect(picturesOf(resumed)).toEqual(picturesOf(whole));
    expect(resumed.all("completed")[0]!.receipt!.resumedAtSteps).toEqual([state.stepIndex]);
  });

  it("is refused where it does not belong, before anything runs", async () => {
    const { states } = await checkpointed({ ...ONE_PHASE, sampler: "ddim", guidanceScale: 2.5 });
    const [state, other] = states as [DenoiseState, DenoiseState];
    const refused = async (resumeFrom: DenoiseState[], change: object, reason: RegExp) => {
      const generation = second.client.generate({ ...state.parameters, ...change }, { resumeFrom });
      await expect(generation.ended).rejects.toMatchObject({
        code: "INVALID_REQUEST",
        message: expect.stringMatching(reason),
      });
      expect(generation.events).toEqual([]);
    };
    await refused([state, other], {}, /resume_from holds two states of image 0/);
    await refused([state], { prompt: "another" }, /begun with prompt/);
    await refused([{ ...state, latent: state.latent.subarray(0, 400) }], {}, /does not match its digest/);
    await refused([state], { model: "atelier-tiny-2" }, /begun with model "atelier-tiny"/);
    await refused([withDigest({ ...state, history: [state.latent] })], {}, /1 arrays of history/);
  });

  /** A picture made in one go by the first worker, and where it stood after each step. */
  async function checkpointed(wish: { sampler: SamplerName; guidanceScale: number; width: number; steps: number }) {
    const parameters = { ...wish, sampler: wireSampler(wish.sampler), seed: 11n };
    const generation = first.client.generate(parameters, { checkpointEverySteps: 1 });
    await generation.ended;
    const states = generation.all("checkpoint").map(({ state }) => state!);
    return { digest: picturesOf(generation)[0]!, states };
  }

  /** The digest of the picture that the second worker makes of a state that came as bytes. */
  async function resume(state: DenoiseState): Promise<string> {
    const moved = fromBinary(DenoiseStateSchema, toBinary(DenoiseStateSchema, state));
    const generation = second.client.generate(moved.parameters, { resumeFrom: [moved] });
    await generation.ended;
    return picturesOf(generation)[0]!;
  }
});

describe("a worker that leaves with work in flight", () => {
  it("hands every image back, and another finishes them with the same pixels", async () => {
    const leaving = await startWorker({ ATELIER_DRAIN_MS: "0" });
    const other = await startWorker();
    const wishes = [
      { ...ONE_PHASE, steps: 80, sampler: wireSampler("euler_a"), seed: 3n, numImages: 2 },
      { ...TWO_PHASES, steps: 40, sampler: wireSampler("unipc"), seed: 9n, numImages: 1 },
    ];
    // Of two tenants, which take turns: both are under way when the worker leaves.
    const running = wishes.map((wish, i) =>
      leaving.client.generate(wish, { order: create(ServiceOrderSchema, { tenant: `tenant ${i}` }) }),
    );
    for (const generation of running) await generation.first("progress", ({ stepsDone }) => stepsDone >= 2);
    leaving.worker.process.kill("SIGTERM");
    for (const generation of running) {
      await expect(generation.ended).rejects.toMatchObject({ code: "DRAINING", retryable: true });
    }
    expect((await leaving.worker.exited).code).toBe(0);
    leaving.client.close();

    for (const [i, wish] of wishes.entries()) {
      const states = running[i]!.all("checkpoint").map(({ state }) => state!);
      expect(states).toHaveLength(wish.numImages);
      const finished = other.client.generate(wish, { resumeFrom: states });
      const whole = other.client.generate(wish);
      await Promise.all([finished.ended, whole.ended]);
      expect(finished.all("completed")[0]!.receipt!.resumedAtSteps.some((step) => step > 0)).toBe(true);
      expect(picturesOf(finished)).toEqual(picturesOf(whole));
    }
    await stopWorker(other);
  });

  it("tells who has it drained how many images it handed back", async () => {
    const leaving = await startWorker();
    const wish = { ...ONE_PHASE, steps: 100, sampler: wireSampler("ddim"), numImages: 2 };
    const generation = leaving.client.generate(wish);
    await generation.first("progress", ({ stepsDone }) => stepsDone >= 1);
    const { finished, imagesHandedBack } = await leaving.client.drain(0);
    await expect(generation.ended).rejects.toMatchObject({ code: "DRAINING" });
    expect(finished).toBe(0);
    expect(generation.all("checkpoint").map(({ state }) => state!.imageIndex)).toEqual([0, 1]);
    expect(imagesHandedBack).toBe(2);
    await stopWorker(leaving);
  });

  it("hands nothing back that it finished in time", async () => {
    const leaving = await startWorker();
    const wish = { ...ONE_PHASE, steps: 20, sampler: wireSampler("ddim") };
    const generation = leaving.client.generate(wish, { checkpointEverySteps: 1 });
    await generation.first("progress", ({ stepsDone }) => stepsDone >= 1);
    const { finished, imagesHandedBack } = await leaving.client.drain(60_000);
    await generation.ended;
    expect({ finished, imagesHandedBack }).toEqual({ finished: 1, imagesHandedBack: 0 });
    await stopWorker(leaving);
  });
});

/** What a forger who knows the format can do. */
function withDigest(state: DenoiseState): DenoiseState {
  const bare = { ...state, digest: new Uint8Array() };
  return { ...state, digest: createHash("sha256").update(toBinary(DenoiseStateSchema, bare)).digest() };
}

async function startWorker(env: Record<string, string> = {}) {
  const worker = spawnWorker({ ATELIER_MODELS: bundle, ...env });
  const { address } = await worker.said("listening");
  await worker.said("ready");
  return { worker, client: new WorkerClient(address) };
}

async function stopWorker({ worker, client }: { worker: SpawnedWorker; client: WorkerClient }): Promise<void> {
  client.close();
  worker.process.kill("SIGTERM");
  await worker.exited;
}

/** By image. PNG is lossless and our encoder deterministic: equal files are equal pixels. */
function picturesOf(generation: Generation): string[] {
  return generation
    .all("image")
    .toSorted((a, b) => a.imageIndex - b.imageIndex)
    .map(({ data }) => createHash("sha256").update(data).digest("hex"));
}
