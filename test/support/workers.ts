import { type SpawnedWorker, spawnWorker } from "@atelier/worker/testing/spawn-worker";
import { TEST_BUNDLE } from "@atelier/worker/testing/test-bundle";
import { atEnd } from "./ends.ts";

/** A worker process of a test. */
export interface TestWorker {
  readonly id: string;
  /** host:port of its gRPC. */
  readonly address: string;
  readonly port: number;
  readonly alive: boolean;
  readonly exited: SpawnedWorker["exited"];
  signal(name: NodeJS.Signals): void;
  /** As a power cut does. */
  kill(): Promise<void>;
  /** The sum of a counter's values with these labels; 0 where there is none. */
  counted(name: string, labels?: Readonly<Record<string, string>>): Promise<number>;
}

/**
 * Worker processes with the embedded model, for the tests of one file: those that a test leaves alive serve the next one.
 * Call `stop()` after all.
 */
export class WorkerPool {
  readonly #env: Readonly<Record<string, string>>;
  readonly #idle: TestWorker[] = [];
  #started = 0;

  constructor(env: Readonly<Record<string, string>>) {
    this.#env = env;
  }

  /** So many workers, ready, until the test that asks ends. */
  async take(count: number): Promise<readonly TestWorker[]> {
    const idle = this.#idle.splice(0, count);
    const missing = Array.from({ length: count - idle.length }, () => this.#start());
    const workers = [...idle, ...(await Promise.all(missing))];
    atEnd(() => {
      this.#idle.push(...workers.filter((worker) => worker.alive));
    });
    return workers;
  }

  async stop(): Promise<void> {
    await Promise.all(this.#idle.map((worker) => worker.kill()));
  }

  #start(): Promise<TestWorker> {
    this.#started += 1;
    return startWorker({ ATELIER_WORKER_ID: `worker-${this.#started}`, ...this.#env });
  }
}

/** A worker process with the embedded model; whoever starts it ends it. */
export async function startWorker(env: Readonly<Record<string, string>>): Promise<TestWorker> {
  const id = env["ATELIER_WORKER_ID"] ?? "worker";
  const spawned = spawnWorker({ ATELIER_MODELS: TEST_BUNDLE, ATELIER_WORKER_ID: id, ...env });
  const kill = async () => {
    spawned.process.kill("SIGKILL");
    await spawned.exited;
  };
  const { address, metricsAddress } = await spawned.said("listening");
  await spawned.said("ready");
  return {
    id,
    address,
    port: Number(address.slice(address.lastIndexOf(":") + 1)),
    get alive() {
      return spawned.process.exitCode === null && spawned.process.signalCode === null;
    },
    exited: spawned.exited,
    signal: (name) => spawned.process.kill(name),
    kill,
    counted: async (name, labels = {}) => {
      const text = await (await fetch(`http://${metricsAddress}/metrics`)).text();
      return text
        .split("\n")
        .filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `))
        .filter((line) => Object.entries(labels).every(([label, value]) => line.includes(`${label}="${value}"`)))
        .reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" ") + 1)), 0);
    },
  };
}
