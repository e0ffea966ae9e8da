import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type Clock, ServingError } from "@atelier/core";
import { z } from "zod";
import type { StepTime } from "./step-times.ts";

const FILE = "step-times.json";
const SAVE_EVERY_MS = 10_000;

const size = z.int().positive();
const schema = z.object({
  version: z.literal(1),
  /** By device, then by the digest of the model. */
  devices: z.record(
    z.string(),
    z.record(
      z.string(),
      z.array(
        z.object({ height: size, width: size, threads: z.int().nonnegative(), rows: size, ms: z.number().positive() }),
      ),
    ),
  ),
});
type Contents = z.infer<typeof schema>;

/**
 * Keeps learned step times between runs, in one file for all devices and models that a folder has seen.
 *
 * What was learned is worth seconds, not correctness: a file that cannot be read or written is told to `onProblem` and
 * the worker goes on without. The file is replaced as a whole; of two workers that share a folder the last one counts.
 */
export class StepTimesFile {
  readonly #path: string;
  readonly #device: string;
  readonly #clock: Clock;
  readonly #onProblem: (error: ServingError) => void;
  #savedAtMs: number;
  #saving: Promise<void> = Promise.resolve();

  constructor(options: {
    readonly dir: string;
    /** Names what the times were learned on: another kind of device learns anew. */
    readonly device: string;
    readonly clock: Clock;
    readonly onProblem: (error: ServingError) => void;
  }) {
    this.#path = join(options.dir, FILE);
    this.#device = options.device;
    this.#clock = options.clock;
    this.#onProblem = options.onProblem;
    this.#savedAtMs = options.clock.nowMs();
  }

  /** What is known of these models on this device. `models`: digest by id. */
  async load(models: ReadonlyMap<string, string>): Promise<readonly StepTime[]> {
    const known = (await this.#read())?.devices[this.#device] ?? {};
    return [...models].flatMap(([model, digest]) => (known[digest] ?? []).map((time) => ({ model, ...time })));
  }

  /** Writes the table, unless that was done less than ten seconds ago. */
  saveSometimes(times: () => readonly StepTime[], models: ReadonlyMap<string, string>): void {
    const nowMs = this.#clock.nowMs();
    if (nowMs - this.#savedAtMs < SAVE_EVERY_MS) return;
    this.#savedAtMs = nowMs;
    this.#saving = this.#saving.then(() => this.#write(times(), models));
  }

  /** Writes the table now; resolves when it is on disk. */
  async save(times: readonly StepTime[], models: ReadonlyMap<string, string>): Promise<void> {
    this.#saving = this.#saving.then(() => this.#write(times, models));
    await this.#saving;
  }

  async #read(): Promise<Contents | undefined> {
    try {
      return schema.parse(JSON.parse(await readFile(this.#path, "utf8")));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
      const reason = error instanceof z.ZodError ? z.prettifyError(error) : (error as Error).message;
      this.#problem(`${this.#path} is not read, and step times are learned anew: ${reason}`, error);
      return undefined;
    }
  }

  async #write(times: readonly StepTime[], models: ReadonlyMap<string, string>): Promise<void> {
    try {
      const before = await this.#read();
      const device = { ...before?.devices[this.#device] };
      for (const [model, digest] of models) {
        const own = times.filter((time) => time.model === model);
        if (own.length > 0) device[digest] = own.map(({ model: _, ...time }) => time);
      }
      const contents: Contents = { version: 1, devices: { ...before?.devices, [this.#device]: device } };
      await mkdir(join(this.#path, ".."), { recursive: true });
      const written = `${this.#path}.${process.pid}`;
      await writeFile(written, JSON.stringify(contents));
      await rename(written, this.#path); // a reader sees the old file or the new one, whole
    } catch (error) {
      this.#problem(`${this.#path} cannot be written: ${(error as Error).message}`, error);
    }
  }

  #problem(message: string, cause: unknown): void {
    this.#onProblem(new ServingError("INTERNAL", message, { cause }));
  }
}
