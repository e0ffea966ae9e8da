import { ServingError, seededRandom } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { denoising, FOUR_CORES, GPU, lines } from "../testing/denoise-trace.ts";
import type { FakeJob } from "../testing/fake-job.ts";

describe("the order of service", () => {
  it("preempts at the next step for a more urgent class, and goes on when that is done", async () => {
    const { world, enqueue, trace } = denoising({ stepBatchMax: 1 });
    const bulk = enqueue("bulk", { of: "bulk", steps: 3 });
    world.at(5, () => enqueue("standard", { steps: 2 }));
    world.at(12, () => enqueue("interactive", { of: "interactive", steps: 2 }));
    await world.run();

    expect(trace()).toEqual(lines`
      bulk@0
      standard@0
      interactive@0
      interactive@1 -> interactive
      standard@1 -> standard
      bulk@1
      bulk@2 -> bulk
    `);
    expect(bulk.preemptions).toBe(1); // one pause, however many steps it lasted
  });

  it("counts each pause of a job", async () => {
    const { world, enqueue } = denoising({ stepBatchMax: 1 });
    const bulk = enqueue("bulk", { of: "bulk", steps: 9 });
    for (const atMs of [15, 60]) world.at(atMs, () => enqueue(`at-${atMs}`, { of: "interactive", steps: 2 }));
    await world.run();
    expect(bulk.preemptions).toBe(2);
  });

  it("gives a long job a step now and then among endless short ones of its tenant", async () => {
    const { world, enqueue } = denoising({ stepBatchMax: 1 });
    let made = 0;
    const short = () => enqueue(`short-${made++}`, { steps: 2 });
    const long = enqueue("long", { steps: 100 });
    short();
    short();
    const hear = world.onTurn;
    world.onTurn = (turn) => {
      hear(turn);
      for (const _ of turn.finished) short();
    };
    await world.run({ untilMs: 60_000 });
    // 100 steps of 10 ms: four times as long is its patience, less with every step.
    expect(long.stepsDone).toBeGreaterThanOrEqual(15);
    expect(long.stepsDone).toBeLessThanOrEqual(60_000 / 2000);
  });

  it("serves the earliest wish to be finished first, and those that have one before those that have none", async () => {
    const { world, enqueue, trace } = denoising({ stepBatchMax: 1 });
    enqueue("no-wish");
    enqueue("later", { finishAtMs: 900 });
    enqueue("sooner", { finishAtMs: 500, steps: 2 });
    enqueue("urgent-without-wish", { of: "interactive" });
    await world.run();

    expect(trace()).toEqual(lines`
      urgent-without-wish@0 -> urgent-without-wish
      sooner@0
      sooner@1 -> sooner
      later@0 -> later
      no-wish@0 -> no-wish
    `);
  });

  it("finishes equal jobs one batch after another rather than all of them last", async () => {
    const { world, enqueue } = denoising({ runMs: GPU });
    const jobs = Array.from({ length: 16 }, (_, i) => enqueue(`${i}`, { side: 64, steps: 20 }));
    await world.run();
    const finished = jobs.map((job) => world.finishedAtMs.get(job)!);
    expect(Math.max(...finished.slice(0, 8))).toBeLessThan(0.6 * world.clock.nowMs());
  });

  it.each([
    ["one lane equally", { runMs: GPU }, 1],
    ["four narrow lanes equally", { runMs: FOUR_CORES, narrow: 4 }, 1],
    ["one lane three to one", { runMs: GPU }, 3],
  ])(
    "shares %s between tenants, as their weights say, whatever the sizes of their requests",
    async (_, device, weight) => {
      const { world, enqueue } = denoising(device);
      // Always ten of each: small pictures of few steps, and large ones of many.
      const refill = { small: { side: 32, steps: 8 }, large: { side: 64, steps: 50 } } as const;
      let made = 0;
      const weights = { small: weight, large: 1 };
      const add = (tenant: keyof typeof refill) =>
        enqueue(`${tenant}-${made++}`, { ...refill[tenant], tenant, weight: weights[tenant] });
      for (let i = 0; i < 10; i++) for (const tenant of ["small", "large"] as const) add(tenant);
      const deviceMs = new Map<string, number>();
      const hear = world.onTurn;
      world.onTurn = (turn) => {
        hear(turn);
        for (const job of turn.finished) add(job.order.tenant as keyof typeof refill);
        for (const { batch, endedAtMs } of turn.runs)
          for (const { order, rowCount } of batch.jobs) {
            const ms = ((endedAtMs - batch.startedAtMs) / batch.lanes) * (rowCount / batch.rowCount);
            deviceMs.set(order.tenant, (deviceMs.get(order.tenant) ?? 0) + ms);
          }
      };
      await world.run({ untilMs: 30_000 });
      const ratio = deviceMs.get("small")! / deviceMs.get("large")!;
      expect(ratio).toBeGreaterThan(0.9 * weight);
      expect(ratio).toBeLessThan(1.1 * weight);
    },
  );

  it("keeps a tenant's debt beyond the request that made it", async () => {
    const { world, enqueue } = denoising({ stepBatchMax: 1, runMs: ({ side }) => (side === 128 ? 100 : 10) });
    let made = 0;
    const single = () => enqueue(`single-${made++}`, { tenant: "single", side: 128 });
    for (let i = 0; i < 20; i++) enqueue(`many-${i}`, { tenant: "many", steps: 500 });
    single();
    const hear = world.onTurn;
    world.onTurn = (turn) => {
      hear(turn);
      for (const { order } of turn.finished) if (order.tenant === "single") single();
    };
    await world.run({ untilMs: 20_000 });
    const share = (100 * made) / 20_000;
    expect(share).toBeGreaterThan(0.45);
    expect(share).toBeLessThan(0.55);
  });

  it("does not let a tenant save up the device for later that it could not use", async () => {
    const { world, enqueue } = denoising({ runMs: ({ threads, rows }) => (threads === 1 ? 10 : 20) * rows, narrow: 2 });
    enqueue("modest", { tenant: "modest", steps: 1000 }); // one lane of two at most
    for (let i = 0; i < 10; i++) enqueue(`greedy-${i}`, { tenant: "greedy", steps: 1000 });
    world.at(5000, () => {
      for (let i = 0; i < 10; i++) enqueue(`late-${i}`, { tenant: "modest", steps: 1000 });
    });
    await world.run({ untilMs: 6000 });
    const late = world.runs.filter(({ batch }) => batch.startedAtMs > 5000).map(({ batch }) => batch.jobs[0]!);
    const share = late.filter(({ order }) => order.tenant === "greedy").length / late.length;
    expect(share).toBeGreaterThan(0.45);
  });

  it("gives bulk work a step batch in each ageing time under endless urgent load, and the urgent hardly notice", async () => {
    const { world, enqueue } = denoising({ runMs: FOUR_CORES, narrow: 4, ageingMs: 500 });
    let made = 0;
    const urgent = (steps = 10) => enqueue(`urgent-${made++}`, { of: "interactive", steps });
    const bulk = enqueue("bulk", { of: "bulk", steps: 1000 });
    urgent();
    urgent(5); // so that one is there when the other ends
    let lastMs = 0;
    let longestWaitMs = 0;
    const hear = world.onTurn;
    world.onTurn = (turn) => {
      hear(turn);
      for (const _ of turn.finished) urgent();
      if (!turn.runs.some((run) => run.stepped.includes(bulk))) return;
      longestWaitMs = Math.max(longestWaitMs, world.clock.nowMs() - lastMs);
      lastMs = world.clock.nowMs();
    };
    await world.run({ untilMs: 20_000 });
    expect(bulk.stepsDone).toBeGreaterThanOrEqual(35);
    expect(longestWaitMs).toBeLessThan(500 + 50);
    const urgentRuns = world.runs.filter(({ batch }) => batch.priorityClass === "interactive");
    const urgentMs = urgentRuns.reduce((sum, { batch, endedAtMs }) => sum + endedAtMs - batch.startedAtMs, 0);
    expect(urgentMs / 20_000).toBeGreaterThan(0.95);
  });

  it("lets shapes and models take turns, so that none waits for all the others to finish", async () => {
    const { world, enqueue, trace } = denoising({ models: ["tiny", "other"], stepBatchMax: 4 });
    for (let i = 0; i < 40; i++) {
      enqueue(`square-${i}`, { steps: 10 });
      if (i < 2) enqueue(`large-${i}`, { side: 64, steps: 10 });
      if (i < 2) enqueue(`other-${i}`, { model: "other", steps: 10 });
    }
    await world.run();
    const at = (id: string) => trace().findIndex((line) => line.includes(`> ${id}`) || line.endsWith(` ${id}`));
    expect(at("large-1")).toBeLessThan(trace().length / 2);
    expect(at("other-1")).toBeLessThan(trace().length / 2);
  });
});

