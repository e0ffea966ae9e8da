import { Deadline, ManualClock, ServingError } from "@atelier/core";
import { createPlan, latentSize, readSchedulerConfig, SAMPLERS, type SamplerName } from "@atelier/diffusion";
import { describe, expect, it } from "vitest";
import type { UnetBatch } from "./denoise.ts";
import { type Conditioning, DenoiseJob, type DenoiseJobOptions } from "./denoise-job.ts";
import { DenoiseWorld, type WorldOptions } from "./testing/denoise-world.ts";

/**
 * The real jobs, samplers and noise on lanes that predict by an arithmetic of their own for each row, as a U-Net does,
 * into arrays that they use again. What a picture becomes must not depend on how its steps came about.
 */
describe("a picture is the same to the last bit, alone and", () => {
  it.each(SAMPLERS)("in a batch with others of other samplers, steps and guidance: %s", async (sampler) => {
    const options = { sampler, steps: 7, guidance: 3 };
    const alone = await draw([picture("it", options)]);
    const others = SAMPLERS.map((other, i) =>
      picture(`other-${i}`, { sampler: other, steps: 3 + 2 * i, guidance: i % 3 === 0 ? 1 : i }),
    );
    const together = await draw([...others.slice(0, 3), picture("it", options), ...others.slice(3)]);

    expect(together.get("it")!.latent).toEqual(alone.get("it")!.latent);
  });

  it("paused for more urgent work and resumed on another lane", async () => {
    const options = { sampler: "euler_a", steps: 12, guidance: 2 } as const;
    const alone = await draw([picture("it", options)]);
    const jobs = [picture("it", { ...options, of: "bulk" })];
    const world = pixelWorld({ narrow: 2, runMs: ({ threads, rows }) => (threads === 1 ? 10 : 6) * rows });
    for (const job of jobs) world.stage.enqueue(job);
    for (const atMs of [25, 90])
      world.at(atMs, () =>
        world.stage.enqueue(picture(`urgent-${atMs}`, { sampler: "ddim", steps: 3, of: "interactive" })),
      );
    world.at(130, () => {
      for (let i = 0; i < 3; i++) world.stage.enqueue(picture(`beside-${i}`, { sampler: "lcm", steps: 9, of: "bulk" }));
    });
    await world.run();

    expect(jobs[0]!.preemptions).toBeGreaterThan(0);
    const lanes = world.runs.filter((run) => run.stepped.includes(jobs[0]!)).map(({ lane }) => lane);
    expect(new Set(lanes).size).toBeGreaterThan(1);
    expect(jobs[0]!.latent).toEqual(alone.get("it")!.latent);
  });

  it.each([
    ["is cancelled", (job: DenoiseJob) => job.cancel()],
    ["runs out of time", (_: DenoiseJob, clock: ManualClock) => clock.advance(1000)],
  ])("beside seven others in a batch of eight, one of which %s in the middle", async (_, strike) => {
    const of = (i: number) => picture(`${i}`, { sampler: SAMPLERS[i % SAMPLERS.length]!, steps: 6, seed: BigInt(i) });
    const expected = await draw(Array.from({ length: 7 }, (_, i) => of(i)));
    const clock = new ManualClock();
    const victim = picture("victim", { sampler: "euler", steps: 6, deadline: Deadline.after(clock, 1000) });
    const jobs = [...Array.from({ length: 7 }, (_, i) => of(i)), victim];
    const world = pixelWorld();
    for (const job of jobs) world.stage.enqueue(job);
    await world.run({ turns: 2 });
    expect(world.runs[0]!.batch.jobs).toHaveLength(8);
    strike(victim, clock);
    await world.run();

    expect(world.failures.get(victim)).toBeDefined();
    for (const job of jobs.slice(0, 7)) expect(job.latent, job.id).toEqual(expected.get(job.id)!.latent);
  });

  it("beside seven others in a batch of eight, one of which turns into NaN", async () => {
    const of = (i: number) => picture(`${i}`, { sampler: SAMPLERS[i % SAMPLERS.length]!, steps: 6, seed: BigInt(i) });
    const expected = await draw(Array.from({ length: 7 }, (_, i) => of(i)));
    const victim = picture("victim", { sampler: "euler", steps: 6, prompt: Number.NaN });
    const jobs = [...Array.from({ length: 7 }, (_, i) => of(i)), victim];
    const world = await drawn(jobs);

    expect(world.runs[0]!.batch.jobs).toHaveLength(8);
    expect(world.failures.get(victim)?.code).toBe("NUMERIC_FAILURE");
    for (const job of jobs.slice(0, 7)) expect(job.latent, job.id).toEqual(expected.get(job.id)!.latent);
  });

  it("through a device that had no memory for the batch at first", async () => {
    const of = (i: number) => picture(`${i}`, { sampler: SAMPLERS[i % SAMPLERS.length]!, steps: 4, seed: BigInt(i) });
    const expected = await draw(Array.from({ length: 8 }, (_, i) => of(i)));
    const jobs = Array.from({ length: 8 }, (_, i) => of(i));
    const world = await drawn(jobs, {
      predict: (batch, lane) => {
        if (batch.rows.length > 4) throw new ServingError("OUT_OF_MEMORY", "no room");
        return predict(batch, lane);
      },
    });

    expect(world.failures.size).toBe(0);
    for (const job of jobs) expect(job.latent, job.id).toEqual(expected.get(job.id)!.latent);
  });
});

