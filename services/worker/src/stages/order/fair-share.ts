/** Device milliseconds that a tenant is given in a round: little, so that tenants take turns step by step. */
const QUANTUM_MS = 20;

/**
 * Shares a device between the tenants of one class by deficit round robin, in device milliseconds.
 *
 * A tenant is served for as long as its account is above zero, and what it used is taken off afterwards, so a large
 * step is paid for by waiting out the rounds that it cost. Accounts never hold more than one round's worth: who could
 * not use the device for a while does not own it later. A debt outlives the work that made it, or a tenant with one
 * request at a time would never pay.
 *
 * Source: Shreedhar and Varghese, "Efficient Fair Queuing Using Deficit Round-Robin", IEEE/ACM TON 4(3), 1996; paying
 * afterwards as in Surplus Round Robin (Floyd and Van Jacobson, "Link-sharing", IEEE/ACM TON 3(4), 1995).
 */
export class FairShare {
  /** In the order of service: the tenant being served first. */
  readonly #accounts = new Map<string, number>();

  /** What the tenant may still use before it is others' turn, in device milliseconds; below 0 a debt. */
  balanceMs(tenant: string): number {
    return this.#accounts.get(tenant) ?? 0;
  }

  /** Which of `tenants`, who all have work that could run now, is next. `active` have work, running work included. */
  next(tenants: ReadonlySet<string>, active: (tenant: string) => boolean): string {
    for (const tenant of tenants) if (!this.#accounts.has(tenant)) this.#accounts.set(tenant, 0);
    const served = this.#firstInCredit(tenants);
    if (served !== undefined) return served;
    this.#newRounds(tenants, active);
    return this.#firstInCredit(tenants)!;
  }

  /** Takes `ms` of the device off the tenant's account; below 0 gives back what was taken too much. */
  charge(tenant: string, ms: number): void {
    this.#accounts.set(tenant, this.balanceMs(tenant) - ms);
  }

  /** Nobody has work: debts are forgiven, since nobody was kept waiting by them. */
  clear(): void {
    this.#accounts.clear();
  }

  #firstInCredit(tenants: ReadonlySet<string>): string | undefined {
    for (const [tenant, balanceMs] of this.#accounts) if (balanceMs > 0 && tenants.has(tenant)) return tenant;
    return undefined;
  }

  /** As many rounds as it takes to bring one of `tenants` above zero. Who was served before goes to the end. */
  #newRounds(tenants: ReadonlySet<string>, active: (tenant: string) => boolean): void {
    const leastDebtMs = Math.min(...[...tenants].map((tenant) => -this.balanceMs(tenant)));
    const givenMs = QUANTUM_MS * (Math.floor(leastDebtMs / QUANTUM_MS) + 1);
    const [served] = this.#accounts;
    if (served !== undefined) {
      this.#accounts.delete(served[0]);
      this.#accounts.set(...served);
    }
    for (const [tenant, balanceMs] of [...this.#accounts]) {
      const balance = balanceMs + givenMs;
      if (balance >= 0 && !active(tenant)) this.#accounts.delete(tenant);
      else this.#accounts.set(tenant, Math.min(balance, QUANTUM_MS));
    }
  }
}
