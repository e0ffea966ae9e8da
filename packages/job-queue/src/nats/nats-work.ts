import type { Clock } from "@atelier/core";
import {
  type DeadLetter,
  DeadLetterSchema,
  type ItemProgress,
  ItemProgressSchema,
  PriorityClass,
  type WorkItem,
  WorkItemSchema,
} from "@atelier/proto";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { AckPolicy, type ConsumerInfo, DeliverPolicy } from "@nats-io/jetstream";
import type { Msg } from "@nats-io/transport-node";
import { itemId, laneOf } from "../checks.ts";
import { type BuryReason, HeldLease, type LeaseHolder } from "../held-lease.ts";
import type { Lease, Pull, QueueDepth, WorkQueue } from "../job-queue.ts";
import type { Lane, NatsNames } from "./names.ts";
import { apiCode, isNoResponders, JS, type NatsLink } from "./nats-link.ts";
import { pullOnce } from "./nats-pull.ts";
import type { WorkStream } from "./work-stream.ts";

/** Stored or deleted at one time, before the next are begun. */
const AT_ONCE = 500;
const PAGE_MESSAGES = 500;
const PAGE_BYTES = 4 * 1024 * 1024;
/** The server forgets a pull request of ours after so long, should we vanish; one that waits longer is made again. */
const PULL_MS = 5_000;
const TRY_AGAIN_MS = 200;

/** Where to say something about the delivery, and what is known of the item's earlier ones. */
interface Ref {
  readonly reply: string;
  readonly sequence: number;
  readonly forgiven: number;
}

export interface NatsWorkOptions {
  readonly clock: Clock;
  readonly leaseMs: number;
  readonly onProblem: (text: string) => void;
}

/**
 * Items in a work-queue stream, one subject for each, with one durable consumer for each class and model, which all
 * workers share. JetStream counts deliveries; how many of them are forgiven is kept beside, in a stream of its own.
 */
export class NatsWork implements WorkQueue, LeaseHolder<Ref> {
  readonly #link: NatsLink;
  readonly #names: NatsNames;
  readonly #stream: WorkStream;
  readonly #options: NatsWorkOptions;
  readonly #leases = new Set<HeldLease<Ref>>();
  #lanes = new Map<string, Promise<void>>();

