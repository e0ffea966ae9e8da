import { type Clock, ServingError, sha256 } from "@atelier/core";
import { currentSpan, inSpan, type Logger, outOfScope } from "@atelier/telemetry";
import type { Generations } from "../generations/generations.ts";
import type { GenerationContext, Served } from "../generations/ports.ts";
import type { GeneratedPicture, GenerationEvent, ImageRequestDraft } from "../image-request.ts";
import { type SharedStore, StoreUnavailable } from "../shared/shared-store.ts";
import {
  type GenerationRecord,
  type GenerationStatus,
  hasEnded,
  noSuchGeneration,
  resultOf,
} from "./generation-record.ts";
import { type GenerationNews, GenerationStore, LISTED_MAX } from "./generation-store.ts";
import { OwnGeneration } from "./own-generation.ts";

export interface BackgroundOptions {
  readonly clock: Clock;
  readonly log: Logger;
  readonly generations: Pick<Generations, "run">;
  /** This gateway, among all that ever were. */
  readonly gatewayId: string;
  /** What this gateway keeps for itself. */
  readonly own: SharedStore;
  /** What gateways keep together; undefined: there are no others. */
  readonly shared: SharedStore | undefined;
  /** After so long without a sign of life a gateway's generations have failed. */
  readonly leaseMs: number;
  /** How long a generation that has ended is kept. */
  readonly keptMs: number;
  /** Notes a failure that no connection waits for, and gives what may be read of it. */
  readonly noteFailure: (thrown: unknown, id: string) => ServingError;
  readonly onEnd?: (status: GenerationStatus) => void;
}

/** Without what a connection gives: nobody's leaving ends it. */
export type BackgroundContext = Pick<GenerationContext, "caller" | "deadline" | "priority" | "cache" | "onStanding">;

/** What is refused sooner is refused to the caller's face; what takes longer is told by the record. */
const REFUSED_WITHIN_MS = 100;
/** A gateway hears of a cancellation at once, or with its next sign of life. */
const CANCEL_WAIT_MS = 2_000;
/** News can be missed: one who waits looks for itself now and then. */
const POLL_MS = 1_000;
/** Ended here and remembered, for the time that the shared store is away. */
const REMEMBERED_MAX = 1_000;

/**
 * Generations that nobody waits for on a connection: started through one gateway, read and cancelled through any.
 *
 * The gateway that starts one sees to it and is the only one that writes its record, until it dies: gateways show signs
 * of life, and one who reads an unfinished record of a gateway that shows none ends it as failed. What is over stays
 * over: a gateway that was only thought to be dead takes that for the end, too.
 *
 * Where the shared store is away a gateway goes on with its own and writes them down when the store is back; another
 * gateway cannot tell of them meanwhile, and says so.
 */
export class BackgroundGenerations {
  readonly #options: BackgroundOptions;
  readonly #store: GenerationStore;
  readonly #ownStore: GenerationStore;
  /** Those that it sees to, and the last that have ended here, oldest first. */
  readonly #own = new Map<string, OwnGeneration>();
  /** Of those that wait, by the id that they wait for. */
  readonly #wakers = new Map<string, Set<() => void>>();
  /** Ids that still have to be listed, by tenant. */
  #unlisted = new Map<string, string[]>();
  readonly #endNews: () => void;
  #cancelSign: (() => void) | undefined;
  #stopping = false;

  constructor(options: BackgroundOptions) {
    const { own, shared, clock } = options;
    this.#options = options;
    this.#ownStore = new GenerationStore(own, clock);
    this.#store = shared === undefined ? this.#ownStore : new GenerationStore(shared, clock);
    this.#endNews = this.#store.onNews((what, id) => this.#hear(what, id));
  }