describe.each([
  ["on four cores", { runMs: FOUR_CORES, narrow: 4 }, 32],
  ["on a GPU", { runMs: GPU }, 64],
] as const)("waiting %s", (_, device, side) => {
  it("is four times shorter for a short job behind eight long ones than until they are done, at no one's cost", async () => {
    const finish = async (longClass: "interactive" | "standard") => {
      const { world, enqueue } = denoising(device);
      for (let i = 0; i < 8; i++) enqueue(`long-${i}`, { side, steps: 50, of: longClass });
      let short: FakeJob | undefined;
      world.at(100, () => {
        short = enqueue("short", { side, steps: 10 });
      });
      await world.run();
      return { shortMs: world.finishedAtMs.get(short!)! - 100, allMs: world.clock.nowMs() };
    };
    const ours = await finish("standard");
    const completion = await finish("interactive"); // the short one gets its first step when the last long one is done
    expect(completion.shortMs / ours.shortMs).toBeGreaterThan(4);
    expect(completion.allMs / ours.allMs).toBeGreaterThan(0.97);
  });

  it("hardly grows for interactive jobs when bulk work takes all that they leave", async () => {
    const longest = async (bulkJobs: number) => {
      const { world, enqueue } = denoising(device);
      let made = 0;
      const bulk = () => enqueue(`bulk-${made++}`, { of: "bulk", side, steps: 30, rows: 1 + (made % 2) });
      for (let i = 0; i < bulkJobs; i++) bulk();
      const times: number[] = [];
      let askedAtMs = 0;
      const ask = () => {
        askedAtMs = world.clock.nowMs();
        enqueue(`interactive-${times.length}`, { of: "interactive", side, steps: 20 });
      };
      world.at(500, ask);
      const hear = world.onTurn;
      world.onTurn = (turn) => {
        hear(turn);
        for (const { order } of turn.finished) {
          if (order.priorityClass === "bulk") bulk();
          else times.push(world.clock.nowMs() - askedAtMs);
          if (order.priorityClass === "interactive" && times.length < 40) world.at(world.clock.nowMs() + 20, ask);
        }
      };
      await world.run({ untilMs: 15_000 });
      return Math.max(...times);
    };
    expect((await longest(16)) / (await longest(0))).toBeLessThan(1.5);
  });
});

