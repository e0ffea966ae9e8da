import { ServingError } from "@atelier/core";
import { describe, expect, it } from "vitest";
import type { UnetBatch } from "./denoise.ts";
import { denoising, FOUR_CORES, lines } from "./testing/denoise-trace.ts";
import { fakeJob } from "./testing/fake-job.ts";

describe("DenoiseStage", () => {
  it("lets a short job that arrives late join between steps, and finish before a long one", async () => {
    const { world, enqueue, trace } = denoising();
    enqueue("long", { steps: 5 });
    world.at(15, () => enqueue("short", { steps: 2 }));
    await world.run();

    expect(trace()).toEqual(lines`
      long@0
      long@1
      short@0 long@2
      short@1 long@3 -> short
      long@4 -> long
    `);
  });

  it("runs jobs apart that differ in model, shape, length of their prompts or extra inputs", async () => {
    const { world, enqueue, trace } = denoising({ models: ["tiny", "other"] });
    enqueue("one");
    enqueue("other-model", { model: "other" });
    enqueue("other-shape", { side: 64 });
    enqueue("long-prompt", { sequenceLength: 154 });
    enqueue("pooled", { extraInputs: "text_embeds 1280 time_ids" });
    enqueue("like-one");
    await world.run();

    expect(trace().toSorted()).toEqual(lines`
      long-prompt@0 -> long-prompt
      one@0 like-one@0 -> one like-one
      other-model@0 -> other-model
      other-shape@0 -> other-shape
      pooled@0 -> pooled
    `);
  });

  it("gives every job its own rows of the batch, one or two each", async () => {
    const batches: UnetBatch[] = [];
    const { world, enqueue } = denoising({
      predict: (batch) => {
        batches.push(batch);
        return batch.rows.map((_, i) => Float32Array.of(i));
      },
    });
    const jobs = [enqueue("guided", { rows: 2 }), enqueue("plain", { rows: 1 }), enqueue("last", { rows: 2 })];
    await world.run();

    expect(batches[0]!.rows).toHaveLength(5);
    const rows = jobs.flatMap((job) => job.received[0]!);
    expect(rows.toSorted()).toEqual([0, 1, 2, 3, 4]);
    expect(jobs.map((job) => job.received[0]!.length)).toEqual([2, 1, 2]);
  });

  it("tells each job its share of the device, and the shares add up to the time that it worked", async () => {
    const { world, enqueue } = denoising();
    const guided = enqueue("guided", { rows: 2, steps: 3 });
    const plain = enqueue("plain", { rows: 1, steps: 3 });
    const late = fakeJob("late", { steps: 2 });
    world.at(1_000, () => world.stage.enqueue(late));
    await world.run();

    const workedMs = world.runs.reduce((sum, { batch, endedAtMs }) => sum + endedAtMs - batch.startedAtMs, 0);
    expect(guided.deviceMs + plain.deviceMs + late.deviceMs).toBeCloseTo(workedMs);
    expect(guided.deviceMs).toBeCloseTo(2 * plain.deviceMs);
    expect(workedMs).toBeLessThan(world.clock.nowMs()); // nobody pays for the time between
  });

  it("counts a run on one of several lanes for its part of the device", async () => {
    const { world, enqueue } = denoising({ narrow: 4, runMs: FOUR_CORES });
    const jobs = Array.from({ length: 4 }, (_, i) => enqueue(`job-${i}`, { steps: 5 }));
    await world.run();
    expect(world.runs.every(({ lane }) => lane !== "wide")).toBe(true);
    expect(jobs.reduce((sum, job) => sum + job.deviceMs, 0)).toBeCloseTo(world.clock.nowMs());
  });

  it("runs no more jobs at once than the step batch holds", async () => {
    const { world, enqueue, trace } = denoising({ stepBatchMax: 2 });
    for (const id of ["a", "b", "c"]) enqueue(id, { steps: 2 });
    await world.run();

    expect(trace()).toEqual(lines`
      a@0 b@0
      a@1 b@1 -> a b
      c@0
      c@1 -> c
    `);
  });

  it("starts a job that arrives while a lane is free at once, beside those that run", async () => {
    const { world, enqueue, trace } = denoising({ narrow: 2, runMs: ({ threads }) => (threads === 1 ? 10 : 100) });
    enqueue("first", { steps: 2 });
    world.at(4, () => enqueue("second", { steps: 2 }));
    await world.run();

    expect(trace()).toEqual(lines`
      0: first@0
      1: second@0
      0: first@1 -> first
      1: second@1 -> second
    `);
    expect(world.clock.nowMs()).toBe(24);
  });

  it("drops a cancelled job before its next step", async () => {
    const { world, enqueue, trace } = denoising({ stepBatchMax: 1 });
    const first = enqueue("first", { steps: 9 });
    enqueue("second", { steps: 10 });
    world.at(15, () => first.end(new ServingError("CANCELLED", "taken back")));
    await world.run({ untilMs: 40 });

    expect(trace().slice(0, 3)).toEqual(lines`
      first@0
      ! first CANCELLED
      second@0
    `);
  });

  it("drops a job whose time is up while it waits", async () => {
    const { world, enqueue, trace } = denoising({ stepBatchMax: 1 });
    enqueue("running", { steps: 2 });
    world.at(2, () => {
      enqueue("late", { steps: 9 }).end(new ServingError("DEADLINE_EXCEEDED", "too late"));
    });
    await world.run();

    expect(trace()).toEqual(lines`
      ! late DEADLINE_EXCEEDED
      running@0
      running@1 -> running
    `);
  });

  it("fails a job with NaN in its latent alone", async () => {
    const { world, enqueue, trace } = denoising();
    enqueue("good", { steps: 2 });
    enqueue("bad", { steps: 2, failsAt: 0 });
    await world.run();

    expect(trace()).toEqual(lines`
      good@0 ! bad NUMERIC_FAILURE
      good@1 -> good
    `);
  });

  it("halves a batch that the device has no memory for, and remembers how much fits", async () => {
    const { world, enqueue, trace } = denoising({ predict: roomFor(4) });
    for (const id of ["a", "b", "c", "d"]) enqueue(id, { steps: 2 });
    await world.run();

    expect(trace()).toEqual(lines`
      (a b c d)
      a@0 b@0
      a@1 b@1 -> a b
      c@0 d@0
      c@1 d@1 -> c d
    `);
  });

  it("fails a job alone that does not fit alone, and the next is unharmed", async () => {
    const { world, enqueue, trace } = denoising({ predict: roomFor(2, 32) });
    enqueue("large", { side: 64 });
    enqueue("small", { side: 32 });
    await world.run();

    expect(trace()).toEqual(lines`
      ! large OUT_OF_MEMORY
      small@0 -> small
    `);
  });

  it("fails the jobs of a run that the device refused for another reason, and goes on with the next", async () => {
    let runs = 0;
    const { world, enqueue, trace } = denoising({
      stepBatchMax: 2,
      predict: (batch) => {
        runs += 1;
        if (runs === 1) throw new ServingError("WORKER_LOST", "the network's thread ended");
        return batch.rows.map(() => new Float32Array());
      },
    });
    for (const id of ["a", "b", "c"]) enqueue(id);
    await world.run();

    expect(trace()).toEqual(lines`
      ! a WORKER_LOST ! b WORKER_LOST
      c@0 -> c
    `);
  });

  it("lets a job go on at a larger size for its second phase", async () => {
    const { world, enqueue, trace } = denoising();
    enqueue("two-phase", { side: 32, steps: 3, enlargesAt: 1 });
    enqueue("small", { side: 32, steps: 2 });
    await world.run();

    expect(trace()).toEqual(lines`
      small@0 two-phase@0
      small@1 -> small
      two-phase@1
      two-phase@2 -> two-phase
    `);
  });

  it("refuses a job when it is full", () => {
    const { enqueue } = denoising({ jobsMax: 2 });
    enqueue("a");
    enqueue("b");
    expect(() => enqueue("c")).toThrow(/OVERLOADED.*2 jobs are here/);
  });

  it("finishes no more latents than image decode has room for, all but their last steps meanwhile", async () => {
    const { world, enqueue, trace } = denoising({ undecodedMax: 1 });
    enqueue("a", { steps: 1 });
    enqueue("b", { steps: 1 });
    enqueue("c", { steps: 3 });
    await world.run();
    expect(world.stage.busy).toBe(false);
    world.stage.taken(1);
    await world.run();
    world.stage.taken(1);
    await world.run();

    expect(trace()).toEqual(lines`
      a@0 c@0 -> a
      c@1
      b@0 -> b
      c@2 -> c
    `);
  });

  it("lets a bug out: it is not a failure of a request", async () => {
    const { world, enqueue } = denoising({
      predict: () => {
        throw new TypeError("a bug");
      },
    });
    enqueue("a");
    await expect(world.run()).rejects.toThrow("a bug");
  });

  it("opens the narrow lanes when there is work for several, once, and goes on without those that cannot be", async () => {
    const { world, enqueue, trace } = denoising({ narrow: 4, opened: 0, runMs: FOUR_CORES });
    enqueue("alone", { steps: 2 });
    await world.run();
    expect(world.openedNarrow).toBe(0);
    for (const id of ["a", "b", "c", "d"]) enqueue(id, { steps: 3 });
    await world.run();
    expect(world.openedNarrow).toBe(1);
    expect(trace().slice(0, 3)).toEqual(lines`
      wide: alone@0
      wide: alone@1 -> alone
      wide: a@0 b@0 c@0 d@0
    `);
    expect(world.runs.at(-1)!.lane).not.toBe("wide");
  });

  it("says when no lane runs any more, so that they can be released", async () => {
    const { world } = denoising();
    world.stage.enqueue(fakeJob("a", { steps: 2 }));
    await world.run({ turns: 1 });
    let quiet = false;
    void world.stage.quiet().then(() => {
      quiet = true;
    });
    await Promise.resolve();
    expect(quiet).toBe(false); // the second step runs
    await world.run();
    expect(quiet).toBe(true);
  });
});

/** Room for so many rows of this side, and the more of smaller ones. */
function roomFor(rowsMax: number, side = 32) {
  return ({ rows, shape }: UnetBatch) => {
    if (rows.length * shape.height ** 2 > rowsMax * side ** 2) throw new ServingError("OUT_OF_MEMORY", "no room");
    return rows.map(() => new Float32Array());
  };
}
