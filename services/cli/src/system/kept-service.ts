import type { Clock } from "@atelier/core";
import type { ChildService } from "./child-service.ts";
import { RestartBudget, type RestartLimits } from "./restart-budget.ts";

export interface KeptServiceOptions {
  /** Names it in messages: "worker w1". */
  readonly name: string;
  /** Starts its process. Of its listening address only the port may be open: 0 takes a free one. */
  readonly spawn: (listen: string) => ChildService;
  readonly clock: Clock;
  readonly restartLimits: RestartLimits | undefined;
  readonly report: (line: string) => void;
  /** Called once, when it died too often to be started again. */
  readonly onGivenUp: () => void;
}

/** A service that is started again where it was when it dies, since others know its address. */
export class KeptService {
  readonly #options: KeptServiceOptions;
  readonly #budget: RestartBudget;
  #child: ChildService;
  #cancelRestart: () => void = () => {};
  #stopping = false;

  constructor(options: KeptServiceOptions, listen: string) {
    this.#options = options;
    this.#budget = new RestartBudget(options.clock, options.restartLimits);
    this.#child = options.spawn(listen);
  }

  get name(): string {
    return this.#options.name;
  }

  /** As its first process says; rejects where that ends before. */
  get listening(): Promise<string> {
    return this.#child.listening;
  }

  get grpcAddress(): string | undefined {
    return this.#child.grpcAddress;
  }

  get ready(): Promise<void> {
    return this.#child.ready;
  }

  get ended(): Promise<string> {
    return this.#child.ended;
  }

  /** From now on it is started again, at `address`. */
  keepAlive(address: string): void {
    void this.#child.ended.then((how) => {
      if (!this.#stopping) this.#restart(address, how);
    });
  }

  async stop(options: { graceMs: number }): Promise<void> {
    this.#stop();
    await this.#child.stop(options);
  }

  /** Resolves when it is gone. */
  async kill(): Promise<void> {
    this.#stop();
    this.#child.kill();
    await this.#child.ended;
  }

  #stop(): void {
    this.#stopping = true;
    this.#cancelRestart();
  }

  #restart(address: string, how: string): void {
    const { name, report, clock, spawn, onGivenUp } = this.#options;
    const delayMs = this.#budget.take();
    if (delayMs === undefined) {
      report(`${name} is gone: ${how}. It died too often and is not started again`);
      onGivenUp();
      return;
    }
    report(`${name} is gone: ${how}. Starting it again in ${delayMs / 1000} s`);
    this.#cancelRestart = clock.after(delayMs, () => {
      this.#child = spawn(address);
      this.keepAlive(address);
      this.#child.ready.then(
        () => report(`${name} is back`),
        () => {}, // its end is reported by `ended`
      );
    });
  }
}