describe("the lane", () => {
  it("is the wide one for a lone job", async () => {
    const { world, enqueue } = denoising({ runMs: FOUR_CORES, narrow: 4 });
    enqueue("alone", { steps: 5 });
    await world.run();
    expect(world.runs.map(({ lane }) => lane)).toEqual(["wide", "wide", "wide", "wide", "wide"]);
  });

  it("is a narrow one each for many, which is wide again for the last that is left", async () => {
    const { world, enqueue, trace } = denoising({ runMs: FOUR_CORES, narrow: 4 });
    for (const id of ["a", "b", "c", "d"]) enqueue(id, { steps: id === "d" ? 6 : 1 });
    await world.run();
    expect(trace()).toEqual(lines`
      0: a@0 | 1: b@0 | 2: c@0 | 3: d@0 -> a b c
      wide: d@1
      wide: d@2
      wide: d@3
      wide: d@4
      wide: d@5 -> d
    `);
  });

  it("is emptied of less urgent work for an urgent job, which then has all of the device", async () => {
    const { world, enqueue, trace } = denoising({ runMs: FOUR_CORES, narrow: 4 });
    const bulk = ["a", "b", "c", "d", "e"].map((id) => enqueue(id, { of: "bulk", steps: 4 }));
    world.at(10, () => enqueue("urgent", { of: "interactive", steps: 3 }));
    await world.run();
    expect(trace().slice(0, 5)).toEqual(lines`
      0: a@0 | 1: b@0 | 2: c@0 | 3: d@0
      wide: urgent@0
      wide: urgent@1
      wide: urgent@2 -> urgent
      0: a@1 | 1: b@1 | 2: c@1 | 3: d@1
    `);
    expect(bulk.map(({ preemptions }) => preemptions)).toEqual([1, 1, 1, 1, 0]); // e had not started
  });

  it("is not emptied for a job of so few steps that waiting for that costs more than it gains", async () => {
    const { world, enqueue, trace } = denoising({ runMs: FOUR_CORES, narrow: 4 });
    for (const id of ["a", "b", "c"]) enqueue(id, { of: "bulk", steps: 2 });
    world.at(1, () => enqueue("urgent", { of: "interactive", steps: 1 }));
    await world.run();
    expect(trace()[1]).toBe("3: urgent@0 -> urgent");
  });

  it("left free by urgent work takes less urgent work beside it", async () => {
    const { world, enqueue, trace } = denoising({ runMs: FOUR_CORES, narrow: 4 });
    for (const id of ["u1", "u2", "u3"]) enqueue(id, { of: "interactive", steps: 2 });
    enqueue("bulk", { of: "bulk", steps: 2 });
    await world.run();
    expect(trace()[0]).toBe("0: u1@0 | 1: u2@0 | 2: u3@0 | 3: bulk@0");
  });
});

