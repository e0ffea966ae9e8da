/** How long a device that ran out of memory is believed to be that small: models come and go. */
const HOLDS_MS = 10 * 60_000;

/** Rows that fit into one run, where the device has said that more do not. */
export class BatchCaps {
  readonly #caps = new Map<string, { readonly rows: number; readonly untilMs: number }>();

  /** `rows` rows of this kind did not fit; half of them are tried from now on. */
  refused(kind: string, rows: number, nowMs: number): void {
    this.#caps.set(kind, { rows: Math.max(1, Math.floor(rows / 2)), untilMs: nowMs + HOLDS_MS });
  }

  rowsMax(kind: string, nowMs: number): number {
    const cap = this.#caps.get(kind);
    if (cap === undefined) return Infinity;
    if (nowMs < cap.untilMs) return cap.rows;
    this.#caps.delete(kind);
    return Infinity;
  }
}
