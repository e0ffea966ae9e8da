import { type Clock, type ManualClock, type Random, ServingError } from "@atelier/core";
import type { JobQueue, Kept, LoggedEvent, QueueDepth } from "@atelier/job-queue";
import { itemId } from "@atelier/job-queue";
import type { ItemProgress, JobEvent, WorkItem } from "@atelier/proto";

const TIMEOUT_MS = 5_000;

export interface SimItem {
  readonly item: WorkItem;
  attempts: number;
  /** Of the delivery that holds it; undefined: it waits. */
  holder: symbol | undefined;
  untilMs: number;
}

/**
 * The queue's promises as a model in memory, with the least that they promise: calls fail before they did anything, or after;
 * answers take their time; events are told apart for a short while only; readers are cut off.
 *
 * `bad` says how likely faults are; `note` hears of those that were met.
 */
export class SimQueue {
  readonly items = new Map<string, SimItem>();
  readonly records = new Map<string, Kept>();
  readonly log: LoggedEvent[] = [];
  readonly #clock: ManualClock;
  readonly #random: Random;
  readonly #note: (what: string) => void;
  readonly #knownUntilMs = new Map<string, number>();
  #revision = 0;
  #sequence = 0;
  #connection: SimConnection | undefined;
  bad = 0;
  /** Whether nothing answers: every call fails when its deadline is over. */
  away = false;

  constructor(world: { clock: ManualClock; random: Random; note: (what: string) => void }) {
    this.#clock = world.clock;
    this.#random = world.random;
    this.#note = world.note;
  }

  /** For a new process; the one before is dead: nothing of it happens any more. */
  connect(): SimConnection {
    this.#connection?.kill();
    this.#connection = new SimConnection(this, this.#clock);
    return this.#connection;
  }

  happens(probability: number): boolean {
    return this.#random.next() < probability;
  }

  note(what: string): void {
    this.#note(what);
  }

  delayMs(): number {
    return this.bad === 0 || this.happens(0.7) ? 0 : this.#random.next() * 1_500;
  }