  /** Those that it still sees to. */
  get count(): number {
    return [...this.#own.values()].filter(({ record }) => !hasEnded(record)).length;
  }

  /** Starts a generation under the draft's id. Rejects with its refusal where that comes at once; then there is none. */
  async start(draft: ImageRequestDraft, context: BackgroundContext): Promise<GenerationRecord> {
    const { clock, generations, gatewayId, keptMs } = this.#options;
    const own = new OwnGeneration(
      {
        id: draft.id,
        tenant: context.caller.tenant,
        gateway: gatewayId,
        status: "queued",
        createdAtMs: clock.nowMs(),
        expiresAtMs: context.deadline.atMs + keptMs,
      },
      { clock, store: this.#store },
    );
    const begun = Promise.withResolvers<void>();
    const onEvent = (event: GenerationEvent) => {
      if (event.type === "accepted") begun.resolve();
      own.take(event);
    };
    const cancelTimer = clock.after(REFUSED_WITHIN_MS, begun.resolve);
    // It outlives the request that asked for it, and whoever reads it later finds its span from there.
    const span = currentSpan().child("generation.background", { attributes: { "atelier.generation.id": draft.id } });
    own.trace = span.context;
    const run = inSpan(span, () => generations.run(draft, { ...context, signal: own.signal, onEvent }));
    const ended = () => span.end();
    run.then(ended, (error: unknown) => {
      span.fail(error);
      ended();
    });
    try {
      await Promise.race([begun.promise, run]);
    } finally {
      cancelTimer();
    }
    // What `run` rejects with from now on is the record's to tell.
    own.ended = run.then(
      (served) => this.#succeed(own, served),
      (thrown) => this.#fail(own, thrown),
    );
    await this.#keep(own);
    return own.record;
  }

  /** Rejects with NOT_FOUND, of another tenant's too; OVERLOADED where it cannot tell now. */
  async get(id: string, tenant: string): Promise<GenerationRecord> {
    const record = await this.#find(id).catch((error) => {
      throw cannotTell(error);
    });
    if (record === undefined || record.tenant !== tenant) throw noSuchGeneration(id);
    return record;
  }

