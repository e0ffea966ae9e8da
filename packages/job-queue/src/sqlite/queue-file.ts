import { mkdirSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname } from "node:path";
import type { DatabaseSync, StatementSync } from "node:sqlite";
import { ServingError } from "@atelier/core";
import { ensureSchema } from "./schema.ts";

/** A transaction goes on taking writes for so long: others wait for the file meanwhile, and so does our event loop. */
const TRANSACTION_MS = 20;
/** Writes that may wait for their transaction. */
const WRITES_MAX = 100_000;
/** SQLite itself may block our event loop for so long, when another process writes; we ask again after that. */
const BLOCK_MS = 10;
const BUSY_PAUSE_MS = 5;
/** How often other processes' changes are looked for: just after one, and when all is quiet. */
const LOOK_MS = 4;
const LOOK_QUIET_MS = 25;
const QUIET_AFTER_MS = 250;

const SQLITE_BUSY = 5;

interface Write {
  readonly run: () => unknown;
  readonly durable: boolean;
  readonly untilMs: number;
  readonly done: (result: unknown) => void;
  readonly failed: (error: unknown) => void;
}

/**
 * The database file, open in this process as perhaps in others. Writes are gathered into transactions, so that many small
 * ones share one wait for the disk. Nothing blocks the event loop for longer than one transaction.
 *
 * Real time, not the queue's clock, paces it: how often to look at a file has nothing to do with what o'clock it is.
 */
export class QueueFile {
  readonly path: string;
  readonly #database: DatabaseSync;
  readonly #inode: bigint;
  readonly #timeoutMs: number;
  readonly #statements = new Map<string, StatementSync>();
  readonly #changed = new Set<() => void>();
  readonly #dataVersion: StatementSync;
  #writes: Write[] = [];
  #flushing = false;
  #durable = true;
  #seenVersion = 0;
  #changeCount = 0;
  #changedAtMs = 0;
  #looking: NodeJS.Timeout | undefined;
  #closing = false;
  #closed = false;

  /** @throws ServingError STORAGE_UNAVAILABLE where the file cannot be made, read, written or understood. */
  constructor(path: string, timeoutMs: number) {
    this.path = path;
    this.#timeoutMs = timeoutMs;
    this.#database = open(path, timeoutMs);
    this.#inode = statSync(path, { bigint: true }).ino;
    this.#dataVersion = this.#database.prepare("PRAGMA data_version");
  }

