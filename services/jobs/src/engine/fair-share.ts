import { invariant } from "@atelier/core";

/** One that has items to hand out. */
export interface Claimant {
  readonly jobId: string;
  readonly tenant: string;
  /** The tenant's share against others'; over 0. */
  readonly weight: number;
}

/**
 * Whose item is next: tenants share by weight, and the jobs of a tenant alike, in device milliseconds.
 *
 * Each keeps what it was given, divided by its weight (its *pass*); the least goes first. Who comes, or comes back after a
 * while with nothing to do, begins at the least of those that are there: it has no claim on the past, and no debt either.
 *
 * Source: Waldspurger, Weihl, "Stride Scheduling", MIT/LCS/TM-528, 1995.
 */
export class FairShare {
  readonly #tenants = new Passes();
  readonly #jobs = new Map<string, Passes>();

  /** The claimant that goes next; undefined without any. Ties go to who comes first in the list. */
  next<C extends Claimant>(claimants: readonly C[]): C | undefined {
    if (claimants.length === 0) return undefined;
    const tenant = this.#tenants.least(unique(claimants.map((claimant) => claimant.tenant)));
    const own = claimants.filter((claimant) => claimant.tenant === tenant);
    let jobs = this.#jobs.get(tenant);
    if (jobs === undefined) {
      jobs = new Passes();
      this.#jobs.set(tenant, jobs);
    }
    const jobId = jobs.least(own.map((claimant) => claimant.jobId));
    return own.find((claimant) => claimant.jobId === jobId);
  }

  /** It was given so much of a device. */
  charge({ jobId, tenant, weight }: Claimant, deviceMs: number): void {
    invariant(weight > 0 && deviceMs > 0, "a share is of something");
    this.#tenants.add(tenant, deviceMs / weight);
    this.#jobs.get(tenant)?.add(jobId, deviceMs);
  }

  /** Nothing of the job is left to hand out. */
  forget({ jobId, tenant }: Pick<Claimant, "jobId" | "tenant">): void {
    const jobs = this.#jobs.get(tenant);
    jobs?.delete(jobId);
    if (jobs?.size !== 0) return;
    this.#jobs.delete(tenant);
    this.#tenants.delete(tenant);
  }
}

class Passes {
  readonly #passes = new Map<string, number>();
  /** The pass that whoever was given something last had then: the least of all that were there. Nobody is behind it. */
  #now = 0;

  get size(): number {
    return this.#passes.size;
  }

  /** Brings who was away to where the others are: those that were there are there already. */
  least(names: readonly string[]): string {
    for (const name of names) this.#passes.set(name, Math.max(this.#passes.get(name) ?? 0, this.#now));
    return names.reduce((best, name) => (this.#passes.get(name)! < this.#passes.get(best)! ? name : best));
  }

  add(name: string, amount: number): void {
    const pass = this.#passes.get(name) ?? this.#now;
    this.#now = Math.max(this.#now, pass);
    this.#passes.set(name, pass + amount);
  }

  delete(name: string): void {
    this.#passes.delete(name);
  }
}

function unique(names: readonly string[]): readonly string[] {
  return [...new Set(names)];
}
