import { Readable } from "node:stream";

interface ReadBodyOptions {
  /** How many there must be. */
  readonly bytes: number;
  /** Runs one read within its time; what it throws is the stream's error. */
  readonly next: <T>(read: () => Promise<T>) => Promise<T>;
}

/** What a server sends, each part of it within a time that does not run while nobody reads. */
export class ReadBody extends Readable {
  readonly #from: Readable;
  readonly #parts: AsyncIterator<Uint8Array>;
  readonly #options: ReadBodyOptions;
  #bytes = 0;

  constructor(from: Readable, options: ReadBodyOptions) {
    super();
    this.#from = from;
    this.#parts = from[Symbol.asyncIterator]();
    this.#options = options;
  }

  override _read(): void {
    this.#options
      .next(() => this.#readOne())
      .then(
        (part) => {
          if (!this.destroyed) this.push(part);
        },
        (error: Error) => this.destroy(error),
      );
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    this.#from.on("error", () => {}); // it is nobody's any more
    this.#from.destroy();
    done(error);
  }

  async #readOne(): Promise<Uint8Array | null> {
    const { value, done } = await this.#parts.next();
    if (done !== true) {
      this.#bytes += (value as Uint8Array).length;
      return value as Uint8Array;
    }
    if (this.#bytes === this.#options.bytes) return null;
    throw Object.assign(new Error(`${this.#bytes} of ${this.#options.bytes} bytes came`), { code: "ECONNRESET" });
  }
}
