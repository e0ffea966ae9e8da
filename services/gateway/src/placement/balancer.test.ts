import { seededRandom } from "@atelier/core";
import { RowTimeSchema } from "@atelier/proto";
import { create } from "@bufbuild/protobuf";
import { describe, expect, it } from "vitest";
import type { PriorityClass } from "../caller.ts";
import { StepCosts } from "../fleet/step-costs.ts";
import type { JobsLeftMs } from "../fleet/worker-load.ts";
import type { WorkerView } from "../fleet/worker-view.ts";
import type { ImageRequest } from "../image-request.ts";
import { imageRequest, modelView, workerView } from "../testing/views.ts";
import { Balancer } from "./balancer.ts";

describe("Balancer", () => {
  it("picks the worker with the least work, not the one with the fewest requests", () => {
    const fleet = [
      worker("one long", { inOrder: [9000], inFlight: 1 }),
      worker("many short", { inOrder: [600, 600, 600, 600, 600], inFlight: 5 }),
    ];
    expect(pick(fleet)).toBe("many short");
  });

  it("has a request wait for those of its class with less left, and not for longer ones, which it passes", () => {
    expect(waitMs(worker("a", { standard: [100, 399, 401, 5000] }))).toBe(499); // itself 400
    expect(waitMs(worker("a", { inOrder: [100, 399, 401, 5000] }))).toBe(5900);
  });

  it("counts what it costs those whom it passes: it rather passes one long job than several that are hardly longer", () => {
    const fleet = [worker("one long", { standard: [4000] }), worker("several", { standard: [500, 500, 500] })];
    expect(pick(fleet)).toBe("one long");
    expect(pick([...fleet, worker("idle")])).toBe("idle");
  });

  it("spreads long requests by all the work there is, and short ones where they would finish alike", () => {
    const fleet = [worker("more", { standard: [9000, 8000] }), worker("less", { standard: [9000] })];
    expect(pick(fleet, { image: { steps: 1000 } })).toBe("less");
    expect(pick(fleet)).toBe("less");
  });

  it("has a request wait for its own class and more urgent ones only", () => {
    const fleet = [
      worker("bulk", { bulk: [60_000], interactive: [100] }),
      worker("interactive", { interactive: [200] }),
    ];
    expect(pick(fleet, { priority: "interactive" })).toBe("bulk");
    expect(pick(fleet, { priority: "bulk" })).toBe("interactive");
    expect(waitMs(fleet[0]!)).toBe(100);
  });

  it("counts the load of a model that is not in memory: all of it on disk, what is left of it while it loads", () => {
    const busy = worker("busy", { standard: [300, 300] });
    const onDisk = (loadMs: number) => worker("disk", { models: [placed("on_disk", { loadMs })] });
    const loading = (progress: number) =>
      worker("loading", { models: [placed("loading", { loadMs: 20_000, progress })] });
    expect(pick([busy, onDisk(1000)])).toBe("busy");
    expect(pick([busy, onDisk(500)])).toBe("disk");
    expect(pick([busy, loading(0.5)])).toBe("busy");
    expect(pick([busy, loading(0.98)])).toBe("loading");
    expect(waitMs(onDisk(500))).toBe(500);
    expect(waitMs({ ...onDisk(500), jobsLeftMs: busy.jobsLeftMs })).toBe(1100);
  });

  it("sends a request to the faster device as long as it finishes sooner there", () => {
    const slow = worker("slow", { costs: costs(50) });
    const fast = (aheadMs: number) => worker("fast", { costs: costs(10), inOrder: [aheadMs] });
    expect(pick([slow, fast(0)])).toBe("fast");
    expect(pick([slow, fast(1400)])).toBe("fast"); // 1400 + 20 x 2 x 10 + 140 < 20 x 2 x 50
    expect(pick([slow, fast(1500)])).toBe("slow");
  });

  it("says how long a request will wait, how much work it is, and when it is finished", () => {
    const fleet = [worker("a", { standard: [300] })];
    const { predicted } = new Balancer(seededRandom(1)).pick(imageRequest(), { priority: "standard" }, fleet);
    expect(predicted).toEqual({ waitMs: 300, workMs: 400, finishMs: 700, measured: true });
  });

  it("takes a worker that has not run the model yet for as fast as the others", () => {
    const fresh = worker("fresh", { costs: new StepCosts({ rowTimes: [], stepTimes: [] }) });
    expect(pick([worker("known", { standard: [50] }), fresh])).toBe("fresh");
    expect(pick([worker("known"), { ...fresh, jobsLeftMs: { interactive: [], standard: [50], bulk: [] } }])).toBe(
      "known",
    );
    const { predicted } = new Balancer(seededRandom(1)).pick(imageRequest(), { priority: "standard" }, [fresh]);
    expect(predicted.workMs).toBeGreaterThan(0);
  });

  it("draws among those that are as good as equal, each about as often", () => {
    const balancer = new Balancer(seededRandom(1));
    // A request of 400 ms: a tenth of it is 40.
    const fleet = [worker("a"), worker("b", { inOrder: [30] }), worker("busy", { inOrder: [50] })];
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
      worker("right", { standard: [90_000] }),
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

/** How long a request of 400 ms would wait there. */
function waitMs(on: WorkerView): number {
  return new Balancer(seededRandom(1)).pick(imageRequest(), { priority: "standard" }, [on]).predicted.waitMs;
}

/** One whose row of 256x256 takes 10 ms and that has jobs with so much left; `inOrder`, it goes on as they came. */
function worker(
  address: string,
  {
    interactive = [],
    standard = [],
    bulk = [],
    inOrder,
    ...changes
  }: Partial<JobsLeftMs> & { inOrder?: readonly number[] } & NonNullable<Parameters<typeof workerView>[1]> = {},
): WorkerView {
  const jobsLeftMs = { interactive, standard: inOrder ?? standard, bulk };
  return workerView(address, { costs: costs(10), jobsLeftMs, shortestFirst: inOrder === undefined, ...changes });
}

function costs(rowMs: number): StepCosts {
  const rowTimes = [create(RowTimeSchema, { model: "m", height: 32, width: 32, ms: rowMs })];
  return new StepCosts({ rowTimes, stepTimes: [] });
}

function placed(status: "loading" | "on_disk", place: { loadMs: number; progress?: number }) {
  const model = modelView("m", {}, status);
  return { ...model, place: { ...model.place, ...place } };
}
