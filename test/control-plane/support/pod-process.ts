import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { connect } from "node:net";
import type { Json } from "./plane.ts";

export interface PodProcessOptions {
  readonly pod: Json;
  /** Its own address of loopback. */
  readonly ip: string;
  readonly env: Readonly<Record<string, string>>;
  /** What its image runs. */
  readonly command: readonly [string, ...string[]];
  readonly changed: () => void;
}

const OUTPUT_KEPT_CHARS = 20_000;

/**
 * The one container of a pod as a process of this machine: its probes, its hooks and its end are those of a kubelet.
 * Source: Kubernetes' documentation of pod lifecycle and of probes.
 */
export class PodProcess {
  readonly #options: PodProcessOptions;
  readonly #container: Json;
  readonly #timers = new Set<NodeJS.Timeout>();
  #child: ChildProcess;
  /** Those that it killed itself. */
  readonly #given = new WeakSet<ChildProcess>();
  #output = "";
  #started = false;
  #ready = false;
  #stopping = false;
  restarts = 0;
  readonly startedAt = new Date().toISOString();
  /** How it ended: exit code, or the signal. */
  ended: string | undefined;

  constructor(options: PodProcessOptions) {
    this.#options = options;
    this.#container = options.pod.spec.containers[0];
    this.#child = this.#spawn();
    this.#begin();
  }

  get name(): string {
    return this.#options.pod.metadata.name;
  }

  get ip(): string {
    return this.#options.ip;
  }

  get ready(): boolean {
    return this.#ready;
  }

  get started(): boolean {
    return this.#started;
  }

  get output(): string {
    return this.#output;
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** As its pod is deleted: the hook, SIGTERM, and SIGKILL when the grace is over. Resolves when it has ended. */
  async stop(graceMs: number): Promise<void> {
    this.#stopping = true;
    const child = this.#child;
    const exited = child.exitCode === null && child.signalCode === null ? once(child, "exit") : Promise.resolve();
    const kill = setTimeout(() => child.kill("SIGKILL"), graceMs);
    const hook = this.#container.lifecycle?.preStop;
    if (hook?.sleep !== undefined) await this.#wait(hook.sleep.seconds * 1000);
    child.kill("SIGTERM");
    await exited;
    clearTimeout(kill);
    this.#quiet();
  }

  /** As a machine that is lost does. */
  kill(): void {
    this.#stopping = true;
    this.#quiet();
    this.#child.kill("SIGKILL");
  }

  #wait(ms: number): Promise<void> {
    return new Promise((resolve) => {
      this.#timers.add(setTimeout(resolve, ms));
    });
  }

  #quiet(): void {
    for (const timer of this.#timers) clearTimeout(timer);
    this.#timers.clear();
  }

  #spawn(): ChildProcess {
    const [program, ...args] = this.#options.command;
    const env = { PATH: process.env["PATH"], HOME: process.env["HOME"], ...this.#options.env };
    const child = spawn(program, args, { env, stdio: ["ignore", "pipe", "pipe"] });
    for (const stream of [child.stdout!, child.stderr!]) {
      stream.setEncoding("utf8").on("data", (text: string) => {
        this.#output = (this.#output + text).slice(-OUTPUT_KEPT_CHARS);
      });
    }
    const killWithUs = () => child.kill("SIGKILL");
    process.once("exit", killWithUs);
    child.once("exit", () => process.off("exit", killWithUs));
    child.once("exit", (code, signal) => {
      if (this.#given.has(child)) return;
      this.ended = signal ?? String(code);
      this.#ready = false;
      this.#options.changed();
      if (!this.#stopping) this.#timers.add(setTimeout(() => this.#restart(), 1_000));
    });
    return child;
  }

  /** In place, as a kubelet does with a container that ended or that is not alive. */
  #restart(): void {
    if (this.#stopping) return;
    this.#quiet();
    this.restarts += 1;
    this.#ready = false;
    this.#started = false;
    if (this.#child.exitCode === null) {
      this.#given.add(this.#child);
      this.#child.kill("SIGKILL");
    }
    this.ended = undefined;
    this.#child = this.#spawn();
    this.#begin();
  }

  #begin(): void {
    this.#probe("startupProbe", {
      passed: () => {
        this.#started = true;
        this.#watch();
      },
      failed: () => this.#restart(),
    });
  }

  #watch(): void {
    const tell = (ready: boolean) => () => {
      if (this.#ready === ready) return;
      this.#ready = ready;
      this.#options.changed();
    };
    this.#probe("readinessProbe", { passed: tell(true), failed: tell(false), goesOn: true });
    this.#probe("livenessProbe", { passed: () => {}, failed: () => this.#restart(), goesOn: true });
  }

  /** Asks until it passes (a startup probe) or for as long as the container lives. */
  #probe(kind: string, then: { passed: () => void; failed: () => void; goesOn?: boolean }): void {
    const probe = this.#container[kind];
    if (probe === undefined) {
      then.passed();
      return;
    }
    const { periodSeconds = 10, timeoutSeconds = 1, failureThreshold = 3 } = probe;
    const child = this.#child;
    let failures = 0;
    const ask = async () => {
      const passed = await this.#asked(probe, timeoutSeconds * 1000);
      if (child !== this.#child || this.ended !== undefined) return;
      failures = passed ? 0 : failures + 1;
      if (passed) then.passed();
      else if (failures >= failureThreshold) then.failed();
      if (passed && !then.goesOn) return;
      this.#timers.add(setTimeout(() => void ask(), periodSeconds * 1000));
    };
    void ask();
  }

  async #asked({ httpGet, tcpSocket }: Json, timeoutMs: number): Promise<boolean> {
    if (tcpSocket !== undefined) return connects(this.ip, this.#port(tcpSocket.port), timeoutMs);
    const { path, port, scheme = "HTTP" } = httpGet;
    const url = `${scheme.toLowerCase()}://${this.ip}:${this.#port(port)}${path}`;
    try {
      const reply = await fetch(url, { signal: AbortSignal.timeout(timeoutMs) });
      await reply.arrayBuffer();
      return reply.ok;
    } catch {
      return false;
    }
  }

  #port(port: string | number): number {
    if (typeof port === "number") return port;
    return this.#container.ports.find(({ name }: Json) => name === port).containerPort;
  }
}

function connects(host: string, port: number, timeoutMs: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ host, port }, () => {
      resolve(true);
      socket.destroy();
    });
    socket.setTimeout(timeoutMs, () => socket.destroy());
    socket.on("error", () => {});
    socket.on("close", () => resolve(false));
  });
}