const SHAPE = { channels: 4, height: 4, width: 4 };
const SCHEDULE = readSchedulerConfig({
  _class_name: "DDIMScheduler",
  beta_start: 0.00085,
  beta_end: 0.012,
  beta_schedule: "scaled_linear",
  clip_sample: false,
  set_alpha_to_one: false,
  steps_offset: 1,
  prediction_type: "epsilon",
});

interface PictureOptions {
  readonly sampler: SamplerName;
  readonly steps: number;
  readonly guidance?: number;
  readonly seed?: bigint;
  readonly of?: "interactive" | "standard" | "bulk";
  /** What its prompt is embedded as. */
  readonly prompt?: number;
  readonly deadline?: Deadline;
}

function picture(id: string, options: PictureOptions): DenoiseJob {
  const { sampler, steps, guidance = 2, seed = 7n, of = "standard", prompt = 0.3 } = options;
  const conditioning: Conditioning = {
    sequenceLength: 1,
    prompt: Float32Array.of(prompt),
    negative: guidance > 1 ? Float32Array.of(-0.1) : undefined,
  };
  const made: DenoiseJobOptions = {
    id,
    model: "tiny",
    plan: createPlan({ sampler, steps, schedule: SCHEDULE }),
    shape: SHAPE,
    refine: undefined,
    conditioning,
    guidanceScale: guidance,
    seed,
    deadline: options.deadline ?? Deadline.after(new ManualClock(), 1000),
    order: { priorityClass: of, tenant: "", finishAtMs: undefined },
  };
  return new DenoiseJob(made);
}

/** The finished pictures, by id. */
async function draw(jobs: readonly DenoiseJob[]): Promise<ReadonlyMap<string, DenoiseJob>> {
  await drawn(jobs);
  return new Map(jobs.map((job) => [job.id, job]));
}

async function drawn(jobs: readonly DenoiseJob[], options: WorldOptions = {}): Promise<DenoiseWorld<DenoiseJob>> {
  const world = pixelWorld(options);
  for (const job of jobs) world.stage.enqueue(job);
  await world.run();
  return world;
}

function pixelWorld(options: WorldOptions = {}): DenoiseWorld<DenoiseJob> {
  return new DenoiseWorld<DenoiseJob>({ sides: [4], predict, ...options });
}

const kept = new Map<string, Float32Array>();

/** An arithmetic of the row alone, in arrays that belong to the lane. */
function predict({ rows }: UnetBatch, lane: string): readonly Float32Array[] {
  return rows.map(({ sample, timestep, conditioning }, i) => {
    const key = `${lane} ${i}`;
    const out = kept.get(key) ?? new Float32Array(latentSize(SHAPE));
    kept.set(key, out);
    for (let n = 0; n < out.length; n++) out[n] = Math.sin(sample[n]! + timestep / 300) + conditioning[0]! * (n % 5);
    return out;
  });
}
