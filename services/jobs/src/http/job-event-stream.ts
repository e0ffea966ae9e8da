import type { Readable } from "node:stream";
import type { Clock } from "@atelier/core";
import { EventStream } from "@atelier/http";
import type { EventLog } from "@atelier/job-queue";
import type { ItemOutcome } from "@atelier/proto";
import type { ItemState } from "../job.ts";
import type { JobNews, Jobs } from "../ports.ts";
import { jobToJson } from "./job-json.ts";

export interface JobEventStreamOptions {
  readonly id: string;
  readonly jobs: Pick<Jobs, "get" | "states" | "onChange">;
  readonly events: Pick<EventLog, "read">;
  readonly clock: Clock;
}

/**
 * One reader's events of one job. As long as the reader keeps up it is told the news; once it does not, what it misses is
 * read from the log when it is ready for more. So nothing is kept for a slow reader but the number of the last event it has.
 */
export class JobEventStream {
  readonly #options: JobEventStreamOptions;
  readonly #stream: EventStream;
  readonly #endNews: () => void;
  /** The last event of the log that the reader has been sent. */
  #sequence = 0;
  /** Told the news as they come; else they are behind what is read from the log. */
  #keepsUp = false;
  #room = Promise.withResolvers<void>();
  #closed = false;

  constructor(options: JobEventStreamOptions) {
    this.#options = options;
    this.#stream = new EventStream(options.clock, () => this.#room.resolve());
    this.#endNews = options.jobs.onChange((news) => this.#hear(news));
  }

  get readable(): Readable {
    return this.#stream.readable;
  }

  /** @param from where the reader left off; absent: it begins with the job as it is. `lost`: the log does not reach so far. */
  async run(from?: { readonly after: number; readonly lost: boolean }): Promise<void> {
    const job = this.#options.jobs.get(this.#options.id);
    if (job === undefined) {
      this.close();
      return;
    }
    if (from === undefined || from.lost) {
      this.#sequence = job.sequence;
      if (from === undefined) this.#sendJob("job");
      else this.#sendJob("reset", `event ${from.after} is not in the log: it was lost, or is another service's`);
    } else {
      this.#sequence = from.after;
      this.#stream.open();
    }
    await this.#catchUp();
  }

  /** The reader finds a broken stream, and comes again with the id that it has. */
  fail(error: unknown): void {
    this.#endNews();
    this.#closed = true;
    this.#stream.readable.destroy(error as Error);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#endNews();
    this.#room.resolve();
    this.#stream.end();
  }

  #hear(news: JobNews): void {
    if (news.job.record.id !== this.#options.id || this.#closed) return;
    if (news.type === "removed") this.close();
    else if (!this.#keepsUp) return;
    else if (news.type === "item") this.#sendItem(news.itemIndex, news.state, news.sequence);
    else this.#sendJob(news.type === "progress" ? "progress" : "job");
  }

  /** Sends what the log has since the last event that was sent, as fast as it is read, and then the job as it is. */
  async #catchUp(): Promise<void> {
    const { id, events } = this.#options;
    for (;;) {
      const before = this.#options.jobs.get(id)?.sequence;
      let changed = false;
      let read = 0;
      for await (const { sequence, event } of events.read(id, this.#sequence)) {
        if (this.#closed) return;
        read++;
        if (event.event.case === "change") changed = true;
        if (event.event.case === "outcome") await this.#sendSlowly(event.event.value, sequence);
        this.#sequence = sequence;
      }
      if (this.#closed) return;
      // What came while it was read: its news went unheard.
      const job = this.#options.jobs.get(id);
      if (job === undefined) {
        this.close();
        return;
      }
      if (job.sequence > this.#sequence && (read > 0 || job.sequence !== before)) continue;
      this.#keepsUp = true;
      if (changed || read > 0) this.#sendJob(changed ? "job" : "progress");
      return;
    }
  }

  async #sendSlowly({ itemIndex, result }: ItemOutcome, sequence: number): Promise<void> {
    if (result.case === undefined) return;
    this.#room = Promise.withResolvers();
    if (!this.#write("item", itemToJson(itemIndex, result.case, this.#options), sequence)) await this.#room.promise;
  }

  #sendItem(index: number, state: ItemState, sequence: number): void {
    if (sequence <= this.#sequence) return;
    this.#sequence = sequence;
    this.#heed(this.#write("item", itemToJson(index, state, this.#options), sequence));
  }

  #sendJob(event: "job" | "progress" | "reset", message?: string): void {
    const job = this.#options.jobs.get(this.#options.id);
    if (job === undefined) {
      this.close();
      return;
    }
    // Who keeps up was told of each event that the job counts.
    if (this.#keepsUp) this.#sequence = Math.max(this.#sequence, job.sequence);
    const data = { ...(message !== undefined && { message }), job: jobToJson(job) };
    this.#heed(this.#write(event, data, this.#sequence));
  }

  #write(event: string, data: object, sequence: number): boolean {
    return this.#stream.send(event, data, sequence);
  }

  /** A reader that is slow is told no news until it has caught up. */
  #heed(welcome: boolean): void {
    if (welcome || !this.#keepsUp) return;
    this.#keepsUp = false;
    this.#room = Promise.withResolvers();
    this.#room.promise
      .then(() => (this.#closed ? undefined : this.#catchUp()))
      .catch((error: unknown) => this.fail(error));
  }
}

function itemToJson(index: number, state: ItemState, { id, jobs }: Pick<JobEventStreamOptions, "id" | "jobs">) {
  const reason = state === "done" ? undefined : jobs.states(id)?.reason(index);
  const error = reason && { code: reason.code, message: reason.message, attempts: reason.attempts };
  return { index, state, error: error ?? null };
}
