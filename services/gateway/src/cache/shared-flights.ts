import { type Clock, type Deadline, newId } from "@atelier/core";
import { type SharedStore, StoreUnavailable } from "../shared/shared-store.ts";

export interface SharedFlightsOptions {
  readonly store: SharedStore;
  readonly clock: Clock;
  /** How long after a gateway's death the others go on waiting for it at most. */
  readonly leaseMs: number;
}

export interface FlightWork<T> {
  /** What somebody has finished meanwhile, if anybody has. */
  look(): Promise<T | undefined>;
  make(): Promise<T>;
  /** Puts it where the others look, briefly: called where somebody waits. */
  handOver(result: T): Promise<void>;
}

export interface FlightLimits {
  readonly deadline: Deadline;
  readonly signal: AbortSignal;
}

const CHANNEL = "cache:flights";
/** Messages come at most once; who missed one finds out so. */
const POLL_MS = 200;
/** Behind the holder's name: another gateway waits for what it makes. */
const WANTED = " wanted";

/**
 * One making among all gateways: whoever has the lease on a flight makes, the others wait and look. The lease is short
 * and renewed, so that a gateway that dies holds nobody up for longer; its value names its holder, so that one that was
 * held up for too long neither renews nor ends a successor's. Without the store each gateway makes its own.
 */
export class SharedFlights {
  readonly #options: SharedFlightsOptions;
  readonly #endSubscription: () => void;
  readonly #waiting = new Map<string, Set<() => void>>();

  constructor(options: SharedFlightsOptions) {
    this.#options = options;
    this.#endSubscription = options.store.subscribe(CHANNEL, (id) => {
      for (const wake of this.#waiting.get(id) ?? []) wake();
    });
  }

  close(): void {
    this.#endSubscription();
  }

  /** `made` is false where the result is another gateway's. Rejects as `make` does, and when the limits end it. */
  async fly<T>(id: string, work: FlightWork<T>, limits: FlightLimits): Promise<{ result: T; made: boolean }> {
    for (;;) {
      const lease = await this.#take(id);
      if (lease === "unavailable") return { result: await work.make(), made: true };
      if (lease !== "busy") return this.#hold(lease, work);
      await this.#untilTold(id, limits);
      const result = await work.look();
      if (result !== undefined) return { result, made: false };
    }
  }

  /** Whether somebody is at it, as far as is known. */
  async busy(id: string): Promise<boolean> {
    return unlessUnavailable(async () => (await this.#options.store.get(keyOf(id))) !== undefined, false);
  }

  async #hold<T>(lease: Lease, work: FlightWork<T>): Promise<{ result: T; made: boolean }> {
    try {
      // Whoever held it before may have finished since it was looked for.
      const found = await work.look();
      if (found !== undefined) {
        void lease.end(async () => {});
        return { result: found, made: false };
      }
      const result = await work.make();
      void lease.end(() => work.handOver(result)); // the caller's answer does not wait for it
      return { result, made: true };
    } catch (error) {
      void lease.end(async () => {}); // the next in line tries for itself
      throw error;
    }
  }

  async #take(id: string): Promise<Lease | "busy" | "unavailable"> {
    const { store, clock, leaseMs } = this.#options;
    const key = keyOf(id);
    const holder = newId("flight");
    return unlessUnavailable<Lease | "busy" | "unavailable">(async () => {
      if (await store.setIfAbsent(key, holder, { ttlMs: leaseMs })) {
        const announce = () => store.publish(CHANNEL, id);
        return new Lease({ store, clock, leaseMs, key, holder, announce });
      }
      const held = (await store.get(key))?.toString();
      // As long as it was: marking a lease does not renew a dead gateway's.
      if (held !== undefined && !held.endsWith(WANTED)) await store.replaceIf(key, held, held + WANTED, "same");
      return "busy";
    }, "unavailable");
  }

  /** Resolves when the flight's holder says that it is over, or after a while. */
  #untilTold(id: string, { deadline, signal }: FlightLimits): Promise<void> {
    const told = Promise.withResolvers<void>();
    const wakers = this.#waiting.get(id) ?? new Set();
    this.#waiting.set(id, wakers.add(told.resolve));
    const cancel = this.#options.clock.after(Math.min(POLL_MS, deadline.leftMs), told.resolve);
    const leave = () => told.reject(signal.reason);
    if (signal.aborted) leave();
    else signal.addEventListener("abort", leave);
    return told.promise
      .then(() => deadline.check("a picture that another gateway makes"))
      .finally(() => {
        cancel();
        signal.removeEventListener("abort", leave);
        wakers.delete(told.resolve);
        if (wakers.size === 0 && this.#waiting.get(id) === wakers) this.#waiting.delete(id);
      });
  }
}

interface LeaseOptions extends SharedFlightsOptions {
  readonly key: string;
  readonly holder: string;
  /** Tells the other gateways that it is over. */
  readonly announce: () => Promise<void>;
}

class Lease {
  readonly #options: LeaseOptions;
  #cancelRenewal: () => void = () => {};
  #over = false;

  constructor(options: LeaseOptions) {
    this.#options = options;
    this.#renewLater();
  }

  /** Hands over where somebody waits, and lets go. Never rejects. */
  async end(handOver: () => Promise<void>): Promise<void> {
    const { store, key, holder, announce } = this.#options;
    this.#over = true;
    this.#cancelRenewal();
    await unlessUnavailable(async () => {
      if (await store.deleteIf(key, holder)) return; // and nobody has marked it
      if ((await store.get(key))?.toString() !== holder + WANTED) return; // lost: it is another's now
      await handOver();
      await store.deleteIf(key, holder + WANTED);
      await announce();
    }, undefined);
  }

  #renewLater(): void {
    const { store, clock, leaseMs, key, holder } = this.#options;
    if (this.#over) return;
    this.#cancelRenewal = clock.after(leaseMs / 3, () => {
      const life = { ttlMs: leaseMs };
      const renew = async () =>
        (await store.replaceIf(key, holder, holder, life)) ||
        (await store.replaceIf(key, holder + WANTED, holder + WANTED, life));
      // One that was lost meanwhile is not taken back: somebody else makes it too, and both come to the same.
      void unlessUnavailable(renew, false).finally(() => this.#renewLater());
    });
  }
}

const keyOf = (id: string): string => `cache:flight:${id}`;

async function unlessUnavailable<T>(run: () => Promise<T>, otherwise: T): Promise<T> {
  try {
    return await run();
  } catch (error) {
    if (error instanceof StoreUnavailable) return otherwise;
    throw error;
  }
}
