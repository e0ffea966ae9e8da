import { type Clock, ServingError } from "@atelier/core";
import {
  type DeadLetter,
  DeadLetterSchema,
  type ItemProgress,
  type PriorityClass,
  type WorkItem,
  WorkItemSchema,
} from "@atelier/proto";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { laneOf, REPEATS_KNOWN_MS } from "../checks.ts";
import { type BuryReason, HeldLease, type LeaseHolder } from "../held-lease.ts";
import type { Lease, Pull, QueueDepth, WorkQueue } from "../job-queue.ts";
import { ProgressReports } from "./progress-reports.ts";
import type { QueueFile } from "./queue-file.ts";
import { ENDED, HELD, WAITING } from "./schema.ts";

/** Items stored in one go: others' writes come between. */
const PUBLISH_ROWS = 500;
const PAGE_ROWS = 200;
/** A puller that waits looks again after so long, since an item may fall due without anybody having written anything. */
const LOOK_AGAIN_MS = 200;

/** The row, and which of its deliveries this is. */
interface Ref {
  readonly id: number;
  readonly delivery: number;
}

/**
 * Items in a table. One that is pulled is marked HELD until a time and given a delivery number; whoever pulls next finds
 * those whose time is over and takes them.
 *
 * The clock may be set. Forward, held items look run out too soon: somebody else gets them as well, and the first to end
 * one ends it. Back, a time would lie far ahead: one that lies further ahead than its wait was long is not believed. A
 * held item gets a lease time from then on, and a released one is free at once.
 */
export class SqliteWork implements WorkQueue, LeaseHolder<Ref> {
  readonly #file: QueueFile;
  readonly #clock: Clock;
  readonly #leaseMs: number;
  readonly #progress: ProgressReports;
  readonly #leases = new Set<HeldLease<Ref>>();
  #stopWatching: (() => void) | undefined;
  #stops = 0;

  constructor(file: QueueFile, options: { readonly clock: Clock; readonly leaseMs: number }) {
    this.#file = file;
    this.#clock = options.clock;
    this.#leaseMs = options.leaseMs;
    this.#progress = new ProgressReports(file);
  }

