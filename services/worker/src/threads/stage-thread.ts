import { once } from "node:events";
import { type Transferable, Worker } from "node:worker_threads";
import { invariant, ServingError, toServingError } from "@atelier/core";
import { errorOf, type FromThread, type ToThread } from "./messages.ts";
import type { OpenedNetwork } from "./model-networks.ts";

export interface RunOptions {
  /** Its reason, a ServingError, is what the work fails with. */
  readonly signal: AbortSignal;
  readonly transfer?: readonly Transferable[];
}

type Reject = (error: ServingError) => void;

/** A stage's thread, as the pipeline sees it. */
export class StageThread<
  Work,
  Result,
  Command = never,
  Report = never,
  Files extends { readonly model: string } = { readonly model: string },
> {
  readonly #worker: Worker;
  readonly #pending = new Map<string, { resolve: (result: Result) => void; reject: (error: ServingError) => void }>();
  readonly #opening = new Map<string, { resolve: (network: OpenedNetwork) => void; reject: Reject }>();
  readonly #closing = new Map<string, { resolve: () => void; reject: Reject }>();
  readonly #onReport: (report: Report) => void;
  #outbox: { message: ToThread<Work, Command, Files>; transfer: readonly Transferable[] }[] = [];
  #closed = false;

  private constructor(worker: Worker, onReport: (report: Report) => void) {
    this.#worker = worker;
    this.#onReport = onReport;
  }

  /**
   * Starts the thread of `module` and waits until its stage is open. `onFatal` hears of a bug that ended the thread.
   *
   * @throws ServingError: what kept the stage from opening.
   */
  static async open<Work, Result, Command, Report, Files extends { readonly model: string }>(options: {
    readonly module: URL;
    readonly data: unknown;
    readonly onReport?: (report: Report) => void;
    readonly onFatal: (error: Error) => void;
  }): Promise<StageThread<Work, Result, Command, Report, Files>> {
    const worker = new Worker(options.module, { workerData: options.data });
    const thread = new StageThread<Work, Result, Command, Report, Files>(worker, options.onReport ?? (() => {}));
    await new Promise<void>((resolve, reject) => {
      worker.once("error", reject); // before the stage opened: its module did not load
      worker.on("message", (message: FromThread<Result, Report>) => {
        if (message.type === "opened") resolve();
        else if (message.type === "not-opened") reject(errorOf(message.failure));
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

  /**
   * Opens a model's networks in the stage, beside what runs there. One call for a model at a time.
   *
   * @throws ServingError naming what could not be opened; the stage then holds nothing of the model.
   */
  async openModel(files: Files): Promise<OpenedNetwork> {
    const { model } = files;
    invariant(!this.#opening.has(model), `${model} is opened once`);
    if (this.#closed) throw stopped();
    try {
      return await new Promise((resolve, reject) => {
        this.#opening.set(model, { resolve, reject });
        this.#post({ type: "open-model", files });
      });
    } finally {
      this.#opening.delete(model);
    }
  }

  /** Releases a model's networks; no work of it is in the stage. Without effect where they are not open. */
  async closeModel(model: string): Promise<void> {
    invariant(!this.#closing.has(model), `${model} is closed once`);
    if (this.#closed) throw stopped();
    try {
      await new Promise<void>((resolve, reject) => {
        this.#closing.set(model, { resolve, reject });
        this.#post({ type: "close-model", model });
      });
    } finally {
      this.#closing.delete(model);
    }
  }

  /** Lets the stage finish its turn, release its networks and end. Work still in it is not answered. */
  async close(): Promise<void> {
    this.#closed = true;
    const ended = once(this.#worker, "exit");
    this.#post({ type: "close" });
    await ended;
    const unanswered = [...this.#pending.values(), ...this.#opening.values(), ...this.#closing.values()];
    for (const { reject } of unanswered) reject(stopped());
  }

  /**
   * What is said in one go arrives in one piece. Posted one by one, the first of a request's images would wake the
   * thread and make a step alone, and the others would trail behind it to the end.
   */
  #post(message: ToThread<Work, Command, Files>, transfer: readonly Transferable[] = []): void {
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
      case "model-opened":
        this.#opening.get(message.model)?.resolve(message.network);
        break;
      case "model-closed":
        this.#closing.get(message.model)?.resolve();
        break;
      case "model-not-opened":
        this.#opening.get(message.model)?.reject(errorOf(message.failure));
        break;
      case "report":
        this.#onReport(message.report);
        break;
    }
  }
}

function stopped(): ServingError {
  return new ServingError("DRAINING", "the worker has stopped");
}
