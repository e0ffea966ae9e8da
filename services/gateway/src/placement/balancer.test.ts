import { seededRandom } from "@atelier/core";
import { RowTimeSchema } from "@atelier/proto";
import { create } from "@bufbuild/protobuf";
import { describe, expect, it } from "vitest";
import type { PriorityClass } from "../caller.ts";
import { StepCosts } from "../fleet/step-costs.ts";
import type { BacklogMs } from "../fleet/worker-load.ts";
import type { WorkerView } from "../fleet/worker-view.ts";
import type { ImageRequest } from "../image-request.ts";
import { imageRequest, modelView, workerView } from "../testing/views.ts";
import { Balancer } from "./balancer.ts";

describe("Balancer", () => {
  it("picks the worker with the least work, not the one with the fewest requests", () => {
    const fleet = [
      worker("one long", { backlogMs: { standard: 9000 }, inFlight: 1 }),
      worker("many short", { backlogMs: { standard: 3000 }, inFlight: 5 }),
    ];
    expect(pick(fleet)).toBe("many short");
  });

  it("has a request wait for its own class and more urgent ones only", () => {
    const fleet = [
      worker("bulk", { backlogMs: { bulk: 60_000, interactive: 100 } }),
      worker("interactive", { backlogMs: { interactive: 200, bulk: 0 } }),
    ];
    expect(pick(fleet, { priority: "interactive" })).toBe("bulk");
    expect(pick(fleet, { priority: "bulk" })).toBe("interactive");
    const { predicted } = new Balancer(seededRandom(1)).pick(imageRequest(), { priority: "standard" }, fleet);
    expect(predicted.waitMs).toBe(100);
  });

  it("counts the load of a model that is not in memory: all of it on disk, what is left of it while it loads", () => {
    const busy = worker("busy", { backlogMs: { standard: 5000 } });
    const onDisk = (loadMs: number) => worker("disk", { models: [placed("on_disk", { loadMs })] });
    const loading = (progress: number) =>
      worker("loading", { models: [placed("loading", { loadMs: 20_000, progress })] });
    expect(pick([busy, onDisk(6000)])).toBe("busy");
    expect(pick([busy, onDisk(4000)])).toBe("disk");
    expect(pick([busy, loading(0.5)])).toBe("busy");
    expect(pick([busy, loading(0.8)])).toBe("loading");
  });

  it("sends a request to the faster device as long as it finishes sooner there", () => {
    const slow = worker("slow", { costs: costs(50) });
    const fast = (standard: number) => worker("fast", { costs: costs(10), backlogMs: { standard } });
    expect(pick([slow, fast(0)])).toBe("fast");
    expect(pick([slow, fast(1500)])).toBe("fast"); // 1500 + 20 x 2 x 10 < 20 x 2 x 50
    expect(pick([slow, fast(1700)])).toBe("slow");
  });

  it("says how long a request will wait, how much work it is, and when it is finished", () => {
    const fleet = [worker("a", { backlogMs: { standard: 300 } })];
    const { predicted } = new Balancer(seededRandom(1)).pick(imageRequest(), { priority: "standard" }, fleet);
    expect(predicted).toEqual({ waitMs: 300, workMs: 400, finishMs: 700 });
  });

  it("takes a worker that has not run the model yet for as fast as the others", () => {
    const fresh = worker("fresh", { costs: new StepCosts({ rowTimes: [], stepTimes: [] }) });
    expect(pick([worker("known", { backlogMs: { standard: 50 } }), fresh])).toBe("fresh");
    expect(pick([worker("known"), { ...fresh, backlogMs: backlog({ standard: 50 }) }])).toBe("known");
    const { predicted } = new Balancer(seededRandom(1)).pick(imageRequest(), { priority: "standard" }, [fresh]);
    expect(predicted.workMs).toBeGreaterThan(0);
  });

  it("draws among equals, each about as often", () => {
    const balancer = new Balancer(seededRandom(1));
    const fleet = [worker("a"), worker("b"), worker("busy", { backlogMs: { standard: 5 } })];
    const picks = Array.from(
      { length: 1_000 },
      () => balancer.pick(imageRequest(), { priority: "standard" }, fleet).worker.address,
    );
    const first = picks.filter((address) => address === "a").length;
    expect(picks).not.toContain("busy");
    expect(first).toBeGreaterThan(450);
    expect(first).toBeLessThan(550);
  });

  it("passes over workers that are not ready, that drain, or that lack the model, however idle", () => {
    const fleet = [
      worker("cold", { ready: false, notReadyReason: "warming up" }),
      worker("leaving", { draining: true }),
      worker("other", { models: ["another"] }),
      worker("right", { backlogMs: { standard: 90_000 } }),
    ];
    expect(pick(fleet)).toBe("right");
  });

  it("says of each worker why it is not ready", () => {
    const fleet = [
      worker("a", { ready: false, notReadyReason: "warming up" }),
      worker("b", { ready: false, notReadyReason: "connection refused" }),
    ];
    expect(() => pick(fleet)).toThrow(/NO_WORKER.*a: warming up; b: connection refused/);
    expect(() => pick([])).toThrow(/NO_WORKER.*none is known/);
  });

  it("names the model that no ready worker holds", () => {
    expect(() => pick([worker("a", { models: ["another"] })])).toThrow(/NO_WORKER.*1 ready workers.*"m"/);
  });
});

function pick(
  fleet: readonly WorkerView[],
  { priority = "standard", image = {} }: { priority?: PriorityClass; image?: Partial<ImageRequest> } = {},
): string {
  return new Balancer(seededRandom(1)).pick(imageRequest(image), { priority }, fleet).worker.address;
}

/** One whose row of 256x256 takes 10 ms, but for `changes`. */
function worker(
  address: string,
  {
    backlogMs,
    ...changes
  }: Omit<NonNullable<Parameters<typeof workerView>[1]>, "backlogMs"> & { backlogMs?: Partial<BacklogMs> } = {},
): WorkerView {
  return workerView(address, { costs: costs(10), ...changes, backlogMs: backlog(backlogMs) });
}

function backlog(some: Partial<BacklogMs> = {}): BacklogMs {
  return { interactive: 0, standard: 0, bulk: 0, ...some };
}

function costs(rowMs: number): StepCosts {
  const rowTimes = [create(RowTimeSchema, { model: "m", height: 32, width: 32, ms: rowMs })];
  return new StepCosts({ rowTimes, stepTimes: [] });
}

function placed(status: "loading" | "on_disk", place: { loadMs: number; progress?: number }) {
  const model = modelView("m", {}, status);
  return { ...model, place: { ...model.place, ...place } };
}
