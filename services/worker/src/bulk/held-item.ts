import { createHash } from "node:crypto";
import { type Clock, type Random, ServingError, toServingError } from "@atelier/core";
import { itemId, type JobQueue, type Lease } from "@atelier/job-queue";
import type { ObjectStore } from "@atelier/object-store";
import { type DenoiseState, type ItemOutcome, ItemOutcomeSchema, JobEventSchema, type WorkItem } from "@atelier/proto";
import { currentSpan, traced } from "@atelier/telemetry";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { backOffMs } from "./back-off.ts";
import { Checkpoints } from "./checkpoints.ts";
import { judge, type Verdict } from "./item-failure.ts";
import type { ItemMaker, MadeItem, Steps } from "./item-maker.ts";
import type { Pillar } from "./pauses.ts";

/** How an item left the worker. */
export type ItemEnd = "done" | "failed" | "buried" | "retried" | "handed_back" | "lost";

export interface ItemWorld {
  readonly maker: ItemMaker;
  readonly events: Pick<JobQueue["events"], "append">;
  readonly store: Pick<ObjectStore, "put" | "get" | "remove">;
  readonly clock: Clock;
  readonly random: Random;
  readonly workerId: string;
  /** Tries of one item. */
  readonly attemptsMax: number;
  /** Aborted when the worker is out of time: whatever still waits for the store or the queue is given up. */
  readonly leaving: AbortSignal;
  /** Aborted with a ServingError when its making is to be given up, for others' sake. */
  readonly giveWay: AbortSignal;
  failed(pillar: Pillar, error: ServingError): void;
  answered(pillar: Pillar, waitedMs: number): void;
  /** A failure that is worth a line in the log, and what becomes of the item. */
  notMade(item: WorkItem, error: ServingError, verdict: Verdict): void;
}

/**
 * How long a picture that is made waits for the store or the queue. Held, it need not be made again, and it keeps others
 * from being made in vain; beyond this it is somebody else's turn.
 */
const KEEP_MS = 20_000;
const AGAIN = { firstMs: 200, mostMs: 4_000 };
/** Of an item that failed and is tried again; also of one that is handed back although the worker stays. */
const RETRY = { firstMs: 1_000, mostMs: 60_000 };
/** How long the worker says where an item stands, and lets go of it, when it has no time left. */
const LEAVING_MS = 5_000;

/** One item from its delivery to its end: made, stored, told, acknowledged, in that order. */
export class HeldItem {
  readonly lease: Lease;
  readonly #world: ItemWorld;
  readonly #checkpoints: Checkpoints;
  #steps: Steps = { done: 0, total: 0 };
  #phase: "denoising" | "ending" = "denoising";
  #state: DenoiseState | undefined;
  readonly #giveWay: AbortSignal;

  constructor(lease: Lease, world: ItemWorld) {
    this.lease = lease;
    this.#world = world;
    this.#checkpoints = new Checkpoints(world.store);
    this.#giveWay = world.giveWay;
  }

  get steps(): Steps {
    return this.#steps;
  }

  /** It has step batches ahead of it. */
  get denoising(): boolean {
    return this.#phase === "denoising" && (this.#steps.total === 0 || this.#steps.done < this.#steps.total);
  }

