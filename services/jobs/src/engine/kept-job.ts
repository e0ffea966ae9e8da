import type { JobPriority, JobRecord, JobStatusName } from "../job.ts";
import type { JobView } from "../ports.ts";
import type { ItemFeed } from "./item-feed.ts";
import { JobLedger } from "./job-ledger.ts";
import { Pace } from "./pace.ts";

/** Two minutes: slow pictures of a minute each still show. */
const PACE_MS = 120_000;

/** A job as this process has it: its record, its ledger, and what is handed out. */
export class KeptJob {
  record: JobRecord;
  revision: number;
  readonly ledger: JobLedger;
  readonly pace = new Pace(PACE_MS);
  /** Newest event of the log that the ledger counts. */
  sequence = 0;
  /** The lane of each item that this process handed out and that has not ended. */
  readonly outLanes = new Map<number, string>();
  /** Items taken back that some worker was heard to be at: they wait again once nothing is heard of them any more. */
  readonly stragglers = new Set<number>();
  /** Reads its items; there while some wait. */
  feed: ItemFeed | undefined;
  /** What is handed out of it and was taken back may run still: nothing else of it is handed out before this time. */
  quietUntilMs = 0;
  /** When it was last told how far it is, and whether that is still so. */
  toldMs = Number.NEGATIVE_INFINITY;
  untold = false;
  /** What is handed out of it is being taken back, and some of it may not be yet. */
  recalling = false;
  /** Digests of values of its record that may have been stored although nobody said so. */
  readonly unsure = new Set<string>();
  /** Why its items cannot be read. */
  unreadable: string | undefined;
  /** Everything of it is being removed. */
  removal: Promise<void> | undefined;
  /** Its end is being told. */
  ending = false;

  constructor(record: JobRecord, revision: number) {
    this.record = record;
    this.revision = revision;
    this.ledger = new JobLedger(record.itemCount);
  }

  /**
   * What it is, by its owner's wish and its items:
   *
   * | wish | nothing begun | some items have ended or run | all have ended |
   * |---|---|---|---|
   * | run | queued | running | done |
   * | pause | paused | paused | done |
   * | cancel | cancelled | cancelled | cancelled |
   */
  get status(): JobStatusName {
    if (this.record.wish === "cancel") return "cancelled";
    if (this.ledger.ended) return "done";
    if (this.record.wish === "pause") return "paused";
    const { counts } = this.ledger;
    return counts.queued === this.ledger.size ? "queued" : "running";
  }

  get wantsWork(): boolean {
    return this.record.wish === "run" && !this.record.deleting && this.ledger.waiting > 0;
  }

  /** Of the items that have not ended, as predicted. */
  get leftDeviceMs(): number {
    const { itemCount, predictedDeviceMs } = this.record;
    return itemCount === 0 ? 0 : (predictedDeviceMs / itemCount) * (this.ledger.waiting + this.ledger.out);
  }

  view(nowMs: number, heldFor: string | null): JobView {
    const { ledger, record, status } = this;
    const left = { items: ledger.waiting + ledger.out, deviceMs: this.#expectedDeviceMs() };
    return {
      record,
      status,
      heldFor: status === "running" || status === "queued" ? heldFor : null,
      counts: ledger.counts,
      spentDeviceMs: ledger.deviceMs,
      spentCost: (ledger.deviceMs / 3_600_000) * record.pricePerDeviceHour,
      itemsPerMinute: this.pace.at(nowMs).items * 60_000,
      etaMs: status === "running" && heldFor === null ? (this.pace.etaMs(nowMs, left) ?? null) : null,
      startedAtMs: ledger.startedAtMs ?? null,
      endedAtMs: status === "done" || status === "cancelled" ? (ledger.endedAtMs ?? null) : null,
      sequence: this.sequence,
    };
  }

  /** What is left, corrected by how what has ended compares with what was predicted of it. */
  #expectedDeviceMs(): number {
    const done = this.ledger.counts.done;
    const { itemCount, predictedDeviceMs } = this.record;
    if (done === 0 || predictedDeviceMs === 0) return this.leftDeviceMs;
    return this.leftDeviceMs * (this.ledger.deviceMs / ((predictedDeviceMs / itemCount) * done));
  }
}

/** A class and model: what has one window. */
export function laneOf(priority: JobPriority, model: string): string {
  return `${priority}\n${model}`;
}
