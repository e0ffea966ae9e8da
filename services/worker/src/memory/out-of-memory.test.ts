import { ServingError } from "@atelier/core";
import { describe, expect, it } from "vitest";
import type { UnetBatch } from "../stages/denoise.ts";
import { DenoiseWorld } from "../stages/testing/denoise-world.ts";
import { type FakeJob, fakeJob } from "../stages/testing/fake-job.ts";
import { MemoryBudget } from "./memory-budget.ts";

/** A device that has room for six rows of 32x32 latents, of which the budget believes that there is far more. */
const ROWS_MAX = 6;

describe("a device that runs out of memory", () => {
  it("makes every image in smaller batches, and teaches the budget what fits, for larger images as well", async () => {
    const budget = new MemoryBudget({
      budgetBytes: 8 * 2 ** 30,
      models: [MODEL],
      narrowLanesMax: 0,
      decoderSessions: 1,
    });
    budget.hold("tiny", budget.warmUpDemand("tiny"));
    const large = { channels: 4, height: 64, width: 64 };
    const before = { here: budget.rowsMax("tiny", SHAPE), larger: budget.rowsMax("tiny", large) };
    expect(before.here).toBeGreaterThan(100);

    const world = worldWith(budget);
    const jobs = Array.from({ length: 8 }, (_, i) => fakeJob(`job-${i}`, { steps: 6 }));
    for (const job of jobs) world.stage.enqueue(job);
    await world.run();

    expect(world.failures.size).toBe(0);
    expect(jobs.every(({ done }) => done)).toBe(true);
    const refused = world.runs.filter((run) => run.refused).map(({ batch }) => batch.rowCount);
    expect(refused).toEqual([16, 8]); // halved until it fits, and never as many again
    expect(budget.rowsMax("tiny", SHAPE)).toBeLessThan(8);
    expect(budget.rowsMax("tiny", large)).toBeLessThan(before.larger);
  });

  it("is asked for no batch that the budget knows not to fit", async () => {
    const budget = new MemoryBudget({
      budgetBytes: 8 * 2 ** 30,
      models: [MODEL],
      narrowLanesMax: 0,
      decoderSessions: 1,
    });
    budget.hold("tiny", budget.warmUpDemand("tiny"));
    budget.ranOutOfMemory("tiny", SHAPE, ROWS_MAX + 1);
    const world = worldWith(budget);
    for (let i = 0; i < 8; i++) world.stage.enqueue(fakeJob(`job-${i}`, { steps: 6 }));
    await world.run();
    expect(world.runs.filter((run) => run.refused)).toEqual([]);
    expect(Math.max(...world.runs.map(({ batch }) => batch.rowCount))).toBe(ROWS_MAX);
  });
});

const SHAPE = { channels: 4, height: 32, width: 32 };
const MODEL = {
  id: "tiny",
  family: "sd",
  files: { textEncoder: 1e6, unet: 1e7, vaeDecoder: 1e6, vaeEncoder: 0 },
  latentChannels: 4,
  nativeSize: { width: 256, height: 256 },
  sizeMultiple: 8,
  sizeMin: 64,
  sizeMax: 1024,
};

function worldWith(budget: MemoryBudget): DenoiseWorld<FakeJob> {
  const world = new DenoiseWorld<FakeJob>({
    rowsMax: (model, shape) => budget.rowsMax(model, shape),
    predict({ rows }: UnetBatch) {
      if (rows.length > ROWS_MAX) throw new ServingError("OUT_OF_MEMORY", "the device is full");
      return rows.map((_, i) => Float32Array.of(i));
    },
  });
  world.onTurn = ({ runs }) => {
    for (const { batch, refused } of runs) {
      if (refused) budget.ranOutOfMemory(batch.model, batch.shape, batch.rowCount);
      else budget.ran(batch.model, batch.shape, batch.rowCount);
    }
  };
  return world;
}