describe("the batch", () => {
  it.each([
    ["8 jobs where the table says that four at once take 1.44 times as long as one", 64, 8],
    ["single jobs where two take twice as long as one", 128, 1],
  ])("is of %s", async (_, side, jobs) => {
    const { world, enqueue } = denoising({ runMs: GPU });
    for (let i = 0; i < 16; i++) enqueue(`${i}`, { side, steps: 4 });
    await world.run();
    expect(new Set(world.runs.map(({ batch }) => batch.jobs.length))).toEqual(new Set([jobs]));
  });

  it("comes to the same sizes by learning, from nothing", async () => {
    const { world, enqueue } = denoising({ runMs: GPU, knows: "nothing" });
    for (let i = 0; i < 16; i++) enqueue(`small-${i}`, { side: 64, steps: 30 });
    for (let i = 0; i < 8; i++) enqueue(`large-${i}`, { side: 128, steps: 30 });
    await world.run();
    const sizes = (side: number) =>
      world.runs
        .filter(({ batch }) => batch.shape.width === side)
        .slice(10)
        .map(({ batch }) => batch.jobs.length);
    expect(mean(sizes(64))).toBeGreaterThan(7);
    expect(mean(sizes(128))).toBeLessThan(1.2);
  });

  it("takes less urgent jobs along where the urgent hardly notice, and not where they would", async () => {
    for (const [side, alone] of [
      [64, false],
      [128, true],
    ] as const) {
      const { world, enqueue } = denoising({ runMs: GPU });
      enqueue("urgent", { of: "interactive", side });
      for (let i = 0; i < 7; i++) enqueue(`bulk-${i}`, { of: "bulk", side });
      await world.run({ turns: 1 });
      const { jobs, predictedMs } = world.runs[0]!.batch;
      expect(jobs[0]!.id).toBe("urgent");
      expect(jobs.length === 1).toBe(alone);
      expect(predictedMs).toBeLessThanOrEqual(1.25 * GPU({ model: "tiny", threads: 0, side, rows: 2 }));
    }
  });

  it("is spread over the free lanes before it grows", async () => {
    const batchingPays = ({ threads, rows }: { threads: number; rows: number }) => (threads === 1 ? 20 : 60) + rows;
    const { world, enqueue } = denoising({ runMs: batchingPays, narrow: 4 });
    for (let i = 0; i < 6; i++) enqueue(`${i}`);
    await world.run();
    expect(world.runs.map(({ batch }) => batch.jobs.length).toSorted()).toEqual([1, 1, 2, 2]);
  });
});

