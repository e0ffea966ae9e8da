import { once } from "node:events";
import { type Transferable, Worker } from "node:worker_threads";
import { invariant, ServingError, toServingError } from "@atelier/core";
import { errorOf, type FromThread, type ToThread } from "./messages.ts";

export interface RunOptions {
  /** Its reason, a ServingError, is what the work fails with. */
  readonly signal: AbortSignal;
  readonly transfer?: readonly Transferable[];
}

/** A stage's thread, as the pipeline sees it. */
export class StageThread<Work, Result, Command = never, Report = never> {
  readonly #worker: Worker;
  readonly #pending = new Map<string, { resolve: (result: Result) => void; reject: (error: ServingError) => void }>();
  readonly #onReport: (report: Report) => void;
  #outbox: { message: ToThread<Work, Command>; transfer: readonly Transferable[] }[] = [];
  #closed = false;

  private constructor(worker: Worker, onReport: (report: Report) => void) {
    this.#worker = worker;
    this.#onReport = onReport;
  }

  /**
   * Starts the thread of `module` and waits until its stage is open. `onFatal` hears of a bug that ended the thread.
   *
   * @throws AggregateError of ServingErrors: everything that kept the stage from opening.
   */
  static async open<Work, Result, Command, Report>(options: {
    readonly module: URL;
    readonly data: unknown;
    readonly onReport?: (report: Report) => void;
    readonly onFatal: (error: Error) => void;
  }): Promise<StageThread<Work, Result, Command, Report>> {
    const worker = new Worker(options.module, { workerData: options.data });
    const thread = new StageThread<Work, Result, Command, Report>(worker, options.onReport ?? (() => {}));
    await new Promise<void>((resolve, reject) => {
      worker.once("error", reject); // before the stage opened: its module did not load
      worker.on("message", (message: FromThread<Result, Report>) => {
        if (message.type === "opened") resolve();
        else if (message.type === "not-opened") reject(new AggregateError(message.failures.map(errorOf)));
        else thread.#hear(message);
      });
    });
    worker.removeAllListeners("error");
    worker.on("error", options.onFatal);
    worker.on("exit", () => {
      if (!thread.#closed) options.onFatal(new Error(`the thread of ${options.module.pathname} ended by itself`));
    });
    return thread;
  }

  /**
   * Gives the stage a piece of work; `id` is unique among those in it.
   * The promise settles when the thread has let go of the work, cancelled or not, so that its place is free by then.
   */
  run(id: string, work: Work, { signal, transfer = [] }: RunOptions): Promise<Result> {
    invariant(!this.#pending.has(id), `${id} is in the stage once`);
    if (signal.aborted) return Promise.reject(toServingError(signal.reason));
    return new Promise<Result>((resolve, reject) => {
      const onAbort = () => this.#post({ type: "cancel", id });
      const settle = () => {
        this.#pending.delete(id);
        signal.removeEventListener("abort", onAbort);
      };
      this.#pending.set(id, {
        resolve: (result) => {
          settle();
          resolve(result);
        },
        reject: (error) => {
          settle();
          reject(error.code === "CANCELLED" && signal.aborted ? toServingError(signal.reason) : error);
        },
      });
      signal.addEventListener("abort", onAbort, { once: true });
      this.#post({ type: "work", id, work }, transfer);
    });
  }

  tell(command: Command): void {
    this.#post({ type: "command", command });
  }

  /** Lets the stage finish its turn, release its networks and end. Work still in it is not answered. */
  async close(): Promise<void> {
    this.#closed = true;
    const ended = once(this.#worker, "exit");
    this.#post({ type: "close" });
    await ended;
    for (const { reject } of [...this.#pending.values()])
      reject(new ServingError("DRAINING", "the worker has stopped"));
  }

  /**
   * What is said in one go arrives in one piece. Posted one by one, the first of a request's images would wake the
   * thread and make a step alone, and the others would trail behind it to the end.
   */
  #post(message: ToThread<Work, Command>, transfer: readonly Transferable[] = []): void {
    if (this.#outbox.length === 0) queueMicrotask(() => this.#send());
    this.#outbox.push({ message, transfer });
  }

  #send(): void {
    const outbox = this.#outbox;
    this.#outbox = [];
    this.#worker.postMessage(
      outbox.map(({ message }) => message),
      outbox.flatMap(({ transfer }) => transfer),
    );
  }

  #hear(message: FromThread<Result, Report>): void {
    switch (message.type) {
      case "done":
        this.#pending.get(message.id)?.resolve(message.result);
        break;
      case "failed":
        this.#pending.get(message.id)?.reject(errorOf(message.failure));
        break;
      case "report":
        this.#onReport(message.report);
        break;
    }
  }
}
