import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { FLEET_VALUES, type Fleet, startFleet } from "./support/fleet.ts";
import { Load } from "./support/load.ts";
import { type Json, Plane, until } from "./support/plane.ts";

const NODES = ["gpu-1", "gpu-2"];
const WORKERS = 3;

let plane: Plane;
let fleet: Fleet;

beforeAll(async () => {
  plane = await Plane.start({ nodes: NODES.map((name) => ({ name, gpus: 4, pods: "none" })) });
  const values = {
    ...FLEET_VALUES,
    pools: { default: { replicas: WORKERS }, quick: { replicas: 1, drainSeconds: 0 } },
  };
  fleet = await startFleet(plane, { release: "roll", nodes: NODES, values, ready: 2 + WORKERS + 1 });
});

afterAll(async () => {
  await fleet?.stop();
  await plane?.stop();
});

const pods = (component: string) => plane.list("pods", "-l", `app.kubernetes.io/component=${component}`);

/** Carries load while `change` happens, and until a moment after it. */
async function underLoad(change: () => Promise<void>, options: { steps?: number } = {}) {
  const load = new Load({ url: fleet.gateways.url, callers: 8, ...options });
  await until(
    () => load.answers.length,
    (count) => count >= 8,
    { withinMs: 60_000, what: "the load has begun" },
  );
  await change();
  const before = load.answers.length;
  await until(
    () => load.answers.length,
    (count) => count >= before + 16,
    { withinMs: 60_000, what: "the load goes on" },
  );
  const answers = await load.stop();
  const failed = load.failures;
  console.log(
    `${answers.length} requests, ${failed.length} failed, ${answers.filter(({ attempts }) => attempts > 1).length} made by more than one worker, ${answers.filter(({ resumedAt }) => resumedAt.some((step) => step > 0)).length} went on from a step`,
  );
  return { answers, failed };
}

async function rollOut(deployment: string): Promise<void> {
  await plane.kubectl(["rollout", "restart", `deployment/${deployment}`]);
  await plane.kubectl(["rollout", "status", `deployment/${deployment}`, "--timeout=150s"]);
}

describe("a roll-out under load", () => {
  it("replaces every worker, and no request fails", async () => {
    const before = new Set((await pods("worker")).map(({ metadata }) => metadata.name));
    const { failed } = await underLoad(() => rollOut("roll-atelier-worker-default"));
    expect(failed).toEqual([]);
    const after = (await pods("worker")).filter(({ metadata }) => metadata.labels["atelier.dev/pool"] === "default");
    expect(after.filter(({ metadata }) => before.has(metadata.name))).toEqual([]);
    expect(after).toHaveLength(WORKERS);
  });

  it("replaces every gateway, and no request fails", async () => {
    const before = new Set((await pods("gateway")).map(({ metadata }) => metadata.name));
    const { failed } = await underLoad(() => rollOut("roll-atelier-gateway"));
    expect(failed).toEqual([]);
    await until(
      () => pods("gateway"),
      (items) => items.length === 2 && items.every(({ metadata }) => !before.has(metadata.name)),
      { what: "the old gateways are gone" },
    );
  });

  it("is that of the whole fleet at once, and no request fails", async () => {
    const all = ["roll-atelier-worker-default", "roll-atelier-worker-quick", "roll-atelier-gateway"];
    const { failed } = await underLoad(async () => {
      await Promise.all(all.map(rollOut));
    });
    expect(failed).toEqual([]);
  });
});

describe("a worker that is given no time, as a spot machine's", () => {
  it("leaves its pictures to others, which go on from the step where they stood", async () => {
    const { answers, failed } = await underLoad(
      async () => {
        for (const { metadata } of await plane.list("pods", "-l", "atelier.dev/pool=quick")) {
          await plane.kubectl(["delete", "pod", metadata.name, "--grace-period=30"]);
        }
      },
      { steps: 60 },
    );
    expect(failed).toEqual([]);
    const moved = answers.filter(({ resumedAt }) => resumedAt.some((step) => step > 0));
    expect(moved.length).toBeGreaterThan(0);
    expect(moved.every(({ attempts }) => attempts > 1)).toBe(true);
  });
});

describe("what the test's kubelet saw", () => {
  it("is nothing that it could not do, and every process ended by itself", async () => {
    expect(fleet.kubelet.problems).toEqual([]);
    const restarted = (await pods("worker")).filter(
      ({ status }: Json) => status.containerStatuses?.[0].restartCount > 0,
    );
    expect(restarted).toEqual([]);
  });
});