describe("a worker under random load", () => {
  const seeds = process.env["SIM_SEED"] ? [Number(process.env["SIM_SEED"])] : Array.from({ length: 20 }, (_, i) => i);
  const met = new Set<string>();

  it.each(seeds)("ends every job once, its steps in order, and never uses a lane twice (SIM_SEED=%i)", async (seed) => {
    const { world, jobs, cancelled } = await randomLoad(seed);
    expect(world.finishedAtMs.size + world.failures.size).toBe(jobs.length);
    for (const job of jobs) {
      const error = world.failures.get(job);
      if (error === undefined) expect(job.done, job.id).toBe(true);
      else expect(["CANCELLED", "NUMERIC_FAILURE"], job.id).toContain(error.code);
      if (error?.code === "CANCELLED") expect(cancelled).toContain(job);
      // `advance` is given each step's rows once: as many as the job has, step after step.
      expect(job.received, job.id).toHaveLength(job.stepsDone);
    }
    for (const { batch, lane, refused } of world.runs) {
      met.add(lane === "wide" ? "wide" : "narrow");
      if (batch.jobs.length > 1) met.add("batch");
      if (refused) met.add("refused");
    }
    for (const error of world.failures.values()) met.add(error.code);
    if (jobs.some((job) => job.preemptions > 0)) met.add("preempted");
  });

  it.each(["wide", "narrow", "batch", "refused", "preempted", "CANCELLED", "NUMERIC_FAILURE"])(
    "really meets '%s' in these seeds",
    (event) => {
      if (seeds.length > 1) expect(met).toContain(event);
    },
  );

  it("writes the same history twice for one seed", async () => {
    expect((await randomLoad(7)).trace()).toEqual((await randomLoad(7)).trace());
    expect((await randomLoad(8)).trace()).not.toEqual((await randomLoad(7)).trace());
  });
});

async function randomLoad(seed: number) {
  const random = seededRandom(seed);
  const below = (n: number) => Math.floor(random.next() * n);
  const one = <T>(of: readonly T[]): T => of[below(of.length)]!;
  const { world, enqueue, trace } = denoising({
    narrow: one([0, 2, 4]),
    opened: 0,
    runMs: one([GPU, FOUR_CORES]),
    knows: one(["all", "nothing"]),
    models: ["tiny", "other"],
    stepBatchMax: 1 + below(8),
    ageingMs: one([50, 2000]),
    predict: ({ rows }) => {
      if (rows.length > 2 && random.next() < 0.02) throw new ServingError("OUT_OF_MEMORY", "no room");
      return rows.map((_, i) => Float32Array.of(i));
    },
  });
  const jobs: FakeJob[] = [];
  const cancelled = new Set<FakeJob>();
  for (let i = 0; i < 60; i++) {
    const arrivesAtMs = below(3000);
    world.at(arrivesAtMs, () => {
      const steps = 1 + below(20);
      const job = enqueue(`job-${i}`, {
        model: one(["tiny", "other"]),
        side: one([32, 64]),
        steps,
        rows: 1 + below(2),
        of: one(["interactive", "standard", "bulk"]),
        tenant: one(["", "a", "b"]),
        ...(random.next() < 0.3 && { finishAtMs: arrivesAtMs + below(2000) }),
        ...(random.next() < 0.1 && { failsAt: below(steps) }),
        ...(random.next() < 0.1 && { enlargesAt: below(steps) }),
      });
      jobs.push(job);
      if (random.next() > 0.1) return;
      world.at(arrivesAtMs + below(500), () => {
        cancelled.add(job);
        job.end(new ServingError("CANCELLED", "taken back"));
        world.stage.look();
      });
    });
  }
  await world.run();
  return { world, jobs, cancelled, trace };
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
