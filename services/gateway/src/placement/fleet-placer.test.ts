import { Deadline, ManualClock, ServingError, seededRandom } from "@atelier/core";
import { describe, expect, it } from "vitest";
import type { PriorityClass } from "../caller.ts";
import type { JobsPlaced } from "../fleet/worker-load.ts";
import type { WorkerView } from "../fleet/worker-view.ts";
import { imageRequest, workerView } from "../testing/views.ts";
import { Balancer } from "./balancer.ts";
import { FleetPlacer, type Work } from "./fleet-placer.ts";

describe("FleetPlacer", () => {
  it("binds a request at once to the worker that the balancer picks, and counts its work there", async () => {
    const { place, placed } = placer([view("a", 500), view("b")]);
    const placement = await place();
    expect(placement.worker.address).toBe("b");
    expect(placed).toEqual([{ address: "b", priority: "standard", jobs: 2, msEach: placement.predicted.workMs / 2 }]);
  });

  it("avoids workers that failed the request while there are others, and not when there are none", async () => {
    const { place } = placer([view("a"), view("b", 500)]);
    expect((await place({ avoid: ["a"] })).worker.address).toBe("b");
    expect((await place({ avoid: ["a", "b"] })).worker.address).toBe("a");
  });

  it("tells the fleet how a placement ended, and measures those that ended well", async () => {
    const { place, released, observed, clock } = placer([view("a")]);
    const [well, badly] = [await place(), await place()];
    well.accepted(NOTHING);
    badly.accepted(NOTHING);
    clock.advance(1200);
    const failure = new ServingError("WORKER_LOST", "reset");
    well.release();
    well.release();
    badly.release(failure);
    expect(released).toEqual([undefined, undefined, failure]);
    expect(observed).toEqual(["placed a after 0", "placed a after 0", `ended ${well.predicted.finishMs} 1200`]);
  });

  it("learns what requests take beside their steps from those that had nothing to wait for, and predicts that too", async () => {
    const { place, subject, clock } = placer([view("a")]);
    const predict = () => subject.predict(imageRequest({ numImages: 2 }), { priority: "standard", tenant: "" });
    const before = predict();
    const placement = await place();
    placement.accepted(NOTHING);
    clock.advance(before.finishMs + 70);
    placement.release();
    expect(predict()).toEqual({ ...before, finishMs: before.finishMs + 70 });

    const queued = placer([view("a", 5000)]);
    const late = await queued.place();
    late.accepted(NOTHING);
    queued.clock.advance(60_000);
    late.release();
    expect(queued.subject.predict(imageRequest(), { priority: "standard", tenant: "" }).finishMs).toBeLessThan(7000);
  });

  it("learns nothing from a placement that is given back before anything was made of it", async () => {
    const { place, observed } = placer([view("a")]);
    (await place()).release();
    expect(observed).toEqual(["placed a after 0"]);
  });

  describe("when no worker has room", () => {
    it("keeps requests, and binds them when one has: the more urgent first, then the earlier deadline, then arrival", async () => {
      const { place, change, bound } = placer([view("a", 0, { requestsFree: 0 })]);
      for (const [name, priority, deadlineMs] of [
        ["bulk", "bulk", 1000],
        ["late", "standard", 9000],
        ["first", "standard", 5000],
        ["second", "standard", 5000],
        ["urgent", "interactive", 9000],
      ] as const)
        void place({ name, priority, deadlineMs });
      await change([view("a", 0, { requestsFree: 2 })]);
      expect(bound).toEqual(["urgent", "first"]);
      await change([view("a", 0, { requestsFree: 9 })]);
      expect(bound).toEqual(["urgent", "first", "second", "late", "bulk"]);
    });

    it("says what those who wait would take, by class, and tells the same work once they are placed", async () => {
      const fleet = placer([view("a", 0, { requestsFree: 0 })]);
      const { subject, place, change, work } = fleet;
      void place({ name: "one" });
      const { standard: one } = subject.waitingWorkMs;
      expect(one).toBeGreaterThan(0);
      void place({ name: "two" });
      void place({ name: "urgent", priority: "interactive" });
      expect(subject.waitingWorkMs).toEqual({ interactive: one, standard: 2 * one, bulk: 0 });
      await change([view("a", 0, { requestsFree: 9 })]);
      expect(subject.waitingWorkMs).toEqual({ interactive: 0, standard: 0, bulk: 0 });
      expect(work).toEqual([
        { priority: "interactive", ms: one },
        { priority: "standard", ms: one },
        { priority: "standard", ms: one },
      ]);
    });

    it("lets no newcomer pass those that wait, but a more urgent one", async () => {
      const fleet = placer([view("a", 0, { requestsFree: 0 })]);
      void fleet.place({ name: "waiting" });
      fleet.views = [view("a", 0, { requestsFree: 1 })]; // and nobody was told yet
      void fleet.place({ name: "newcomer" });
      void fleet.place({ name: "urgent", priority: "interactive" });
      await fleet.change([view("a", 0, { requestsFree: 1 })]);
      expect(fleet.bound).toEqual(["urgent", "waiting"]);
    });

    it("refuses more than may wait", async () => {
      const { place } = placer([view("a", 0, { requestsFree: 0 })], { waitingMax: 1 });
      void place();
      await expect(place()).rejects.toThrow(/OVERLOADED.*1 requests wait/);
    });

    it("gives up at the deadline, or when nobody wants it any more, and forgets it", async () => {
      const { place, clock, change, bound, subject } = placer([view("a", 0, { requestsFree: 0 })]);
      const late = expect(place({ deadlineMs: 100 })).rejects.toThrow("DEADLINE_EXCEEDED");
      const gone = new AbortController();
      const left = expect(place({ signal: gone.signal })).rejects.toThrow("went away");
      gone.abort(new ServingError("CANCELLED", "the caller went away"));
      clock.advance(100);
      await Promise.all([late, left]);
      expect(subject.waiting).toBe(0);
      await change([view("a")]);
      expect(bound).toEqual([]);
    });

    it("tells those that wait when no worker is left at all", async () => {
      const { place, change } = placer([view("a", 0, { requestsFree: 0 })]);
      const told = expect(place()).rejects.toThrow(/NO_WORKER/);
      await change([view("a", 0, { ready: false, notReadyReason: "draining" }), view("b", 0, { models: [] })]);
      await told;
    });
  });

  it("keeps requests while every worker's wait is over the window, where it has one", async () => {
    const { place, change, bound } = placer([view("a", 300)], { windowMs: 200 });
    void place({ name: "r" });
    await change([view("a", 250)]);
    expect(bound).toEqual([]);
    await change([view("a", 150)]);
    expect(bound).toEqual(["r"]);
  });

  it("refuses at once what comes too late, or is not wanted", async () => {
    const { place, clock } = placer([view("a")]);
    clock.advance(1);
    await expect(place({ deadlineMs: 0 })).rejects.toThrow("DEADLINE_EXCEEDED");
    const signal = AbortSignal.abort(new ServingError("CANCELLED", "the caller went away"));
    await expect(place({ signal })).rejects.toThrow("CANCELLED");
  });
});

