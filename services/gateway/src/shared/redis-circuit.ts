import type { Clock, Random } from "@atelier/core";

/** Few, since each costs a request the whole timeout; more than one, since a single slow answer happens. */
const FAILURES_MAX = 3;
const FIRST_PAUSE_MS = 100;
/** A Redis that comes back is in use again within this. */
const LAST_PAUSE_MS = 1_000;
/** An idle connection is tried so often, so that its loss shows before a request meets it. */
const HEARTBEAT_MS = 2_000;

/**
 * Decides whether Redis is worth asking: not after a few failures in a row, until a probe of its own has succeeded.
 * Requests never wait for a probe, and gateways that lost Redis together do not probe it together.
 */
export class RedisCircuit {
  #failures = 0;
  #probesFailed = 0;
  #open: boolean;
  #lastSuccessMs = Number.NEGATIVE_INFINITY;
  #cancelProbe: () => void = () => {};
  #probing: Promise<void> | undefined;
  #closed = false;
  readonly #world: CircuitWorld;

  /** Starts open: nothing is asked before the first probe has succeeded. */
  constructor(world: CircuitWorld) {
    this.#world = world;
    this.#open = true;
  }

  get open(): boolean {
    return this.#open;
  }

  /** Tries at once instead of when the pause is over, as when a connection was just made. Never rejects. */
  probe(): Promise<void> {
    if (this.#closed) return Promise.resolve();
    this.#probing ??= this.#probe().finally(() => {
      this.#probing = undefined;
      this.#probeLater();
    });
    return this.#probing;
  }

  /** An answer came, of whatever content. It does not close an open circuit: it may be an old one's. */
  succeeded(): void {
    this.#failures = 0;
    this.#lastSuccessMs = this.#world.clock.nowMs();
  }

  /** None came in time. */
  failed(why: unknown): void {
    this.#failures += 1;
    if (this.#failures < FAILURES_MAX || this.#open) return;
    this.#set({ open: true }, why);
    if (this.#probing === undefined) this.#probeLater();
  }

  close(): void {
    this.#closed = true;
    this.#cancelProbe();
  }

  async #probe(): Promise<void> {
    this.#cancelProbe();
    try {
      await this.#world.probe();
      this.#probesFailed = 0;
      this.succeeded();
      this.#set({ open: false });
    } catch (error) {
      this.#probesFailed += 1;
      this.failed(error);
    }
  }

  #set({ open }: { open: boolean }, why?: unknown): void {
    if (this.#open === open) return;
    this.#open = open;
    this.#world.changed({ open }, why);
  }

  #probeLater(): void {
    this.#cancelProbe();
    if (this.#closed) return;
    const pauseMs = this.#open
      ? Math.min(LAST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** Math.min(this.#probesFailed, 10))
      : HEARTBEAT_MS;
    const { clock, random } = this.#world;
    this.#cancelProbe = clock.after(pauseMs / 2 + (random.next() * pauseMs) / 2, () => {
      const idle = this.#open || clock.nowMs() - this.#lastSuccessMs >= HEARTBEAT_MS / 2;
      if (idle) void this.probe();
      else this.#probeLater();
    });
  }
}

export interface CircuitWorld {
  readonly clock: Clock;
  readonly random: Random;
  /** Rejects where Redis does not answer in time. */
  readonly probe: () => Promise<unknown>;
  readonly changed: (state: { open: boolean }, why: unknown) => void;
}
