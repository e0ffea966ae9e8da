import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

const root = join(import.meta.dirname, "../..");
const START_MAX_MS = 90_000;

/** `atelier up` as a user starts it, on a free port, with the real model. */
export interface RunningSystem {
  /** Of its first gateway. */
  readonly url: string;
  /** Of all of its gateways: two with `--cluster`. */
  readonly urls: readonly string[];
  /** What it has said so far, standard output and errors. */
  output(): string;
  /** The process ids of its workers, as the operating system knows them. */
  workerPids(): Promise<number[]>;
  gatewayPids(): Promise<number[]>;
  /** Stops it as Ctrl-C does and resolves to its exit code. */
  stop(): Promise<number | null>;
  /** Ends it as kill -9 does; what it had started ends by itself. */
  kill(): Promise<void>;
}

/** `env` lies over the test's own environment. */
export async function startSystem(
  args: readonly string[] = [],
  env: Readonly<Record<string, string>> = {},
): Promise<RunningSystem> {
  const home = await mkdtemp(join(tmpdir(), "atelier-home-")); // the user's own is not to be filled, nor read
  const child = spawn(process.execPath, [join(root, "services/cli/src/main.ts"), "up", "--port", "0", ...args], {
    cwd: root,
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, XDG_DATA_HOME: home, ...env },
  });
  const exited = once(child, "exit").finally(() => rm(home, { recursive: true, force: true, maxRetries: 5 }));
  const output = collectOutput(child);
  const urls = await openUrls(child, output);
  return {
    url: urls[0]!,
    urls,
    output,
    workerPids: () => childrenRunning(child.pid!, "services/worker/"),
    gatewayPids: () => childrenRunning(child.pid!, "services/gateway/"),
    stop: async () => {
      child.kill("SIGINT"); // does nothing to a process that has ended
      const [code] = await exited;
      return code as number | null;
    },
    kill: async () => {
      child.kill("SIGKILL");
      await exited;
    },
  };
}

function collectOutput(child: ChildProcess): () => string {
  let output = "";
  for (const stream of [child.stdout!, child.stderr!]) {
    stream.setEncoding("utf8").on("data", (text: string) => {
      output += text;
    });
  }
  return () => output;
}

async function openUrls(child: ChildProcess, output: () => string): Promise<string[]> {
  const opened = Promise.withResolvers<string[]>();
  child.stdout!.on("data", () => {
    const line = /Atelier is open at (http.*) · /.exec(output())?.[1];
    if (line !== undefined) opened.resolve(line.split(" and "));
  });
  child.once("exit", (code) => opened.reject(new Error(`atelier up ended with ${code}:\n${output()}`)));
  const timer = setTimeout(() => {
    child.kill("SIGKILL");
    opened.reject(new Error(`atelier up was not open after ${START_MAX_MS} ms:\n${output()}`));
  }, START_MAX_MS);
  return opened.promise.finally(() => clearTimeout(timer));
}

/** Children of `parent` whose command line holds `text`. */
async function childrenRunning(parent: number, text: string): Promise<number[]> {
  const pids = (await readdir("/proc")).filter((name) => /^\d+$/.test(name));
  const matches = await Promise.all(
    pids.map(async (pid) => {
      const [command, stat] = await Promise.all([
        readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => ""),
        readFile(`/proc/${pid}/stat`, "utf8").catch(() => ""),
      ]);
      const ppid = Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]);
      return ppid === parent && command.includes(text) ? [Number(pid)] : [];
    }),
  );
  return matches.flat();
}
