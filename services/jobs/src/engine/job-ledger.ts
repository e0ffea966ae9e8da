import { invariant } from "@atelier/core";
import { type ItemOutcome, type JobChange, type JobEvent, JobStatus } from "@atelier/proto";
import { ITEM_STATES, type ItemState } from "../job.ts";
import type { ItemStates } from "../ports.ts";

/** As a byte; `OUT` is handed out, and runs where a worker says so. */
const WAITING = 0;
const OUT = 1;
const DONE = 2;
const FAILED = 3;
const CANCELLED = 4;
const FILTERED = 5;
const ENDED_FROM = DONE;
const NAMES = ["queued", "queued", "done", "failed", "cancelled", "filtered"] as const;

export interface ItemProgress {
  readonly stepsDone: number;
  readonly stepsTotal: number;
  readonly workerId: string;
  readonly heardAtMs: number;
}

export interface ItemReason {
  readonly code: string;
  readonly message: string;
  readonly attempts: number;
}

/** What a job used of one model. */
export interface ModelUse {
  images: number;
  deviceMs: number;
}

/**
 * What is known of each item of one job: five bytes an item. Folded from the job's events in the order of the log, so that
 * the same log gives the same ledger; what is handed out, and how far it is, is known to this process only.
 *
 * An item ends once: the first outcome counts. A picture counts whatever its round, since all rounds make the same one; a
 * failure counts unless the item was queued again since.
 */
export class JobLedger implements ItemStates {
  readonly size: number;
  readonly #states: Uint8Array;
  /** The least round whose failure counts: newer than every outcome that was there when a retry queued it again. */
  readonly #leastRounds: Uint32Array;
  /** Items by state. */
  readonly #counts = [0, 0, 0, 0, 0, 0];
  readonly #running = new Map<number, ItemProgress>();
  readonly #reasons = new Map<number, ItemReason>();
  readonly #used = new Map<string, ModelUse>();
  /** No item before it waits. */
  #waitingFrom = 0;
  #roundMax = 0;
  #deviceMs = 0;
  #redelivered = 0;
  #deadLetters = 0;
  #retries = 0;
  #startedAtMs: number | undefined;
  #endedAtMs: number | undefined;

  constructor(size: number) {
    this.size = size;
    this.#states = new Uint8Array(size);
    this.#leastRounds = new Uint32Array(size);
    this.#counts[WAITING] = size;
  }

  /** The item that the event ended; undefined where it ended none: a repeat, out of date, or no outcome at all. */
  apply(event: JobEvent): number | undefined {
    if (event.event.case === "change") this.#applyChange(event.event.value, Number(event.atMs));
    if (event.event.case !== "outcome") return undefined;
    return this.#applyOutcome(event.event.value, Number(event.atMs)) ? event.event.value.itemIndex : undefined;
  }

