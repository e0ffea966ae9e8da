/** One answer, or how there was none. */
export interface Answer {
  readonly seed: number;
  readonly status: number;
  /** What went wrong; undefined: a picture came. */
  readonly failure: string | undefined;
  readonly tookMs: number;
  readonly attempts: number;
  /** Steps that it had done when another worker went on. */
  readonly resumedAt: readonly number[];
}

export interface LoadOptions {
  readonly url: string;
  /** Callers that ask, wait for their picture, and ask again. */
  readonly callers: number;
  readonly steps?: number;
  readonly side?: number;
}

/** Callers who go on asking until they are told to stop. Each request is its own: nothing comes out of a cache. */
export class Load {
  readonly answers: Answer[] = [];
  readonly #options: LoadOptions;
  readonly #callers: Promise<void>[];
  #over = false;
  #asked = 0;

  constructor(options: LoadOptions) {
    this.#options = options;
    this.#callers = Array.from({ length: options.callers }, () => this.#call());
  }

  get failures(): readonly Answer[] {
    return this.answers.filter(({ failure }) => failure !== undefined);
  }

  /** Nobody asks anew; resolves when all that were asked are answered. */
  async stop(): Promise<readonly Answer[]> {
    this.#over = true;
    await Promise.all(this.#callers);
    return this.answers;
  }

  async #call(): Promise<void> {
    while (!this.#over) this.answers.push(await this.#ask(++this.#asked));
  }

  async #ask(seed: number): Promise<Answer> {
    const { url, steps = 20, side = 256 } = this.#options;
    const body = JSON.stringify({ prompt: `mug ${seed}`, width: side, height: side, steps, seed });
    const askedAtMs = Date.now();
    const answer = { seed, attempts: 0, resumedAt: [] };
    try {
      const reply = await fetch(`${url}/v1/generations`, {
        ...{ method: "POST", body, headers: { "content-type": "application/json" } },
        signal: AbortSignal.timeout(120_000),
      });
      const text = await reply.text();
      const took = { status: reply.status, tookMs: Date.now() - askedAtMs };
      if (!reply.ok) return { ...answer, ...took, failure: text.slice(0, 300) };
      const { receipt } = JSON.parse(text);
      const failure = receipt.seed === seed ? undefined : `the picture of seed ${receipt.seed} came`;
      return { ...answer, ...took, failure, attempts: receipt.attempts, resumedAt: receipt.resumed_at_steps ?? [] };
    } catch (error) {
      const cause = (error as Error).cause;
      const failure = `${(error as Error).message}${cause === undefined ? "" : `: ${(cause as Error).message}`}`;
      return { ...answer, status: 0, failure, tookMs: Date.now() - askedAtMs };
    }
  }
}