  publish(items: readonly WorkItem[]): void {
    for (const item of items) {
      if (this.#isRepeat(`item ${itemId(item)}`)) this.#note("an item was published twice");
      else this.items.set(itemId(item), { item, attempts: 0, holder: undefined, untilMs: 0 });
    }
  }

  withdraw(jobId: string, stop: boolean): void {
    for (const [id, { item, holder }] of this.items) {
      if (item.jobId !== jobId || (holder !== undefined && !stop)) continue;
      this.items.delete(id);
      this.#knownUntilMs.delete(`item ${id}`);
    }
  }

  append(event: JobEvent, id: string): void {
    if (this.#isRepeat(`event ${id}`)) this.#note("an event's repeat was dropped");
    else this.log.push({ sequence: ++this.#sequence, event });
  }

  put(key: string, value: string, expected: number | undefined): number {
    const revision = this.records.get(key)?.revision ?? 0;
    if (expected !== undefined && revision !== expected) throw new ServingError("CONFLICT", `${key} is at ${revision}`);
    this.records.set(key, { key, value, revision: ++this.#revision });
    return this.#revision;
  }

  removeEvents(jobId: string): void {
    const kept = this.log.filter(({ event }) => event.jobId !== jobId);
    this.log.splice(0, this.log.length, ...kept);
  }

  /** The work stream is deleted under everybody, and told of or not. */
  lose({ told }: { readonly told: boolean }): void {
    for (const id of this.items.keys()) this.#knownUntilMs.delete(`item ${id}`);
    this.items.clear();
    if (told) this.#connection?.lost();
  }

  report(progress: ItemProgress): void {
    if (this.bad > 0 && this.happens(0.3)) return;
    const connection = this.#connection;
    this.#clock.after(this.delayMs(), () => connection?.progress(progress));
  }

  depths(): readonly QueueDepth[] {
    const depths = new Map<string, { -readonly [K in keyof QueueDepth]: QueueDepth[K] }>();
    for (const { item, holder } of this.items.values()) {
      const [priorityClass, model] = [item.order!.priorityClass, item.parameters!.model];
      const lane = `${priorityClass} ${model}`;
      const depth = depths.get(lane) ?? { priorityClass, model, waiting: 0, held: 0, oldestMs: 0 };
      depths.set(lane, depth);
      if (holder === undefined) depth.waiting++;
      else depth.held++;
    }
    return [...depths.values()];
  }

  /** Known repeats are dropped for two seconds: far shorter than a real queue's two minutes, so that some come through. */
  #isRepeat(id: string): boolean {
    const nowMs = this.#clock.nowMs();
    const isRepeat = (this.#knownUntilMs.get(id) ?? 0) > nowMs;
    if (!isRepeat) this.#knownUntilMs.set(id, nowMs + 2_000);
    return isRepeat || (id.startsWith("item ") && this.items.has(id.slice(5)));
  }
}

/** One process's way to the queue, and its clock: both end with it. */
export class SimConnection {
  readonly #queue: SimQueue;
  readonly #clock: ManualClock;
  readonly #progress = new Set<(progress: ItemProgress) => void>();
  readonly #lost = new Set<() => void>();
  #dead = false;

  constructor(queue: SimQueue, clock: ManualClock) {
    this.#queue = queue;
    this.#clock = clock;
  }

  kill(): void {
    this.#dead = true;
  }

  progress(progress: ItemProgress): void {
    if (!this.#dead) for (const listener of this.#progress) listener(progress);
  }

  lost(): void {
    if (!this.#dead) for (const listener of this.#lost) listener();
  }

  get clock(): Clock {
    return {
      nowMs: () => this.#clock.nowMs(),
      after: (ms, run) => this.#clock.after(ms, () => void (this.#dead || run())),
    };
  }

  get jobQueue(): JobQueue {
    const queue = this.#queue;
    const listen = <T>(all: Set<T>, listener: T) => {
      all.add(listener);
      return () => void all.delete(listener);
    };
    return {
      work: {
        publish: (items) => this.#call(() => queue.publish(items)),
        withdraw: (jobId, options) => this.#call(() => queue.withdraw(jobId, options?.stop ?? false)),
        depths: () => this.#call(() => queue.depths()),
        deadLetters: async function* () {},
        removeDeadLetters: () => this.#call(() => {}),
        onProgress: (listener) => listen(this.#progress, listener),
        onLost: (listener) => listen(this.#lost, listener),
        pull: async () => [],
      },
      events: {
        append: (event, id) => this.#call(() => queue.append(event, id)),
        read: async function* (jobId) {
          yield* queue.log.filter(({ event }) => event.jobId === jobId);
        },
        follow: (after, signal) => this.#follow(after, signal),
        lastSequence: () => this.#call(() => queue.log.at(-1)?.sequence ?? 0),
        remove: (jobId) => this.#call(() => queue.removeEvents(jobId)),
      },
      records: {
        get: (key) => this.#call(() => queue.records.get(key)),
        put: (key, value, expected) => this.#call(() => queue.put(key, value, expected)),
        remove: (key) => this.#call(() => void queue.records.delete(key)),
        list: (prefix) => this.#list(prefix),
      },
      check: () => this.#call(() => {}),
      onConnection: () => () => {},
      close: async () => {},
    };
  }

  async *#list(prefix: string): AsyncIterable<Kept> {
    yield* await this.#call(() => [...this.#queue.records.values()].filter(({ key }) => key.startsWith(prefix)));
  }

  async *#follow(after: number, signal: AbortSignal): AsyncIterable<readonly LoggedEvent[]> {
    const queue = this.#queue;
    for (let from = after; !signal.aborted; ) {
      await this.#wait(queue.bad > 0 ? 50 + queue.delayMs() : 50);
      if (queue.happens(queue.bad)) throw away("the reader was cut off");
      const batch = queue.log.filter(({ sequence }) => sequence > from).slice(0, 20);
      if (batch.length === 0) continue;
      yield batch;
      // Some it is given again, as after a connection that broke.
      from = queue.happens(queue.bad) ? Math.max(after, from - 5) : batch.at(-1)!.sequence;
    }
  }

  /** Never settles in a process that is dead. */
  async #call<T>(run: () => T): Promise<T> {
    const queue = this.#queue;
    if (queue.away) {
      await this.#wait(TIMEOUT_MS);
      throw away("the queue does not answer");
    }
    await this.#wait(queue.delayMs());
    if (queue.happens(queue.bad)) throw this.#met("a call failed and did nothing");
    const result = run();
    await this.#wait(queue.delayMs());
    if (queue.happens(queue.bad)) throw this.#met("a call did its work and its answer was lost");
    return result;
  }

  #met(fault: string): ServingError {
    this.#queue.note(fault);
    return away(fault);
  }

  #wait(ms: number): Promise<void> {
    return new Promise((resolve) => {
      if (this.#dead) return;
      if (ms === 0) resolve();
      else this.clock.after(ms, resolve);
    });
  }
}

function away(message: string): ServingError {
  return new ServingError("STORAGE_UNAVAILABLE", message);
}
