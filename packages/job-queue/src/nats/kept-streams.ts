import { RetentionPolicy, StorageType, type StreamConfig } from "@nats-io/jetstream";
import { REPEATS_KNOWN_MS } from "../checks.ts";
import type { NatsNames } from "./names.ts";
import { apiCode, JS, type NatsLink } from "./nats-link.ts";

/** Longer than an item is tried. */
const FORGIVEN_KEPT_MS = 7 * 86_400_000;

/**
 * The streams that cannot be made up for: what jobs are, and what happened to them. Each is made where there is none, but not
 * where the other says that there was one: an empty log beside the records of jobs would say that nothing was ever made.
 */
export class KeptStreams {
  readonly #link: NatsLink;
  readonly #names: NatsNames;
  readonly #replicas: number;
  /** When each that matters was made, as this opener found it. */
  readonly #made = new Map<string, string>();

  constructor(link: NatsLink, names: NatsNames, replicas: number) {
    this.#link = link;
    this.#names = names;
    this.#replicas = replicas;
  }

  /** @throws ServingError STORAGE_UNAVAILABLE saying what was deleted and what to do. */
  async open(): Promise<void> {
    const { events, records, dead, forgiven } = this.#names;
    await this.#checkPair();
    // Events first: who dies between the two leaves a log that is empty, and no job.
    for (const name of [dead, events, records, forgiven]) await this.#link.ensureStream(this.#config(name));
    for (const name of [events, records]) this.#made.set(name, await this.#madeAt(name));
  }

  /** @throws ServingError STORAGE_UNAVAILABLE naming a stream that is not there, or that is not the one that was. */
  async check(): Promise<void> {
    for (const name of [this.#names.dead, this.#names.events, this.#names.records, this.#names.forgiven]) {
      const made = await this.#madeAt(name);
      const before = this.#made.get(name);
      if (before === undefined || before === made) continue;
      throw this.#link.error(
        `stream ${name} was deleted and made anew: what it held is gone; restore it, and start this service again`,
      );
    }
  }

  async #checkPair(): Promise<void> {
    const { events, records } = this.#names;
    const [eventsThere, recordsThere] = [await this.#link.streamExists(events), await this.#link.streamExists(records)];
    if (!eventsThere && recordsThere && (await this.#hasAny(records, this.#names.record("jobs.>")))) {
      throw this.#link.error(
        `stream ${events} was deleted, and with it what is known of which pictures were made, while ${records} still has ` +
          `jobs: restore ${events} from a backup, or delete ${records} too and submit the jobs again`,
      );
    }
    if (eventsThere && !recordsThere && (await this.#hasAny(events, this.#names.allEvents))) {
      throw this.#link.error(
        `stream ${records} was deleted, and with it the jobs, while ${events} still has what happened to them: restore ` +
          `${records} from a backup, or delete ${events} too`,
      );
    }
  }

  async #hasAny(stream: string, subject: string): Promise<boolean> {
    try {
      const query = { last_by_subj: subject };
      return (
        (await this.#link.ask(`stream ${stream}`, () => this.#link.manager.streams.getMessage(stream, query))) !== null
      );
    } catch (error) {
      if (apiCode(error) === JS.messageNotFound) return false;
      throw error;
    }
  }

  async #madeAt(name: string): Promise<string> {
    return (await this.#link.ask(`stream ${name}`, () => this.#link.manager.streams.info(name))).created;
  }

  #config(name: string): Partial<StreamConfig> & { name: string } {
    const { dead, events, records, forgiven } = this.#names;
    const own: Record<string, Partial<StreamConfig>> = {
      [dead]: { subjects: [this.#names.allLetters] },
      [events]: { subjects: [this.#names.allEvents] },
      [records]: { subjects: [this.#names.allRecords], max_msgs_per_subject: 1 },
      [forgiven]: {
        subjects: [this.#names.allForgiven],
        max_msgs_per_subject: 1,
        max_age: FORGIVEN_KEPT_MS * 1e6,
      },
    };
    return {
      name,
      storage: StorageType.File,
      num_replicas: this.#replicas,
      retention: RetentionPolicy.Limits,
      duplicate_window: REPEATS_KNOWN_MS * 1e6,
      allow_direct: true,
      ...own[name],
    };
  }
}