  constructor(link: NatsLink, names: NatsNames, stream: WorkStream, options: NatsWorkOptions) {
    this.#link = link;
    this.#names = names;
    this.#stream = stream;
    this.#options = options;
    link.connection.subscribe(names.stopped, { callback: (_error, message) => this.#loseJob(message.string()) });
    stream.onLost(() => {
      this.#lanes = new Map();
    });
  }

  async publish(items: readonly WorkItem[]): Promise<void> {
    for (let from = 0; from < items.length; from += AT_ONCE) {
      const some = items.slice(from, from + AT_ONCE);
      for (const item of some) await this.#ensureLane(laneOf(item));
      await Promise.all(some.map((item) => this.#store(item)));
    }
  }

  async #store(item: WorkItem): Promise<void> {
    const subject = this.#names.item(laneOf(item), item);
    const bytes = toBinary(WorkItemSchema, item);
    // The item says it too; whoever else reads the stream knows it by these (W3C Trace Context).
    const { traceparent, tracestate } = item;
    const store = () =>
      this.#link.publish("the work queue", subject, bytes, { id: itemId(item), traceparent, tracestate });
    try {
      await store();
    } catch (error) {
      if (isAlreadyThere(error)) return;
      if (!isNoResponders(error) || !(await this.#stream.remakeIfGone())) throw error;
      await this.#ensureLane(laneOf(item));
      await store();
    }
  }

  /**
   * Without `stop`, what lies behind the last delivery of its consumer is deleted. What was delivered once and waits for
   * its next delivery looks as what is held does, and stays.
   */
  async withdraw(jobId: string, { stop }: { readonly stop: boolean } = { stop: false }): Promise<void> {
    if (stop) {
      const filter = this.#names.itemsOfJob(jobId);
      await this.#link.ask("the work queue", () => this.#link.manager.streams.purge(this.#names.work, { filter }));
      this.#link.connection.publish(this.#names.stopped, jobId);
      this.#loseJob(jobId);
      return;
    }
    for (const { lane, delivered } of await this.#consumers()) {
      const subject = this.#names.itemsOfLaneAndJob(lane, jobId);
      for (let sequence = delivered + 1; ; ) {
        const page = await this.#page(this.#names.work, subject, sequence);
        if (page.length === 0) break;
        await Promise.all(page.map((message) => this.#delete(message.seq)));
        sequence = page.at(-1)!.seq + 1;
      }
    }
  }

  async #delete(sequence: number): Promise<void> {
    await this.#link.ask("the work queue", async () => {
      try {
        await this.#link.manager.streams.deleteMessage(this.#names.work, sequence, false);
      } catch (error) {
        if (apiCode(error) !== JS.messageNotFound && apiCode(error) !== JS.sequenceNotFound) throw error;
      }
    });
  }

  async depths(): Promise<readonly QueueDepth[]> {
    const consumers = (await this.#consumers()).filter(({ waiting, held }) => waiting + held > 0);
    return Promise.all(
      consumers.map(async ({ lane, waiting, held, delivered }) => {
        const query = { seq: delivered + 1, next_by_subj: this.#names.itemsOfLane(lane) };
        const oldest =
          waiting === 0
            ? null
            : await this.#link.ask("the work queue", () =>
                this.#link.manager.direct.getMessage(this.#names.work, query),
              );
        const oldestMs = oldest === null ? 0 : Math.max(0, this.#options.clock.nowMs() - oldest.time.getTime());
        return { ...lane, waiting, held, oldestMs };
      }),
    );
  }

  async *deadLetters(jobId?: string): AsyncIterable<DeadLetter> {
    const subject = jobId === undefined ? this.#names.allLetters : this.#names.letter(jobId, "*");
    for (let sequence = 1; ; ) {
      const page = await this.#page(this.#names.dead, subject, sequence);
      for (const message of page) yield fromBinary(DeadLetterSchema, message.data);
      if (page.length === 0) return;
      sequence = page.at(-1)!.seq + 1;
    }
  }

  async removeDeadLetters(jobId: string, itemIndexes?: readonly number[]): Promise<void> {
    for (const index of itemIndexes ?? ["*" as const]) {
      const filter = this.#names.letter(jobId, index);
      await this.#link.ask("the dead letters", () => this.#link.manager.streams.purge(this.#names.dead, { filter }));
    }
  }

  onProgress(listener: (progress: ItemProgress) => void): () => void {
    const heard = this.#link.connection.subscribe(this.#names.progress, {
      callback: (_error, message) => listener(fromBinary(ItemProgressSchema, message.data)),
    });
    return () => heard.unsubscribe();
  }

  onLost(listener: () => void): () => void {
    return this.#stream.onLost(listener);
  }

  async pull({ priorityClass, model, max, waitMs, signal }: Pull): Promise<readonly Lease[]> {
    const lane = { priorityClass, model };
    const untilMs = performance.now() + waitMs;
    const { closing } = this.#link;
    const stop = signal === undefined ? closing : AbortSignal.any([signal, closing]);
    while (!stop.aborted) {
      await this.#ensureLane(lane);
      const pulledAtMs = performance.now();
      const leftMs = Math.max(0, untilMs - pulledAtMs);
      const { messages, end, said } = await pullOnce(this.#link, {
        stream: this.#names.work,
        durable: this.#names.durable(lane),
        max,
        waitMs: Math.min(leftMs, PULL_MS),
        signal: stop,
        late: (message) => void this.#giveBack(message),
      });
      if (messages.length > 0) {
        if (!stop.aborted) return await this.#hold(messages);
        for (const message of messages) await this.#giveBack(message);
      }
      if (stop.aborted) break;
      if (end === "no answer") throw this.#link.error(`the work queue: ${said}`);
      if (end === "no consumer") await this.#repair(lane);
      const nowMs = performance.now();
      if (nowMs >= untilMs) break;
      // The server would not wait, as while it has too many pulls that do.
      if (nowMs - pulledAtMs < Math.min(leftMs, TRY_AGAIN_MS)) await pause(TRY_AGAIN_MS);
    }
    return [];
  }

  closing(): void {
    const why = this.#link.error("the queue is closed");
    for (const lease of [...this.#leases]) lease.lose(why);
  }

  async #hold(messages: readonly Msg[]): Promise<readonly Lease[]> {
    const leases = await Promise.all(messages.map((message) => this.#leaseOf(message)));
    return leases.filter((lease) => lease !== undefined);
  }

  async #leaseOf(message: Msg): Promise<HeldLease<Ref> | undefined> {
    const { reply, deliveries, sequence } = deliveryOf(message);
    let item: WorkItem;
    try {
      item = fromBinary(WorkItemSchema, message.data);
    } catch (error) {
      this.#options.onProblem(`message ${sequence} of ${this.#names.work} is no item: ${(error as Error).message}`);
      this.#link.connection.publish(reply, "+TERM");
      return undefined;
    }
    const forgiven = deliveries > 1 ? await this.#forgiven(item) : 0;
    const attempt = Math.max(1, deliveries - forgiven);
    const { leaseMs, clock } = this.#options;
    const redelivered = deliveries > 1;
    const ref = { reply, sequence, forgiven };
    const lease = new HeldLease<Ref>({ item, attempt, redelivered, leaseMs, ref }, this, clock);
    this.#leases.add(lease);
    return lease;
  }

  async #giveBack(message: Msg): Promise<void> {
    try {
      const lease = await this.#leaseOf(message);
      await lease?.release({ forgiven: true });
    } catch (error) {
      this.#options.onProblem(`an item that came too late is left to run out: ${(error as Error).message}`);
    }
  }

  forget(lease: HeldLease<Ref>): void {
    this.#leases.delete(lease);
  }

  async extend(lease: HeldLease<Ref>): Promise<boolean> {
    await this.#say(lease, "+WPI");
    const query = { seq: lease.ref.sequence };
    const found = await this.#link.ask("the work queue", () =>
      this.#link.manager.direct.getMessage(this.#names.work, query),
    );
    if (found === null) lease.loseWithdrawn();
    return found !== null;
  }

  async end(lease: HeldLease<Ref>): Promise<void> {
    await this.#say(lease, "+ACK");
  }

  async release(
    lease: HeldLease<Ref>,
    { delayMs, forgiven }: { readonly delayMs: number; readonly forgiven: boolean },
  ): Promise<void> {
    if (forgiven) {
      const subject = this.#names.forgivenOf(lease.item);
      await this.#link.publish("the work queue", subject, String(lease.ref.forgiven + 1));
    }
    await this.#say(lease, delayMs > 0 ? `-NAK ${JSON.stringify({ delay: Math.ceil(delayMs) * 1e6 })}` : "-NAK");
  }

  async bury(lease: HeldLease<Ref>, reason: BuryReason): Promise<void> {
    const { item, attempt } = lease;
    const atMs = BigInt(Math.trunc(this.#options.clock.nowMs()));
    const letter = toBinary(DeadLetterSchema, create(DeadLetterSchema, { ...reason, item, attempts: attempt, atMs }));
    const subject = this.#names.letter(item.jobId, item.itemIndex);
    await this.#link.publish("the dead letters", subject, letter, { id: itemId(item) });
    await this.#say(lease, "+ACK");
  }

  report({ item: { jobId, itemIndex, round } }: HeldLease<Ref>, progress: Parameters<Lease["report"]>[0]): void {
    const report = create(ItemProgressSchema, { ...progress, jobId, itemIndex, round });
    this.#link.connection.publish(this.#names.progress, toBinary(ItemProgressSchema, report));
  }

  #say({ ref }: HeldLease<Ref>, word: string): Promise<void> {
    return this.#link.say("the work queue", ref.reply, word);
  }

  async #forgiven(item: WorkItem): Promise<number> {
    const query = { last_by_subj: this.#names.forgivenOf(item) };
    const found = await this.#link.ask("the work queue", () =>
      this.#link.manager.streams.getMessage(this.#names.forgiven, query),
    );
    return found === null ? 0 : Number(found.string());
  }

  #loseJob(jobId: string): void {
    for (const lease of [...this.#leases]) if (lease.item.jobId === jobId) lease.loseWithdrawn();
  }

  /** The consumer of a class and model is made by whoever needs it first. */
  #ensureLane(lane: Lane): Promise<void> {
    const name = this.#names.durable(lane);
    let ensured = this.#lanes.get(name);
    if (ensured === undefined) {
      ensured = this.#makeConsumer(lane, name);
      this.#lanes.set(name, ensured);
      const lanes = this.#lanes;
      ensured.catch(() => lanes.delete(name));
    }
    return ensured;
  }

  async #makeConsumer(lane: Lane, name: string): Promise<void> {
    const make = () =>
      this.#link.ask("the work queue", () =>
        this.#link.manager.consumers.add(this.#names.work, {
          durable_name: name,
          filter_subject: this.#names.itemsOfLane(lane),
          ack_policy: AckPolicy.Explicit,
          deliver_policy: DeliverPolicy.All,
          ack_wait: this.#options.leaseMs * 1e6,
          // Whoever pulls decides how much it holds, and how often an item may fail.
          max_ack_pending: -1,
          max_deliver: -1,
          metadata: { class: String(lane.priorityClass), model: lane.model },
        }),
      );
    try {
      await make();
    } catch (error) {
      if (apiCode(error) !== JS.streamNotFound || !(await this.#stream.remakeIfGone())) throw error;
      await make();
    }
  }

  async #repair(lane: Lane): Promise<void> {
    this.#lanes.delete(this.#names.durable(lane));
    await this.#stream.remakeIfGone();
  }

