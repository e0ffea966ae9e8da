import { type ChildProcess, fork, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { FakeWorker } from "@atelier/gateway/testing";
import { freePorts } from "../../../support/free-ports.ts";
import { end, whileRunning } from "../child.ts";

/** What serves the same bytes under one URL, in a process of its own. */
export interface PictureServer {
  readonly name: string;
  readonly url: string;
  stop(): Promise<void>;
}

/** What every server is to serve, and where from. */
export interface Served {
  readonly redisUrl: string;
  readonly key: string;
  readonly mediaType: string;
}

const START_MAX_MS = 90_000;

/** node:http and ioredis, nothing else. */
export async function startBare({ redisUrl, key, mediaType }: Served): Promise<PictureServer> {
  const child = fork(join(import.meta.dirname, "bare-server.ts"), [redisUrl, key, mediaType], { silent: true });
  const port = await new Promise<string>((resolve, reject) => {
    child.stdout!.on("data", (text: Buffer) => resolve(String(text).trim().split(" ")[1]!));
    child.once("exit", () => reject(new Error("the bare server ended")));
  });
  return { name: "node:http + ioredis", url: `http://127.0.0.1:${port}/generate`, stop: () => end(child) };
}

/** A gateway of ours, with a worker that answers with `bytes` random bytes for a picture. */
export async function startOurs(
  name: string,
  { bytes, env }: { readonly bytes: number; readonly env: Readonly<Record<string, string>> },
): Promise<PictureServer> {
  const worker = await FakeWorker.start();
  worker.usually = { kind: "answer", data: randomBytes(bytes) };
  const child = fork(join(import.meta.dirname, "../../../../services/gateway/src/main.ts"), {
    env: {
      PATH: process.env["PATH"],
      ATELIER_LISTEN: "127.0.0.1:0",
      ATELIER_WORKERS: worker.address,
      ATELIER_CACHE_MIN_ASKS: "1",
      ATELIER_LOG_LEVEL: "warn",
      ...env,
    },
    stdio: ["ignore", 2, 2, "ipc"],
  });
  let address = "";
  const ready = new Promise<void>((resolve) => {
    child.on("message", (message: { type: string; address?: string }) => {
      if (message.type === "listening") address = message.address!;
      if (message.type === "ready") resolve();
    });
  });
  await whileRunning(child, ready, { name: "the gateway", timeoutMs: START_MAX_MS });
  const stop = async () => {
    await end(child);
    await worker.stop();
  };
  return { name, url: `${address}/generate`, stop };
}

/** The three that are compared with, from a Python environment that has them; those that do not start are left out. */
export async function startPeers(python: string, served: Served): Promise<readonly PictureServer[]> {
  const { redisUrl, key, mediaType } = served;
  const ports = await freePorts(3);
  const script = (file: string) => join(import.meta.dirname, file);
  const args = (port: number) => [redisUrl, key, mediaType, String(port)];
  const env = { REDIS_URL: redisUrl, REDIS_KEY: key, MEDIA_TYPE: mediaType, ...QUIET };
  const commands: readonly (readonly [string, string, readonly string[]])[] = [
    ["FastAPI + redis", "python", [script("fastapi_server.py"), ...args(ports[0]!)]],
    ["Ray Serve + redis", "python", [script("ray_server.py"), ...args(ports[1]!)]],
    ["BentoML + redis", "bentoml", ["serve", "bento_service:Cached", "--host", "127.0.0.1", "-p", String(ports[2])]],
  ];
  const started: PictureServer[] = [];
  for (const [i, [name, program, programArgs]] of commands.entries()) {
    const path = join(python, "bin", program);
    if (!existsSync(path)) continue;
    const child = spawn(path, programArgs, {
      cwd: import.meta.dirname,
      env: { ...process.env, ...env },
      stdio: ["ignore", "ignore", "pipe"],
    });
    const url = `http://127.0.0.1:${ports[i]}/generate`;
    const server = { name, url, stop: () => end(child) };
    const why = await answers(child, url).catch((error: unknown) => error as Error);
    if (why === undefined) started.push(server);
    else {
      console.log(`${name} does not start here and is left out: ${why.message.split("\n")[0]}`);
      await server.stop();
    }
  }
  return started;
}

const QUIET = { RAY_USAGE_STATS_ENABLED: "0", BENTOML_DO_NOT_TRACK: "True" };

async function answers(child: ChildProcess, url: string): Promise<undefined> {
  let said = "";
  child.stderr!.on("data", (text: Buffer) => {
    said = (said + text).slice(-4_000);
  });
  const up = (async () => {
    for (;;) {
      const response = await fetch(url, { method: "POST", headers: JSON_BODY, body: BODY }).catch(() => undefined);
      await response?.arrayBuffer();
      if (response?.ok) return undefined;
      await sleep(300);
    }
  })();
  return whileRunning(child, up, { name: "it", timeoutMs: START_MAX_MS, output: () => said });
}

export const JSON_BODY = { "content-type": "application/json" };
/** What every server is asked. */
export const BODY = JSON.stringify({ prompt: "国潮风T恤, 白色背景", seed: 7, width: 512, height: 512 });
