import { seededRandom } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { Balancer } from "./balancer.ts";
import type { WorkerView } from "./fleet/worker-view.ts";
import { modelView, workerView } from "./testing/views.ts";

describe("Balancer", () => {
  it("picks the worker with the fewest requests in flight", () => {
    const fleet = [
      workerView("a", { inFlight: 3 }),
      workerView("b", { inFlight: 1 }),
      workerView("c", { inFlight: 2 }),
    ];
    expect(pick(fleet)).toBe("b");
  });

  it("draws among equals, each about as often", () => {
    const balancer = new Balancer(seededRandom(1));
    const fleet = [workerView("a"), workerView("b"), workerView("busy", { inFlight: 1 })];
    const picks = Array.from({ length: 1_000 }, () => balancer.pick({ model: "m" }, fleet).address);
    const first = picks.filter((address) => address === "a").length;
    expect(picks).not.toContain("busy");
    expect(first).toBeGreaterThan(450);
    expect(first).toBeLessThan(550);
  });

  it("passes over workers that are not ready, that drain, or that lack the model, however idle", () => {
    const fleet = [
      workerView("cold", { ready: false, notReadyReason: "warming up" }),
      workerView("leaving", { draining: true }),
      workerView("other", { models: ["another"] }),
      workerView("right", { inFlight: 9 }),
    ];
    expect(pick(fleet)).toBe("right");
  });

  it("prefers workers that have the model in memory, then those that load it, to those that have it on disk", () => {
    const at = (address: string, status: "resident" | "loading" | "on_disk", inFlight: number) =>
      workerView(address, { models: [modelView("m", {}, status)], inFlight });
    const onDisk = at("disk", "on_disk", 0);
    const loading = at("loading", "loading", 1);
    expect(pick([onDisk, loading, at("resident", "resident", 9)])).toBe("resident");
    expect(pick([onDisk, loading])).toBe("loading");
    expect(pick([onDisk])).toBe("disk");
  });

  it("says of each worker why it is not ready", () => {
    const fleet = [
      workerView("a", { ready: false, notReadyReason: "warming up" }),
      workerView("b", { ready: false, notReadyReason: "connection refused" }),
    ];
    expect(() => pick(fleet)).toThrow(/NO_WORKER.*a: warming up; b: connection refused/);
    expect(() => pick([])).toThrow(/NO_WORKER.*none is known/);
  });

  it("names the model that no ready worker holds", () => {
    expect(() => pick([workerView("a", { models: ["another"] })])).toThrow(/NO_WORKER.*1 ready workers.*"m"/);
  });
});

function pick(fleet: readonly WorkerView[]): string {
  return new Balancer(seededRandom(1)).pick({ model: "m" }, fleet).address;
}
