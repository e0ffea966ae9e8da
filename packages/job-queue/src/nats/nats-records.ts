import { ServingError } from "@atelier/core";
import { checkRecordKey, checkRecordPrefix, checkRecordValue } from "../checks.ts";
import type { Kept, Records } from "../job-queue.ts";
import type { NatsNames } from "./names.ts";
import { apiCode, JS, type NatsLink } from "./nats-link.ts";

/** A page ends before that; records may have half a MiB each. */
const PAGE_BYTES = 4 * 1024 * 1024;
const PAGE_RECORDS = 256;

/** The newest message of each subject is a record, and its sequence the revision. */
export class NatsRecords implements Records {
  readonly #link: NatsLink;
  readonly #names: NatsNames;

  constructor(link: NatsLink, names: NatsNames) {
    this.#link = link;
    this.#names = names;
  }

  async get(key: string): Promise<Kept | undefined> {
    checkRecordKey(key);
    return this.#link.ask(`record ${key}`, async () => {
      // Asked of the stream's leader: any other replica may not have what was just put.
      const query = { last_by_subj: this.#names.record(key) };
      const found = await this.#link.manager.streams.getMessage(this.#names.records, query);
      return found === null ? undefined : { key, value: found.string(), revision: found.seq };
    });
  }

  async put(key: string, value: string, expected?: number): Promise<number> {
    checkRecordKey(key);
    checkRecordValue(key, value);
    try {
      return await this.#link.publish(`record ${key}`, this.#names.record(key), value, { expected });
    } catch (error) {
      const code = apiCode(error);
      if (code !== JS.wrongLastSequence && code !== JS.wrongLastSequenceUnknown) throw error;
      throw new ServingError("CONFLICT", `record ${key} has another revision, expected ${expected}`, { cause: error });
    }
  }

  async remove(key: string): Promise<void> {
    checkRecordKey(key);
    const { manager } = this.#link;
    await this.#link.ask(`record ${key}`, () =>
      manager.streams.purge(this.#names.records, { filter: this.#names.record(key) }),
    );
  }

  async *list(prefix: string): AsyncIterable<Kept> {
    checkRecordPrefix(prefix);
    const parent = prefix.slice(0, prefix.lastIndexOf(".") + 1);
    const subject = this.#names.record(`${parent}>`);
    const start = this.#names.record("").length;
    let sequence = 1;
    for (;;) {
      const page = await this.#link.page(this.#names.records, {
        subject,
        sequence,
        messages: PAGE_RECORDS,
        bytes: PAGE_BYTES,
      });
      for (const message of page) {
        const key = message.subject.slice(start);
        if (key.startsWith(prefix)) yield { key, value: message.string(), revision: message.seq };
      }
      if (page.length === 0) return;
      sequence = page.at(-1)!.seq + 1;
    }
  }
}
