import { describe, expect, it } from "vitest";
import { type Ask, BulkWork, type HeldItems, type ModelView, type WorkerView } from "./bulk-work.ts";

const NONE: HeldItems = { all: 0, denoising: 0 };

describe("what is pulled", () => {
  it("is what the step batches hold, and as much again to follow at once", () => {
    expect(asked(work().asks(view({ sideBySide: 8 }), NONE, 0))).toEqual(["standard sd: 16 now"]);
  });

  it("leaves out what is here and has step batches ahead, and not what is decoded or stored", () => {
    const held = { all: 20, denoising: 13 };
    expect(asked(work().asks(view({ sideBySide: 8 }), held, 0))).toEqual(["standard sd: 3 now"]);
  });

  it("leaves out what is on its way", () => {
    const policy = work();
    policy.asks(view({ models: [model("sd"), model("xl")] }), NONE, 0);
    expect(policy.asks(view({ models: [model("sd"), model("xl")] }), NONE, 0)).toEqual([]);
  });

  it("is never more than may be held, however many of them wait for the store", () => {
    expect(asked(work(20).asks(view({ sideBySide: 8 }), { all: 18, denoising: 0 }, 0))).toEqual(["standard sd: 2 now"]);
    expect(work(20).asks(view({ sideBySide: 8 }), { all: 20, denoising: 0 }, 0)).toEqual([]);
  });

  it("is less by what requests take of the step batches, and nothing while they fill them", () => {
    expect(asked(work().asks(view({ sideBySide: 8, requestsDenoising: 5 }), NONE, 0))).toEqual(["standard sd: 11 now"]);
    expect(work().asks(view({ sideBySide: 8, requestsDenoising: 8 }), NONE, 0)).toEqual([]);
  });

  it("is of the class standard first; where it has none that is listened for, and bulk is asked for beside it", () => {
    const policy = work();
    const [first] = policy.asks(view(), NONE, 0);
    policy.answered(first!, 0, 5);
    expect(asked(policy.asks(view(), NONE, 5))).toEqual(["standard sd: 1 within 2000 ms", "bulk sd: 16 now"]);
  });

  it("is asked for at once where listening brought one, since more may have come with it", () => {
    const policy = work();
    policy.answered(policy.asks(view(), NONE, 0)[0]!, 0, 0);
    const [listening, bulk] = policy.asks(view(), NONE, 0);
    policy.answered(bulk!, 0, 50);
    policy.answered(listening!, 1, 100);
    expect(asked(policy.asks(view(), { all: 1, denoising: 1 }, 100))).toContain("standard sd: 15 now");
  });

  it("is nothing of a model that was set aside, until then", () => {
    const policy = work();
    policy.setAside("sd", 1000);
    expect(policy.asks(view(), NONE, 999)).toEqual([]);
    expect(policy.asks(view(), NONE, 1000)).not.toEqual([]);
  });
});

describe("several models in memory", () => {
  it("take turns of seconds, so that step batches are of one model", () => {
    const policy = work();
    const served: string[] = [];
    const models = view({ models: [model("sd"), model("xl")] });
    for (let nowMs = 0; nowMs < 21_000; nowMs += 500) {
      const asks = policy.asks(models, NONE, nowMs);
      for (const ask of asks) policy.answered(ask, ask.itemClass === "bulk" ? ask.max : 0, nowMs);
      served.push(...asks.filter(({ itemClass, waitMs }) => itemClass === "bulk" && waitMs === 0).map((a) => a.model));
    }
    const turns = served.filter((id, i) => id !== served[i - 1]);
    expect(turns.slice(0, 4)).toEqual(["sd", "xl", "sd", "xl"]);
    expect(turns.length).toBeLessThan(6);
  });
});

