import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { startGateway, type TestGateway } from "@atelier/gateway/testing/start-gateway";
import { afterAll, describe, expect, it } from "vitest";
import { atEnd, until } from "../support/ends.ts";
import { ask, follow } from "../support/generate-client.ts";
import { type TestWorker, WorkerPool } from "../support/workers.ts";

/** Worker processes on the simulated device, since there is load to carry and no pixel to compare. */
describe("workers under load", () => {
  it("leave one after another on SIGTERM, and no caller notices", async () => {
    const [workers, gateway] = await system(3);
    const all: Answered[] = [];
    let asked = 0;
    const ask = async () => {
      while (asked < 120) all.push(await answered(gateway, asked++));
    };
    const callers = Promise.all(Array.from({ length: 12 }, ask));
    await until(() => all.length >= 20);
    for (const leaving of workers.slice(0, 2)) {
      leaving.signal("SIGTERM"); // hands back at once: it is given no time
      expect((await leaving.exited).code).toBe(0);
    }
    await callers;
    expect(all).toHaveLength(120);
    expect(all.filter(({ failure }) => failure !== undefined)).toEqual([]);
    expect(all.filter(({ seed, asked }) => seed !== asked)).toEqual([]);
    // Some were on their way when their worker left, and went on from where they stood.
    expect(all.some(({ resumedAt }) => resumedAt > 0)).toBe(true);
    expect(gateway.bugs).toEqual([]);
  });

  it("refuse what is more than they take, and others take it", async () => {
    const [[narrow], [wide]] = await Promise.all([narrowPool.take(1), pool.take(1)]);
    // Two gateways, neither of which knows what the other has just placed.
    const addresses = [narrow!.address, wide!.address];
    const gateways = await Promise.all([open(addresses), open(addresses)]);
    const all = await Promise.all(Array.from({ length: 24 }, (_, i) => answered(gateways[i % 2]!, i)));
    expect(await narrow!.counted("atelier_worker_requests_total", { outcome: "OVERLOADED" })).toBeGreaterThan(0);
    expect(all.filter(({ failure }) => failure !== undefined)).toEqual([]);
    expect(all.map(({ seed }) => seed)).toEqual(all.map(({ asked }) => asked));
  });

  it("are killed one after another, and every request is answered once, by its own picture", async () => {
    const [workers, gateway] = await system(3);
    const answers = Array.from({ length: 60 }, (_, i) => answered(gateway, i));
    await until(() => gateway.fleet.views().every(({ inFlight }) => inFlight > 0));
    await workers[0]!.kill();
    await until(() => gateway.fleet.views().filter(({ ready }) => ready).length === 2);
    await workers[1]!.kill();
    const all = await Promise.all(answers);
    expect(all.filter(({ failure }) => failure !== undefined)).toEqual([]);
    expect(all.map(({ seed }) => seed)).toEqual(all.map(({ asked }) => asked));
    expect(gateway.fleet.views().map(({ inFlight }) => inFlight)).toEqual([0, 0, 0]);
  });
});

describe("a gateway process that is killed", () => {
  it("breaks its callers' connections; its workers drop the work, and serve whoever asks next", async () => {
    const [worker] = await pool.take(1);
    const first = await startGatewayProcess(worker!.address);
    const followed = follow(first.url, { ...BODY, steps: 150, seed: 1 });
    await followed.stepsDone(2);
    first.process.kill("SIGKILL");
    await expect(followed.completed).rejects.toThrow(/terminated|ended early|fetch failed/);
    await until(async () => (await worker!.counted("atelier_worker_requests_total", { outcome: "CANCELLED" })) === 1);

    const second = await startGatewayProcess(worker!.address);
    expect((await ask(second.url, { ...BODY, seed: 1 })).receipt).toMatchObject({ attempts: 1, seed: 1 });
  });
});

const BODY = { prompt: "a red mug", width: 256, height: 256, steps: 20 };
/** A worker that is asked to leave hands back at once. */
const WORKER = { ATELIER_DEVICE: "simulated", ATELIER_SIMULATED_SPEED: "4", ATELIER_DRAIN_MS: "0" };

const pool = new WorkerPool(WORKER);
const narrowPool = new WorkerPool({ ...WORKER, ATELIER_QUEUE_MAX: "1", ATELIER_WORKER_ID: "narrow" });
afterAll(() => Promise.all([pool.stop(), narrowPool.stop()]));

async function system(count: number): Promise<[readonly TestWorker[], TestGateway]> {
  const workers = await pool.take(count);
  return [workers, await open(workers.map(({ address }) => address))];
}

async function open(addresses: readonly string[]): Promise<TestGateway> {
  const gateway = await startGateway(addresses, { ATELIER_CHECKPOINT_EVERY_STEPS: "2" });
  atEnd(() => gateway.stop());
  await gateway.until((views) => views.every(({ ready }) => ready));
  return gateway;
}

interface Answered {
  readonly asked: number;
  readonly seed?: number;
  readonly resumedAt: number;
  readonly failure?: string;
}

/** How a request of its own seed ends, however it does. */
async function answered(gateway: TestGateway, asked: number): Promise<Answered> {
  try {
    const { receipt } = await ask(gateway.url, { ...BODY, seed: asked });
    return { asked, seed: receipt.seed, resumedAt: receipt.resumed_at_steps?.[0] ?? 0 };
  } catch (error) {
    return { asked, resumedAt: 0, failure: (error as Error).message };
  }
}

const GATEWAY = fileURLToPath(import.meta.resolve("@atelier/gateway/main"));

async function startGatewayProcess(worker: string): Promise<{ url: string; process: ChildProcess }> {
  const inherited = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("ATELIER_")));
  const child = spawn(process.execPath, [GATEWAY], {
    env: { ...inherited, ATELIER_LISTEN: "127.0.0.1:0", ATELIER_WORKERS: worker, ATELIER_LOG_LEVEL: "warn" },
    stdio: ["ignore", "ignore", "inherit", "ipc"],
  });
  atEnd(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill("SIGKILL");
    await once(child, "exit");
  });
  let url = "";
  for (;;) {
    const [message] = (await once(child, "message")) as [{ type: string; address?: string }];
    if (message.type === "listening") url = message.address!;
    if (message.type === "ready") return { url, process: child };
    if (message.type === "failed") throw new Error(JSON.stringify(message));
  }
}