  async #consumers() {
    return this.#link.ask("the work queue", async () => {
      const consumers: { lane: Lane; waiting: number; held: number; delivered: number }[] = [];
      for await (const info of this.#link.manager.consumers.list(this.#names.work)) {
        const lane = laneOfConsumer(info);
        if (lane === undefined) continue;
        const { num_pending: waiting, num_ack_pending: held, delivered } = info;
        consumers.push({ lane, waiting, held, delivered: delivered.stream_seq });
      }
      return consumers;
    });
  }

  #page(stream: string, subject: string, sequence: number) {
    return this.#link.page(stream, { subject, sequence, messages: PAGE_MESSAGES, bytes: PAGE_BYTES });
  }
}

/** `$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<deliveries>.<sequence>...`, from a message's reply subject (ADR-15). */
function deliveryOf(message: Msg): { reply: string; deliveries: number; sequence: number } {
  const reply = message.reply ?? "";
  const words = reply.split(".");
  const first = words.length > 9 ? 6 : 4;
  return { reply, deliveries: Number(words[first]), sequence: Number(words[first + 1]) };
}

function laneOfConsumer({ config: { metadata } }: ConsumerInfo): Lane | undefined {
  const priorityClass = Number(metadata?.["class"]) as PriorityClass;
  const model = metadata?.["model"];
  if (model === undefined || !Object.values<number>(PriorityClass).includes(priorityClass)) return undefined;
  return { priorityClass, model };
}

/** The stream takes one message for each subject, and says so where there is one. */
function isAlreadyThere(error: unknown): boolean {
  return apiCode(error) === JS.storeFailed && /maximum messages per subject/i.test((error as Error).message);
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
