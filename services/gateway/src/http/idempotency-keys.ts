import { type Clock, newId, newSeed, type ServingError, sha256 } from "@atelier/core";
import { HttpRefusal } from "@atelier/http";
import { type SharedStore, StoreUnavailable } from "../shared/shared-store.ts";
import { type IdempotentAnswer, readAnswer, writeAnswer } from "./idempotent-answer.ts";

export interface IdempotencyKeysOptions {
  readonly clock: Clock;
  /** Where this gateway keeps the keys that it saw itself. */
  readonly own: SharedStore;
  /** Where gateways keep them together; undefined: there are no others. */
  readonly shared: SharedStore | undefined;
  /** Requests that wait at one time; one more is told at once that the first is in progress. */
  readonly waitingMax: number;
  /** How soon a key whose gateway died may be used by another. */
  readonly leaseMs: number;
  /** Told once for each request, and of each that the shared store was not there for. */
  readonly note?: (outcome: IdempotencyOutcome) => void;
}

export const IDEMPOTENCY_OUTCOMES = ["first", "replayed", "conflict", "busy", "unshared"] as const;
export type IdempotencyOutcome = (typeof IDEMPOTENCY_OUTCOMES)[number];

export interface KeyedRequest {
  readonly tenant: string;
  readonly key: string;
  /** Equal for two requests exactly if they ask for the same. */
  readonly fingerprint: string;
  /** How long to wait for the same request that somebody else is at. */
  readonly waitMs: number;
  /** Aborted with a ServingError when the caller went away. */
  readonly signal: AbortSignal;
}

/** What a request under a key is to do: answer with what was answered before, or do its work and say what came of it. */
export type KeyEntry = { readonly replay: IdempotentAnswer } | { readonly work: KeyedWork };

/** A request that nobody else does meanwhile. Of `finish` and `release` one, once; what follows is nothing. */
export interface KeyedWork {
  /** The seed of whatever is drawn under this key, the same in every attempt. */
  readonly seed: number;
  /** From now on the key has this answer. Never rejects. */
  finish(answer: IdempotentAnswer): Promise<void>;
  /**
   * Nothing was answered that could be answered again: the next request works. With `forget` the key is as if it had
   * never been used; without, it stays bound to its request and its seed. Never rejects.
   */
  release(options: { forget: boolean }): Promise<void>;
}

/** Source: the draft leaves it to us; 24 hours is what the payment services that the idea comes from keep. */
const KEPT_MS = 24 * 60 * 60 * 1_000;

/**
 * Idempotency keys: however often a request is sent under one key, and to whichever gateway, it is answered once and
 * that answer is given again.
 *
 * A gateway holds a lease on a key while it works, renewed until it answers; should it die, the lease ends and the next
 * attempt works with the same seed. Every gateway keeps its own keys beside the shared ones, so that without the shared
 * store a key still holds on the gateway that saw it.
 *
 * Source: IETF draft-ietf-httpapi-idempotency-key-header-07. Of its choices: a key under another request is 422
 * (section 2.7); a request that is still in progress is waited for, since its caller wants the picture and not to ask
 * again, and is 409 with Retry-After when it takes too long.
 */
export class IdempotencyKeys {
  readonly #options: IdempotencyKeysOptions;
  #waiting = 0;

  constructor(options: IdempotencyKeysOptions) {
    this.#options = options;
  }

  /** Rejects with HttpRefusal 422 (the key is another request's) or 409 (still in progress), or the signal's reason. */
  async enter(request: KeyedRequest): Promise<KeyEntry> {
    const { note } = this.#options;
    try {
      const entry = await this.#enter(request);
      note?.("replay" in entry ? "replayed" : "first");
      return entry;
    } catch (error) {
      if (error instanceof HttpRefusal) note?.(error.status === 409 ? "busy" : "conflict");
      throw error;
    }
  }

