import { type ChildProcess, fork } from "node:child_process";
import { join } from "node:path";
import { end, whileRunning } from "./child.ts";

const entry = join(import.meta.dirname, "../../../services/gateway/src/main.ts");
const START_MAX_MS = 60_000;

/** A gateway in a process of its own that has heard of its workers. */
export class GatewayProcess {
  readonly url: string;
  readonly #child: ChildProcess;

  private constructor(child: ChildProcess, url: string) {
    this.#child = child;
    this.url = url;
  }

  static async start({
    workers,
    env = {},
    execArgv = [],
  }: {
    workers: readonly string[];
    env?: Record<string, string>;
    execArgv?: readonly string[];
  }): Promise<GatewayProcess> {
    const inherited = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("ATELIER_")));
    const child = fork(entry, {
      env: {
        ...inherited,
        ATELIER_LISTEN: "127.0.0.1:0",
        ATELIER_WORKERS: workers.join(","),
        ATELIER_LOG_LEVEL: "warn",
        ...env,
      },
      execArgv: [...execArgv],
      stdio: ["ignore", 2, 2, "ipc"],
    });
    let url = "";
    const ready = new Promise<void>((resolve) => {
      child.on("message", (message: { type: string; address?: string }) => {
        if (message.type === "listening") url = message.address!;
        if (message.type === "ready") resolve();
      });
    });
    await whileRunning(child, ready, { name: "the gateway", timeoutMs: START_MAX_MS });
    return new GatewayProcess(child, url);
  }

  get pid(): number {
    return this.#child.pid!;
  }

  stop(): Promise<void> {
    return end(this.#child);
  }
}
