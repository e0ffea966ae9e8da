import { type Clock, ServingError } from "@atelier/core";
import type { WorkItem } from "@atelier/proto";
import type { Lease } from "./job-queue.ts";

/** What a lease asks of the adapter that gave it. `Ref` is how that knows the delivery. */
export interface LeaseHolder<Ref> {
  /** False where somebody else has the item by now. */
  extend(lease: HeldLease<Ref>): Promise<boolean>;
  end(lease: HeldLease<Ref>): Promise<unknown>;
  release(lease: HeldLease<Ref>, options: { readonly delayMs: number; readonly forgiven: boolean }): Promise<unknown>;
  bury(lease: HeldLease<Ref>, reason: BuryReason): Promise<unknown>;
  report(lease: HeldLease<Ref>, progress: Parameters<Lease["report"]>[0]): void;
  /** It is over. */
  forget(lease: HeldLease<Ref>): void;
}

export type BuryReason = Parameters<Lease["bury"]>[0];

/** What all adapters' leases have in common: one end only, and the time after which they are lost. */
export class HeldLease<Ref> implements Lease {
  readonly item: WorkItem;
  readonly attempt: number;
  readonly redelivered: boolean;
  readonly leaseMs: number;
  readonly ref: Ref;
  readonly #holder: LeaseHolder<Ref>;
  readonly #clock: Clock;
  readonly #lost = new AbortController();
  #stopTimer: () => void;
  #over = false;
  #lostWhileEnding: ServingError | undefined;

  constructor(
    delivered: Pick<HeldLease<Ref>, "item" | "attempt" | "redelivered" | "leaseMs" | "ref">,
    holder: LeaseHolder<Ref>,
    clock: Clock,
  ) {
    this.item = delivered.item;
    this.attempt = delivered.attempt;
    this.redelivered = delivered.redelivered;
    this.leaseMs = delivered.leaseMs;
    this.ref = delivered.ref;
    this.#holder = holder;
    this.#clock = clock;
    this.#stopTimer = this.#startTimer();
  }

  get lost(): AbortSignal {
    return this.#lost.signal;
  }

  async extend(): Promise<void> {
    if (this.#over) return;
    // From before it is written, so that we never believe to have it for longer than the file says.
    const stopTimer = this.#startTimer();
    // A queue that cannot be reached now may be by the next time; until then the timer runs.
    const ours = await this.#holder.extend(this).catch(() => undefined);
    if (this.#over || ours === undefined) stopTimer();
    else if (ours) {
      this.#stopTimer();
      this.#stopTimer = stopTimer;
    } else {
      stopTimer();
      this.lose(new ServingError("DEADLINE_EXCEEDED", `${this.#name} ran out, and another worker has it`));
    }
  }

  report(progress: Parameters<Lease["report"]>[0]): void {
    if (!this.#over) this.#holder.report(this, progress);
  }

  ack(): Promise<void> {
    return this.#end(() => this.#holder.end(this));
  }

  release({ delayMs = 0, forgiven = false }: Parameters<Lease["release"]>[0] = {}): Promise<void> {
    return this.#end(() => this.#holder.release(this, { delayMs, forgiven }));
  }

  bury(reason: BuryReason): Promise<void> {
    return this.#end(() => this.#holder.bury(this, reason));
  }

  lose(why: ServingError): void {
    if (this.#over) this.#lostWhileEnding ??= why;
    if (this.#over) return;
    this.#close();
    this.#lost.abort(why);
  }

  loseWithdrawn(): void {
    this.lose(new ServingError("CANCELLED", `${this.#name} ended: the job was withdrawn`));
  }

  async #end(end: () => Promise<unknown>): Promise<void> {
    if (this.#over) return;
    // One end only, even while the first is being written; where that fails the item is still ours, until it runs out.
    this.#over = true;
    try {
      await end();
      this.#close();
    } catch (error) {
      this.#over = false;
      if (this.#lostWhileEnding !== undefined) this.lose(this.#lostWhileEnding);
      throw error;
    }
  }

  #startTimer(): () => void {
    return this.#clock.after(this.leaseMs, () =>
      this.lose(new ServingError("DEADLINE_EXCEEDED", `${this.#name} was not extended for ${this.leaseMs} ms`)),
    );
  }

  #close(): void {
    this.#over = true;
    this.#stopTimer();
    this.#holder.forget(this);
  }

  get #name(): string {
    return `the lease of item ${this.item.itemIndex} of job ${this.item.jobId}`;
  }
}
