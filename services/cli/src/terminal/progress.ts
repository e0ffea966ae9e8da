import type { WriteStream } from "node:tty";

const FRAMES = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
const FRAME_MS = 100;
const CLEAR_LINE = "\r\x1b[2K";

/**
 * Says on a terminal what is going on and for how long; in a pipe, only the lines that stay.
 * It shows time, not a share of the work: nothing tells how much of it is done.
 */
export class Progress {
  readonly #stream: WriteStream;
  readonly #live: boolean;
  #timer: NodeJS.Timeout | undefined;
  #stage = "";
  #startedMs = 0;

  constructor(stream: WriteStream) {
    this.#stream = stream;
    const { TERM } = process.env;
    this.#live = stream.isTTY === true && TERM !== "dumb";
  }

  /** Starts the moving line, or gives it another text. */
  begin(stage: string): void {
    this.#stage = stage;
    this.#startedMs = Date.now();
    if (!this.#live || this.#timer !== undefined) return;
    this.#draw();
    this.#timer = setInterval(() => this.#draw(), FRAME_MS);
  }

  /** Writes a line that stays, above the moving one. */
  line(text: string): void {
    this.#stream.write(this.#timer === undefined ? `${text}\n` : `${CLEAR_LINE}${text}\n`);
    if (this.#timer !== undefined) this.#draw();
  }

  end(): void {
    if (this.#timer === undefined) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.#stream.write(CLEAR_LINE);
  }

  #draw(): void {
    const elapsedMs = Date.now() - this.#startedMs;
    const frame = FRAMES[Math.floor(elapsedMs / FRAME_MS) % FRAMES.length];
    this.#stream.write(`${CLEAR_LINE}${frame} ${this.#stage} ${(elapsedMs / 1000).toFixed(1)} s`);
  }
}
