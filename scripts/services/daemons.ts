import { type ChildProcess, spawn } from "node:child_process";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { type AddressInfo, connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { containerCommand, containerWith, type Volume } from "./container.ts";
import { natsServer, onPath, type Program, redisServer } from "./programs.ts";

export class DaemonEnded extends Error {
  override readonly name = "DaemonEnded";
}

/** A server of somebody else's that runs for us, in a folder of its own that goes with it. */
export interface Daemon {
  readonly address: string;
  /** How it ended, in words. */
  readonly ended: Promise<string>;
  stop(): Promise<void>;
}

const START_MAX_MS = 30_000;
const STOP_GRACE_MS = 5_000;
const OUTPUT_KEPT_CHARS = 4_000;

/**
 * Redis with nothing on disk. What it has no memory for it takes from values that expire, the longest unused first.
 *
 * @throws NotToBeHad, DaemonEnded
 */
export async function startRedisServer({ host, port }: { host: string; port: number }): Promise<Daemon> {
  const settings = ["--save", "", "--appendonly", "no", "--maxmemory", "512mb", "--maxmemory-policy", "volatile-lru"];
  return startDaemon({
    place: { host, port, greeting: { say: "PING\r\n", expect: "+PONG" } },
    image: "redis:7",
    program: { name: "redis-server", bring: redisServer },
    // Only our own loopback is led into the container.
    inside: { port: 6379, args: ["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", ...settings] },
    outside: (at, folder) => ["--bind", host, "--port", String(at), "--dir", folder, ...settings],
  });
}

/**
 * NATS with JetStream. What it holds goes with it, or stays in the folder `store`.
 *
 * @throws NotToBeHad, DaemonEnded
 */
export async function startNatsServer({
  host,
  port,
  store,
}: {
  host: string;
  port: number;
  store?: string;
}): Promise<Daemon> {
  if (store !== undefined) await mkdir(store, { recursive: true });
  return startDaemon({
    place: { host, port, greeting: { say: "", expect: "INFO" } },
    image: "nats:2",
    program: { name: "nats-server", bring: natsServer },
    inside: {
      port: 4222,
      args: store === undefined ? ["--jetstream"] : ["--jetstream", "--store_dir", "/data"],
      ...(store === undefined ? {} : { volume: { from: store, at: "/data" } }),
    },
    outside: (at, folder) => ["--addr", host, "--port", String(at), "--jetstream", "--store_dir", store ?? folder],
  });
}

interface Place {
  readonly host: string;
  /** 0 takes a free one. */
  readonly port: number;
  /** What tells that it serves. */
  readonly greeting: { readonly say: string; readonly expect: string };
}

interface DaemonParts {
  readonly place: Place;
  readonly image: string;
  readonly program: { readonly name: string; readonly bring: () => Promise<Program> };
  /** How it is started in a container. */
  readonly inside: { readonly port: number; readonly args: readonly string[]; readonly volume?: Volume };
  /** Its arguments as a process of this machine. */
  readonly outside: (port: number, folder: string) => readonly string[];
}

/** From PATH, else in a container, else brought here. */
async function startDaemon({ place, image, program, inside, outside }: DaemonParts): Promise<Daemon> {
  const { host, greeting } = place;
  const at = await portThatIsFree(host, place.port);
  const container = onPath(program.name) === undefined ? await containerWith(image) : undefined;
  const brought = container === undefined ? await program.bring() : undefined;
  const folder = await mkdtemp(join(tmpdir(), "atelier-service-"));
  const command: Running["command"] =
    container === undefined
      ? [brought!.path, ...outside(at, folder)]
      : containerCommand(container, { ...inside, host, port: at, innerPort: inside.port });
  const where = { host, port: at };
  const address = `${host}:${at}`;
  return runDaemon({ command, env: brought?.env ?? {}, address, folder, answers: () => greets(where, greeting) });
}

export interface Running {
  readonly command: readonly [string, ...string[]];
  readonly env: Readonly<Record<string, string>>;
  readonly address: string;
  /** Whether it serves. */
  readonly answers: () => Promise<boolean>;
  /** Its working folder, which goes with it. */
  readonly folder: string;
  readonly startMaxMs?: number;
}

/** Runs a server of somebody else's until it is stopped, or this process ends. @throws DaemonEnded */
export async function runDaemon({ command, env, address, answers, folder, ...rest }: Running): Promise<Daemon> {
  const { startMaxMs = START_MAX_MS } = rest;
  const [path, ...args] = command;
  const child = spawn(path, args, {
    cwd: folder,
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, ...env },
  });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text: string) => {
      output = (output + text).slice(-OUTPUT_KEPT_CHARS);
    });
  }
  const killWithUs = () => child.kill("SIGKILL");
  process.once("exit", killWithUs);
  const ended = endOf(child).then(async (how) => {
    process.off("exit", killWithUs);
    await rm(folder, { recursive: true, force: true });
    return how;
  });
  const untilMs = Date.now() + startMaxMs;
  let over = false;
  void ended.then(() => {
    over = true;
  });
  while (!(await answers())) {
    if (over) throw new DaemonEnded(`${path} ${await ended}:\n${output.trim()}`);
    if (Date.now() > untilMs) {
      child.kill("SIGKILL");
      throw new DaemonEnded(`${path} did not answer within ${startMaxMs / 1000} s:\n${output.trim()}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return {
    address,
    ended,
    stop: async () => {
      child.kill("SIGTERM");
      const timer = setTimeout(() => child.kill("SIGKILL"), STOP_GRACE_MS);
      await ended;
      clearTimeout(timer);
    },
  };
}

function endOf(child: ChildProcess): Promise<string> {
  return new Promise((resolve) => {
    child.once("error", (error) => resolve(`did not start (${error.message})`));
    child.once("close", (code, signal) =>
      resolve(signal === null ? `ended with exit code ${code}` : `ended by ${signal}`),
    );
  });
}

/** One that nobody listens on now. */
export function freePort(host: string): Promise<number> {
  return portThatIsFree(host, 0);
}

/** `port`, or any where it is 0. @throws DaemonEnded where somebody has it, whose answers would be taken for ours. */
async function portThatIsFree(host: string, port: number): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve, reject) => server.once("error", reject).listen(port, host, resolve)).catch(
    (error: NodeJS.ErrnoException) => {
      const why = error.code === "EADDRINUSE" ? "is taken by another program" : `cannot be listened on: ${error.code}`;
      throw new DaemonEnded(`port ${port} on ${host} ${why}`, { cause: error });
    },
  );
  const { port: free } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return free;
}

function greets(where: { host: string; port: number }, { say, expect }: Place["greeting"]): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(where, () => socket.write(say));
    socket.setTimeout(1_000, () => socket.destroy());
    socket.on("error", () => {}); // its close says no
    socket.on("data", (data) => {
      resolve(String(data).includes(expect));
      socket.destroy();
    });
    socket.on("close", () => resolve(false));
  });
}
