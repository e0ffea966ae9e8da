import type { WriteStream } from "node:tty";
import { SingleBar } from "cli-progress";

const FRAMES = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
const FRAME_MS = 100;
const CLEAR_LINE = "\r\x1b[2K";

export interface Steps {
  /** What is being done, in words. */
  readonly label: string;
  readonly done: number;
  readonly total: number;
}

/**
 * Says on a terminal what is going on: for how long, and once steps are known, how much of it is done. In a pipe only
 * the lines that stay, and with `verbose` each step as a line. It uses no colour, so NO_COLOR has nothing to take away.
 */
export class Progress {
  readonly #stream: WriteStream;
  readonly #live: boolean;
  readonly #verbose: boolean;
  #timer: NodeJS.Timeout | undefined;
  #bar: SingleBar | undefined;
  #stage = "";
  #startedMs = 0;

  constructor(stream: WriteStream, { verbose = false }: { verbose?: boolean } = {}) {
    this.#stream = stream;
    this.#verbose = verbose;
    const { TERM } = process.env;
    this.#live = stream.isTTY === true && TERM !== "dumb";
  }

  /** Starts the moving line, or gives it another text. */
  begin(stage: string): void {
    this.#endBar();
    this.#stage = stage;
    this.#startedMs = Date.now();
    if (!this.#live || this.#timer !== undefined) return;
    this.#draw();
    this.#timer = setInterval(() => this.#draw(), FRAME_MS);
  }

  /** Shows steps in the place of the moving line. */
  steps({ label, done, total }: Steps): void {
    if (!this.#live) {
      if (this.#verbose) this.line(`${label} ${done}/${total} steps`);
      return;
    }
    if (this.#bar === undefined) {
      this.#endSpinner();
      this.#bar = createBar(this.#stream);
      this.#bar.start(total, done, { label });
    } else {
      this.#bar.setTotal(total);
      this.#bar.update(done, { label });
    }
  }

  /** Writes a line that stays, above the moving one. */
  line(text: string): void {
    const moving = this.#timer !== undefined || this.#bar !== undefined;
    this.#stream.write(moving ? `${CLEAR_LINE}${text}\n` : `${text}\n`);
    if (this.#timer !== undefined) this.#draw();
  }

  end(): void {
    this.#endSpinner();
    this.#endBar();
  }

  #endSpinner(): void {
    if (this.#timer === undefined) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.#stream.write(CLEAR_LINE);
  }

  #endBar(): void {
    this.#bar?.stop();
    this.#bar = undefined;
  }

  #draw(): void {
    const elapsedMs = Date.now() - this.#startedMs;
    const frame = FRAMES[Math.floor(elapsedMs / FRAME_MS) % FRAMES.length];
    this.#stream.write(`${CLEAR_LINE}${frame} ${this.#stage} ${(elapsedMs / 1000).toFixed(1)} s`);
  }
}

function createBar(stream: WriteStream): SingleBar {
  return new SingleBar({
    stream,
    format: "{label} {value}/{total} steps {bar} {duration_formatted}",
    barsize: 24,
    barCompleteChar: "█",
    barIncompleteChar: "░",
    hideCursor: true,
    clearOnComplete: true,
    emptyOnZero: true,
    gracefulExit: false, // what ends a command calls end(); signals are handled in one place
  });
}