  /** An item that waits is handed out from now on. */
  handOut(index: number): void {
    invariant(this.#states[index] === WAITING, `item ${index} waits`);
    this.#move(index, OUT);
  }

  /** The first item that waits, from `from` on. */
  nextWaiting(from = 0): number | undefined {
    for (let i = Math.max(from, this.#waitingFrom); i < this.size; i++) {
      if (this.#states[i] !== WAITING) continue;
      if (from <= this.#waitingFrom) this.#waitingFrom = i;
      return i;
    }
    if (from <= this.#waitingFrom) this.#waitingFrom = this.size;
    return undefined;
  }

  /** The round that an item handed out now has. */
  roundOf(index: number, jobRound: number): number {
    return Math.max(jobRound, this.#leastRounds[index]!);
  }

  /** A job round that is newer than every round that any of its items was handed out with. */
  newerRound(jobRound: number): number {
    return Math.max(jobRound, this.#roundMax) + 1;
  }

  /** An item that was not handed out after all, or that nobody holds any more, waits again. */
  putBack(index: number): boolean {
    this.#running.delete(index);
    if (this.#states[index] !== OUT) return false;
    this.#move(index, WAITING);
    this.#waitingFrom = Math.min(this.#waitingFrom, index);
    return true;
  }

  /** Handed out, and not ended. */
  *outItems(): IterableIterator<number> {
    for (let i = 0, left = this.#counts[OUT]!; i < this.size && left > 0; i++) {
      if (this.#states[i] !== OUT) continue;
      left--;
      yield i;
    }
  }

  /** A worker is at it, whoever handed it out: one that waits counts as handed out from now on. */
  heard(index: number, progress: ItemProgress): void {
    if (index >= this.size || this.#states[index]! >= ENDED_FROM) return;
    if (this.#states[index] === WAITING) this.#move(index, OUT);
    this.#running.set(index, progress);
  }

  of(index: number): ItemState {
    return this.#running.has(index) ? "running" : NAMES[this.#states[index]!]!;
  }

  progress(index: number): ItemProgress | undefined {
    return this.#running.get(index);
  }

  reason(index: number): ItemReason | undefined {
    return this.#reasons.get(index);
  }

  in(state: ItemState, from: number, max: number): readonly number[] {
    const found: number[] = [];
    for (let i = Math.max(0, from); i < this.size && found.length < max; i++) if (this.of(i) === state) found.push(i);
    return found;
  }

  get counts(): Readonly<Record<ItemState, number>> {
    const queued = this.#counts[WAITING]! + this.#counts[OUT]! - this.#running.size;
    const counts = { queued, running: this.#running.size } as Record<ItemState, number>;
    for (const state of ITEM_STATES.slice(2)) counts[state] = this.#counts[NAMES.indexOf(state as "done")]!;
    return counts;
  }

  get waiting(): number {
    return this.#counts[WAITING]!;
  }

  /** Handed out, and not ended. */
  get out(): number {
    return this.#counts[OUT]!;
  }

  get ended(): boolean {
    return this.#counts[WAITING] === 0 && this.#counts[OUT] === 0;
  }

  /** Device milliseconds that its pictures took. */
  get deviceMs(): number {
    return this.#deviceMs;
  }

  get used(): ReadonlyMap<string, Readonly<ModelUse>> {
    return this.#used;
  }

  /** Attempts beyond the first, of items that ended. */
  get redelivered(): number {
    return this.#redelivered;
  }

  get deadLetters(): number {
    return this.#deadLetters;
  }

  /** Times that failed items were queued again: what a job's end is told apart by. */
  get retries(): number {
    return this.#retries;
  }

  get startedAtMs(): number | undefined {
    return this.#startedAtMs;
  }

  /** Of the newest event that says so; undefined again after a retry. */
  get endedAtMs(): number | undefined {
    return this.#endedAtMs;
  }

  #applyOutcome(outcome: ItemOutcome, atMs: number): boolean {
    const { itemIndex: index, round, attempts, result } = outcome;
    if (index >= this.size || result.case === undefined) return false;
    this.#startedAtMs ??= atMs;
    this.#roundMax = Math.max(this.#roundMax, round);
    if (this.#states[index]! >= ENDED_FROM) return false;
    if (result.case === "failed" && round < this.#leastRounds[index]!) return false;

    this.#running.delete(index);
    this.#redelivered += Math.max(0, attempts - 1);
    if (result.case === "done") {
      this.#move(index, DONE);
      this.#use(result.value.receipt?.parameters?.model ?? "", result.value.receipt?.deviceMs ?? 0);
    } else if (result.case === "failed") {
      this.#move(index, FAILED);
      this.#deadLetters += result.value.deadLetter ? 1 : 0;
      this.#reasons.set(index, { code: result.value.code, message: result.value.message, attempts });
    } else {
      this.#move(index, FILTERED);
      this.#reasons.set(index, { code: "FILTERED", message: result.value.reason, attempts });
    }
    return true;
  }

  #applyChange({ status, retriedItems, retriedItemIndexes }: JobChange, atMs: number): void {
    if (status === JobStatus.CANCELLED) {
      for (let i = 0; i < this.size; i++) if (this.#states[i]! < ENDED_FROM) this.#move(i, CANCELLED);
      this.#running.clear();
      this.#endedAtMs ??= atMs;
    }
    // The first one counts, and none that a retry came before.
    if (status === JobStatus.DONE && this.ended) this.#endedAtMs ??= atMs;
    if (retriedItems === 0) return;
    this.#retries++;
    // Newer than any that an outcome is there for: the queue and the log would take what is made in that one for a repeat.
    const round = this.#roundMax + 1;
    for (const index of retriedItemIndexes.length > 0 ? retriedItemIndexes : [...this.#reasons.keys()]) {
      if (this.#states[index] !== FAILED) continue;
      this.#leastRounds[index] = round;
      this.#roundMax = round;
      this.#reasons.delete(index);
      this.#move(index, WAITING);
      this.#endedAtMs = undefined;
      this.#waitingFrom = Math.min(this.#waitingFrom, index);
    }
  }

  #use(model: string, deviceMs: number): void {
    const use = this.#used.get(model) ?? { images: 0, deviceMs: 0 };
    use.images += 1;
    use.deviceMs += deviceMs;
    this.#used.set(model, use);
    this.#deviceMs += deviceMs;
  }

  #move(index: number, to: number): void {
    this.#counts[this.#states[index]!]!--;
    this.#counts[to]!++;
    this.#states[index] = to;
  }
}
