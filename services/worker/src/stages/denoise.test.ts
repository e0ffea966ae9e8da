import { ServingError } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { DenoiseStage, type StepJob, type Turn, type UnetBatch } from "./denoise.ts";

describe("DenoiseStage", () => {
  it("lets a short job that arrives late finish before a long one", async () => {
    const { stage, step, drain, trace } = denoiseStage();
    stage.enqueue(job("long", { steps: 4 }));
    await step();
    stage.enqueue(job("short", { steps: 2 }));
    await drain();

    expect(trace()).toEqual(lines`
      long@0
      long@1 short@0
      long@2 short@1 -> short
      long@3 -> long
    `);
  });

  it("makes a small image wait behind a large one rather than overtake it", async () => {
    const { stage, drain, trace } = denoiseStage();
    stage.enqueue(job("small-1", { side: 32, steps: 1 }));
    stage.enqueue(job("large", { side: 128, steps: 1 }));
    stage.enqueue(job("small-2", { side: 32, steps: 1 }));
    await drain();

    expect(trace()).toEqual(lines`
      small-1@0 -> small-1
      large@0 -> large
      small-2@0 -> small-2
    `);
  });

  it("runs jobs apart that differ in model or in the length of their prompts", async () => {
    const { stage, drain, trace } = denoiseStage();
    stage.enqueue(job("short-prompt", { sequenceLength: 77 }));
    stage.enqueue(job("long-prompt", { sequenceLength: 154 }));
    stage.enqueue(job("other-model", { sequenceLength: 154, model: "other" }));
    await drain();

    expect(trace()).toEqual(lines`
      short-prompt@0 -> short-prompt
      long-prompt@0 -> long-prompt
      other-model@0 -> other-model
    `);
  });

  it("gives every job its own rows of the batch, one or two each", async () => {
    const batches: UnetBatch[] = [];
    const { stage, drain } = denoiseStage({ onBatch: (batch) => batches.push(batch) });
    const guided = job("guided", { rows: 2 });
    const plain = job("plain", { rows: 1 });
    const last = job("last", { rows: 2 });
    for (const each of [guided, plain, last]) stage.enqueue(each);
    await drain();

    expect(batches[0]!.rows).toHaveLength(5);
    expect([guided, plain, last].map((each) => each.received)).toEqual([[[0, 1]], [[2]], [[3, 4]]]); // row numbers
  });

  it("runs no more jobs at once than the step batch holds, oldest first", async () => {
    const { stage, drain, trace } = denoiseStage({ stepBatchMax: 2 });
    for (const id of ["a", "b", "c"]) stage.enqueue(job(id, { steps: id === "a" ? 1 : 2 }));
    await drain();

    expect(trace()).toEqual(lines`
      a@0 b@0 -> a
      b@1 c@0 -> b
      c@1 -> c
    `);
  });

  it("drops a cancelled job before the next step, and its place goes to one that waits", async () => {
    const { stage, step, drain, trace } = denoiseStage({ stepBatchMax: 1 });
    const first = job("first", { steps: 9 });
    stage.enqueue(first);
    stage.enqueue(job("second", { steps: 1 }));
    await step();
    first.end(new ServingError("CANCELLED", "taken back"));
    await drain();

    expect(trace()).toEqual(lines`
      first@0
      second@0 -> second ! first CANCELLED
    `);
  });

  it("drops a job whose time is up while it waits", async () => {
    const { stage, step, drain, trace } = denoiseStage({ stepBatchMax: 1 });
    stage.enqueue(job("running", { steps: 2 }));
    await step();
    const late = job("late");
    stage.enqueue(late);
    late.end(new ServingError("DEADLINE_EXCEEDED", "too late"));
    await drain();

    expect(trace()).toEqual(lines`
      running@0
      running@1 -> running ! late DEADLINE_EXCEEDED
    `);
  });

  it("fails a job with NaN in its latent alone", async () => {
    const { stage, drain, trace } = denoiseStage();
    stage.enqueue(job("good", { steps: 2 }));
    stage.enqueue(job("bad", { steps: 2, failsAt: 0 }));
    await drain();

    expect(trace()).toEqual(lines`
      good@0 ! bad NUMERIC_FAILURE
      good@1 -> good
    `);
  });

  it("fails the jobs of a run that the device refused, and goes on with the next", async () => {
    let runs = 0;
    const { stage, drain, trace } = denoiseStage({
      stepBatchMax: 2,
      onBatch: () => {
        runs += 1;
        if (runs === 1) throw new ServingError("OUT_OF_MEMORY", "no room");
      },
    });
    for (const id of ["a", "b", "c"]) stage.enqueue(job(id));
    await drain();

    expect(trace()).toEqual(lines`
      ! a OUT_OF_MEMORY ! b OUT_OF_MEMORY
      c@0 -> c
    `);
  });

  it("lets a job that went on to a larger size wait for its mates, with nobody passing it", async () => {
    const { stage, drain, trace } = denoiseStage({ stepBatchMax: 2 });
    stage.enqueue(job("two-phase", { side: 32, steps: 3, enlargesAt: 1 }));
    stage.enqueue(job("small", { side: 32, steps: 2 }));
    stage.enqueue(job("newcomer", { side: 32, steps: 1 }));
    await drain();

    expect(trace()).toEqual(lines`
      two-phase@0 small@0
      small@1 -> small
      two-phase@1
      two-phase@2 -> two-phase
      newcomer@0 -> newcomer
    `);
  });

  it("refuses a job when the waiting room is full", () => {
    const { stage } = denoiseStage({ waitingMax: 2 });
    stage.enqueue(job("a"));
    stage.enqueue(job("b"));
    expect(() => stage.enqueue(job("c"))).toThrow(/OVERLOADED.*2 jobs already wait/);
  });

  it("starts nothing new while image decode is behind, finishes what runs, and goes on once latents are taken", async () => {
    const { stage, step, drain, trace } = denoiseStage({ undecodedMax: 1, stepBatchMax: 2 });
    stage.enqueue(job("a", { steps: 1 }));
    stage.enqueue(job("b", { steps: 2 }));
    stage.enqueue(job("c", { steps: 1 }));
    await step();
    await step();
    expect(stage.busy).toBe(false);
    stage.taken(1);
    expect(stage.busy).toBe(false);
    stage.taken(1);
    await drain();

    expect(trace()).toEqual(lines`
      a@0 b@0 -> a
      b@1 -> b
      c@0 -> c
    `);
  });

  it("lets a bug out: it is not a failure of a request", async () => {
    const { stage, step } = denoiseStage({
      onBatch: () => {
        throw new TypeError("a bug");
      },
    });
    stage.enqueue(job("a"));
    await expect(step()).rejects.toThrow("a bug");
  });
});

