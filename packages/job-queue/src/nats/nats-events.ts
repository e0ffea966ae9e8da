import { type JobEvent, JobEventSchema } from "@atelier/proto";
import { fromBinary, toBinary } from "@bufbuild/protobuf";
import type { StoredMsg } from "@nats-io/jetstream";
import type { NatsConnection, Subscription } from "@nats-io/transport-node";
import type { EventLog, LoggedEvent } from "../job-queue.ts";
import type { NatsNames } from "./names.ts";
import type { NatsLink } from "./nats-link.ts";

const PAGE_EVENTS = 1_000;
const PAGE_BYTES = 4 * 1024 * 1024;
/** A follower that heard nothing looks all the same: what it hears is a hint, and hints may be lost. */
const LOOK_MS = 1_000;
/** An event is heard of before it is stored: so long after it is looked for first, and then after twice that, and so on. */
const STORED_SOON_MS = 3;

export class NatsEvents implements EventLog {
  readonly #link: NatsLink;
  readonly #names: NatsNames;

  constructor(link: NatsLink, names: NatsNames) {
    this.#link = link;
    this.#names = names;
  }

  async append(event: JobEvent, id: string): Promise<void> {
    const bytes = toBinary(JobEventSchema, event);
    await this.#link.publish("the event log", this.#names.event(event.jobId), bytes, { id });
  }

  async *read(jobId: string, afterSequence = 0): AsyncIterable<LoggedEvent> {
    const subject = this.#names.event(jobId);
    let after = afterSequence;
    for (;;) {
      const page = await this.#page(subject, after);
      yield* page.map(logged);
      if (page.length === 0) return;
      after = page.at(-1)!.seq;
    }
  }

  /**
   * Reads page by page, and waits for the subject's messages where there is none. Not with a consumer: this one goes on
   * after any reconnection from the number that it has reached, and says at once when the stream is gone.
   */
  async *follow(afterSequence: number, signal: AbortSignal): AsyncIterable<readonly LoggedEvent[]> {
    const stop = AbortSignal.any([signal, this.#link.closing]);
    if (stop.aborted) return;
    const news = new News(this.#link.connection, this.#names.allEvents, stop);
    try {
      let after = afterSequence;
      while (!stop.aborted) {
        const page = await this.#pageUnless(stop, after);
        if (page.length > 0) {
          yield page.map(logged);
          after = page.at(-1)!.seq;
        } else {
          await news.wait();
        }
      }
    } finally {
      news.close();
    }
  }

  async lastSequence(): Promise<number> {
    // Not the stream's own last number, which may be that of an event that was removed.
    const query = { last_by_subj: this.#names.allEvents };
    const last = await this.#link.ask("the event log", () =>
      this.#link.manager.streams.getMessage(this.#names.events, query),
    );
    return last?.seq ?? 0;
  }

  async remove(jobId: string): Promise<void> {
    const { manager } = this.#link;
    await this.#link.ask(`the events of job ${jobId}`, () =>
      manager.streams.purge(this.#names.events, { filter: this.#names.event(jobId) }),
    );
  }

  async #pageUnless(stop: AbortSignal, after: number): Promise<readonly StoredMsg[]> {
    try {
      return await this.#page(this.#names.allEvents, after);
    } catch (error) {
      if (stop.aborted) return [];
      throw error;
    }
  }

  #page(subject: string, after: number): Promise<readonly StoredMsg[]> {
    return this.#link.page(this.#names.events, {
      subject,
      sequence: after + 1,
      messages: PAGE_EVENTS,
      bytes: PAGE_BYTES,
    });
  }
}

function logged(message: StoredMsg): LoggedEvent {
  return { sequence: message.seq, event: fromBinary(JobEventSchema, message.data) };
}

/** Hears of messages before they are stored. */
class News {
  readonly #subscription: Subscription;
  readonly #stop: AbortSignal;
  #waitMs = LOOK_MS;
  #wake = () => {};

  constructor(connection: NatsConnection, subject: string, stop: AbortSignal) {
    this.#stop = stop;
    this.#subscription = connection.subscribe(subject, {
      callback: () => {
        if (this.#waitMs === LOOK_MS) this.#wake();
        this.#waitMs = STORED_SOON_MS;
      },
    });
    stop.addEventListener("abort", () => this.#wake());
  }

  /** Until it is worth another look. */
  async wait(): Promise<void> {
    if (this.#waitMs === LOOK_MS) await this.#sleep(LOOK_MS);
    const heard = this.#waitMs < LOOK_MS;
    if (!heard || this.#stop.aborted) return;
    const waitMs = this.#waitMs;
    this.#waitMs = Math.min(LOOK_MS, 2 * waitMs);
    await this.#sleep(waitMs);
  }

  close(): void {
    this.#subscription.unsubscribe();
  }

  #sleep(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
      if (this.#stop.aborted) this.#wake();
    });
  }
}
