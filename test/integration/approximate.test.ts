import { startGateway } from "@atelier/gateway/testing/start-gateway";
import { afterAll, describe, expect, it } from "vitest";
import { atEnd, until } from "../support/ends.ts";
import { startRedis } from "../support/redis.ts";
import { WorkerPool } from "../support/workers.ts";

const SHIRT = "a red t-shirt on a white background";
const SIMILAR = "a red t-shirt on a plain white background";
const OTHER = "a purple teapot on a wooden table";
const SMALL = { width: 128, height: 128, steps: 10, seed: 11, cache: "approximate" };

const pool = new WorkerPool({ ATELIER_THREADS: "1" });
afterAll(() => pool.stop());

/** A worker process with the embedded model on the CPU. */
describe("a picture that begins from a similar prompt's latent", () => {
  it("leaves out steps, says so in its receipt, and is another picture than the exact one", async () => {
    const { url } = await gateway();
    const whole = await ask(url, { prompt: SHIRT });
    expect(whole.receipt).not.toHaveProperty("reused_steps");
    await kept(url);

    const begun = await ask(url, { prompt: SIMILAR });
    expect(begun.cache).toBe("approximate");
    const reused = begun.receipt["reused_steps"] as number;
    expect(reused).toBeGreaterThan(0);
    expect(reused).toBeLessThan(SMALL.steps);
    const exact = await ask(url, { prompt: SIMILAR, cache: "default" });
    expect(exact.cache).toBe("miss");
    expect(exact.image.length).toBeGreaterThan(1_000); // it is one
    expect(exact.image).not.toBe(begun.image);
    expect((await ask(url, { prompt: OTHER })).cache).toBe("miss");
  });

  it("is the same picture when it is made again from the same latent", async () => {
    const { url } = await gateway({ ATELIER_CACHE_MEMORY: "0" });
    await ask(url, { prompt: SHIRT });
    await kept(url);
    const [first, second] = [await ask(url, { prompt: SIMILAR }), await ask(url, { prompt: SIMILAR })];
    expect([first.cache, second.cache]).toEqual(["approximate", "approximate"]);
    expect(second.image).toBe(first.image);
  });

  it("begins from what another gateway had made, through Redis; and is made whole while that is away", async () => {
    const redis = await startRedis();
    atEnd(() => redis.stop());
    const env = { ATELIER_REDIS: redis.url, ATELIER_CACHE_MIN_ASKS: "100" };
    const [one, other] = [await gateway(env), await gateway(env)];
    await ask(one.url, { prompt: SHIRT });
    await kept(other.url);
    expect((await ask(other.url, { prompt: SIMILAR })).cache).toBe("approximate");
    redis.pause();
    expect((await ask(other.url, { prompt: SIMILAR })).cache).toBe("miss");
    redis.resume();
  });
});

async function gateway(env: Record<string, string> = {}) {
  const [worker] = await pool.take(1);
  const started = await startGateway([worker!.address], { ATELIER_CACHE_SCOPE: "tenant", ...env });
  atEnd(() => started.stop());
  await started.until((views) => views.some(({ ready }) => ready));
  return started;
}

async function ask(url: string, changes: object) {
  const response = await fetch(`${url}/v1/generations`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...SMALL, ...changes }),
  });
  expect(response.status).toBe(200);
  const { receipt, images } = (await response.json()) as {
    receipt: Record<string, unknown>;
    images: { b64_json: string }[];
  };
  return { receipt, image: images[0]!.b64_json, cache: response.headers.get("x-atelier-cache") };
}

/** What is kept is kept behind the answer. */
function kept(url: string): Promise<void> {
  return until(async () => {
    const metrics = await (await fetch(`${url}/metrics`)).text();
    return /approximate_entries\{[^}]*\} [1-9]/.test(metrics);
  });
}
