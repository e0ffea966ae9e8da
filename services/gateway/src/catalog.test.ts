import { describe, expect, it } from "vitest";
import { catalogOf, findModel } from "./catalog.ts";
import { modelView, workerView } from "./testing/views.ts";

const lost = { ready: false, notReadyReason: "connection refused" };

describe("the catalog of models", () => {
  it("lists each model once, in the order of the workers, with how many are ready for it", () => {
    const fleet = [
      workerView("a", { models: ["x"], ...lost }),
      workerView("b", { models: ["y", "x"] }),
      workerView("c", { models: ["x"] }),
    ];
    expect(catalogOf(fleet).map(({ id, workersReady }) => [id, workersReady])).toEqual([
      ["x", 2],
      ["y", 1],
    ]);
  });

  it("believes a ready worker about a model before one that was lost", () => {
    const stale = workerView("a", { models: [modelView("x", { stepsMax: 10 })], ...lost });
    const fresh = workerView("b", { models: [modelView("x", { stepsMax: 20 })] });
    expect(catalogOf([stale, fresh])[0]?.limits.stepsMax).toBe(20);
  });

  it("tells of a model that is in no memory, and of one in several places the best among ready workers", () => {
    const at = (address: string, status: "resident" | "loading" | "on_disk", change = {}) =>
      workerView(address, { models: [modelView("x", {}, status)], ...change });
    const statusOf = (...fleet: ReturnType<typeof at>[]) => catalogOf(fleet)[0]?.place.status;
    expect(statusOf(at("a", "on_disk"))).toBe("on_disk");
    expect(statusOf(at("a", "on_disk"), at("b", "loading"))).toBe("loading");
    expect(statusOf(at("a", "on_disk"), at("b", "resident"), at("c", "loading"))).toBe("resident");
    expect(statusOf(at("a", "resident", lost), at("b", "on_disk"))).toBe("on_disk");
  });

  it("takes the first model for a request that names none, also while its worker is away", () => {
    const fleet = [workerView("a", { models: ["x"], ...lost }), workerView("b", { models: ["y"] })];
    expect(findModel(fleet, undefined).id).toBe("x");
  });

  it("names an unknown model, cut short, and those that there are", () => {
    const fleet = [workerView("a", { models: ["x", "y"] })];
    expect(() => findModel(fleet, "z")).toThrow(/MODEL_NOT_FOUND.*"z".*x, y/);
    expect(() => findModel(fleet, "z".repeat(10_000))).toThrow(/^.{1,150}$/);
  });

  it("cannot say that a model is unknown before any worker has spoken", () => {
    expect(() => findModel([workerView("a", { models: [], ...lost })], "z")).toThrow(/NO_WORKER.*connection refused/);
  });
});