describe("a model on disk", () => {
  const onDisk = (change: Partial<ModelView> = {}) =>
    view({ models: [model("sd"), model("xl", { resident: false, fits: false, loadMs: 4000, ...change })] });
  const xlWaits = [{ model: "xl", itemClass: "bulk", oldestMs: 60_000 }] as const;

  it("is not asked for while nothing is known to wait for it", () => {
    const policy = dry(work(), onDisk(), 0);
    expect(models(policy.asks(onDisk(), NONE, 60_000))).not.toContain("xl");
  });

  it("is asked for when nothing has waited for those in memory for half the time of its load", () => {
    const policy = dry(work(), onDisk(), 0);
    const first = policy.asks(onDisk(), NONE, 0);
    expect(asked(first)).toEqual(["standard sd: 1 within 2000 ms", "bulk sd: 1 within 2000 ms"]);
    for (const ask of first) policy.answered(ask, 0, 1990);
    policy.heard(xlWaits);
    expect(models(policy.asks(onDisk(), NONE, 1999))).not.toContain("xl");
    expect(asked(policy.asks(onDisk(), NONE, 2000))).toEqual(["bulk xl: 16 now"]);
  });

  it.each([
    [4000, 60_000],
    [20_000, 200_000],
  ])("whose load takes %i ms waits %i ms for its turn beside a model that never runs dry", (loadMs, stayMs) => {
    const policy = work();
    const seen = onDisk({ loadMs });
    busy(policy, seen, 0);
    policy.heard(xlWaits);
    busy(policy, seen, stayMs - 1);
    expect(models(policy.asks(seen, NONE, stayMs))).toEqual(["xl"]);
    // And when it is there it stays as long.
    const after = work();
    const back = view({ models: [model("sd", { resident: false, fits: false, loadMs }), model("xl", { loadMs })] });
    busy(after, back, 0);
    after.heard([{ model: "sd", itemClass: "bulk", oldestMs: 1 }]);
    expect(models(after.asks(back, NONE, stayMs - 1))).toEqual(["xl", "xl"]);
  });

  it("is not asked for within a minute of a request that needed its room, and nothing is while that waits", () => {
    const policy = dry(work(), onDisk(), 0);
    policy.heard(xlWaits);
    expect(policy.asks({ ...onDisk(), crowded: true }, NONE, 10_000)).toEqual([]);
    expect(models(policy.asks(onDisk(), NONE, 69_999))).not.toContain("xl");
    expect(models(policy.asks(onDisk(), NONE, 70_000))).toEqual(["xl"]);
  });

  it("that fits in beside the others is asked for at once", () => {
    const policy = busy(work(), onDisk({ fits: true }), 0);
    policy.heard(xlWaits);
    expect(models(policy.asks(onDisk({ fits: true }), NONE, 1))).toEqual(["xl"]);
  });

  it("that does not is asked for when the items of the others have ended, since those keep their models in memory", () => {
    const policy = busy(work(), onDisk(), 0);
    policy.heard(xlWaits);
    expect(policy.asks(onDisk(), { all: 1, denoising: 0 }, 60_000)).toEqual([]);
    expect(models(policy.asks(onDisk(), NONE, 60_010))).toEqual(["xl"]);
  });
});

function work(heldMax = 100): BulkWork {
  return new BulkWork({ heldMax });
}

function model(id: string, change: Partial<ModelView> = {}): ModelView {
  return { id, resident: true, fits: true, loadMs: 2000, sideBySide: 8, ...change };
}

function view({
  sideBySide = 8,
  requestsDenoising = 0,
  crowded = false,
  models = [model("sd", { sideBySide })],
}: Partial<WorkerView> & { sideBySide?: number } = {}): WorkerView {
  return { models, requestsDenoising, crowded };
}

/** Every lane that is asked has nothing. */
function dry(policy: BulkWork, seen: WorkerView, nowMs: number): BulkWork {
  for (let i = 0; i < 4; i++) for (const ask of policy.asks(seen, NONE, nowMs)) policy.answered(ask, 0, nowMs);
  return policy;
}

/** Every lane has as much as is asked for. */
function busy(policy: BulkWork, seen: WorkerView, nowMs: number): BulkWork {
  const resident = { ...seen, models: seen.models.filter((each) => each.resident) };
  for (let i = 0; i < 2; i++)
    for (const ask of policy.asks(resident, NONE, nowMs))
      policy.answered(ask, ask.itemClass === "bulk" ? ask.max : 0, nowMs);
  return policy;
}

function asked(asks: readonly Ask[]): string[] {
  return asks.map(
    ({ itemClass, model, max, waitMs }) =>
      `${itemClass} ${model}: ${max} ${waitMs === 0 ? "now" : `within ${waitMs} ms`}`,
  );
}

function models(asks: readonly Ask[]): string[] {
  return asks.map((ask) => ask.model);
}
