import { Gauge, type Registry } from "@atelier/telemetry";
import { PRIORITY_CLASSES } from "../caller.ts";
import type { WorkerView } from "../fleet/worker-view.ts";
import type { FleetPlacer } from "../placement/fleet-placer.ts";

/**
 * What a fleet is scaled by: work that is not done, in device seconds, and who there is to do it. Every gateway sees the
 * same workers: of the fleet's own gauges take the maximum over gateways; of what waits in a gateway, the sum.
 */
export function registerBacklog(registry: Registry, fleet: { views(): readonly WorkerView[] }): void {
  const registers = [registry];
  new Gauge({
    name: "atelier_gateway_backlog_device_seconds",
    help: "Device seconds that the workers of a pool are predicted to need for what they have accepted, by class. Every gateway sees all workers: take the maximum over gateways.",
    labelNames: ["pool", "class"],
    registers,
    collect() {
      this.reset();
      for (const { pool, backlogMs } of fleet.views()) {
        for (const each of PRIORITY_CLASSES) this.inc({ pool, class: each }, backlogMs[each] / 1000);
      }
    },
  });
  new Gauge({
    name: "atelier_gateway_pool_workers",
    help: "Workers of a pool that this gateway knows: ready, draining, or not_ready.",
    labelNames: ["pool", "state"],
    registers,
    collect() {
      this.reset();
      for (const view of fleet.views()) {
        for (const state of POOL_STATES) this.inc({ pool: view.pool, state }, stateOf(view) === state ? 1 : 0);
      }
    },
  });
}

/** What waits in this gateway for a worker. */
export function registerUnplaced(registry: Registry, placer: Pick<FleetPlacer, "waitingWorkMs">): void {
  new Gauge({
    name: "atelier_gateway_unplaced_device_seconds",
    help: "Device seconds that requests are predicted to take which wait in this gateway, since no worker has room: add up over gateways.",
    labelNames: ["class"],
    registers: [registry],
    collect() {
      const workMs = placer.waitingWorkMs;
      for (const each of PRIORITY_CLASSES) this.set({ class: each }, workMs[each] / 1000);
    },
  });
}

const POOL_STATES = ["ready", "draining", "not_ready"] as const;

function stateOf({ ready, draining }: WorkerView): (typeof POOL_STATES)[number] {
  return ready ? "ready" : draining ? "draining" : "not_ready";
}
