import { type ItemProgress, ItemProgressSchema, type WorkItem } from "@atelier/proto";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { itemId } from "../checks.ts";
import type { Lease } from "../job-queue.ts";
import type { QueueFile } from "./queue-file.ts";

/** Reports of an item within so long are one: the newest. */
const GATHER_MS = 100;
/** Reports kept for those who listen; a listener that falls behind by more misses some. */
const KEPT_ROWS = 2_000;

/** How far items are, passed through a small table from the processes that make them to those that want to know. */
export class ProgressReports {
  readonly #file: QueueFile;
  readonly #listeners = new Set<(progress: ItemProgress) => void>();
  #gathered = new Map<string, ItemProgress>();
  #timer: NodeJS.Timeout | undefined;
  #stopWatching: (() => void) | undefined;
  #seen = 0;

  constructor(file: QueueFile) {
    this.#file = file;
  }

  report(item: WorkItem, progress: Parameters<Lease["report"]>[0]): void {
    const { jobId, itemIndex, round } = item;
    this.#gathered.set(itemId(item), create(ItemProgressSchema, { ...progress, jobId, itemIndex, round }));
    this.#timer ??= setTimeout(() => this.#store(), GATHER_MS);
  }

  listen(listener: (progress: ItemProgress) => void): () => void {
    if (this.#listeners.size === 0) {
      this.#seen = this.#newest();
      this.#stopWatching = this.#file.onChange(() => this.#tell());
    }
    this.#listeners.add(listener);
    return () => {
      this.#listeners.delete(listener);
      if (this.#listeners.size === 0) this.#stopWatching?.();
    };
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#gathered.clear();
    this.#stopWatching?.();
    this.#listeners.clear();
  }

  #store(): void {
    this.#timer = undefined;
    const reports = [...this.#gathered.values()].map((report) => toBinary(ItemProgressSchema, report));
    this.#gathered.clear();
    const insert = this.#file.prepare("INSERT INTO progress (report) VALUES (?)");
    const trim = this.#file.prepare("DELETE FROM progress WHERE id <= (SELECT max(id) FROM progress) - ?");
    const store = () => {
      for (const report of reports) insert.run(report);
      trim.run(KEPT_ROWS);
    };
    // Some reports are lost, as the contract says: nobody waits for them.
    this.#file.write(store, { durable: false }).catch(() => {});
  }

  #tell(): void {
    if (this.#file.closed || this.#newest() === this.#seen) return;
    const rows = this.#file.prepare("SELECT id, report FROM progress WHERE id > ? ORDER BY id").all(this.#seen);
    for (const { id, report } of rows as unknown as { id: number; report: Uint8Array }[]) {
      this.#seen = id;
      const progress = fromBinary(ItemProgressSchema, report);
      for (const listener of [...this.#listeners]) listener(progress);
    }
  }

  #newest(): number {
    const newest = this.#file.prepare("SELECT coalesce(max(id), 0) AS id FROM progress");
    return (newest.get() as { id: number }).id;
  }
}
