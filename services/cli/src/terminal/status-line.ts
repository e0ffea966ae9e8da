import type { WriteStream } from "node:tty";

const CLEAR_LINE = "\r\x1b[2K";
/** Where no terminal shows the line as it moves, it is written so often at most, and when it says something else. */
const QUIET_MS = 10_000;
const COLUMNS = 80;

/** One line on a terminal that is written over as things change; in a pipe a line now and then. */
export class StatusLine {
  readonly #stream: WriteStream;
  readonly #live: boolean;
  readonly #now: () => number;
  #shown = "";
  #writtenMs = Number.NEGATIVE_INFINITY;
  #kind = "";

  constructor(stream: WriteStream, now: () => number = Date.now) {
    this.#stream = stream;
    this.#now = now;
    this.#live = stream.isTTY === true && process.env["TERM"] !== "dumb";
  }

  get live(): boolean {
    return this.#live;
  }

  /** `kind`: what sort of thing it says; another sort is told in a pipe at once. */
  show(text: string, kind = ""): void {
    if (this.#live) {
      this.#shown = text.slice(0, (this.#stream.columns || COLUMNS) - 1);
      this.#stream.write(`${CLEAR_LINE}${this.#shown}`);
      return;
    }
    if (kind === this.#kind && this.#now() - this.#writtenMs < QUIET_MS) return;
    this.#kind = kind;
    this.#writtenMs = this.#now();
    this.#stream.write(`${text}\n`);
  }

  /** A line that stays. */
  line(text: string): void {
    this.#stream.write(this.#live ? `${CLEAR_LINE}${text}\n${this.#shown}` : `${text}\n`);
  }

  /** Takes the moving line away. */
  clear(): void {
    if (this.#shown !== "") this.#stream.write(CLEAR_LINE);
    this.#shown = "";
  }
}

/** `share` (0 to 1) as a bar of so many characters. */
export function bar(share: number, width: number): string {
  const full = Math.round(Math.min(1, Math.max(0, share)) * width);
  return "█".repeat(full) + "░".repeat(width - full);
}
