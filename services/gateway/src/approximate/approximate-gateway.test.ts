import { ServingError } from "@atelier/core";
import { afterEach, describe, expect, it } from "vitest";
import { FakeWorker } from "../testing/fake-worker.ts";
import { startGateway, type TestGateway } from "../testing/start-gateway.ts";
import { REUSE_TABLE, stepOf } from "./reuse-table.ts";

/** Of the twenty that every picture here has, between prompts as good as equal. */
const REUSED = stepOf(20, REUSE_TABLE[0]!.fraction);

const open: { stop(): Promise<void> }[] = [];
afterEach(async () => {
  await Promise.all(open.splice(0).map((each) => each.stop()));
});

describe("a gateway with similar prompts", () => {
  it("begins from another prompt's latent only where the request asks for it, and says so everywhere", async () => {
    const { ask, worker, gateway } = await system();
    await ask("a red mug", "approximate");
    await kept(gateway);
    const { headers, receipt } = await ask("a crimson mug", "approximate");
    expect(headers.get("x-atelier-cache")).toBe("approximate");
    expect(receipt).toMatchObject({ cache: "approximate", reused_steps: REUSED });
    const { startLatent } = worker.requests.at(-1)!;
    expect(startLatent).toMatchObject({ stepIndex: REUSED, shape: { channels: 4, height: 32, width: 32 } });
    expect(new Set(startLatent!.latent)).toEqual(new Set([REUSED]));

    expect((await ask("a crimson mug", "default")).receipt).toMatchObject({ cache: "miss" });
    expect(worker.requests.at(-1)!.startLatent).toBeUndefined();
    const metrics = await (await fetch(`${gateway.url}/metrics`)).text();
    expect(metrics).toContain('lookups_total{outcome="used",service="gateway"} 1');
    expect(metrics).toContain(`steps_reused_total{service="gateway"} ${REUSED}`);
  });

  it("never answers with such a picture who asked for the exact one, at the same moment either", async () => {
    const { ask, worker, gateway } = await system({ ATELIER_CACHE_MIN_ASKS: "1" });
    await ask("a red mug", "approximate");
    await kept(gateway);
    const both = await Promise.all([ask("a crimson mug", "approximate", 5), ask("a crimson mug", "default", 5)]);
    expect(both.map(({ receipt }) => receipt["cache"])).toEqual(["approximate", "miss"]);
    const before = worker.requests.length;
    const after = await ask("a crimson mug", "default", 5); // the exact one was kept
    expect(after.receipt).toMatchObject({ cache: "hit" });
    expect(after.receipt).not.toHaveProperty("reused_steps");
    expect(worker.requests).toHaveLength(before);
  });

  it("sends the start along when another worker goes on with the picture", async () => {
    const { ask, worker, gateway } = await system();
    await ask("a red mug", "approximate");
    await kept(gateway);
    worker.next({ kind: "fail", error: new ServingError("DRAINING", "leaving") });
    expect((await ask("a crimson mug", "approximate")).receipt).toMatchObject({ reused_steps: REUSED, attempts: 2 });
    expect(worker.requests.slice(-2).map(({ startLatent }) => startLatent?.stepIndex)).toEqual([REUSED, REUSED]);
  });

  it("makes the picture anew where the workers cannot embed prompts, and goes on not asking for a while", async () => {
    const { ask, worker } = await system();
    worker.vectorOf = () => new ServingError("INTERNAL", "no text encoder");
    for (const prompt of ["a red mug", "a crimson mug"]) {
      expect((await ask(prompt, "approximate")).receipt).toMatchObject({ cache: "miss" });
    }
    expect(worker.embedded).toEqual([["a red mug"]]);
  });

  it("embeds a prompt once, and none where nobody wants it", async () => {
    const { ask, worker } = await system();
    await ask("a blue mug", "default");
    expect(worker.embedded).toEqual([]);
    for (let i = 0; i < 3; i++) await ask("a red mug", "approximate");
    expect(worker.embedded).toEqual([["a red mug"]]);
  });

  it("begins every picture so where it is configured to, but of who wants no cache; and none where it is off", async () => {
    const always = await system({ ATELIER_APPROXIMATE: "always" });
    await always.ask("a red mug", "default");
    await kept(always.gateway);
    expect((await always.ask("a crimson mug", "default")).receipt).toMatchObject({ cache: "approximate" });
    expect((await always.ask("a crimson mug", "off")).receipt).toMatchObject({ cache: "bypass" });
    expect((await always.ask("a crimson mug", "refresh")).receipt).toMatchObject({ cache: "bypass" });

    const off = await system({ ATELIER_APPROXIMATE: "off" });
    await off.ask("a red mug", "approximate");
    expect((await off.ask("a crimson mug", "approximate")).receipt).toMatchObject({ cache: "miss" });
    expect(off.worker.embedded).toEqual([]);
  });

  it("begins from nothing that an operator has purged", async () => {
    const { ask, gateway } = await system();
    await ask("a red mug", "approximate");
    await kept(gateway);
    const purge = { method: "POST", headers: { "content-type": "application/json" } };
    const body = JSON.stringify({ prompt_prefix: "a red" });
    expect((await fetch(`${gateway.url}/v1/admin/cache/purge`, { ...purge, body })).status).toBe(200);
    expect((await ask("a crimson mug", "approximate")).receipt).toMatchObject({ cache: "miss" });
  });
});

/** Two mugs that are alike, and all else at right angles. */
function vectorOf(text: string): readonly number[] {
  if (text.endsWith("mug")) return text.includes("crimson") ? [Math.cos(0.02), Math.sin(0.02), 0] : [1, 0, 0];
  return [0, 0, 1];
}

async function system(env: Record<string, string> = {}) {
  const worker = await FakeWorker.start();
  worker.checkpoints = true;
  worker.vectorOf = vectorOf;
  const gateway = await startGateway([worker.address], {
    ATELIER_CACHE_SCOPE: "tenant",
    ATELIER_CHECKPOINT_EVERY_STEPS: "4",
    ...env,
  });
  open.push(gateway, worker);
  await gateway.until((views) => views.some((view) => view.ready));
  const ask = async (prompt: string, cache: string, seed?: number) => {
    const body = { prompt, cache, width: 256, height: 256, steps: 20, ...(seed !== undefined && { seed }) };
    const response = await fetch(`${gateway.url}/v1/generations`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
    });
    expect(response.status).toBe(200);
    const { receipt } = (await response.json()) as { receipt: Record<string, unknown> };
    return { headers: response.headers, receipt };
  };
  return { worker, gateway, ask };
}

/** What is kept is kept behind the answer. */
async function kept({ url }: TestGateway): Promise<void> {
  for (;;) {
    const metrics = await (await fetch(`${url}/metrics`)).text();
    if (/approximate_entries\{[^}]*\} [1-9]/.test(metrics)) return;
  }
}
