import type { Turn } from "../denoise.ts";
import { DenoiseWorld, type RunMs, type WorldOptions } from "./denoise-world.ts";
import { type FakeJob, type FakeJobOptions, fakeJob } from "./fake-job.ts";

/** A world of jobs without arithmetic, and a picture of what it did: a line for each turn in which something ended. */
export function denoising(options: WorldOptions = {}) {
  const world = new DenoiseWorld<FakeJob>(options);
  const history: string[] = [];
  world.onTurn = (turn) => {
    const line = describeTurn(turn, (options.narrow ?? 0) > 0);
    if (line !== "") history.push(line);
  };
  const enqueue = (id: string, job: FakeJobOptions = {}): FakeJob => {
    const made = fakeJob(id, job);
    world.stage.enqueue(made);
    return made;
  };
  return { world, enqueue, trace: () => history };
}

/** "wide: a@0 b@3 | 1: c@0 -> b ! d CANCELLED": each run's jobs and steps, who finished, who failed. */
function describeTurn({ runs, finished, failed }: Turn<FakeJob>, nameLanes: boolean): string {
  const described = runs.map(({ stepped, refused, batch }) => {
    const lane = nameLanes ? `${batch.slot}: ` : "";
    if (refused) return `${lane}(${batch.jobs.map(({ id }) => id).join(" ")})`;
    return `${lane}${stepped.map(({ id, stepsDone }) => `${id}@${stepsDone - 1}`).join(" ")}`;
  });
  return [
    ...(described.join("") === "" ? [] : [described.join(" | ")]),
    ...(finished.length > 0 ? ["->", ...finished.map(({ id }) => id)] : []),
    ...failed.map(({ job: { id }, error }) => `! ${id} ${error.code}`),
  ].join(" ");
}

/** The lines of a template, trimmed. */
export function lines(text: TemplateStringsArray): string[] {
  return text[0]!
    .trim()
    .split("\n")
    .map((line) => line.trim());
}

/** Much like the embedded model on four cores: one wide lane takes half the time of a narrow one, four of which win. */
export const FOUR_CORES: RunMs = ({ threads, side, rows }) => {
  const work = rows * (side / 32) ** 2;
  return threads === 1 ? 0.5 + 11 * work : 2.5 + 4 * work;
};

/** As SD 1.5 on a GPU at 512x512 (side 64): four at once take 1.44 times as long as one. At 1024x1024 hardly any gain. */
export const GPU: RunMs = ({ side, rows }) => (side >= 128 ? 20 + 180 * rows : 40 * (0.852 + 0.148 * (rows / 2)));
