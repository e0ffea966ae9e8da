import { ServingError } from "@atelier/core";

/**
 * What is wrong with one bundle. Reading goes on after a complaint where it can, so that somebody who repairs a bundle
 * sees everything at once.
 */
export class BundleProblems {
  readonly #lines: string[] = [];
  readonly #dir: string;
  /** The bundle's own name, once its manifest has told it. */
  id: string | undefined;

  constructor(dir: string) {
    this.#dir = dir;
  }

  /** `file` is relative to the bundle's folder. */
  add(file: string, reason: string): void {
    this.#lines.push(`${file}: ${reason}`);
  }

  get lines(): readonly string[] {
    return this.#lines;
  }

  get count(): number {
    return this.#lines.length;
  }

  /** @throws ServingError INVALID_BUNDLE with one line for each problem, when there are any. */
  throwIfAny(): void {
    if (this.#lines.length === 0) return;
    const bundle = this.id === undefined ? `the bundle in ${this.#dir}` : `bundle "${this.id}" (${this.#dir})`;
    const list = this.#lines.length === 1 ? ` ${this.#lines[0]}` : this.#lines.map((line) => `\n  - ${line}`).join("");
    throw new ServingError("INVALID_BUNDLE", `${bundle} cannot be used:${list}`);
  }
}

/** `value` as a message may show it: quoted where it is text, and cut where it is long. */
export function show(value: unknown): string {
  const text = JSON.stringify(value) ?? "absent";
  return text.length > 80 ? `${text.slice(0, 80)}...` : text;
}
