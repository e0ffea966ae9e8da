import { type JobEvent, JobEventSchema } from "@atelier/proto";
import { fromBinary, toBinary } from "@bufbuild/protobuf";
import type { EventLog, LoggedEvent } from "../job-queue.ts";
import type { QueueFile } from "./queue-file.ts";

const PAGE_ROWS = 500;

export class SqliteEvents implements EventLog {
  readonly #file: QueueFile;

  constructor(file: QueueFile) {
    this.#file = file;
  }

  async append(event: JobEvent, id: string): Promise<void> {
    const bytes = toBinary(JobEventSchema, event);
    const append = this.#file.prepare(
      "INSERT INTO events (job, event_id, event) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
    );
    await this.#file.write(() => append.run(event.jobId, id, bytes), { durable: true });
  }

  async *read(jobId: string, afterSequence = 0): AsyncIterable<LoggedEvent> {
    const page = this.#file.prepare(
      "SELECT sequence, event FROM events WHERE job = ? AND sequence > ? ORDER BY sequence LIMIT ?",
    );
    let after = afterSequence;
    for (;;) {
      const events = await this.#file.read(() => page.all(jobId, after, PAGE_ROWS).map(logged));
      yield* events;
      if (events.length < PAGE_ROWS) return;
      after = events.at(-1)!.sequence;
    }
  }

  async *follow(afterSequence: number, signal: AbortSignal): AsyncIterable<readonly LoggedEvent[]> {
    const page = this.#file.prepare("SELECT sequence, event FROM events WHERE sequence > ? ORDER BY sequence LIMIT ?");
    let after = afterSequence;
    while (!signal.aborted && !this.#file.closed) {
      const changes = this.#file.changeCount;
      const events = await this.#file.read(() => page.all(after, PAGE_ROWS).map(logged));
      if (events.length > 0) {
        yield events;
        after = events.at(-1)!.sequence;
      } else {
        await this.#file.changeAfter(changes, undefined, signal);
      }
    }
  }

  async lastSequence(): Promise<number> {
    const last = this.#file.prepare("SELECT coalesce(max(sequence), 0) AS sequence FROM events");
    return this.#file.read(() => (last.get() as { sequence: number }).sequence);
  }

  async remove(jobId: string): Promise<void> {
    // A million events at once would keep everybody else from writing meanwhile.
    const remove = this.#file.prepare(
      "DELETE FROM events WHERE sequence IN (SELECT sequence FROM events WHERE job = ? LIMIT ?)",
    );
    for (;;) {
      const { changes } = await this.#file.write(() => remove.run(jobId, PAGE_ROWS), { durable: true });
      if (changes === 0) return;
    }
  }
}

function logged(row: Record<string, unknown>): LoggedEvent {
  const { sequence, event } = row as { sequence: number; event: Uint8Array };
  return { sequence, event: fromBinary(JobEventSchema, event) };
}
