import { type ChildProcess, fork } from "node:child_process";
import { fileURLToPath } from "node:url";
import type { ServiceMessage } from "@atelier/lifecycle";
import { CliError } from "../cli-error.ts";

/**
 * Where Node keeps what it has compiled. A worker has about ten threads, and each would strip and compile the same modules
 * again at each start: with the folder filled a start takes 0.78 times the CPU time. Node does without where it cannot write.
 */
const COMPILED_DIR = fileURLToPath(new URL("../../../../node_modules/.cache/atelier-compiled", import.meta.url));

export interface ChildServiceOptions {
  /** Names it in messages: "worker w1". */
  readonly name: string;
  /** Its main.ts. */
  readonly entry: string;
  /** Laid over our own environment. */
  readonly env: Readonly<Record<string, string>>;
  /** Node's own arguments. */
  readonly execArgv?: readonly string[];
}

/**
 * A worker or gateway as a child process.
 *
 * It gets a process group of its own: Ctrl-C on a terminal goes to every process of the group in front, and the order
 * in which the parts stop is ours to decide. It ends by itself when the channel to us closes, so that it does not
 * outlive us even if we are killed.
 */
export class ChildService {
  readonly name: string;
  /** The address or URL that it listens on. Rejects with a CliError if it ends before. */
  readonly listening: Promise<string>;
  /** Rejects with a CliError if it ends before. */
  readonly ready: Promise<void>;
  /** How it ended, in words; never rejects. */
  readonly ended: Promise<string>;
  /** Of a gateway with its gRPC API on, once it listens. */
  grpcAddress: string | undefined;
  readonly #child: ChildProcess;
  #failure: string | undefined;
  #hasEnded = false;

  constructor({ name, entry, env, execArgv = [] }: ChildServiceOptions) {
    this.name = name;
    // Standard output carries only what a command was asked for: what a child prints goes to standard error.
    this.#child = fork(entry, {
      env: { NODE_COMPILE_CACHE: COMPILED_DIR, ...process.env, ...env },
      execArgv: [...execArgv],
      detached: true,
      stdio: ["ignore", 2, 2, "ipc"],
    });
    const listening = Promise.withResolvers<string>();
    const ready = Promise.withResolvers<void>();
    const ended = Promise.withResolvers<string>();
    this.listening = listening.promise;
    this.ready = ready.promise;
    this.ended = ended.promise;

    this.#child.on("message", (message: ServiceMessage) => {
      if (message.type === "listening") {
        this.grpcAddress = message.grpcAddress;
        listening.resolve(message.address);
      }
      if (message.type === "ready") ready.resolve();
      if (message.type === "failed") this.#failure = message.message;
    });
    const end = (how: string) => {
      this.#hasEnded = true;
      const error = new CliError(`${name}: ${this.#failure ?? how}`);
      listening.reject(error);
      ready.reject(error);
      ended.resolve(this.#failure ?? how);
    };
    this.#child.on("error", (error) => end(error.message));
    // One that was killed took nothing along: a server that it ran for us would hold the port that its successor needs.
    this.#child.once("exit", () => this.#killGroup());
    // Its last message may still be on the way when it exits; the channel closes after that.
    Promise.all([onceExited(this.#child), onceDisconnected(this.#child)]).then(([how]) => end(how));
    // Callers wait for what they need. Its end, which rejects the others, is always seen by `ended`.
    for (const promise of [this.listening, this.ready]) promise.catch(() => {});
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** Asks it to finish what it does and end; ends it after `graceMs`. Resolves when it is gone. */
  async stop({ graceMs }: { graceMs: number }): Promise<void> {
    if (this.#hasEnded) return;
    this.#child.kill("SIGTERM");
    const timer = setTimeout(() => this.kill(), graceMs);
    await this.ended;
    clearTimeout(timer);
  }

  /** With whatever it has started in its turn. */
  kill(): void {
    if (!this.#hasEnded) this.#killGroup();
  }

  #killGroup(): void {
    if (this.pid === undefined) return;
    try {
      process.kill(-this.pid, "SIGKILL");
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error; // nobody is left in it
    }
  }
}

function onceExited(child: ChildProcess): Promise<string> {
  return new Promise((resolve) => {
    child.once("exit", (code, signal) => {
      resolve(signal === null ? `it ended with exit code ${code}` : `it was ended by ${signal}`);
    });
  });
}

function onceDisconnected(child: ChildProcess): Promise<void> {
  return new Promise((resolve) => child.once("disconnect", resolve));
}
