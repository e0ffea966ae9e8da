import { ServingError } from "@atelier/core";
import { checkRecordKey, checkRecordPrefix, checkRecordValue } from "../checks.ts";
import type { Kept, Records } from "../job-queue.ts";
import type { QueueFile } from "./queue-file.ts";

/** Records may have half a MiB each. */
const PAGE_ROWS = 16;

export class SqliteRecords implements Records {
  readonly #file: QueueFile;

  constructor(file: QueueFile) {
    this.#file = file;
  }

  async get(key: string): Promise<Kept | undefined> {
    checkRecordKey(key);
    const read = this.#file.prepare("SELECT key, value, revision FROM records WHERE key = ?");
    return this.#file.read(() => kept(read.get(key)));
  }

  async put(key: string, value: string, expected?: number): Promise<number> {
    checkRecordKey(key);
    checkRecordValue(key, value);
    const read = this.#file.prepare("SELECT revision FROM records WHERE key = ?");
    // One counter for all records: one that is removed and made anew does not get a revision that it had before.
    const count = this.#file.prepare("UPDATE counters SET value = value + 1 WHERE name = 'revision' RETURNING value");
    const put = this.#file.prepare(
      `INSERT INTO records (key, value, revision) VALUES (?, ?, ?)
       ON CONFLICT DO UPDATE SET value = excluded.value, revision = excluded.revision`,
    );
    return this.#file.write(
      () => {
        const now = (read.get(key) as { revision: number } | undefined)?.revision ?? 0;
        if (expected !== undefined && expected !== now) {
          throw new ServingError("CONFLICT", `record ${key} has revision ${now}, expected ${expected}`);
        }
        const { value: revision } = count.get() as { value: number };
        put.run(key, value, revision);
        return revision;
      },
      { durable: true },
    );
  }

  async remove(key: string): Promise<void> {
    checkRecordKey(key);
    const remove = this.#file.prepare("DELETE FROM records WHERE key = ?");
    await this.#file.write(() => remove.run(key), { durable: true });
  }

  async *list(prefix: string): AsyncIterable<Kept> {
    checkRecordPrefix(prefix);
    // A key's characters all come before "~".
    const page = this.#file.prepare(
      "SELECT key, value, revision FROM records WHERE key > ? AND key >= ? AND key < ? ORDER BY key LIMIT ?",
    );
    let after = "";
    for (;;) {
      const rows = await this.#file.read(() =>
        page.all(after, prefix, `${prefix}~`, PAGE_ROWS).map((row) => kept(row)!),
      );
      yield* rows;
      if (rows.length < PAGE_ROWS) return;
      after = rows.at(-1)!.key;
    }
  }
}

function kept(row: Record<string, unknown> | undefined): Kept | undefined {
  return row === undefined ? undefined : ({ ...row } as unknown as Kept);
}