const NOTHING = { sequence: 1n };

/** Has so much to do before any request, in the order of arrival. */
function view(address: string, aheadMs = 0, changes: Parameters<typeof workerView>[1] = {}): WorkerView {
  const jobsLeftMs = { interactive: aheadMs > 0 ? [aheadMs] : [], standard: [], bulk: [] };
  return workerView(address, { jobsLeftMs, ...changes });
}

function placer(
  views: readonly WorkerView[],
  { windowMs = Number.POSITIVE_INFINITY, waitingMax = 100 }: { windowMs?: number; waitingMax?: number } = {},
) {
  const clock = new ManualClock();
  const placed: (JobsPlaced & { address: string })[] = [];
  const released: (Error | undefined)[] = [];
  const observed: string[] = [];
  const work: Work[] = [];
  const bound: string[] = [];
  let tell = () => {};
  const world = { views };
  const subject = new FleetPlacer({
    fleet: {
      views: () => world.views,
      place: (address, work) => {
        placed.push({ address, ...work });
        world.views = world.views.map((each) =>
          each.address === address ? { ...each, requestsFree: each.requestsFree - 1 } : each,
        );
        return { client: {} as never, accepted: () => {}, release: (failure) => void released.push(failure) };
      },
      onChange: (listener) => {
        tell = listener;
        return () => {};
      },
    },
    balancer: new Balancer(seededRandom(1)),
    clock,
    limits: { windowMs, waitingMax },
    observer: {
      placed: ({ address }, { priority, ms }, waitedMs) => {
        observed.push(`placed ${address} after ${waitedMs}`);
        work.push({ priority, ms });
      },
      ended: (predictedMs, actualMs) => observed.push(`ended ${predictedMs} ${actualMs}`),
      waiting: () => {},
    },
  });
  const place = ({
    name = "",
    priority = "standard",
    deadlineMs = 60_000,
    signal = new AbortController().signal,
    avoid = [],
  }: {
    name?: string;
    priority?: PriorityClass;
    deadlineMs?: number;
    signal?: AbortSignal;
    avoid?: readonly string[];
  } = {}) => {
    const placement = subject.place(imageRequest({ numImages: 2 }), {
      order: { priority, tenant: "" },
      deadline: new Deadline(clock, deadlineMs),
      signal,
      avoid: new Set(avoid),
    });
    placement.then(
      () => bound.push(name),
      () => {},
    );
    return placement;
  };
  return {
    subject,
    clock,
    placed,
    released,
    observed,
    work,
    bound,
    place,
    set views(next: readonly WorkerView[]) {
      world.views = next;
    },
    change: async (next: readonly WorkerView[]) => {
      world.views = next;
      tell();
      await new Promise((resolve) => setImmediate(resolve));
    },
  };
}
