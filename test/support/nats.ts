import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { connect as connectSocket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { natsServer, type Program } from "../../scripts/services/programs.ts";
import { ChildProgram } from "./child-program.ts";
import { freePorts } from "./free-ports.ts";

export interface NatsOptions {
  /** Further arguments, as `["--user", "jobs", "--pass", "..."]`. */
  readonly args?: readonly string[];
  /** Further configuration, as `jetstream { max_file_store: 2MB }`. */
  readonly config?: string;
  readonly jetStream?: boolean;
}

/** One nats-server process with JetStream in files, on a free port of loopback; ends with this process at the latest. */
export async function startNats({ args = [], config, jetStream = true }: NatsOptions = {}): Promise<NatsProcess> {
  const [port] = await freePorts(1);
  const folder = await mkdtemp(join(tmpdir(), "atelier-nats-"));
  const configFile = join(folder, "nats.conf");
  if (config !== undefined) await writeFile(configFile, config);
  const configured = config === undefined ? [] : ["--config", configFile];
  const nats = new NatsProcess(await natsServer(), { port: port!, folder, args: [...configured, ...args], jetStream });
  await nats.start();
  return nats;
}

/** Three servers that keep streams together, ready to make one of three replicas. */
export async function startNatsCluster(): Promise<NatsCluster> {
  const program = await natsServer();
  const ports = await freePorts(6);
  const routes = ports.slice(3).map((port) => `nats://127.0.0.1:${port}`);
  const folder = await mkdtemp(join(tmpdir(), "atelier-nats-"));
  const nodes = ports.slice(0, 3).map((port, i) => {
    const cluster = ["--cluster_name", "atelier", "--cluster", routes[i]!, "--routes", routes.join(",")];
    return new NatsProcess(program, { port, folder: join(folder, `n${i}`), args: ["--name", `n${i}`, ...cluster] });
  });
  await Promise.all(nodes.map((node) => node.start()));
  return {
    nodes,
    url: `nats://${ports
      .slice(0, 3)
      .map((port) => `127.0.0.1:${port}`)
      .join(",")}`,
    stop: async () => {
      await Promise.all(nodes.map((node) => node.kill()));
      await rm(folder, { recursive: true, force: true });
    },
  };
}

export interface NatsCluster {
  readonly nodes: readonly NatsProcess[];
  /** As ATELIER_QUEUE takes it. */
  readonly url: string;
  stop(): Promise<void>;
}

export class NatsProcess {
  readonly port: number;
  readonly folder: string;
  readonly #program: Program;
  readonly #args: readonly string[];
  readonly #jetStream: boolean;
  #child: ChildProgram | undefined;

  constructor(
    program: Program,
    at: {
      readonly port: number;
      readonly folder: string;
      readonly args: readonly string[];
      readonly jetStream?: boolean;
    },
  ) {
    this.port = at.port;
    this.folder = at.folder;
    this.#program = program;
    this.#args = at.args;
    this.#jetStream = at.jetStream ?? true;
  }

  /** As ATELIER_QUEUE takes it. */
  get url(): string {
    return `nats://127.0.0.1:${this.port}`;
  }

  /** Of the process that runs. */
  get pid(): number {
    if (this.#child === undefined) throw new Error("nats-server does not run");
    return this.#child.pid;
  }

  /** Starts it (again), with what it had, and resolves when it takes connections; `args`: in the place of its own. */
  async start(args = this.#args): Promise<void> {
    const where = ["--addr", "127.0.0.1", "--port", String(this.port)];
    const store = this.#jetStream ? ["--jetstream", "--store_dir", this.folder] : [];
    this.#child = new ChildProgram(this.#program, [...where, ...store, ...args], { cwd: tmpdir() });
    await this.#child.until(() => this.#answers(), "nats-server answers");
  }

  /** As a power cut does, but that the disk keeps what the system was given. */
  async kill(): Promise<void> {
    await this.#child?.kill();
    this.#child = undefined;
  }

  /** Stands still: connections stay open and no answer comes. */
  pause(): void {
    this.#child?.pause();
  }

  resume(): void {
    this.#child?.resume();
  }

  /** Kills it, and removes what it had. */
  async stop(): Promise<void> {
    await this.kill();
    await rm(this.folder, { recursive: true, force: true });
  }

  #answers(): Promise<boolean> {
    return new Promise((resolve) => {
      const socket = connectSocket(this.port, "127.0.0.1");
      const end = (answers: boolean) => {
        socket.destroy();
        resolve(answers);
      };
      socket.once("data", (greeting) => end(greeting.toString().startsWith("INFO")));
      socket.once("error", () => end(false));
    });
  }
}