  async publish(items: readonly WorkItem[]): Promise<void> {
    const forget = this.#file.prepare("DELETE FROM items WHERE state = ? AND (due_ms <= ? OR due_ms > ?)");
    const insert = this.#file.prepare(
      `INSERT INTO items (job, item_index, round, priority_class, model, item, published_ms)
       VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
    );
    for (let from = 0; from < items.length; from += PUBLISH_ROWS) {
      const rows = items.slice(from, from + PUBLISH_ROWS).map((item) => {
        const { priorityClass, model } = laneOf(item);
        return [item.jobId, item.itemIndex, item.round, priorityClass, model, toBinary(WorkItemSchema, item)] as const;
      });
      const store = () => {
        const nowMs = this.#nowMs();
        forget.run(ENDED, nowMs, nowMs + REPEATS_KNOWN_MS);
        for (const row of rows) insert.run(...row, nowMs);
      };
      await this.#file.write(store, { durable: true });
    }
  }

  async withdraw(jobId: string, { stop }: { readonly stop: boolean } = { stop: false }): Promise<void> {
    const remove = this.#file.prepare("DELETE FROM items WHERE job = ? AND (state = ? OR state = ?)");
    const count = this.#file.prepare("UPDATE counters SET value = value + 1 WHERE name = 'stops'");
    const withdraw = () => {
      // With those whose lease has run out, though nobody has noticed it yet.
      this.#freeRunOut();
      remove.run(jobId, WAITING, stop ? HELD : WAITING);
      if (stop) count.run();
    };
    await this.#file.write(withdraw, { durable: true });
  }

  async depths(): Promise<readonly QueueDepth[]> {
    await this.#freeRunOutIfAny();
    const counted = this.#file.prepare(
      `SELECT priority_class AS priorityClass, model, 0 AS held, count(*) AS count, min(id) AS first
         FROM items WHERE state = ${WAITING} GROUP BY priority_class, model
       UNION ALL
       SELECT priority_class, model, 1, count(*), 0 FROM items WHERE state = ${HELD} GROUP BY priority_class, model`,
    );
    const published = this.#file.prepare("SELECT published_ms AS publishedMs FROM items WHERE id = ?");
    return this.#file.read(() => {
      const depths = new Map<string, { -readonly [K in keyof QueueDepth]: QueueDepth[K] }>();
      for (const row of counted.all()) {
        const { priorityClass, model, held, count, first } = row as unknown as DepthRow;
        const lane = JSON.stringify([priorityClass, model]);
        const depth = depths.get(lane) ?? { priorityClass, model, waiting: 0, held: 0, oldestMs: 0 };
        depths.set(lane, depth);
        if (held === 1) depth.held = count;
        else {
          depth.waiting = count;
          const oldest = published.get(first) as { publishedMs: number } | undefined;
          depth.oldestMs = Math.max(0, this.#nowMs() - (oldest?.publishedMs ?? this.#nowMs()));
        }
      }
      return [...depths.values()];
    });
  }

  async *deadLetters(jobId?: string): AsyncIterable<DeadLetter> {
    const ofJob = jobId === undefined ? "" : "job = ? AND";
    const page = this.#file.prepare(`SELECT id, letter FROM dead_letters WHERE ${ofJob} id > ? ORDER BY id LIMIT ?`);
    const job = jobId === undefined ? [] : [jobId];
    let after = 0;
    for (;;) {
      const rows = (await this.#file.read(() => page.all(...job, after, PAGE_ROWS))) as unknown as LetterRow[];
      for (const { letter } of rows) yield fromBinary(DeadLetterSchema, letter);
      if (rows.length < PAGE_ROWS) return;
      after = rows.at(-1)!.id;
    }
  }

  async removeDeadLetters(jobId: string, itemIndexes?: readonly number[]): Promise<void> {
    const all = this.#file.prepare("DELETE FROM dead_letters WHERE job = ?");
    const one = this.#file.prepare("DELETE FROM dead_letters WHERE job = ? AND item_index = ?");
    const remove = () => {
      if (itemIndexes === undefined) all.run(jobId);
      else for (const index of itemIndexes) one.run(jobId, index);
    };
    await this.#file.write(remove, { durable: true });
  }

  onProgress(listener: (progress: ItemProgress) => void): () => void {
    return this.#progress.listen(listener);
  }

  /** A table is not deleted under us; a deleted file is told by whatever is asked of it next. */
  onLost(): () => void {
    return () => {};
  }

  async pull({ priorityClass, model, max, waitMs, signal }: Pull): Promise<readonly Lease[]> {
    const untilMs = performance.now() + waitMs;
    while (!signal?.aborted) {
      const changes = this.#file.changeCount;
      const leases = await this.#take(priorityClass, model, max);
      if (leases.length > 0) return leases;
      const leftMs = untilMs - performance.now();
      if (leftMs <= 0 || this.#file.closed) break;
      await this.#file.changeAfter(changes, Math.min(leftMs, LOOK_AGAIN_MS), signal);
      if (this.#file.closed) break;
    }
    return [];
  }

  /** What is not ended is left to run out, or is pulled again by whoever opens the file next. */
  closing(): void {
    const why = new ServingError("STORAGE_UNAVAILABLE", `the queue ${this.#file.path} is closed`);
    for (const lease of [...this.#leases]) lease.lose(why);
    this.#progress.close();
  }

  async #take(priorityClass: PriorityClass, model: string, max: number): Promise<readonly HeldLease<Ref>[]> {
    await this.#freeRunOutIfAny();
    const free = `priority_class = :priorityClass AND model = :model AND state = ${WAITING}
      AND (due_ms <= :nowMs OR due_ms > :nowMs + wait_ms)`;
    const any = this.#file.prepare(`SELECT 1 FROM items WHERE ${free} LIMIT 1`);
    // Looked for first without the lock: pullers with nothing to do keep nobody from writing.
    const found = await this.#file.read(() => any.get({ priorityClass, model, nowMs: this.#nowMs() }));
    if (found === undefined) return [];

    const take = this.#file.prepare(
      `UPDATE items SET state = ${HELD}, attempts = attempts + 1, delivery = delivery + 1, due_ms = :nowMs + :leaseMs,
         wait_ms = :leaseMs
       WHERE id IN (SELECT id FROM items WHERE ${free} ORDER BY id LIMIT :max)
       RETURNING id, delivery, attempts, item`,
    );
    const leaseMs = this.#leaseMs;
    const rows = await this.#file.write(
      () => take.all({ priorityClass, model, nowMs: this.#nowMs(), leaseMs, max }) as unknown as TakenRow[],
      { durable: false },
    );
    const leases = rows
      .sort((a, b) => a.id - b.id)
      .map(({ id, delivery, attempts, item }) =>
        this.#hold({
          ref: { id, delivery },
          attempt: attempts,
          redelivered: delivery > 1,
          leaseMs,
          item: fromBinary(WorkItemSchema, item),
        }),
      );
    // A job may have been withdrawn between the transaction and now.
    setImmediate(() => this.#loseIfGone(leases));
    return leases;
  }

  #hold(delivered: ConstructorParameters<typeof HeldLease<Ref>>[0]): HeldLease<Ref> {
    const lease = new HeldLease(delivered, this, this.#clock);
    if (this.#leases.size === 0) {
      this.#stops = this.#stopCount();
      this.#stopWatching = this.#file.onChange(() => this.#loseWithdrawn());
    }
    this.#leases.add(lease);
    return lease;
  }

  forget(lease: HeldLease<Ref>): void {
    this.#leases.delete(lease);
    if (this.#leases.size > 0) return;
    this.#stopWatching?.();
    this.#stopWatching = undefined;
  }

  #loseWithdrawn(): void {
    if (this.#file.closed) return;
    const stops = this.#stopCount();
    if (stops === this.#stops) return;
    this.#stops = stops;
    this.#loseIfGone([...this.#leases]);
  }

  #loseIfGone(leases: readonly HeldLease<Ref>[]): void {
    if (this.#file.closed) return;
    for (const lease of leases) if (!this.#exists(lease)) lease.loseWithdrawn();
  }

  async extend(lease: HeldLease<Ref>): Promise<boolean> {
    const extend = this.#file.prepare(
      `UPDATE items SET due_ms = :nowMs + wait_ms WHERE id = :id AND delivery = :delivery AND state = ${HELD}`,
    );
    const { id, delivery } = lease.ref;
    const run = () => extend.run({ id, delivery, nowMs: this.#nowMs() }).changes === 1;
    const ours = await this.#file.write(run, { durable: false });
    if (!ours && !this.#exists(lease)) lease.loseWithdrawn();
    return ours;
  }

  end(lease: HeldLease<Ref>): Promise<boolean> {
    return this.#file.write(() => this.#markEnded(lease), { durable: true });
  }

  release(lease: HeldLease<Ref>, options: { readonly delayMs: number; readonly forgiven: boolean }): Promise<boolean> {
    const release = this.#file.prepare(
      `UPDATE items SET state = ${WAITING}, due_ms = :nowMs + :delayMs, wait_ms = :delayMs, attempts = attempts - :forgiven
       WHERE id = :id AND delivery = :delivery AND state = ${HELD}`,
    );
    const { id, delivery } = lease.ref;
    const { delayMs, forgiven } = options;
    const run = () =>
      release.run({ id, delivery, delayMs, forgiven: forgiven ? 1 : 0, nowMs: this.#nowMs() }).changes === 1;
    return this.#file.write(run, { durable: true });
  }

  bury(lease: HeldLease<Ref>, reason: BuryReason): Promise<boolean> {
    const insert = this.#file.prepare("INSERT INTO dead_letters (job, item_index, letter) VALUES (?, ?, ?)");
    const { item, attempt } = lease;
    const run = () => {
      const atMs = BigInt(Math.trunc(this.#nowMs()));
      const letter = create(DeadLetterSchema, { ...reason, item, attempts: attempt, atMs });
      const ours = this.#markEnded(lease);
      if (ours) insert.run(item.jobId, item.itemIndex, toBinary(DeadLetterSchema, letter));
      return ours;
    };
    return this.#file.write(run, { durable: true });
  }

  report(lease: HeldLease<Ref>, progress: Parameters<Lease["report"]>[0]): void {
    this.#progress.report(lease.item, progress);
  }

  #markEnded({ ref: { id, delivery } }: HeldLease<Ref>): boolean {
    const end = this.#file.prepare(
      `UPDATE items SET state = ${ENDED}, item = x'', due_ms = :nowMs + :keptMs
       WHERE id = :id AND delivery = :delivery AND state = ${HELD}`,
    );
    return end.run({ id, delivery, nowMs: this.#nowMs(), keptMs: REPEATS_KNOWN_MS }).changes === 1;
  }

  async #freeRunOutIfAny(): Promise<void> {
    const any = this.#file.prepare(`SELECT 1 FROM items WHERE ${RUN_OUT} LIMIT 1`);
    const found = await this.#file.read(() => any.get({ nowMs: this.#nowMs() }));
    if (found !== undefined) await this.#file.write(() => this.#freeRunOut(), { durable: false });
  }

  #freeRunOut(): void {
    const nowMs = this.#nowMs();
    // First those whose time cannot be right, so that they have a lease time from now on.
    this.#file
      .prepare(`UPDATE items SET due_ms = :nowMs + wait_ms WHERE state = ${HELD} AND due_ms > :nowMs + wait_ms`)
      .run({ nowMs });
    this.#file
      .prepare(
        `UPDATE items SET state = ${WAITING}, due_ms = 0, wait_ms = 0 WHERE state = ${HELD} AND due_ms <= :nowMs`,
      )
      .run({ nowMs });
  }

  #stopCount(): number {
    const count = this.#file.prepare("SELECT value FROM counters WHERE name = 'stops'");
    return (count.get() as { value: number }).value;
  }

  #exists({ ref: { id } }: HeldLease<Ref>): boolean {
    return this.#file.prepare("SELECT 1 FROM items WHERE id = ?").get(id) !== undefined;
  }

  /** The file has whole milliseconds. */
  #nowMs(): number {
    return Math.trunc(this.#clock.nowMs());
  }
}

const RUN_OUT = `state = ${HELD} AND (due_ms <= :nowMs OR due_ms > :nowMs + wait_ms)`;

interface DepthRow {
  readonly priorityClass: PriorityClass;
  readonly model: string;
  readonly held: 0 | 1;
  readonly count: number;
  readonly first: number;
}

interface LetterRow {
  readonly id: number;
  readonly letter: Uint8Array;
}

interface TakenRow {
  readonly id: number;
  readonly delivery: number;
  readonly attempts: number;
  readonly item: Uint8Array;
}
