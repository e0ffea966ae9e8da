import { describe, expect, it } from "vitest";
import type { Turn } from "./denoise.ts";
import { DenoiseWorld, type WorldOptions } from "./testing/denoise-world.ts";
import { type FakeJob, type FakeJobOptions, fakeJob } from "./testing/fake-job.ts";

describe("DenoiseStage", () => {
  it("lets a short job that arrives late finish before a long one", async () => {
    const { enqueue, world, trace } = denoising();
    enqueue("long", { steps: 4 });
    await world.run({ turns: 1 });
    enqueue("short", { steps: 2 });
    await world.run();

    // What was going on when "short" came is not interrupted; from then on it leads.
    expect(trace()).toEqual(lines`
      long@0
      long@1
      short@0 long@2
      long@3 short@1 -> long short
    `);
  });
});

/** A stage on lanes of fake times, and a picture of what it did. */
function denoising(options: WorldOptions = {}) {
  const world = new DenoiseWorld<FakeJob>(options);
  const history: string[] = [];
  world.onTurn = (turn) => {
    const line = describeTurn(turn);
    if (line !== "") history.push(line);
  };
  const enqueue = (id: string, job: FakeJobOptions = {}): FakeJob => {
    const made = fakeJob(id, job);
    world.stage.enqueue(made);
    return made;
  };
  return { world, enqueue, trace: () => history };
}

function describeTurn({ runs, finished, failed }: Turn<FakeJob>): string {
  return [
    ...runs.flatMap(({ stepped, refused, batch }) =>
      refused
        ? [`(${batch.jobs.map(({ id }) => id).join(" ")} refused)`]
        : stepped.map(({ id, stepsDone }) => `${id}@${stepsDone - 1}`),
    ),
    ...(finished.length > 0 ? ["->", ...finished.map(({ id }) => id)] : []),
    ...failed.map(({ job: { id }, error }) => `! ${id} ${error.code}`),
  ].join(" ");
}

function lines(text: TemplateStringsArray): string[] {
  return text[0]!
    .trim()
    .split("\n")
    .map((line) => line.trim());
}
