/** How many calls run at once, in all and to one host, so that a slow receiver holds up itself and nobody else. */
export class CallSlots {
  readonly #max: number;
  readonly #perHostMax: number;
  readonly #byHost = new Map<string, number>();
  #taken = 0;

  constructor({ max, perHostMax }: { readonly max: number; readonly perHostMax: number }) {
    this.#max = max;
    this.#perHostMax = perHostMax;
  }

  get full(): boolean {
    return this.#taken >= this.#max;
  }

  /** Takes one; false where there is none for the host now. */
  take(host: string): boolean {
    const ofHost = this.#byHost.get(host) ?? 0;
    if (this.full || ofHost >= this.#perHostMax) return false;
    this.#taken++;
    this.#byHost.set(host, ofHost + 1);
    return true;
  }

  free(host: string): void {
    this.#taken--;
    const ofHost = this.#byHost.get(host)! - 1;
    if (ofHost === 0) this.#byHost.delete(host);
    else this.#byHost.set(host, ofHost);
  }
}
