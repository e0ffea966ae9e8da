import { execFile } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

export interface Load {
  readonly url: string;
  readonly body: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly connections: number;
  readonly threads: number;
  readonly seconds: number;
}

export interface LoadResult {
  readonly perSecond: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
}

/**
 * Sends the same POST over and over, each connection the next one when the last is answered.
 *
 * @throws Error where wrk is not on PATH (Debian: apt-get install wrk), or any answer was not a 2xx.
 */
export async function wrk({ url, body, headers, connections, threads, seconds }: Load): Promise<LoadResult> {
  const folder = mkdtempSync(join(tmpdir(), "atelier-wrk-"));
  try {
    const script = join(folder, "post.lua");
    const lines = Object.entries(headers).map(([name, value]) => `wrk.headers["${name}"] = "${value}"`);
    writeFileSync(script, [`wrk.method = "POST"`, `wrk.body = [==[${body}]==]`, ...lines].join("\n"));
    const args = [`-t${threads}`, `-c${connections}`, `-d${seconds}s`, "--latency", "-s", script, url];
    const { stdout } = await promisify(execFile)("wrk", args).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "ENOENT") throw error;
      throw new Error("this bench needs wrk: apt-get install wrk", { cause: error });
    });
    if (/Non-2xx/.test(stdout)) throw new Error(`not every request was answered well:\n${stdout}`);
    return {
      perSecond: Number(/Requests\/sec:\s+([\d.]+)/.exec(stdout)![1]),
      p50Ms: milliseconds(/^ +50% +(\S+)/m.exec(stdout)![1]!),
      p99Ms: milliseconds(/^ +99% +(\S+)/m.exec(stdout)![1]!),
    };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** "1.52ms", "840.00us", "1.05s". */
function milliseconds(text: string): number {
  const [, value, unit] = /^([\d.]+)(us|ms|s)$/.exec(text)!;
  return Number(value) * { us: 0.001, ms: 1, s: 1_000 }[unit as "us" | "ms" | "s"];
}
