import { createHash } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { sha256 } from "@atelier/core";
import { type DenoiseState, type GenerateRequest, type StartLatent, StartLatentSchema } from "@atelier/proto";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { wireSampler } from "./server/wire.ts";
import { copyBundle } from "./testing/copied-bundle.ts";
import { type SpawnedWorker, spawnWorker } from "./testing/spawn-worker.ts";
import { type Generation, WorkerClient } from "./testing/worker-client.ts";

/** One phase, and above the native size of the model as it is copied here two. */
const ONE_PHASE = { width: 128, height: 128, steps: 6, seed: 31n };
const TWO_PHASES = { width: 192, height: 160, steps: 10, seed: 31n };
const SMALL_SIZES = {
  nativeSize: { width: 128, height: 128 },
  hiresFix: { abovePixels: 128 * 128, strength: 0.2, upscale: "bicubic" },
};

describe("a generation that begins from another's latent", () => {
  let folder: string;
  let worker: SpawnedWorker;
  let client: WorkerClient;

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "atelier-start-latent-"));
    const bundle = await copyBundle(join(folder, "atelier-tiny"), "atelier-tiny", SMALL_SIZES);
    worker = spawnWorker({ ATELIER_MODELS: bundle });
    client = new WorkerClient((await worker.said("listening")).address);
    await worker.said("ready");
  });
  afterAll(async () => {
    client.close();
    worker.process.kill("SIGTERM");
    await worker.exited;
    await rm(folder, { recursive: true });
  });

  // These keep no history, so what they left at a step is all that there is to go on from.
  it.each(["euler", "ddim", "euler_a", "lcm"] as const)(
    "from its own latent is the undisturbed picture, bit for bit: %s",
    async (sampler) => {
      const wish = { ...ONE_PHASE, sampler: wireSampler(sampler) };
      const { whole, states } = await checkpointed(wish);
      expect(states.map(({ stepIndex }) => stepIndex)).toEqual([1, 2, 3, 4, 5]);
      for (const state of [states[0]!, states[3]!]) {
        const begun = await ended(client.generate(wish, { startLatent: startOf(state) }));
        expect(picturesOf(begun)).toEqual(picturesOf(whole));
      }
    },
  );

  it("goes through both phases of a large picture, and is the undisturbed one there too", async () => {
    const wish = { ...TWO_PHASES, sampler: wireSampler("euler_a") };
    const { whole, states } = await checkpointed(wish);
    const state = states.find(({ phase, stepIndex }) => phase === 0 && stepIndex === 4)!;
    const begun = await ended(client.generate(wish, { startLatent: startOf(state) }));
    expect(picturesOf(begun)).toEqual(picturesOf(whole));
    expect(begun.all("accepted")[0]!.stepsTotal).toBe(whole.all("accepted")[0]!.stepsTotal - 4);
  });

  it("runs and counts only the steps that are left, and the receipt says what was left out", async () => {
    const wish = { ...ONE_PHASE, sampler: wireSampler("dpmpp_2m"), numImages: 2 };
    const { states } = await checkpointed({ ...ONE_PHASE, sampler: wireSampler("dpmpp_2m") });
    const start = startOf(states[3]!);
    const begun = await ended(client.generate(wish, { startLatent: start }));
    expect(begun.all("accepted")[0]!.stepsTotal).toBe(2 * (6 - 4));
    expect(Math.max(...begun.all("progress").map(({ stepsDone }) => stepsDone))).toBe(2 * (6 - 4));
    const { receipt } = begun.all("completed")[0]!;
    expect(receipt).toMatchObject({ reusedSteps: 4, startLatentDigest: sha256(start.latent), resumedAtSteps: [] });

    const plain = await ended(client.generate(wish));
    expect(plain.all("completed")[0]!.receipt).toMatchObject({ reusedSteps: 0, startLatentDigest: "" });
  });

  it("starts every image there, and each goes on with its own seed's noise", async () => {
    const wish = { ...ONE_PHASE, sampler: wireSampler("euler_a") };
    const { states } = await checkpointed(wish);
    const startLatent = startOf(states[1]!);
    const both = await ended(client.generate({ ...wish, numImages: 2 }, { startLatent }));
    const alone = await ended(client.generate({ ...wish, seed: wish.seed + 1n }, { startLatent }));
    const [first, second] = picturesOf(both);
    expect(second).toBe(picturesOf(alone)[0]);
    expect(second).not.toBe(first);
  });

  it("takes another prompt on, and changes nothing of those beside it", async () => {
    const wish = { ...ONE_PHASE, sampler: wireSampler("dpmpp_2m") };
    const { whole, states } = await checkpointed(wish);
    const other = { ...wish, prompt: "a blue sofa", seed: 5n };
    const startLatent = startOf(states[2]!);
    const alone = await ended(client.generate(other, { startLatent }));
    const together = await Promise.all([
      ended(client.generate(other, { startLatent })),
      ended(client.generate(wish)),
      ended(client.generate(other, { startLatent })),
    ]);
    expect(together.map((generation) => picturesOf(generation)[0])).toEqual([
      picturesOf(alone)[0],
      picturesOf(whole)[0],
      picturesOf(alone)[0],
    ]);
    const unshared = await ended(client.generate(other));
    expect(picturesOf(alone)).not.toEqual(picturesOf(unshared));
  });

  it("is finished elsewhere from a state that it left, with the same pixels", async () => {
    // A sampler with history: the state has as much of it as the steps that really ran gave.
    const wish = { ...ONE_PHASE, sampler: wireSampler("unipc") };
    const { states } = await checkpointed({ ...wish, prompt: "a blue sofa" });
    const startLatent = startOf(states[1]!);
    const begun = await ended(client.generate(wish, { startLatent, checkpointEverySteps: 1 }));
    for (const { state } of begun.all("checkpoint")) {
      const moved = await ended(client.generate(wish, { startLatent, resumeFrom: [state!] }));
      expect(picturesOf(moved)).toEqual(picturesOf(begun));
      expect(moved.all("completed")[0]!.receipt!.resumedAtSteps).toEqual([state!.stepIndex - 2]);
    }
  });

  it("is refused by name where the latent does not fit, before anything runs", async () => {
    const wish = { ...ONE_PHASE, sampler: wireSampler("euler") };
    const { states } = await checkpointed(wish);
    const good = startOf(states[0]!);
    const shape = { channels: 4, height: 16, width: 16 };
    const poisoned = (value: number) => {
      const latent = new Float32Array(4 * 16 * 16);
      latent[77] = value;
      return new Uint8Array(latent.buffer);
    };
    const bystander = client.generate({ ...wish, steps: 12 });
    const cases: [MessageInitShape<typeof StartLatentSchema>, RegExp, Partial<GenerateRequest>?, object?][] = [
      [{ ...good, shape: undefined }, /has no shape/],
      [{ ...good, latent: good.latent.subarray(4) }, /has 4092 bytes, float32 of its shape 4x16x16 has 4096/],
      [{ ...good, latent: new Uint8Array() }, /has 0 bytes/],
      [
        { stepIndex: 1, shape: { ...shape, width: 8 }, latent: good.latent.subarray(2048) },
        /the shape 4x16x8, .* 4x16x16/,
      ],
      [{ stepIndex: 1, shape: { channels: 0, height: 0, width: 0 }, latent: new Uint8Array() }, /the shape 0x0x0/],
      [good, /the shape 4x16x16, the request's is 4x\d+x\d+/, {}, TWO_PHASES],
      [{ ...good, stepIndex: 0 }, /step_index 0; it is over 0 and below the plan's 6 steps/],
      [{ ...good, stepIndex: 6 }, /step_index 6/],
      [{ ...good, stepIndex: 4_000_000_000 }, /step_index 4000000000/],
      [{ ...good, latent: poisoned(Number.NaN) }, /NaN or an infinity/],
      [{ ...good, latent: poisoned(Number.POSITIVE_INFINITY) }, /NaN or an infinity/],
      [good, /together with an init_image/, { initImage: Uint8Array.of(1) }, { strength: 0.5 }],
    ];
    for (const [start, reason, rest, parameters] of cases) {
      const startLatent = create(StartLatentSchema, start);
      const generation = client.generate({ ...wish, ...parameters }, { ...rest, startLatent });
      await expect(generation.ended).rejects.toMatchObject({
        code: "INVALID_REQUEST",
        field: "start_latent",
        message: expect.stringMatching(reason),
      });
      expect(generation.events).toEqual([]);
    }
    await bystander.ended;
  });

  async function checkpointed(wish: Parameters<WorkerClient["generate"]>[0]) {
    const whole = await ended(client.generate(wish, { checkpointEverySteps: 1 }));
    return { whole, states: whole.all("checkpoint").map(({ state }) => state!) };
  }
});

function startOf({ shape, latent, stepIndex }: DenoiseState): StartLatent {
  return create(StartLatentSchema, { shape: shape!, latent, stepIndex });
}

async function ended(generation: Generation): Promise<Generation> {
  await generation.ended;
  return generation;
}

/** By image. PNG is lossless and our encoder deterministic: equal files are equal pixels. */
function picturesOf(generation: Generation): string[] {
  return generation
    .all("image")
    .toSorted((a, b) => a.imageIndex - b.imageIndex)
    .map(({ data }) => createHash("sha256").update(data).digest("hex"));
}