  /** The same, once it has ended or `maxMs` have passed or the signal is aborted. */
  async wait(id: string, tenant: string, maxMs: number, signal?: AbortSignal): Promise<GenerationRecord> {
    const { clock } = this.#options;
    const untilMs = clock.nowMs() + maxMs;
    for (;;) {
      const woken = this.#news(id, signal);
      try {
        const record = await this.get(id, tenant);
        const leftMs = untilMs - clock.nowMs();
        if (hasEnded(record) || leftMs <= 0 || signal?.aborted || this.#stopping) return record;
        const cancelTimer = clock.after(Math.min(leftMs, POLL_MS), woken.wake);
        await woken.promise;
        cancelTimer();
      } finally {
        woken.end();
      }
    }
  }

  /** One of its pictures. Rejects as `get` does, CONFLICT while there are none. */
  async picture(
    id: string,
    tenant: string,
    index: number,
  ): Promise<{ record: GenerationRecord; picture: GeneratedPicture }> {
    const record = await this.get(id, tenant);
    if (record.result === undefined) {
      throw new ServingError("CONFLICT", `generation ${id} is ${record.status}: it has no pictures`);
    }
    const { pictures } = record.result;
    const picture = pictures[index];
    if (picture === undefined) {
      throw new ServingError(
        "NOT_FOUND",
        `generation ${id} has ${pictures.length} pictures, from 0; there is no ${index}`,
      );
    }
    const data = await this.#readPicture(id, index);
    // Damaged is as good as forgotten.
    if (data === undefined || sha256(data) !== picture.digest) throw noSuchGeneration(id);
    return { record, picture: { ...picture, data } };
  }

  /**
   * Ends a generation, wherever it runs; one that has ended stays as it is. The record may still be unfinished where its
   * gateway has not answered within two seconds: it hears of it with its next sign of life.
   */
  async cancel(id: string, tenant: string): Promise<GenerationRecord> {
    const record = await this.get(id, tenant);
    if (hasEnded(record)) return record;
    const own = this.#own.get(id);
    if (own !== undefined) {
      own.cancel();
      await own.ended;
      return own.record;
    }
    try {
      await this.#store.askToCancel(record);
      await this.#store.announce("cancel", id);
    } catch (error) {
      throw cannotTell(error);
    }
    return this.wait(id, tenant, CANCEL_WAIT_MS);
  }

  /** The tenant's newest, newest first; `complete` is false where only this gateway's own could be told. */
  async list(tenant: string, max: number): Promise<{ records: readonly GenerationRecord[]; complete: boolean }> {
    const own = [...this.#own.values()].map(({ record }) => record).filter((record) => record.tenant === tenant);
    const ids = new Set(own.map(({ id }) => id));
    try {
      for (const id of await this.#store.list(tenant)) ids.add(id);
      const found = await Promise.all([...ids].map((id) => this.#find(id)));
      return { records: newest(found, tenant, max), complete: true };
    } catch (error) {
      if (!(error instanceof StoreUnavailable)) throw error;
      return { records: newest(own, tenant, max), complete: false };
    }
  }

  /** Resolves when all that it sees to has ended and is written down. */
  async idle(): Promise<void> {
    while (this.count > 0) await Promise.all([...this.#own.values()].map(({ ended }) => ended));
  }

  /** From now on nobody is kept waiting: the gateway stops. */
  stopWaiting(): void {
    this.#stopping = true;
    for (const id of [...this.#wakers.keys()]) this.#wake(id);
  }

  close(): void {
    this.stopWaiting();
    this.#endNews();
    this.#cancelSign?.();
  }

  async #succeed(own: OwnGeneration, served: Served): Promise<void> {
    const { pictures } = served.generation;
    const expiresAtMs = this.#expiry();
    const record = { ...own.record, expiresAtMs };
    // Before the record says that there are any.
    await Promise.all(pictures.map(({ data }, index) => this.#ownStore.writePicture(record, index, data)));
    if (this.#store !== this.#ownStore) {
      own.beforeEnd = () => this.#sharePictures(record, pictures.length);
    }
    const { seed } = served.request;
    const { model } = served.generation.receipt;
    await this.#end(own, { status: "succeeded", expiresAtMs, seed, model, result: resultOf(served) });
  }

  async #fail(own: OwnGeneration, thrown: unknown): Promise<void> {
    const expiresAtMs = this.#expiry();
    const { code, detail: message, field } = this.#options.noteFailure(thrown, own.record.id);
    if (code === "CANCELLED") return this.#end(own, { status: "cancelled", expiresAtMs });
    await this.#end(own, { status: "failed", expiresAtMs, error: { code, message, field } });
  }

  async #end(own: OwnGeneration, changes: Partial<GenerationRecord>): Promise<void> {
    const { id } = own.record;
    await own.end(changes);
    this.#options.onEnd?.(own.record.status);
    this.#wake(id);
    await this.#store.announce("ended", id).catch(unlessUnavailable);
  }

  #expiry(): number {
    return this.#options.clock.nowMs() + this.#options.keptMs;
  }

  async #sharePictures(record: GenerationRecord, count: number): Promise<void> {
    for (let index = 0; index < count; index++) {
      const data = await this.#ownStore.readPicture(record.id, index);
      if (data !== undefined) await this.#store.writePicture(record, index, data);
    }
  }

  async #readPicture(id: string, index: number): Promise<Buffer | undefined> {
    const own = await this.#ownStore.readPicture(id, index);
    if (own !== undefined || this.#store === this.#ownStore) return own;
    return this.#store.readPicture(id, index).catch((error) => {
      throw cannotTell(error);
    });
  }

  /** Makes a generation known: to this gateway at once, to the others when the store can be reached. */
  async #keep(own: OwnGeneration): Promise<void> {
    const { id, tenant } = own.record;
    this.#own.set(id, own);
    this.#unlisted.set(tenant, [...(this.#unlisted.get(tenant) ?? []), id]);
    this.#forgetOldest();
    // A record whose gateway shows no life would be taken for lost.
    await this.#showLife();
    await own.save();
    await this.#listUnlisted();
  }

  #forgetOldest(): void {
    for (const [id, own] of this.#own) {
      if (this.#own.size <= REMEMBERED_MAX) return;
      if (hasEnded(own.record)) this.#own.delete(id);
    }
  }

  /** Once, and from then on for as long as there is anything to see to. */
  async #showLife(): Promise<void> {
    const { clock, gatewayId, leaseMs } = this.#options;
    // It goes on for as long as there are any, whichever request was the first.
    this.#cancelSign ??= outOfScope(() =>
      clock.after(leaseMs / 3, () => {
        this.#cancelSign = undefined;
        const busy = [...this.#own.values()].filter((own) => !own.settled);
        if (busy.length === 0 && this.#unlisted.size === 0) return;
        void this.#showLife();
        void this.#catchUp(busy);
      }),
    );
    await this.#store.keepAlive(gatewayId, leaseMs).catch(unlessUnavailable);
  }

  /** What was missed or could not be written while the store was away. */
  async #catchUp(busy: readonly OwnGeneration[]): Promise<void> {
    await Promise.all(
      busy.map(async (own) => {
        await own.save();
        if (hasEnded(own.record)) return;
        if (await this.#store.isAskedToCancel(own.record.id).catch(unlessUnavailable)) own.cancel();
      }),
    );
    await this.#listUnlisted();
  }

  async #listUnlisted(): Promise<void> {
    const unlisted = this.#unlisted;
    this.#unlisted = new Map();
    for (const [tenant, ids] of unlisted) {
      try {
        await this.#store.addToList(tenant, ids, this.#options.keptMs);
      } catch (error) {
        unlessUnavailable(error);
        const later = [...ids, ...(this.#unlisted.get(tenant) ?? [])].slice(-LISTED_MAX);
        this.#unlisted.set(tenant, later);
      }
    }
  }

  async #find(id: string): Promise<GenerationRecord | undefined> {
    const own = this.#own.get(id);
    currentSpan().link(own?.trace);
    if (own !== undefined) return own.record.expiresAtMs > this.#options.clock.nowMs() ? own.record : undefined;
    for (;;) {
      const stored = await this.#store.read(id);
      if (stored === undefined || hasEnded(stored.record)) return stored?.record;
      if (await this.#store.isAlive(stored.record.gateway)) return stored.record;
      const lost = await this.#store.replace(stored, asLost(stored.record));
      // Otherwise its gateway wrote something meanwhile, or another reader came first.
      if (lost !== undefined) {
        this.#options.log.warn(
          { generation: id, gateway: stored.record.gateway },
          "the gateway of a generation was lost",
        );
        await this.#store.announce("ended", id).catch(unlessUnavailable);
        return lost.record;
      }
    }
  }

  #hear(what: GenerationNews, id: string): void {
    if (what === "ended") this.#wake(id);
    else this.#own.get(id)?.cancel();
  }

  #wake(id: string): void {
    for (const wake of this.#wakers.get(id) ?? []) wake();
  }

  /** Listens from now on, so that nothing that happens while its caller looks is missed. */
  #news(id: string, signal: AbortSignal | undefined) {
    const { promise, resolve: wake } = Promise.withResolvers<void>();
    const wakers = this.#wakers.get(id) ?? new Set();
    this.#wakers.set(id, wakers.add(wake));
    signal?.addEventListener("abort", wake as () => void);
    const end = () => {
      signal?.removeEventListener("abort", wake as () => void);
      wakers.delete(wake);
      if (wakers.size === 0) this.#wakers.delete(id);
    };
    return { promise, wake: wake as () => void, end };
  }
}

function asLost(record: GenerationRecord): GenerationRecord {
  const message = `gateway ${record.gateway} was lost while it saw to the generation; the request can be sent again`;
  return { ...record, status: "failed", error: { code: "WORKER_LOST", message } };
}

function newest(
  found: readonly (GenerationRecord | undefined)[],
  tenant: string,
  max: number,
): readonly GenerationRecord[] {
  return found
    .filter((record) => record !== undefined)
    .filter((record) => record.tenant === tenant)
    .sort((a, b) => b.createdAtMs - a.createdAtMs)
    .slice(0, max);
}

function unlessUnavailable(error: unknown): undefined {
  if (!(error instanceof StoreUnavailable)) throw error;
}

function cannotTell(error: unknown): unknown {
  if (!(error instanceof StoreUnavailable)) return error;
  const message = "what gateways share cannot be reached, and this one does not see to the generation itself";
  return new ServingError("OVERLOADED", message, { cause: error, retryAfterMs: 1_000 });
}
