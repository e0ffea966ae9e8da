/** Pulling items of bulk jobs, for benches that put another maker in the pipeline's place. */
export { type Ask, BulkWork, type ItemClass, type ModelView, type WorkerView } from "./bulk-work.ts";
export type { ItemEnd } from "./held-item.ts";
export type { ItemMaker, MadeItem, Making, Steps } from "./item-maker.ts";
export { Puller, type PullerObserver, type PullerOptions } from "./puller.ts";
