import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Redis } from "ioredis";
import { type Program, redisServer } from "../../scripts/services/programs.ts";
import { ChildProgram } from "./child-program.ts";
import { freePorts } from "./free-ports.ts";

/** One redis-server process on a free port of loopback, which ends with this process at the latest. */
export interface RunningRedis {
  /** As ATELIER_REDIS takes it. */
  readonly url: string;
  readonly port: number;
  /** A connection for the test's own questions; closed with the server. */
  readonly client: Redis;
  /** Stands still: connections stay open and no answer comes. */
  pause(): void;
  resume(): void;
  /** Kills it. What it held is gone. */
  stop(): Promise<void>;
  /** Starts it again, empty, on the same port. */
  start(): Promise<void>;
}

export interface RedisOptions {
  /** Further arguments, as `["--maxmemory", "2mb"]`. */
  readonly args?: readonly string[];
  readonly password?: string;
}

export async function startRedis({ args = [], password }: RedisOptions = {}): Promise<RunningRedis> {
  const program = await redisServer();
  const [port] = await freePorts(1);
  const server = new RedisServer(program, port!, [...args, ...(password ? ["--requirepass", password] : [])], password);
  await server.start();
  return {
    url: `redis://${password ? `:${encodeURIComponent(password)}@` : ""}127.0.0.1:${port}`,
    port: port!,
    get client() {
      return server.client;
    },
    pause: () => server.pause(),
    resume: () => server.resume(),
    stop: () => server.stop(),
    start: () => server.start(),
  };
}

/** A process and the folder that it writes to. */
class RedisServer {
  readonly #program: Program;
  readonly #port: number;
  readonly #args: readonly string[];
  readonly #password: string | undefined;
  #child: ChildProgram | undefined;
  #folder: string | undefined;
  #client: Redis | undefined;

  constructor(program: Program, port: number, args: readonly string[], password: string | undefined) {
    this.#program = program;
    this.#port = port;
    this.#args = args;
    this.#password = password;
  }

  get client(): Redis {
    if (this.#client === undefined) throw new Error("this redis-server is stopped");
    return this.#client;
  }

  async start(): Promise<void> {
    this.#folder = await mkdtemp(join(tmpdir(), "atelier-redis-"));
    const always = ["--bind", "127.0.0.1", "--port", String(this.#port), "--save", "", "--dir", this.#folder];
    const child = new ChildProgram(this.#program, [...always, ...this.#args], { cwd: this.#folder });
    this.#child = child;
    const client = new Redis({
      host: "127.0.0.1",
      port: this.#port,
      retryStrategy: () => 20,
      maxRetriesPerRequest: null,
      ...(this.#password === undefined ? {} : { password: this.#password }),
    });
    client.on("error", () => {}); // until it listens; afterwards its commands say so
    this.#client = client;
    await child.until(async () => client.status === "ready", "redis-server answers");
  }

  pause(): void {
    this.#child?.pause();
  }

  resume(): void {
    this.#child?.resume();
  }

  async stop(): Promise<void> {
    this.#client?.disconnect();
    this.#client = undefined;
    await this.#child?.kill();
    this.#child = undefined;
    if (this.#folder !== undefined) await rm(this.#folder, { recursive: true, force: true });
    this.#folder = undefined;
  }
}
