import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";

const START_MAX_MS = 120_000;
const OUTPUT_KEPT_CHARS = 16_000;

/** One of our services as a process at a fixed address, which is killed and started again. */
export class KillableService {
  readonly name: string;
  readonly #entry: string;
  readonly #env: Readonly<Record<string, string>>;
  #child: ChildProcess | undefined;
  #output = "";
  /** Told of all that it writes. */
  heard: (text: string) => void = () => {};
  /** Ends that nobody asked for. */
  unasked: string[] = [];

  constructor(name: string, entry: string, env: Readonly<Record<string, string>>) {
    this.name = name;
    this.#entry = entry;
    this.#env = env;
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /** The end of what it wrote, over all its lives. */
  get output(): string {
    return this.#output;
  }

  /** Resolves when it listens. @throws with its output where it does not. */
  async start(): Promise<void> {
    const inherited = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("ATELIER_")));
    const child = fork(this.#entry, { env: { ...inherited, ...this.#env }, stdio: ["ignore", "pipe", "pipe", "ipc"] });
    this.#child = child;
    for (const stream of [child.stdout!, child.stderr!]) {
      stream.setEncoding("utf8").on("data", (text: string) => {
        this.#output = (this.#output + text).slice(-OUTPUT_KEPT_CHARS);
        this.heard(text);
      });
    }
    child.once("exit", (code, signal) => {
      if (signal !== "SIGKILL" && this.#child === child) this.unasked.push(`${code ?? signal}: ${this.#output}`);
    });
    const timer = setTimeout(() => child.kill("SIGKILL"), START_MAX_MS);
    const listening = new Promise<void>((resolve) => {
      child.on("message", (message: { type: string; message?: string }) => {
        if (message.type === "listening") resolve();
        if (message.type === "failed") this.#output += message.message;
      });
    });
    await Promise.race([
      listening,
      once(child, "exit").then(() => {
        // Killed while it started: whoever did that starts it again.
        if (child.signalCode === "SIGKILL" && this.#child !== child) return;
        throw new Error(`${this.name} did not start:\n${this.#output}`);
      }),
    ]);
    clearTimeout(timer);
  }

  /** Stands still as one that hangs does. */
  pause(): void {
    this.#child?.kill("SIGSTOP");
  }

  resume(): void {
    this.#child?.kill("SIGCONT");
  }

  /** Asks it to stop, as an orchestrator does, and resolves when it has. */
  async end(): Promise<void> {
    const child = this.#child;
    this.#child = undefined;
    if (child === undefined) return;
    const exited = once(child, "exit");
    child.kill("SIGTERM");
    await exited;
  }

  /** As a power cut does: no word to anybody. */
  async kill(): Promise<void> {
    const child = this.#child;
    this.#child = undefined;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const exited = once(child, "exit");
    child.kill("SIGKILL");
    await exited;
  }
}
