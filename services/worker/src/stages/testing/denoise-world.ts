import { type Clock, invariant, ManualClock, type ServingError } from "@atelier/core";
import type { LatentShape } from "@atelier/diffusion";
import type { UnetLane, UnetLanes } from "../../device/device.ts";
import { type StepTime, StepTimes } from "../../step-times.ts";
import { DenoiseStage, type StepJob, type StepRun, type Turn, type UnetBatch } from "../denoise.ts";
import { StepScheduler } from "../order/step-scheduler.ts";

/** Milliseconds of a run, by the lane's threads (0 on a device of one lane), the latent's side and the rows. */
export type RunMs = (run: { model: string; threads: number; side: number; rows: number }) => number;

export interface WorldOptions {
  /** Lanes of one thread each beside the wide one. */
  readonly narrow?: number;
  /** How many of them are open at the start. */
  readonly opened?: number;
  readonly runMs?: RunMs;
  /** What the scheduler knows at the start: everything, as `runMs` says, or nothing. */
  readonly knows?: "all" | "nothing";
  readonly models?: readonly string[];
  readonly sides?: readonly number[];
  readonly stepBatchMax?: number;
  readonly ageingMs?: number;
  readonly jobsMax?: number;
  readonly undecodedMax?: number;
  /** Rows of one run that there is memory for; by default any number. */
  readonly rowsMax?: (model: string, shape: LatentShape) => number;
  /** Decides what a run gives; throws what the device would. By default each row gives its number. */
  readonly predict?: (batch: UnetBatch, lane: string) => readonly Float32Array[];
}

export interface WorldRun<Job extends StepJob> extends StepRun<Job> {
  readonly lane: string;
}

/**
 * The real DenoiseStage and StepScheduler on lanes that take time by a table, under a clock that only the test moves.
 * One and the same script gives one and the same history.
 */
export class DenoiseWorld<Job extends StepJob> {
  readonly clock = new ManualClock();
  readonly times: StepTimes;
  readonly stage: DenoiseStage<Job>;
  readonly turns: Turn<Job>[] = [];
  readonly runs: WorldRun<Job>[] = [];
  readonly finishedAtMs = new Map<Job, number>();
  readonly failures = new Map<Job, ServingError>();
  /** Hears of every turn. */
  onTurn: (turn: Turn<Job>) => void = () => {};
  /** How often the narrow lanes were asked for. */
  openedNarrow = 0;
  readonly #due: number[] = [];
  readonly #running = new Set<string>();
  readonly #lanes = new Map<string, UnetLanes>();
  readonly #options: Required<WorldOptions>;

  constructor(options: WorldOptions = {}) {
    this.#options = {
      narrow: 0,
      runMs: ({ rows }) => 8 + rows,
      knows: "all",
      models: ["tiny"],
      sides: [32, 64, 128],
      stepBatchMax: 8,
      ageingMs: 2000,
      jobsMax: 1000,
      undecodedMax: Infinity, // nobody decodes
      opened: options.narrow ?? 0,
      rowsMax: () => Infinity,
      predict: (batch) => batch.rows.map((_, i) => Float32Array.of(i)),
      ...options,
    };
    const { narrow, models, stepBatchMax, ageingMs, rowsMax, jobsMax, undecodedMax } = this.#options;
    this.times = StepTimes.fromJSON(this.#options.knows === "all" ? this.#table() : []);
    for (const model of models) this.#lanes.set(model, this.#lanesOf(narrow));
    const lanesOf = (model: string) => this.#lanes.get(model)!;
    const countLanes = (model: string) => {
      const wideThreads = narrow;
      return { wideThreads, narrowThreads: 1, narrow: lanesOf(model).narrow.length, narrowMax: narrow };
    };
    this.stage = new DenoiseStage<Job>({
      lanesOf,
      scheduler: new StepScheduler<Job>({ lanesOf: countLanes, times: this.times, stepBatchMax, ageingMs, rowsMax }),
      clock: this.clock as Clock,
      limits: { jobsMax, undecodedMax },
      onLanesFailed: (_, error) => {
        throw error;
      },
    });
  }

  /** Runs `act` at this time of the world. */
  at(atMs: number, act: () => void): void {
    this.#due.push(atMs);
    this.clock.after(atMs - this.clock.nowMs(), act);
  }

