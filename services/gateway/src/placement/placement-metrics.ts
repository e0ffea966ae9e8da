import { Counter, Gauge, Histogram, type Registry } from "@atelier/telemetry";
import type { Fleet } from "../fleet/fleet.ts";
import type { PlacementObserver } from "./fleet-placer.ts";

/** Actual over predicted: 1 is right, 2 took twice as long as was said. */
const RATIO_BUCKETS = [0.25, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5, 10];
/** Seconds. */
const WAIT_BUCKETS_S = [0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60];

/** What /metrics shows of placing. Workers are named by their addresses and leave with them. */
export function createPlacementMetrics(registry: Registry, fleet: Pick<Fleet, "observe">): PlacementObserver {
  const registers = [registry];
  const placements = new Counter({
    name: "atelier_gateway_placements_total",
    help: "Requests placed on a worker; a retry is another.",
    labelNames: ["worker"],
    registers,
  });
  const ejections = new Counter({
    name: "atelier_gateway_worker_ejections_total",
    help: "How often a worker was left out after failures in a row.",
    labelNames: ["worker"],
    registers,
  });
  const ratio = new Histogram({
    name: "atelier_gateway_prediction_ratio",
    help: "How long a placed request took, from its placement to its pictures, over what was predicted.",
    buckets: RATIO_BUCKETS,
    registers,
  });
  const waiting = new Gauge({
    name: "atelier_gateway_placements_waiting",
    help: "Requests that wait here since no worker has room for another.",
    registers,
  });
  const waited = new Histogram({
    name: "atelier_gateway_placement_wait_seconds",
    help: "How long a request waited here for its worker.",
    buckets: WAIT_BUCKETS_S,
    registers,
  });
  const placedSeconds = new Counter({
    name: "atelier_gateway_placed_device_seconds_total",
    help: "Device seconds that placed requests were predicted to take, by the worker's pool and the request's class.",
    labelNames: ["pool", "class"],
    registers,
  });
  fleet.observe({
    ejected: (worker) => ejections.inc({ worker }),
    removed: (worker) => {
      placements.remove({ worker });
      ejections.remove({ worker });
    },
  });
  return {
    placed: ({ address, pool }, { priority, ms }, waitedMs) => {
      placements.inc({ worker: address });
      placedSeconds.inc({ pool, class: priority }, ms / 1000);
      waited.observe(waitedMs / 1000);
    },
    ended: (predictedMs, actualMs) => ratio.observe(actualMs / Math.max(1, predictedMs)),
    waiting: (count) => waiting.set(count),
  };
}