  async #enter(request: KeyedRequest): Promise<KeyEntry> {
    const { own, shared, note } = this.#options;
    const here = await this.#enterStore(own, request, newSeed());
    if (shared === undefined || "replay" in here) return here;
    try {
      const there = await this.#enterStore(shared, request, here.work.seed);
      if ("work" in there) return { work: both(here.work, there.work) };
      await here.work.finish(there.replay);
      return there;
    } catch (error) {
      if (error instanceof StoreUnavailable) {
        note?.("unshared");
        return here;
      }
      await here.work.release({ forget: true });
      throw error;
    }
  }

  async #enterStore(store: SharedStore, request: KeyedRequest, seed: number): Promise<KeyEntry> {
    const { clock, leaseMs } = this.#options;
    const { fingerprint, signal, waitMs } = request;
    const keys = keysOf(request);
    const untilMs = clock.nowMs() + waitMs;
    const holder = newId("holder");
    for (;;) {
      signal.throwIfAborted();
      const replay = await settled(store, keys, fingerprint);
      if (replay !== undefined) return { replay };
      if (await store.setIfAbsent(keys.lease, holder, { ttlMs: leaseMs })) break;
      if (clock.nowMs() >= untilMs || this.#waiting >= this.#options.waitingMax) throw stillBusy();
      this.#waiting += 1;
      await pause(clock, POLL_MS, signal).finally(() => {
        this.#waiting -= 1;
      });
    }
    // At once: with a slow store all that follows may take longer than the lease.
    const lease = this.#renew(store, keys.lease, holder);
    try {
      // Whoever held the lease before may have answered, or bound the key, since we looked.
      const replay = await settled(store, keys, fingerprint);
      if (replay !== undefined) {
        await lease.end();
        return { replay };
      }
      const bound = readBinding(await store.get(keys.binding)) ?? { fingerprint, seed };
      await store.set(keys.binding, JSON.stringify(bound), { ttlMs: KEPT_MS });
      return { work: workUnder(lease, store, keys, bound) };
    } catch (error) {
      await lease.end();
      throw error;
    }
  }

  /** Renews a lease until it is ended. One that was lost is not taken back: somebody else works, with the same seed. */
  #renew(store: SharedStore, key: string, holder: string): Lease {
    const { clock, leaseMs } = this.#options;
    let cancel = () => {};
    const renewLater = () => {
      cancel = clock.after(leaseMs / 3, () => {
        store.replaceIf(key, holder, holder, { ttlMs: leaseMs }).catch(unlessUnavailable);
        renewLater();
      });
    };
    renewLater();
    return {
      end: async () => {
        cancel();
        await store.deleteIf(key, holder).catch(unlessUnavailable); // or else it ends by itself
      },
    };
  }
}

interface Lease {
  end(): Promise<void>;
}

function workUnder(lease: Lease, store: SharedStore, keys: Keys, { fingerprint, seed }: Binding): KeyedWork {
  let over = false;
  const end = async (write: () => Promise<unknown>) => {
    if (over) return;
    over = true;
    await write().catch(unlessUnavailable);
    await lease.end();
  };
  return {
    seed,
    finish: (answer) => end(() => store.set(keys.answer, writeAnswer(answer, fingerprint), { ttlMs: KEPT_MS })),
    release: ({ forget }) => end(async () => forget && store.delete(keys.binding)),
  };
}

/** Often enough that nobody notices, for the few that wait. */
const POLL_MS = 100;
const BUSY_RETRY_MS = 1_000;

interface Keys {
  readonly binding: string;
  readonly lease: string;
  readonly answer: string;
}

/** Which request a key is for. */
interface Binding {
  readonly fingerprint: string;
  readonly seed: number;
}

function keysOf({ tenant, key }: KeyedRequest): Keys {
  const base = `idempotency:${sha256(JSON.stringify([tenant, key])).slice("sha256:".length)}`;
  return { binding: `${base}:binding`, lease: `${base}:lease`, answer: `${base}:answer` };
}

/** The answer that the key has, if it has one. @throws HttpRefusal 422 where the key is another request's. */
async function settled(store: SharedStore, keys: Keys, fingerprint: string): Promise<IdempotentAnswer | undefined> {
  const [kept, bound] = await Promise.all([store.get(keys.answer), store.get(keys.binding)]);
  const answer = kept && readAnswer(kept);
  const asked = answer?.fingerprint ?? readBinding(bound)?.fingerprint;
  if (asked !== undefined && asked !== fingerprint) {
    throw new HttpRefusal(
      422,
      "this idempotency key was used for another request; every request needs a key of its own",
      {
        code: "CONFLICT",
        field: "idempotency-key",
      },
    );
  }
  return answer?.answer;
}

function readBinding(kept: Buffer | undefined): Binding | undefined {
  if (kept === undefined) return undefined;
  try {
    const { fingerprint, seed } = JSON.parse(kept.toString()) as Partial<Binding>;
    if (typeof fingerprint !== "string" || !Number.isSafeInteger(seed)) return undefined;
    return { fingerprint, seed: seed! };
  } catch {
    return undefined; // damaged: as if it were not there
  }
}

function both(here: KeyedWork, there: KeyedWork): KeyedWork {
  return {
    seed: there.seed,
    finish: async (answer) => void (await Promise.all([here.finish(answer), there.finish(answer)])),
    release: async (options) => void (await Promise.all([here.release(options), there.release(options)])),
  };
}

function stillBusy(): HttpRefusal {
  return new HttpRefusal(409, "the same request is still in progress under this idempotency key", {
    code: "CONFLICT",
    field: "idempotency-key",
    headers: { "retry-after": String(BUSY_RETRY_MS / 1_000) },
  });
}

function unlessUnavailable(error: unknown): void {
  if (!(error instanceof StoreUnavailable)) throw error;
}

/** Rejects with the signal's reason. */
function pause(clock: Clock, ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const end = () => {
      cancel();
      signal.removeEventListener("abort", end);
      if (signal.aborted) reject(signal.reason as ServingError);
      else resolve();
    };
    const cancel = clock.after(ms, end);
    signal.addEventListener("abort", end);
  });
}
