import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import type { Program } from "../../scripts/services/programs.ts";

/** One process of somebody else's program, which ends with this process. */
export class ChildProgram {
  readonly #child: ChildProcess;
  readonly #killWithUs = () => this.#child.kill("SIGKILL");
  #output = "";

  constructor({ path, env }: Program, args: readonly string[], { cwd }: { cwd: string }) {
    this.#child = spawn(path, args, { cwd, stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, ...env } });
    for (const stream of [this.#child.stdout!, this.#child.stderr!]) {
      stream.setEncoding("utf8").on("data", (text: string) => {
        this.#output = (this.#output + text).slice(-8_000);
      });
    }
    process.once("exit", this.#killWithUs);
  }

  /** The end of what it wrote. */
  get output(): string {
    return this.#output;
  }

  get pid(): number {
    return this.#child.pid!;
  }

  get running(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  /** Stands still as one that hangs does: connections stay open and nothing comes. */
  pause(): void {
    this.#child.kill("SIGSTOP");
  }

  resume(): void {
    this.#child.kill("SIGCONT");
  }

  /** As a power cut does: no word to anybody. */
  async kill(): Promise<void> {
    process.off("exit", this.#killWithUs);
    if (!this.running) return;
    const exited = once(this.#child, "exit");
    this.#child.kill("SIGKILL");
    await exited;
  }

  /** Resolves when `condition` holds; looks each 20 ms. @throws where it does not in time, with the program's output. */
  async until(condition: () => Promise<boolean>, what: string, withinMs = 20_000): Promise<void> {
    const untilMs = Date.now() + withinMs;
    while (!(await condition())) {
      if (!this.running) throw new Error(`${what}: the program ended:\n${this.#output}`);
      if (Date.now() > untilMs) throw new Error(`${what}: not within ${withinMs} ms:\n${this.#output}`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }
}
