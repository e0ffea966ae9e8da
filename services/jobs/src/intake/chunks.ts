import { ServingError } from "@atelier/core";
import type { ObjectStore } from "@atelier/object-store";
import { CHUNK_ITEMS, type ItemSpec, jobKeys } from "../job.ts";
import type { ItemSource } from "../ports.ts";

/** Chunks on their way to the store: one is filled while others are made durable. */
const WRITES_MAX = 3;

/** Writes a job's items, a chunk at a time. */
export class ChunkWriter {
  readonly #objects: ObjectStore;
  readonly #keys: ReturnType<typeof jobKeys>;
  readonly #signal: AbortSignal;
  #lines: string[] = [];
  #chunk = 0;
  readonly #writes = new Set<Promise<void>>();
  #failure: unknown;

  constructor(objects: ObjectStore, jobId: string, signal: AbortSignal) {
    this.#objects = objects;
    this.#keys = jobKeys(jobId);
    this.#signal = signal;
  }

  /** Waits where the store is slower than the sheet. @throws STORAGE_UNAVAILABLE, or the signal's reason. */
  async write(items: Iterable<ItemSpec>): Promise<void> {
    for (const item of items) {
      this.#lines.push(JSON.stringify(item));
      if (this.#lines.length === CHUNK_ITEMS) await this.#send();
    }
  }

  /** Resolves once everything is durable. */
  async end(): Promise<void> {
    if (this.#lines.length > 0) await this.#send();
    await Promise.all(this.#writes);
    this.#throwIfFailed();
  }

  /** Removes everything of the job, once what is on its way has arrived. */
  async discard(): Promise<void> {
    await Promise.all(this.#writes);
    await this.#objects.removeAll(this.#keys.all);
  }

  async #send(): Promise<void> {
    const body = Buffer.from(`${this.#lines.join("\n")}\n`);
    this.#lines = [];
    const key = this.#keys.chunk(this.#chunk++);
    const options = { mediaType: "application/x-ndjson", signal: this.#signal };
    const write: Promise<void> = this.#objects.put(key, body, options).then(
      () => void this.#writes.delete(write),
      (error: unknown) => {
        this.#failure ??= error;
        this.#writes.delete(write);
      },
    );
    this.#writes.add(write);
    while (this.#writes.size >= WRITES_MAX) await Promise.race(this.#writes);
    this.#throwIfFailed();
  }

  #throwIfFailed(): void {
    if (this.#failure !== undefined) throw this.#failure;
    this.#signal.throwIfAborted();
  }
}

/** Items of jobs, read back from their chunks. */
export class ChunkItems implements ItemSource {
  readonly #objects: ObjectStore;

  constructor(objects: ObjectStore) {
    this.#objects = objects;
  }

  async *read(jobId: string, from: number): AsyncIterable<ItemSpec> {
    for (let chunk = Math.floor(from / CHUNK_ITEMS); ; chunk++) {
      const lines = await this.#lines(jobId, chunk);
      if (lines === undefined) return;
      const first = Math.max(0, from - chunk * CHUNK_ITEMS);
      for (let i = first; i < lines.length; i++) yield itemOf(lines[i]!, { jobId, index: chunk * CHUNK_ITEMS + i });
      if (lines.length < CHUNK_ITEMS) return;
    }
  }

  /** Undefined where the job has no such item. */
  async itemAt(jobId: string, index: number): Promise<ItemSpec | undefined> {
    const lines = await this.#lines(jobId, Math.floor(index / CHUNK_ITEMS));
    const line = lines?.[index % CHUNK_ITEMS];
    return line === undefined ? undefined : itemOf(line, { jobId, index });
  }

  async #lines(jobId: string, chunk: number): Promise<readonly string[] | undefined> {
    const found = await this.#objects.get(jobKeys(jobId).chunk(chunk));
    if (found === undefined) return undefined;
    const parts: Buffer[] = [];
    for await (const part of found.body) parts.push(part as Buffer);
    const lines = Buffer.concat(parts).toString().split("\n");
    lines.pop();
    return lines;
  }
}

function itemOf(line: string, { jobId, index }: { readonly jobId: string; readonly index: number }): ItemSpec {
  let item: ItemSpec | undefined;
  try {
    item = JSON.parse(line) as ItemSpec;
  } catch {
    item = undefined;
  }
  if (item?.index === index) return item;
  const message = `item ${index} of job ${jobId} is damaged in the object store`;
  throw new ServingError("STORAGE_UNAVAILABLE", message);
}
