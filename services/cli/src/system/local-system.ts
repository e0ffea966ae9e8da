import { availableParallelism } from "node:os";
import { type Clock, systemClock } from "@atelier/core";
import { CliError } from "../cli-error.ts";
import { ChildService } from "./child-service.ts";
import { RestartBudget, type RestartLimits } from "./restart-budget.ts";

/** The files that are run: the services' main.ts, or stand-ins in tests. */
export interface ServiceEntries {
  readonly worker: string;
  readonly gateway: string;
}

export interface LocalSystemOptions {
  readonly entries: ServiceEntries;
  readonly host: string;
  /** 0 takes a free one. */
  readonly port: number;
  readonly workers: number;
  /** Folders of model bundles. */
  readonly models: readonly string[];
  readonly device: string;
  readonly logLevel: string;
  /** Told, a line at a time, what a person would want to know. */
  readonly report: (line: string) => void;
  readonly clock?: Clock;
  readonly restartLimits?: RestartLimits;
}

/** Loading a large model from a slow disk takes minutes; more than this is no start. */
const START_MAX_MS = 10 * 60_000;
/** A little over what the services give their work in flight (30 s), so that they end by themselves. */
const STOP_GRACE_MS = 35_000;

/**
 * The whole system on this machine: worker processes and a gateway in front of them. A worker that dies is started
 * again at the same address, since the gateway's list of workers is fixed; with the gateway, all of it ends.
 */
export class LocalSystem {
  readonly #options: LocalSystemOptions;
  readonly #clock: Clock;
  readonly #budgets = new Map<string, RestartBudget>();
  readonly #workers = new Map<string, ChildService>();
  readonly #pendingRestarts = new Set<() => void>();
  readonly #broken = Promise.withResolvers<CliError>();
  #gateway: ChildService | undefined;
  #stopping = false;

  constructor(options: LocalSystemOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
  }

  /** Resolves if the system that had started can no longer serve. */
  get broken(): Promise<CliError> {
    return this.#broken.promise;
  }

  /**
   * Starts everything and resolves to the gateway's URL once requests are served.
   * @throws CliError naming what did not start; whatever did start is stopped first.
   */
  async start(): Promise<string> {
    const timeout = Promise.withResolvers<never>();
    const cancelTimeout = this.#clock.after(START_MAX_MS, () =>
      timeout.reject(new CliError(`the system was not ready within ${START_MAX_MS / 60_000} minutes`)),
    );
    try {
      return await Promise.race([this.#startAll(), timeout.promise]);
    } catch (error) {
      await this.stop();
      throw error;
    } finally {
      cancelTimeout();
    }
  }

  async #startAll(): Promise<string> {
    const { workers, host, port, report } = this.#options;
    const ids = Array.from({ length: workers }, (_, i) => `w${i + 1}`);
    const started = ids.map((id) => this.#spawnWorker(id, "127.0.0.1:0"));
    // A worker listens before it loads its models: the gateway starts while they load.
    const addresses = await Promise.all(started.map((worker) => worker.listening));
    if (this.#stopping) throw new CliError("stopped while starting");
    for (const [i, id] of ids.entries()) report(`worker ${id} at ${addresses[i]}: loading and warming up`);

    const gateway = this.#spawnGateway({ listen: `${bracketed(host)}:${port}`, workers: addresses });
    const url = await gateway.listening;
    report(`gateway at ${url}: waiting for its workers`);

    await Promise.all([gateway.ready, ...started.map((worker) => worker.ready)]);
    for (const [i, id] of ids.entries()) this.#keepAlive(id, started[i]!, addresses[i]!);
    void gateway.ended.then((how) => {
      if (!this.#stopping) this.#broken.resolve(new CliError(`the gateway is gone: ${how}`));
    });
    return url;
  }

  #spawnWorker(id: string, listen: string): ChildService {
    const { entries, models, device, logLevel, workers } = this.#options;
    const worker = new ChildService({
      name: `worker ${id}`,
      entry: entries.worker,
      env: {
        ATELIER_WORKER_ID: id,
        ATELIER_WORKER_LISTEN: listen,
        ATELIER_MODELS: models.join(","),
        ATELIER_DEVICE: device,
        ATELIER_LOG_LEVEL: logLevel,
        ...sharedThreads(workers),
      },
    });
    this.#workers.set(id, worker);
    return worker;
  }

  #spawnGateway({ listen, workers }: { listen: string; workers: readonly string[] }): ChildService {
    const { entries, logLevel } = this.#options;
    this.#gateway = new ChildService({
      name: "gateway",
      entry: entries.gateway,
      env: { ATELIER_LISTEN: listen, ATELIER_WORKERS: workers.join(","), ATELIER_LOG_LEVEL: logLevel },
    });
    return this.#gateway;
  }

  #keepAlive(id: string, worker: ChildService, address: string): void {
    void worker.ended.then((how) => {
      if (!this.#stopping) this.#restart(id, address, how);
    });
  }

  #restart(id: string, address: string, how: string): void {
    const { report, restartLimits } = this.#options;
    const budget = this.#budgets.get(id) ?? new RestartBudget(this.#clock, restartLimits);
    this.#budgets.set(id, budget);
    const delayMs = budget.take();
    if (delayMs === undefined) {
      this.#workers.delete(id);
      report(`worker ${id} is gone: ${how}. It died too often and is not started again`);
      if (this.#workers.size === 0) this.#broken.resolve(new CliError("no worker is left"));
      return;
    }
    report(`worker ${id} is gone: ${how}. Starting it again in ${delayMs / 1000} s`);
    const cancel = this.#clock.after(delayMs, () => {
      this.#pendingRestarts.delete(cancel);
      const worker = this.#spawnWorker(id, address);
      this.#keepAlive(id, worker, address);
      worker.ready.then(
        () => report(`worker ${id} is back`),
        () => {}, // its end is reported by `ended`
      );
    });
    this.#pendingRestarts.add(cancel);
  }

  /** Gateway first, so that nothing new is admitted while the workers finish what they hold. */
  async stop(): Promise<void> {
    this.#stopping = true;
    for (const cancel of this.#pendingRestarts) cancel();
    await this.#gateway?.stop({ graceMs: STOP_GRACE_MS });
    await Promise.all([...this.#workers.values()].map((worker) => worker.stop({ graceMs: STOP_GRACE_MS })));
  }

  /** Ends every process at once. Resolves when they are gone. */
  async kill(): Promise<void> {
    this.#stopping = true;
    const children = [...this.#workers.values(), ...(this.#gateway === undefined ? [] : [this.#gateway])];
    for (const child of children) child.kill();
    await Promise.all(children.map((child) => child.ended));
  }
}

/** Several workers share the cores; one takes its own default, or what the user set for all. */
function sharedThreads(workers: number): Record<string, string> {
  const { ATELIER_THREADS: given } = process.env;
  if (workers === 1 || given !== undefined) return {};
  return { ATELIER_THREADS: String(Math.max(1, Math.floor(availableParallelism() / workers))) };
}

function bracketed(host: string): string {
  return host.includes(":") ? `[${host}]` : host;
}
