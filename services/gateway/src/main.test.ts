import { type ChildProcess, fork, spawnSync } from "node:child_process";
import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { createServer } from "node:net";
import { fileURLToPath } from "node:url";
import type { ServiceMessage } from "@atelier/lifecycle";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { FakeWorker } from "./testing/fake-worker.ts";

describe("the gateway's process", () => {
  let worker: FakeWorker;
  let spawned: Spawned | undefined;

  beforeEach(async () => {
    worker = await FakeWorker.start();
  });
  afterEach(async () => {
    spawned?.child.kill("SIGKILL");
    spawned = undefined;
    await worker.stop();
  });
  const start = (env: Record<string, string> = {}) => {
    spawned = spawnGateway({ ATELIER_WORKERS: worker.address, ATELIER_LISTEN: "127.0.0.1:0", ...env });
    return spawned;
  };

  it("tells its parent where it listens, and when a worker is ready, once", async () => {
    await worker.kill();
    const gateway = start();
    const { address: url } = await gateway.message("listening");
    expect((await fetch(`${url}/readyz`)).status).toBe(503);
    await worker.revive();
    await gateway.message("ready");
    expect((await generate(url)).status).toBe(200);

    worker.publish({ ready: false });
    worker.publish({ ready: true });
    await generate(url);
    expect(gateway.messages.map(({ type }) => type)).toEqual(["listening", "ready"]);
  });

  it.each(["SIGTERM", "SIGINT"] as const)("finishes what is in flight on %s, and exits with 0", async (signal) => {
    const gateway = start();
    const { address: url } = await gateway.message("listening");
    await gateway.message("ready");
    const gate = Promise.withResolvers<void>();
    worker.next({ kind: "answer", after: gate.promise });
    const asked = generate(url);
    await worker.nextRequest();
    gateway.child.kill(signal);
    await refusesConnections(url);
    gate.resolve();
    expect((await asked).status).toBe(200);
    expect(await gateway.exit).toEqual([0, null]);
  });

  it("stops when its parent goes away", async () => {
    const gateway = start();
    await gateway.message("listening");
    gateway.child.disconnect();
    expect(await gateway.exit).toEqual([0, null]);
  });

  it("stops when it is asked to before it has started", async () => {
    const gateway = start();
    gateway.child.disconnect();
    expect(await gateway.exit).toEqual([0, null]);
  });

  it("says that its port is taken, and what to do", async () => {
    const other = createServer().listen(0, "127.0.0.1");
    await once(other, "listening");
    const { port } = other.address() as AddressInfo;
    const gateway = start({ ATELIER_LISTEN: `127.0.0.1:${port}` });
    const { message } = await gateway.message("failed");
    expect(message).toContain(`port ${port} on 127.0.0.1 is taken by another program; set ATELIER_LISTEN`);
    expect(await gateway.exit).toEqual([1, null]);
    expect(gateway.stderr()).toBe("");
    other.close();
  });

  it("says so itself where no parent listens", async () => {
    const main = fileURLToPath(new URL("./main.ts", import.meta.url));
    const { status, stderr } = spawnSync(process.execPath, [main], { env: { ATELIER_WORKERS: "" }, encoding: "utf8" });
    expect(status).toBe(1);
    expect(stderr).toContain("ATELIER_WORKERS");
    expect(stderr).not.toContain("    at ");
  });

  it("names every bad setting before it starts anything", async () => {
    const gateway = start({ ATELIER_WORKERS: "", ATELIER_IN_FLIGHT_MAX: "none" });
    const { message } = await gateway.message("failed");
    expect(message).toMatch(/ATELIER_WORKERS[\s\S]*ATELIER_IN_FLIGHT_MAX=none/);
    expect(await gateway.exit).toEqual([1, null]);
  });
});

interface Spawned {
  readonly child: ChildProcess;
  readonly messages: ServiceMessage[];
  /** Code and signal. */
  readonly exit: Promise<[number | null, string | null]>;
  stderr(): string;
  message<Type extends ServiceMessage["type"]>(type: Type): Promise<Extract<ServiceMessage, { type: Type }>>;
}

function spawnGateway(env: Record<string, string>): Spawned {
  const child = fork(new URL("./main.ts", import.meta.url), {
    env: { PATH: process.env["PATH"], ...env },
    silent: true,
  });
  const messages: ServiceMessage[] = [];
  let stderr = "";
  child.stderr?.setEncoding("utf8").on("data", (text) => {
    stderr += text;
  });
  child.on("message", (message: ServiceMessage) => messages.push(message));
  // Not the "close" event: it does not come after disconnect().
  const exit = Promise.all([once(child, "exit"), child.stderr && once(child.stderr, "end")]).then(
    ([codeAndSignal]) => codeAndSignal as [number | null, string | null],
  );
  return {
    child,
    messages,
    exit,
    stderr: () => stderr,
    message: async (type) => {
      for (;;) {
        const found = messages.find((message) => message.type === type);
        if (found !== undefined) return found as never;
        await Promise.race([
          once(child, "message"),
          exit.then(([code]) => {
            if (!messages.some((message) => message.type === type))
              throw new Error(`exit ${code} without ${type}: ${stderr}`);
          }),
        ]);
      }
    },
  };
}

async function refusesConnections(url: string): Promise<void> {
  for (;;) {
    const answered = await fetch(`${url}/healthz`, { headers: { connection: "close" } }).then(
      () => true,
      () => false,
    );
    if (!answered) return;
  }
}

function generate(url: string): Promise<Response> {
  const headers = { "content-type": "application/json" };
  return fetch(`${url}/generate`, { method: "POST", headers, body: JSON.stringify({ prompt: "x" }) });
}