  /** Resolves when the worker has nothing more to do with it. `onDenoised`: it has no step batches ahead any more. */
  async run(onDenoised: () => void): Promise<ItemEnd> {
    const { lease } = this;
    const { attemptsMax } = this.#world;
    try {
      if (lease.attempt > attemptsMax) return await this.#buryUnrun();
      const resume = await this.#resume();
      const made = await this.#make(resume, onDenoised);
      this.#phase = "ending";
      await this.#finish(made);
      if (resume !== undefined) await this.#checkpoints.remove(lease.item).catch(() => {}); // goes with the job
      return "done";
    } catch (error) {
      this.#phase = "ending";
      return await this.#end(toServingError(error)).catch((lost: unknown) => {
        if (lost instanceof ServingError) return "lost"; // the queue did not hear of it: the lease runs out
        throw lost;
      });
    }
  }

  /** Where an earlier delivery left the picture. Of a first one nobody asks the store: most items are delivered once. */
  async #resume(): Promise<DenoiseState | undefined> {
    const { item, redelivered } = this.lease;
    if (!redelivered && item.round === 0) return undefined;
    return await this.#persistently("store", () => this.#checkpoints.read(item), { proves: false });
  }

  #make(resume: DenoiseState | undefined, onDenoised: () => void): Promise<MadeItem> {
    const { item, lost } = this.lease;
    return this.#world.maker.make(item, {
      signal: AbortSignal.any([lost, this.#giveWay]),
      resume,
      onProgress: (steps) => {
        const denoising = this.denoising;
        this.#steps = steps;
        if (denoising && !this.denoising) onDenoised();
      },
      onState: (state) => {
        this.#state = state;
      },
    });
  }

  async #finish({ bytes, mediaType, receipt }: MadeItem): Promise<void> {
    const { lease } = this;
    const { objectKey } = lease.item;
    const { store } = this.#world;
    const sha256 = createHash("sha256").update(bytes).digest("hex");
    const options = { mediaType, signal: lease.lost };
    await traced("item.store", (span) => {
      span.set({ "atelier.object.key": objectKey, "atelier.object.bytes": bytes.length });
      return this.#persistently("store", () => store.put(objectKey, bytes, options));
    });
    const value = { objectKey, sha256, bytes: BigInt(bytes.length), mediaType, receipt };
    await this.#tell({ case: "done", value });
    await this.#persistently("queue", () => lease.ack());
  }

  /** Delivered more often than it may be tried: whoever had it did not live to say why. */
  async #buryUnrun(): Promise<ItemEnd> {
    const { lease } = this;
    const tries = lease.attempt - 1;
    const message = `was delivered ${tries} times and never finished: it may be what its workers died of`;
    const error = new ServingError("WORKER_LOST", message);
    this.#world.notMade(lease.item, error, "bury");
    return await this.#bury(error, tries);
  }

  async #end(error: ServingError): Promise<ItemEnd> {
    const { lease } = this;
    const { attemptsMax, clock, random, leaving } = this.#world;
    if (lease.lost.aborted) return "lost";
    currentSpan().fail(error);
    const verdict = judge(error, { attempt: lease.attempt, attemptsMax });
    this.#world.notMade(lease.item, error, verdict);
    switch (verdict) {
      case "hand-back": {
        if (this.#state !== undefined) await this.#leaveState(this.#state);
        const away = error.code === "DRAINING" || leaving.aborted;
        const delayMs = away ? 0 : backOffMs(1, RETRY, random);
        await this.#letGo(() => lease.release({ delayMs, forgiven: true }), clock);
        return "handed_back";
      }
      case "retry": {
        const delayMs = backOffMs(lease.attempt, RETRY, random);
        await this.#letGo(() => lease.release({ delayMs }), clock);
        return "retried";
      }
      case "fail":
        await this.#tell({ case: "failed", value: { code: error.code, message: error.detail, deadLetter: false } });
        await this.#persistently("queue", () => lease.ack());
        return "failed";
      case "bury":
        return await this.#bury(error, lease.attempt);
    }
  }

  async #bury(error: ServingError, attempts: number): Promise<ItemEnd> {
    const { code, detail: message } = error;
    await this.#tell({ case: "failed", value: { code, message, deadLetter: true } }, attempts);
    const { workerId } = this.#world;
    await this.#persistently("queue", () => this.lease.bury({ code, message, workerId }));
    return "buried";
  }

  /** The next worker may go on from here; where that cannot be kept it begins anew. */
  async #leaveState(state: DenoiseState): Promise<void> {
    await within(this.#world.clock, LEAVING_MS, this.#checkpoints.write(this.lease.item, state)).catch(() => {});
  }

  /** Where the queue does not hear of it, the lease runs out. */
  async #letGo(release: () => Promise<void>, clock: Clock): Promise<void> {
    if (this.#world.leaving.aborted) await within(clock, LEAVING_MS, release()).catch(() => {});
    else await this.#persistently("queue", release);
  }

  async #tell(
    result: NonNullable<MessageInitShape<typeof ItemOutcomeSchema>["result"]>,
    attempts = this.lease.attempt,
  ) {
    const { item } = this.lease;
    const { jobId, itemIndex, round } = item;
    const outcome: ItemOutcome = create(ItemOutcomeSchema, { itemIndex, round, attempts, result });
    const atMs = BigInt(Math.trunc(this.#world.clock.nowMs()));
    const event = create(JobEventSchema, { jobId, atMs, event: { case: "outcome", value: outcome } });
    await this.#persistently("queue", () => this.#world.events.append(event, itemId(item)));
  }

  /**
   * Does it again for as long as the store or the queue is away and the item is ours, up to a limit. Nothing is begun for
   * an item that is not ours any more. `proves`: that it was done says that the next will be; a full disk can be read.
   */
  async #persistently<Result>(pillar: Pillar, act: () => Promise<Result>, { proves = true } = {}): Promise<Result> {
    const { clock, random, leaving } = this.#world;
    const { lost } = this.lease;
    const sinceMs = clock.nowMs();
    for (let failures = 1; ; failures++) {
      if (lost.aborted) throw toServingError(lost.reason);
      try {
        const result = await act();
        if (proves) this.#world.answered(pillar, clock.nowMs() - sinceMs);
        return result;
      } catch (error) {
        if (lost.aborted || !(error instanceof ServingError) || error.code !== "STORAGE_UNAVAILABLE") throw error;
        this.#world.failed(pillar, error);
        if (leaving.aborted || clock.nowMs() - sinceMs > KEEP_MS) throw error;
      }
      await pause(clock, backOffMs(failures, AGAIN, random), [lost, leaving]);
    }
  }
}

/** Ends early when one of the signals does. */
function pause(clock: Clock, ms: number, signals: readonly AbortSignal[]): Promise<void> {
  return new Promise((resolve) => {
    const ended = () => {
      takeBack();
      for (const signal of signals) signal.removeEventListener("abort", ended);
      resolve();
    };
    const takeBack = clock.after(ms, ended);
    for (const signal of signals) signal.addEventListener("abort", ended);
    if (signals.some((signal) => signal.aborted)) ended();
  });
}

function within<Result>(clock: Clock, ms: number, done: Promise<Result>): Promise<Result> {
  return new Promise((resolve, reject) => {
    const takeBack = clock.after(ms, () => reject(new ServingError("DEADLINE_EXCEEDED", `not done in ${ms} ms`)));
    done.then(resolve, reject).finally(takeBack);
  });
}