interface FakeJob extends StepJob {
  /** The numbers of the rows whose predictions it was given, step by step. */
  readonly received: number[][];
  readonly stepsDone: number;
  end(error: ServingError): void;
}

interface FakeJobOptions {
  model?: string;
  side?: number;
  sequenceLength?: number;
  steps?: number;
  rows?: number;
  failsAt?: number;
  enlargesAt?: number;
}

function job(id: string, options: FakeJobOptions = {}): FakeJob {
  const { model = "tiny", side = 32, sequenceLength = 77, steps = 1, rows = 2, failsAt, enlargesAt } = options;
  let stepsDone = 0;
  let ended: ServingError | undefined;
  const received: number[][] = [];
  return {
    id,
    model,
    sequenceLength,
    received,
    get shape() {
      const now = enlargesAt !== undefined && stepsDone >= enlargesAt ? 2 * side : side;
      return { channels: 4, height: now, width: now };
    },
    get ended() {
      return ended;
    },
    get done() {
      return stepsDone === steps;
    },
    get stepsDone() {
      return stepsDone;
    },
    rows: () => Array.from({ length: rows }, () => ({ sample: EMPTY, timestep: 0, conditioning: EMPTY })),
    advance(predictions) {
      if (stepsDone === failsAt) throw new ServingError("NUMERIC_FAILURE", "NaN");
      received.push(predictions.map((prediction) => prediction[0]!));
      stepsDone += 1;
    },
    end: (error) => {
      ended = error;
    },
  };
}

const EMPTY = new Float32Array();

/** A stage on a U-Net that predicts each row's number, and a picture of what it did. */
function denoiseStage(
  options: {
    stepBatchMax?: number;
    waitingMax?: number;
    undecodedMax?: number;
    onBatch?: (batch: UnetBatch) => void;
  } = {},
) {
  const { stepBatchMax = 8, waitingMax = 100, undecodedMax = 100, onBatch = () => {} } = options;
  const history: string[] = [];
  const unet = {
    predictNoise: async (batch: UnetBatch) => {
      onBatch(batch);
      return batch.rows.map((_, i) => Float32Array.of(i));
    },
  };
  const stage = new DenoiseStage<FakeJob>(unet, { stepBatchMax, waitingMax, undecodedMax });

  async function step(): Promise<void> {
    history.push(describeTurn(await stage.step()));
  }
  async function drain(): Promise<void> {
    while (stage.busy) await step();
  }
  return { stage, step, drain, trace: () => history };
}

function describeTurn({ stepped, finished, failed }: Turn<FakeJob>): string {
  return [
    ...stepped.map(({ id, stepsDone }) => `${id}@${stepsDone - 1}`),
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
