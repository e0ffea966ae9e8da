import { createHash } from "node:crypto";
import { Redis } from "ioredis";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { until } from "../support/ends.ts";
import { type RunningSystem, startSystem } from "../support/running-system.ts";

let system: RunningSystem;

beforeAll(async () => {
  system = await startSystem(["--cluster"]);
});

afterAll(async () => {
  await system?.stop();
});

describe("atelier up --cluster", () => {
  it("runs two workers and two gateways, each a process", async () => {
    expect(system.urls).toHaveLength(2);
    expect(await system.workerPids()).toHaveLength(2);
    expect(await system.gatewayPids()).toHaveLength(2);
  });

  it("gives the same picture for a seed through either gateway", async () => {
    const [one, other] = await Promise.all(system.urls.map((url) => picture(url, { seed: 7 })));
    expect(one!.receipt.simulated).toBe(false);
    expect(digest(other!.image)).toBe(digest(one!.image));
    expect(digest((await picture(system.urls[1]!, { seed: 8 })).image)).not.toBe(digest(one!.image));
  });

  it("has one Redis that both gateways use", async () => {
    const url = /redis at (redis:\S+)/.exec(system.output())![1]!;
    const redis = new Redis(url);
    try {
      // Each gateway has one connection for commands and one that listens, beside this one.
      const clients = await redis.client("LIST");
      expect(String(clients).trim().split("\n").length).toBeGreaterThanOrEqual(5);
    } finally {
      redis.disconnect();
    }
    for (const gateway of system.urls) expect(await redisUp(gateway)).toBe(true);
  });

  it("serves through the other gateway when one is killed, and starts it again where it was", async () => {
    const [pid] = await system.gatewayPids();
    process.kill(pid!, "SIGKILL");
    const answers = await Promise.allSettled(system.urls.map((url) => picture(url, { seed: 9 })));
    expect(answers.some(({ status }) => status === "fulfilled")).toBe(true);
    await until(() => /gateway g\d is back/.test(system.output()), 30_000);
    for (const url of system.urls) await picture(url, { seed: 10 });
  });

  it("starts a killed worker again", async () => {
    const [pid] = await system.workerPids();
    process.kill(pid!, "SIGKILL");
    await until(() => /worker w\d is back/.test(system.output()), 30_000);
    for (const url of system.urls) await picture(url, { seed: 11 });
  });
});

interface Picture {
  readonly image: string;
  readonly receipt: { readonly simulated: boolean };
}

async function picture(url: string, body: object): Promise<Picture> {
  const response = await fetch(`${url}/generate`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ prompt: "a red mug", width: 256, height: 256, steps: 4, ...body }),
  });
  expect(response.status).toBe(200);
  return (await response.json()) as Picture;
}

async function redisUp(url: string): Promise<boolean> {
  return /atelier_gateway_redis_up\{.*\} 1\n/.test(await (await fetch(`${url}/metrics`)).text());
}

const digest = (base64: string) => createHash("sha256").update(base64).digest("hex");
