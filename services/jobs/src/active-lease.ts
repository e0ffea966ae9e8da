import { hostname } from "node:os";
import { type Clock, newId, ServingError } from "@atelier/core";
import type { Records } from "@atelier/job-queue";
import type { Logger } from "@atelier/telemetry";
import { delay } from "./delay.ts";

const KEY = "active";
/** Renewed three times in its length. */
const LENGTH_MS = 6_000;
const LOOK_MS = LENGTH_MS / 3;

interface Holder {
  readonly id: string;
  readonly host: string;
  readonly pid: number;
  /** Changes with every renewal. */
  readonly beat: number;
}

/**
 * Only one instance of the service is active. Whoever would be watches the holder's record: one that has not changed for the
 * lease's length, by the watcher's own clock, is dead, and is replaced by compare and set. So clocks need not agree. A dead
 * process of this machine is not waited for.
 */
export class ActiveLease {
  readonly #records: Records;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #onLost: (why: string) => void;
  readonly #id = newId("jobs");
  #revision: number | undefined;
  #beat = 0;
  #renewedMs = 0;
  #cancel: (() => void) | undefined;
  #renewing: Promise<void> = Promise.resolve();
  #released = false;

  /** `onLost`: somebody else may be active from now on; this instance has to end at once. */
  constructor(parts: { records: Records; clock: Clock; log: Logger; onLost: (why: string) => void }) {
    this.#records = parts.records;
    this.#clock = parts.clock;
    this.#log = parts.log;
    this.#onLost = parts.onLost;
  }

  /** Resolves once this instance is the active one; false where the signal came first. */
  async acquire(signal: AbortSignal): Promise<boolean> {
    let seen: { revision: number; sinceMs: number } | undefined;
    let told = false;
    while (!signal.aborted) {
      const found = await this.#records.get(KEY);
      const nowMs = this.#clock.nowMs();
      if (found === undefined || isDeadHere(found.value)) {
        if (await this.#take(found?.revision ?? 0)) return true;
        continue;
      }
      if (seen?.revision !== found.revision) seen = { revision: found.revision, sinceMs: nowMs };
      else if (nowMs - seen.sinceMs > LENGTH_MS && (await this.#take(found.revision))) return true;
      if (!told) this.#log.info("another instance is active; waiting for it to end");
      told = true;
      await delay(this.#clock, LOOK_MS, signal);
    }
    return false;
  }

  async release(): Promise<void> {
    this.#released = true;
    this.#cancel?.();
    await this.#renewing;
    // Nobody has to wait for it to lapse; where this fails, somebody does.
    if (this.#revision !== undefined && (await this.#isOurs())) await this.#records.remove(KEY).catch(() => {});
  }

  async #take(revision: number): Promise<boolean> {
    try {
      this.#revision = await this.#records.put(KEY, this.#value(), revision);
    } catch (error) {
      if (error instanceof ServingError && error.code === "CONFLICT") return false;
      throw error;
    }
    this.#renewedMs = this.#clock.nowMs();
    this.#renewLater();
    return true;
  }

  #renewLater(): void {
    if (this.#released) return;
    this.#cancel = this.#clock.after(LOOK_MS, () => {
      this.#renewing = this.#renew();
    });
  }

  async #renew(): Promise<void> {
    try {
      this.#revision = await this.#records.put(KEY, this.#value(), this.#revision!);
      this.#renewedMs = this.#clock.nowMs();
    } catch (error) {
      if (error instanceof ServingError && error.code === "CONFLICT" && (await this.#isOurs()) === false) {
        if (!this.#released) this.#onLost("another instance took over");
        return;
      }
      // Away with the queue, so is everybody else who would take over: nothing is decided without it.
      this.#log.warn(
        { sinceMs: Math.round(this.#clock.nowMs() - this.#renewedMs) },
        "the active lease was not renewed",
      );
    }
    this.#renewLater();
  }

  /** A renewal whose answer was lost left it ours. Undefined where nobody can tell now. */
  async #isOurs(): Promise<boolean | undefined> {
    try {
      const found = await this.#records.get(KEY);
      if (found === undefined || (JSON.parse(found.value) as Holder).id !== this.#id) return false;
      this.#revision = found.revision;
      return true;
    } catch (error) {
      if (!(error instanceof ServingError)) throw error;
      return undefined;
    }
  }

  #value(): string {
    const holder: Holder = { id: this.#id, host: hostname(), pid: process.pid, beat: this.#beat++ };
    return JSON.stringify(holder);
  }
}

function isDeadHere(value: string): boolean {
  const { host, pid } = JSON.parse(value) as Holder;
  if (host !== hostname() || pid === process.pid) return false;
  try {
    process.kill(pid, 0);
    return false;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "ESRCH";
  }
}
