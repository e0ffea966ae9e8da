import { join } from "node:path";
import { CliError } from "../cli-error.ts";
import { answersAsAtelier, asksForKeys } from "../client/gateway-client.ts";
import { takeDataFolder } from "../system/data-folder.ts";
import { type HostPort, nextFreePort, portProblem } from "../system/free-port.ts";
import { type JobsOptions, LocalSystem, type LocalSystemOptions } from "../system/local-system.ts";
import { Progress } from "../terminal/progress.ts";
import { onShellGone, onStopSignals } from "../terminal/signals.ts";
import { bold } from "../terminal/style.ts";

export type UpOptions = Omit<LocalSystemOptions, "report" | "jobs" | "dataDir"> & {
  /** Undefined: no bulk jobs. */
  readonly jobs: JobsPlan | undefined;
  /** How the user started us, for the advice in messages: "atelier up" or "npm start --". */
  readonly command: string;
  /** A package script: npm and a shell stand between us and who started it. */
  readonly byNpm: boolean;
};

/** Where bulk jobs are to be kept, as far as it was said. */
export interface JobsPlan {
  readonly dataDir: string;
  /** The user named the folder, rather than leaving it to us. */
  readonly dataDirGiven: boolean;
  /** As ATELIER_QUEUE; "own-nats" for a NATS of our own; undefined: a file in the folder. */
  readonly queue: string | undefined;
  /** As ATELIER_OBJECTS; undefined: files in the folder. */
  readonly objects: string | undefined;
}

/**
 * Runs the system until Ctrl-C. Resolves to the exit code: 0 when it stopped because it was asked to.
 * @throws CliError when it does not start or can no longer serve.
 */
export async function up(options: UpOptions): Promise<number> {
  const { host, port, gateways } = options;
  if (port !== 0) for (let i = 0; i < gateways; i++) await checkPort({ host, port: port + i }, options);

  const progress = new Progress(process.stderr);
  const jobs = options.jobs && placeOf(options.jobs, (line) => progress.line(line));
  const system = new LocalSystem({
    ...options,
    jobs,
    dataDir: options.jobs?.dataDirGiven ? options.jobs.dataDir : undefined,
    report: (line) => progress.line(line),
  });
  const asked = stopWhenAsked(system, progress, options.byNpm);
  progress.begin("starting");
  const urls = await Promise.race([system.start().finally(() => progress.end()), asked]);
  if (typeof urls === "number") return urls;

  console.log(welcome(urls, { keys: await asksForKeys(urls[0]), host, jobs: system.jobs }));
  const outcome = await Promise.race([system.broken, asked]);
  if (typeof outcome === "number") return outcome;
  await system.stop();
  throw outcome;
}

/**
 * Undefined where the usual folder cannot be had; one that the user named is meant.
 * @throws CliError
 */
function placeOf({ dataDir, dataDirGiven, queue, objects }: JobsPlan, report: (line: string) => void) {
  if (queue === undefined || queue === "own-nats" || objects === undefined) {
    try {
      takeDataFolder(dataDir);
    } catch (error) {
      if (dataDirGiven || !(error instanceof CliError)) throw error;
      report(`bulk jobs are off: ${error.message}`);
      return undefined;
    }
  }
  // What one queue knows of, the other must not sweep up.
  const folder = join(dataDir, queue === undefined ? "jobs" : "cluster");
  return {
    queue:
      queue === undefined
        ? `sqlite:${join(folder, "queue.db")}`
        : queue === "own-nats"
          ? { natsFolder: join(folder, "nats") }
          : queue,
    objects: objects ?? `file:${join(folder, "objects")}`,
  };
}

/** Resolves to the exit code once a signal has stopped everything: 0, or 130 when it took a second one. */
function stopWhenAsked(system: LocalSystem, progress: Progress, byNpm: boolean): Promise<number> {
  return new Promise((resolve) => {
    let exitCode = 0;
    let stopping = false;
    const stop = () => {
      if (stopping) return;
      stopping = true;
      progress.end();
      progress.line("stopping; Ctrl-C again stops at once · 正在停止");
      void system.stop().then(() => resolve(exitCode));
    };
    if (byNpm) onShellGone(stop);
    onStopSignals({
      first: stop,
      // What `stop` waits for is then gone.
      again: () => {
        exitCode = 130;
        void system.kill();
      },
    });
  });
}

async function checkPort({ host, port }: HostPort, { command, port: first, gateways }: UpOptions): Promise<void> {
  const problem = await portProblem({ host, port });
  if (problem === undefined) return;
  if (problem === "EADDRINUSE") {
    const [taker, free] = await Promise.all([whoTakes({ host, port }), nextFreePort({ host, port })]);
    const several = gateways > 1 ? ` (${gateways} gateways take ${first} to ${first + gateways - 1})` : "";
    throw new CliError(
      `port ${port} is taken by ${taker}${several}. Choose another: ${command} --port ${free}\n端口 ${port} 已被占用，请用 --port 换一个。`,
    );
  }
  if (problem === "EACCES") {
    throw new CliError(`port ${port} needs privileges. Choose one above 1023: ${command} --port 8080`);
  }
  if (problem === "EADDRNOTAVAIL" || problem === "ENOTFOUND") {
    throw new CliError(`${host} is not an address of this machine (--host)`);
  }
  throw new CliError(`cannot listen on ${host}, port ${port}: ${problem}`);
}

async function whoTakes({ host, port }: HostPort): Promise<string> {
  const address = host === "0.0.0.0" || host === "::" ? "127.0.0.1" : host;
  const ours = await answersAsAtelier(`http://${address.includes(":") ? `[${address}]` : address}:${port}`);
  return ours ? "an Atelier that runs already" : "another program";
}

const KEYS_ASKED = "It asks callers for API keys (atelier keys) · 需要密钥";
const LOOPBACK_ONLY = "No API key is configured: only this machine can reach it · 未设密钥，仅本机可访问";
const ANONYMOUS = "No API key is asked of callers: your own proxy has to (ATELIER_ANONYMOUS) · 未设密钥";

function welcome(
  [url, ...more]: readonly [string, ...string[]],
  { keys, host, jobs }: { readonly keys: boolean; readonly host: string; readonly jobs: JobsOptions | undefined },
): string {
  const key = keys ? `-H "authorization: Bearer $ATELIER_API_KEY" ` : "";
  const curl =
    `curl -s ${url}/generate ${key}-H 'content-type: application/json' -H 'accept: image/png' ` +
    `-d '{"prompt":"国潮风T恤, 白色背景"}' -o tee.png`;
  return [
    "",
    `Atelier is open at ${[url, ...more].map(bold).join(" and ")} · 已启动`,
    keys ? KEYS_ASKED : host === "127.0.0.1" || host === "::1" || host === "localhost" ? LOOPBACK_ONLY : ANONYMOUS,
    ...(jobs === undefined ? [] : [`Bulk jobs (atelier jobs) are kept: ${keptAt(jobs)} · 批量任务保存位置`]),
    "",
    "Try it · 试一试:",
    `  ${curl}`,
    "",
    "Ctrl-C stops it · 按 Ctrl-C 停止",
  ].join("\n");
}

function keptAt({ queue, objects }: JobsOptions): string {
  const where = typeof queue === "string" ? withoutPassword(queue) : queue.natsFolder;
  return `items in ${where.replace(/^sqlite:/, "")}, pictures in ${objects.replace(/^file:/, "")}`;
}

const withoutPassword = (url: string): string => url.replace(/:\/\/[^/]*@/g, "://***@");
