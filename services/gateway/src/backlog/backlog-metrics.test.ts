import { createRegistry } from "@atelier/telemetry";
import { describe, expect, it } from "vitest";
import type { WorkerView } from "../fleet/worker-view.ts";
import { workerView } from "../testing/views.ts";
import { registerBacklog, registerUnplaced } from "./backlog-metrics.ts";

/** Lines of `name`, without the label that every one has. */
async function lines(registry: ReturnType<typeof createRegistry>, name: string): Promise<string[]> {
  const text = await registry.getSingleMetricAsString(name);
  return text
    .split("\n")
    .filter((line) => line.startsWith(name))
    .map((line) => line.replace(/,?service="gateway"/, ""));
}

describe("the backlog that a fleet is scaled by", () => {
  const backlogMs = (interactive: number, standard: number, bulk: number) => ({ interactive, standard, bulk });

  it("adds up the device seconds of each pool's workers by class, of those that are not ready too", async () => {
    const views = [
      workerView("a", { pool: "a10", backlogMs: backlogMs(1_500, 0, 20_000) }),
      workerView("b", { pool: "a10", backlogMs: backlogMs(500, 250, 0), ready: false, draining: true }),
      workerView("c", { pool: "h100", backlogMs: backlogMs(0, 4_000, 0) }),
    ];
    const registry = createRegistry("gateway");
    registerBacklog(registry, { views: () => views });
    expect(await lines(registry, "atelier_gateway_backlog_device_seconds")).toEqual([
      'atelier_gateway_backlog_device_seconds{pool="a10",class="interactive"} 2',
      'atelier_gateway_backlog_device_seconds{pool="a10",class="standard"} 0.25',
      'atelier_gateway_backlog_device_seconds{pool="a10",class="bulk"} 20',
      'atelier_gateway_backlog_device_seconds{pool="h100",class="interactive"} 0',
      'atelier_gateway_backlog_device_seconds{pool="h100",class="standard"} 4',
      'atelier_gateway_backlog_device_seconds{pool="h100",class="bulk"} 0',
    ]);
  });

  it("counts each pool's workers by what they do, and forgets a pool that is gone", async () => {
    let views: WorkerView[] = [
      workerView("a", { pool: "a10" }),
      workerView("b", { pool: "a10", ready: false, draining: true }),
      workerView("c", { pool: "spot", ready: false }),
    ];
    const registry = createRegistry("gateway");
    registerBacklog(registry, { views: () => views });
    expect(await lines(registry, "atelier_gateway_pool_workers")).toEqual([
      'atelier_gateway_pool_workers{pool="a10",state="ready"} 1',
      'atelier_gateway_pool_workers{pool="a10",state="draining"} 1',
      'atelier_gateway_pool_workers{pool="a10",state="not_ready"} 0',
      'atelier_gateway_pool_workers{pool="spot",state="ready"} 0',
      'atelier_gateway_pool_workers{pool="spot",state="draining"} 0',
      'atelier_gateway_pool_workers{pool="spot",state="not_ready"} 1',
    ]);
    views = [];
    expect(await lines(registry, "atelier_gateway_pool_workers")).toEqual([]);
  });

  it("says what waits in the gateway itself", async () => {
    const registry = createRegistry("gateway");
    registerUnplaced(registry, { waitingWorkMs: backlogMs(0, 7_500, 0) });
    expect(await lines(registry, "atelier_gateway_unplaced_device_seconds")).toContain(
      'atelier_gateway_unplaced_device_seconds{class="standard"} 7.5',
    );
  });
});
