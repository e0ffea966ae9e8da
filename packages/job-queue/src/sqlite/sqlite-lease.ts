import { type Clock, ServingError } from "@atelier/core";
import type { WorkItem } from "@atelier/proto";
import type { Lease } from "../job-queue.ts";

/** What a lease asks of its queue. Each tells whether the item was still this delivery's. */
export interface LeaseHolder {
  extend(lease: SqliteLease): Promise<boolean>;
  end(lease: SqliteLease): Promise<boolean>;
  release(lease: SqliteLease, options: { readonly delayMs: number; readonly forgiven: boolean }): Promise<boolean>;
  bury(lease: SqliteLease, reason: BuryReason): Promise<boolean>;
  report(lease: SqliteLease, progress: Parameters<Lease["report"]>[0]): void;
  forget(lease: SqliteLease): void;
}

export type BuryReason = Parameters<Lease["bury"]>[0];

export class SqliteLease implements Lease {
  readonly item: WorkItem;
  readonly attempt: number;
  readonly leaseMs: number;
  /** The row, and which of its deliveries this is. */
  readonly id: number;
  readonly delivery: number;
  readonly #holder: LeaseHolder;
  readonly #clock: Clock;
  readonly #lost = new AbortController();
  #stopTimer: () => void;
  #over = false;
  #lostWhileEnding: ServingError | undefined;

  constructor(
    delivered: Pick<SqliteLease, "item" | "attempt" | "leaseMs" | "id" | "delivery">,
    holder: LeaseHolder,
    clock: Clock,
  ) {
    this.item = delivered.item;
    this.attempt = delivered.attempt;
    this.leaseMs = delivered.leaseMs;
    this.id = delivered.id;
    this.delivery = delivered.delivery;
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

  async #end(end: () => Promise<boolean>): Promise<void> {
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
