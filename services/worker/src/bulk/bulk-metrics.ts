import type { ServingError } from "@atelier/core";
import type { WorkItem } from "@atelier/proto";
import { Counter, DURATION_BUCKETS_S, Gauge, Histogram, type Logger, type Registry } from "@atelier/telemetry";
import type { ItemClass } from "./bulk-work.ts";
import type { ItemEnd } from "./held-item.ts";
import type { Verdict } from "./item-failure.ts";
import type { Pillar } from "./pauses.ts";
import type { Puller, PullerObserver } from "./puller.ts";

const PILLARS = ["queue", "store"] as const satisfies readonly Pillar[];

/** What a worker measures of the items that it pulls, and what it says of them in the log. */
export class BulkMetrics implements PullerObserver {
  /** Set once there is one to ask. */
  puller: Pick<Puller, "state"> | undefined;
  readonly #logger: Logger;
  readonly #items: Counter<"outcome" | "class">;
  readonly #itemSeconds: Histogram<"class">;
  readonly #redeliveries: Counter;
  readonly #pulls: Counter<"class">;
  readonly #waitSeconds: Histogram<"on">;
  readonly #pauses: Counter<"reason">;

  constructor(registry: Registry, logger: Logger) {
    this.#logger = logger;
    const registers = [registry];
    this.#items = new Counter({
      name: "atelier_worker_items_total",
      help: "Items of bulk jobs by how they left the worker: done, failed, buried, retried, handed_back or lost.",
      labelNames: ["outcome", "class"],
      registers,
    });
    this.#itemSeconds = new Histogram({
      name: "atelier_worker_item_seconds",
      help: "Time from an item's delivery to its end, of those that were done.",
      labelNames: ["class"],
      buckets: DURATION_BUCKETS_S,
      registers,
    });
    this.#redeliveries = new Counter({
      name: "atelier_worker_item_redeliveries_total",
      help: "Items delivered that had been tried before.",
      registers,
    });
    this.#pulls = new Counter({
      name: "atelier_worker_item_pulls_total",
      help: "Times that the work queue was asked and had items.",
      labelNames: ["class"],
      registers,
    });
    this.#waitSeconds = new Histogram({
      name: "atelier_worker_item_wait_seconds",
      help: "How long the object store or the work queue took to take something of an item, tries again included.",
      labelNames: ["on"],
      buckets: DURATION_BUCKETS_S,
      registers,
    });
    this.#pauses = new Counter({
      name: "atelier_worker_item_pauses_total",
      help: "Times that pulling paused since the work queue or the object store failed.",
      labelNames: ["reason"],
      registers,
    });
    const metrics = this;
    new Gauge({
      name: "atelier_worker_items_held",
      help: "Items that the worker has.",
      registers,
      collect() {
        this.set(metrics.puller?.state.held ?? 0);
      },
    });
    new Gauge({
      name: "atelier_worker_item_pulling_paused",
      help: "1 while the work queue or the object store is not known to answer.",
      labelNames: ["reason"],
      registers,
      collect() {
        const paused = metrics.puller?.state.paused ?? [];
        for (const reason of PILLARS) this.set({ reason }, paused.includes(reason) ? 1 : 0);
      },
    });
  }

  pulled(itemClass: ItemClass): void {
    this.#pulls.inc({ class: itemClass });
  }

  took(attempt: number): void {
    if (attempt > 1) this.#redeliveries.inc();
  }

  ended(outcome: ItemEnd, itemClass: ItemClass, ms: number): void {
    this.#items.inc({ outcome, class: itemClass });
    if (outcome === "done") this.#itemSeconds.observe({ class: itemClass }, ms / 1000);
  }

  waited(on: Pillar, ms: number): void {
    this.#waitSeconds.observe({ on }, ms / 1000);
  }

  paused(reason: Pillar, error: ServingError): void {
    this.#pauses.inc({ reason });
    this.#logger.warn({ reason, problem: error.detail }, "pulling of items pauses");
  }

  wentOn(): void {
    this.#logger.info("pulling of items goes on");
  }

  notMade({ jobId: job, itemIndex }: WorkItem, error: ServingError, verdict: Verdict): void {
    const of = { job, item: String(itemIndex), code: error.code, verdict };
    if (error.code === "INTERNAL") this.#logger.error({ ...of, err: error }, "an item was not made");
    else this.#logger.debug({ ...of, problem: error.detail }, "an item was not made");
  }
}
