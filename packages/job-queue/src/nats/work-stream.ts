import { DiscardPolicy, RetentionPolicy, StorageType, type StreamConfig } from "@nats-io/jetstream";
import { REPEATS_KNOWN_MS } from "../checks.ts";
import type { NatsNames } from "./names.ts";
import type { NatsLink } from "./nats-link.ts";

const LOOK_MS = 5_000;

/**
 * The stream of items, which is made anew where somebody deleted it: all that it holds can be published again. Whoever
 * makes it tells the others at once, and who misses that sees it by the time at which the stream was made.
 */
export class WorkStream {
  readonly #link: NatsLink;
  readonly #names: NatsNames;
  readonly #replicas: number;
  readonly #onProblem: (text: string) => void;
  readonly #listeners = new Set<() => void>();
  #made = "";
  #remaking: Promise<boolean> | undefined;

  constructor(link: NatsLink, names: NatsNames, replicas: number, onProblem: (text: string) => void) {
    this.#link = link;
    this.#names = names;
    this.#replicas = replicas;
    this.#onProblem = onProblem;
  }

  async open(): Promise<void> {
    await this.#link.ensureStream(this.#config);
    this.#made = await this.#madeAt();
    this.#link.connection.subscribe(this.#names.remade, { callback: () => this.#look() });
    this.#link.onConnection((lost) => {
      if (lost === undefined) this.#look();
    });
    const looking = setInterval(() => this.#look(), LOOK_MS);
    this.#link.closing.addEventListener("abort", () => clearInterval(looking));
  }

  onLost(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** True where it was gone and is there again. */
  remakeIfGone(): Promise<boolean> {
    this.#remaking ??= this.#remake().finally(() => {
      this.#remaking = undefined;
    });
    return this.#remaking;
  }

  async #remake(): Promise<boolean> {
    const gone = !(await this.#link.streamExists(this.#names.work));
    if (gone) {
      this.#onProblem(`stream ${this.#names.work} is gone: it was deleted, and is made anew without what it held`);
      await this.#link.ensureStream(this.#config);
      this.#link.connection.publish(this.#names.remade);
    }
    return (await this.#tellIfOther()) || gone;
  }

  #look(): void {
    // Where it cannot be looked at now, whoever next needs it is told why.
    if (this.#link.connected) this.remakeIfGone().catch(() => {});
  }

  async #tellIfOther(): Promise<boolean> {
    const made = await this.#madeAt();
    if (made === this.#made) return false;
    this.#made = made;
    for (const listener of [...this.#listeners]) listener();
    return true;
  }

  async #madeAt(): Promise<string> {
    const info = await this.#link.ask("the work queue", () => this.#link.manager.streams.info(this.#names.work));
    return info.created;
  }

  get #config(): Partial<StreamConfig> & { name: string } {
    return {
      name: this.#names.work,
      subjects: [this.#names.allItems],
      storage: StorageType.File,
      num_replicas: this.#replicas,
      retention: RetentionPolicy.Workqueue,
      // One message for each subject, and the first one stays: an item that lies there is not stored again.
      discard: DiscardPolicy.New,
      max_msgs_per_subject: 1,
      discard_new_per_subject: true,
      duplicate_window: REPEATS_KNOWN_MS * 1e6,
      allow_direct: true,
    };
  }
}
