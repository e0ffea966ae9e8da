/** The part of a server stream that is needed to write to it. */
export interface Writable<Message> {
  /** False when the other side reads more slowly than we write. */
  write(message: Message): boolean;
  on(event: "drain", listener: () => void): unknown;
}

/**
 * Writes to a stream whose reader may be slow. Messages that a later one of their kind makes worthless wait in one
 * place for each kind, where the newest replaces the last; the others are always written.
 */
export class EventWriter<Message> {
  readonly #stream: Writable<Message>;
  readonly #newest = new Map<string, Message>();
  #blocked = false;

  constructor(stream: Writable<Message>) {
    this.#stream = stream;
    stream.on("drain", () => {
      this.#blocked = false;
      this.flush();
    });
  }

  /** What waits goes first: it would arrive out of order, and a checkpoint of another image is not to be lost. */
  write(message: Message): void {
    this.flush();
    this.#blocked = !this.#stream.write(message);
  }

  /** For a message that the next of its kind replaces. */
  writeNewest(kind: string, message: Message): void {
    if (this.#blocked) this.#newest.set(kind, message);
    else this.#blocked = !this.#stream.write(message);
  }

  /** Writes what waits, however slow the reader is: before an end that makes it worth having. */
  flush(): void {
    for (const message of this.#newest.values()) this.#blocked = !this.#stream.write(message);
    this.#newest.clear();
  }
}
