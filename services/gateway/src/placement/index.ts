/** What benches and the simulation outside this service drive placement by. */
export { NO_COSTS, StepCosts } from "../fleet/step-costs.ts";
export {
  type BacklogMs,
  backlogOf,
  type JobsLeftMs,
  type JobsPlaced,
  WorkerLoad,
} from "../fleet/worker-load.ts";
export type { ModelView, WorkerView } from "../fleet/worker-view.ts";
export type { ImageRequest } from "../image-request.ts";
export { Balancer } from "./balancer.ts";
export { denoiseWork } from "./denoise-work.ts";
export { FleetPlacer, type FleetPlacerOptions, type PlacerFleet } from "./fleet-placer.ts";
export type { PlaceLimits, Placement, Placer, Prediction } from "./placer.ts";
