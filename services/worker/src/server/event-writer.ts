/** The part of a server stream that is needed to write to it. */
export interface Writable<Message> {
  /** False when the other side reads more slowly than we write. */
  write(message: Message): boolean;
  on(event: "drain", listener: () => void): unknown;
}

/**
 * Writes to a stream whose reader may be slow. Messages that a later one makes worthless wait in one place, where the
 * newest replaces the last; the others are always written.
 */
export class EventWriter<Message> {
  readonly #stream: Writable<Message>;
  #blocked = false;
  #newest: Message | undefined;

  constructor(stream: Writable<Message>) {
    this.#stream = stream;
    stream.on("drain", () => {
      this.#blocked = false;
      const newest = this.#newest;
      this.#newest = undefined;
      if (newest !== undefined) this.write(newest);
    });
  }

  write(message: Message): void {
    this.#newest = undefined; // it would arrive out of order
    this.#blocked = !this.#stream.write(message);
  }

  /** For a message that the next of its kind replaces. */
  writeNewest(message: Message): void {
    if (this.#blocked) this.#newest = message;
    else this.write(message);
  }
}
