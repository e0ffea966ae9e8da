import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import type { ServiceMessage } from "@atelier/lifecycle";

const MAIN = fileURLToPath(new URL("../main.ts", import.meta.url));

/** A worker process of a test, and what it says. */
export interface SpawnedWorker {
  readonly process: ChildProcess;
  /** Resolves once the worker has said this; rejects with its standard error when it ended before. */
  said<Type extends ServiceMessage["type"]>(type: Type): Promise<Extract<ServiceMessage, { type: Type }>>;
  readonly exited: Promise<{ readonly code: number | null; readonly stderr: string }>;
}

/** Starts `main.ts` on free ports, with these variables of ours and no others. */
export function spawnWorker(env: Record<string, string>): SpawnedWorker {
  const inherited = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("ATELIER_")));
  const defaults = { ATELIER_WORKER_LISTEN: "127.0.0.1:0", ATELIER_LOG_LEVEL: "warn", ATELIER_THREADS: "1" };
  const child = spawn(process.execPath, [MAIN], {
    env: { ...inherited, ...defaults, ...env },
    stdio: ["ignore", "ignore", "pipe", "ipc"],
  });
  let stderr = "";
  child.stderr!.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  const said: ServiceMessage[] = [];
  child.on("message", (message) => said.push(message as ServiceMessage));
  // Not "close": it never comes where this side has ended the IPC channel.
  const exited = Promise.all([once(child, "exit"), once(child.stderr!, "close")]).then(([[code]]) => ({
    code: code as number | null,
    stderr,
  }));

  async function waitFor<Type extends ServiceMessage["type"]>(type: Type) {
    const find = () => said.find((message) => message.type === type);
    while (find() === undefined) {
      const ended = await Promise.race([once(child, "message").then(() => undefined), exited]);
      if (ended !== undefined && find() === undefined) {
        throw new Error(`the worker ended (${ended.code}) before it said "${type}":\n${ended.stderr}`);
      }
    }
    return find() as Extract<ServiceMessage, { type: Type }>;
  }
  return { process: child, said: waitFor, exited };
}