  /** Prepared once. @throws ServingError STORAGE_UNAVAILABLE where the file is closed. */
  prepare(sql: string): StatementSync {
    if (this.#closed) throw this.#error("is closed");
    let statement = this.#statements.get(sql);
    if (statement === undefined) {
      statement = this.#database.prepare(sql);
      this.#statements.set(sql, statement);
    }
    return statement;
  }

  /** Readers wait for writers only while a file is recovered after a crash. @throws ServingError STORAGE_UNAVAILABLE. */
  async read<T>(use: () => T): Promise<T> {
    const untilMs = performance.now() + this.#timeoutMs;
    for (;;) {
      if (this.#closed) throw this.#error("is closed");
      try {
        return use();
      } catch (error) {
        if (!isBusy(error) || performance.now() > untilMs) throw this.#told(error);
      }
      await new Promise((resolve) => setTimeout(resolve, BUSY_PAUSE_MS));
    }
  }

  /**
   * Runs `run` in a transaction with others' and resolves once that is committed; `durable` ones are on the disk then,
   * others survive the death of every process, and not that of the machine. What `run` throws must be thrown before it
   * writes.
   */
  write<T>(run: () => T, { durable }: { readonly durable: boolean }): Promise<T> {
    if (this.#closing) return Promise.reject(this.#error("is closed"));
    if (this.#writes.length >= WRITES_MAX) return Promise.reject(this.#error(`has ${WRITES_MAX} writes waiting`));
    return new Promise<T>((resolve, reject) => {
      this.#writes.push({
        run,
        durable,
        untilMs: performance.now() + this.#timeoutMs,
        done: resolve as (result: unknown) => void,
        failed: reject,
      });
      this.#flushSoon(0);
    });
  }

  /** Tells of every change, whoever made it, soon after it; not of which. */
  onChange(listener: () => void): () => void {
    if (this.#changed.size === 0 && !this.#closed) this.#look();
    this.#changed.add(listener);
    return () => {
      this.#changed.delete(listener);
      if (this.#changed.size === 0) clearTimeout(this.#looking);
    };
  }

  /** Changes noticed so far: taken before a read, it tells `changeAfter` what that read may have missed. */
  get changeCount(): number {
    return this.#changeCount;
  }

  /** Resolves at the next change after that many, at the signal, after `waitMs`, and when the file is closed. */
  changeAfter(count: number, waitMs: number | undefined, signal?: AbortSignal): Promise<void> {
    if (this.#changeCount > count || this.#closed || signal?.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      const end = () => {
        stop();
        clearTimeout(timer);
        signal?.removeEventListener("abort", end);
        resolve();
      };
      const stop = this.onChange(end);
      const timer = waitMs === undefined ? undefined : setTimeout(end, waitMs);
      signal?.addEventListener("abort", end);
    });
  }

  /** @throws ServingError STORAGE_UNAVAILABLE where the file that is open is not the one of its name any more. */
  checkThere(): void {
    const found = statSync(this.path, { bigint: true, throwIfNoEntry: false });
    if (found === undefined) throw this.#error("was deleted: stop what uses it, and start that anew");
    if (found.ino !== this.#inode)
      throw this.#error("was replaced by another file: stop what uses it, and start that anew");
  }

  /** What waits to be written is written first. */
  async close(): Promise<void> {
    this.#closing = true;
    while (this.#writes.length > 0 || this.#flushing) await new Promise((resolve) => setTimeout(resolve, 1));
    if (this.#closed) return;
    this.#closed = true;
    clearTimeout(this.#looking);
    this.#tellChange();
    this.#changed.clear();
    this.#database.close();
  }

  get closed(): boolean {
    return this.#closed;
  }

  #flushSoon(delayMs: number): void {
    if (this.#flushing) return;
    this.#flushing = true;
    const flush = () => {
      this.#flushing = false;
      this.#flush();
    };
    if (delayMs === 0) setImmediate(flush);
    else setTimeout(flush, delayMs);
  }

  #flush(): void {
    const done: (() => void)[] = [];
    let taken = 0;
    try {
      this.checkThere();
      this.#setDurable(this.#writes.some((write) => write.durable));
      this.#database.exec("BEGIN IMMEDIATE");
      const startedAtMs = performance.now();
      while (taken < this.#writes.length && (taken === 0 || performance.now() - startedAtMs < TRANSACTION_MS)) {
        const write = this.#writes[taken]!;
        taken += 1;
        try {
          const result = write.run();
          done.push(() => write.done(result));
        } catch (error) {
          if (isSqlite(error)) throw error;
          done.push(() => write.failed(error));
        }
      }
      this.#database.exec("COMMIT");
    } catch (error) {
      if (this.#database.isTransaction) this.#database.exec("ROLLBACK");
      if (isBusy(error)) this.#waitForOthers(error);
      else for (const write of this.#writes.splice(0, Math.max(taken, 1))) write.failed(this.#told(error));
      if (this.#writes.length > 0) this.#flushSoon(isBusy(error) ? BUSY_PAUSE_MS : 0);
      return;
    }
    this.#writes.splice(0, taken);
    for (const tell of done) tell();
    this.#tellChange();
    if (this.#writes.length > 0) this.#flushSoon(0);
  }

  #waitForOthers(error: unknown): void {
    const nowMs = performance.now();
    const late = this.#writes.filter((write) => write.untilMs <= nowMs);
    if (late.length === 0) return;
    this.#writes = this.#writes.filter((write) => write.untilMs > nowMs);
    const told = this.#error(`was locked by another process for ${this.#timeoutMs} ms`, error);
    for (const write of late) write.failed(told);
  }

  #setDurable(durable: boolean): void {
    if (this.#durable === durable) return;
    this.#database.exec(`PRAGMA synchronous = ${durable ? "FULL" : "NORMAL"}`);
    this.#durable = durable;
  }

  #look(): void {
    const quiet = performance.now() - this.#changedAtMs > QUIET_AFTER_MS;
    this.#looking = setTimeout(
      () => {
        if (this.#changedByOthers()) this.#tellChange();
        if (this.#changed.size > 0 && !this.#closed) this.#look();
      },
      quiet ? LOOK_QUIET_MS : LOOK_MS,
    );
  }

  #tellChange(): void {
    this.#changeCount += 1;
    this.#changedAtMs = performance.now();
    for (const listener of [...this.#changed]) listener();
  }

  /** The number changes with every commit of another connection, and costs a look into shared memory. */
  #changedByOthers(): boolean {
    try {
      const { data_version: version } = this.#dataVersion.get() as { data_version: number };
      const changed = version !== this.#seenVersion;
      this.#seenVersion = version;
      return changed;
    } catch {
      // Whoever looks next is told what is wrong with the file.
      return true;
    }
  }

  #told(error: unknown): unknown {
    return isSqlite(error) ? this.#error(`failed: ${error.message}`, error) : error;
  }

  #error(what: string, cause?: unknown): ServingError {
    return new ServingError("STORAGE_UNAVAILABLE", `the queue ${this.path} ${what}`, { cause });
  }
}

function open(path: string, timeoutMs: number): DatabaseSync {
  // Loaded here, since Node prints a warning of its own with the first import.
  const sqlite = createRequire(import.meta.url)("node:sqlite") as typeof import("node:sqlite");
  let database: DatabaseSync | undefined;
  try {
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
    // The first to open a new file may hold it for a moment.
    database = new sqlite.DatabaseSync(path, { timeout: timeoutMs });
    database.exec("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA journal_size_limit = 67108864;");
    ensureSchema(database, path);
    database.exec(`PRAGMA busy_timeout = ${BLOCK_MS}`);
    return database;
  } catch (error) {
    database?.close();
    if (error instanceof ServingError) throw error;
    const message = `the queue ${path} cannot be opened: ${(error as Error).message}`;
    throw new ServingError("STORAGE_UNAVAILABLE", message, { cause: error });
  }
}

function isSqlite(error: unknown): error is Error & { errcode: number } {
  return (error as NodeJS.ErrnoException | undefined)?.code === "ERR_SQLITE_ERROR";
}

function isBusy(error: unknown): boolean {
  return isSqlite(error) && (error.errcode & 0xff) === SQLITE_BUSY;
}