  /** Goes on until nothing runs and nothing is to come, or until `untilMs`, or for so many turns. */
  async run({ untilMs = Infinity, turns = Infinity } = {}): Promise<void> {
    while (turns > 0 && this.clock.nowMs() < untilMs) {
      if (!this.stage.busy) {
        if (!this.#toNextEvent()) break;
        continue;
      }
      let turn: Turn<Job> | undefined;
      let failure: { error: unknown } | undefined;
      this.stage.step().then(
        (made) => {
          turn = made;
        },
        (error: unknown) => {
          failure = { error };
        },
      );
      await settled();
      while (turn === undefined && failure === undefined) {
        invariant(this.#toNextEvent(), "a stage that waits is woken by something");
        await settled();
      }
      if (failure !== undefined) throw failure.error;
      this.#hear(turn!);
      if (turn!.runs.length > 0) turns -= 1;
    }
  }

  #hear(turn: Turn<Job>): void {
    this.turns.push(turn);
    for (const run of turn.runs) {
      const { model, shape, rowCount, threads, slot, lanes, startedAtMs } = run.batch;
      const ms = run.endedAtMs - startedAtMs;
      this.runs.push({ ...run, lane: String(slot) });
      if (!run.refused) this.times.observe({ model, shape, rows: rowCount, ms, threads, lane: String(slot), lanes });
    }
    for (const job of turn.finished) {
      invariant(!this.finishedAtMs.has(job) && !this.failures.has(job), `${job.id} ends once`);
      this.finishedAtMs.set(job, this.clock.nowMs());
    }
    for (const { job, error } of turn.failed) {
      invariant(!this.finishedAtMs.has(job) && !this.failures.has(job), `${job.id} ends once`);
      this.failures.set(job, error);
    }
    this.onTurn(turn);
  }

  /** False when nothing is to come. */
  #toNextEvent(): boolean {
    if (this.#due.length === 0) return false;
    this.#due.sort((a, b) => a - b);
    this.clock.advance(this.#due.shift()! - this.clock.nowMs());
    return true;
  }

  #lanesOf(narrowMax: number): UnetLanes {
    const narrow = Array.from({ length: this.#options.opened }, (_, i) => this.#lane(String(i), 1));
    return {
      wide: this.#lane("wide", narrowMax),
      narrow,
      narrowMax,
      batchDifference: 0,
      openNarrow: async () => {
        this.openedNarrow += 1;
        for (let i = narrow.length; i < narrowMax; i++) narrow.push(this.#lane(String(i), 1));
      },
    };
  }

  #lane(name: string, threads: number): UnetLane {
    return {
      threads,
      predictNoise: (batch) => {
        const narrow = this.#options.narrow;
        invariant(!this.#running.has(name), `lane ${name} runs one batch`);
        if (name === "wide") invariant(this.#running.size === 0, "the wide lane runs alone");
        else invariant(!this.#running.has("wide"), "narrow lanes never run beside the wide one");
        this.#running.add(name);
        const { model, shape, rows } = batch;
        const ms = this.#options.runMs({
          model,
          threads: narrow === 0 ? 0 : threads,
          side: sideOf(shape),
          rows: rows.length,
        });
        return new Promise((resolve, reject) => {
          this.at(this.clock.nowMs() + ms, () => {
            this.#running.delete(name);
            try {
              resolve(this.#options.predict(batch, name));
            } catch (error) {
              reject(error);
            }
          });
        });
      },
    };
  }

  #table(): StepTime[] {
    const { narrow, models, sides, runMs } = this.#options;
    const kinds = narrow === 0 ? [0] : [1, narrow];
    return models.flatMap((model) =>
      sides.flatMap((side) =>
        kinds.flatMap((threads) =>
          Array.from({ length: 16 }, (_, i) => {
            const ms = runMs({ model, threads, side, rows: i + 1 });
            return { model, height: side, width: side, threads, rows: i + 1, ms };
          }),
        ),
      ),
    );
  }
}

/** Resolves once no promise inside the world can make progress: microtasks drain before an immediate runs. */
function settled(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

function sideOf({ height, width }: LatentShape): number {
  return Math.sqrt(height * width);
}
