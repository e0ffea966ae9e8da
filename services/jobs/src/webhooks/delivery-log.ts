import type { Records } from "@atelier/job-queue";
import { type Delivery, jobOfDelivery } from "./delivery.ts";

const ALL = "webhooks.deliveries.";
const prefixOf = (jobId: string) => `${ALL}${jobId}.`;
const keyOf = ({ jobId, id }: Pick<Delivery, "jobId" | "id">) => `${prefixOf(jobId)}${id}`;

/** Deliveries among the records. One process writes them. */
export class DeliveryLog {
  readonly #records: Records;

  constructor(records: Records) {
    this.#records = records;
  }

  async get(id: string): Promise<Delivery | undefined> {
    const jobId = jobOfDelivery(id);
    const kept = jobId && (await this.#records.get(keyOf({ jobId, id })));
    return kept ? parse(kept.value) : undefined;
  }

  async put(delivery: Delivery): Promise<void> {
    await this.#records.put(keyOf(delivery), JSON.stringify(delivery));
  }

  async remove(delivery: Delivery): Promise<void> {
    await this.#records.remove(keyOf(delivery));
  }

  async *all(): AsyncIterable<Delivery> {
    for await (const { value } of this.#records.list(ALL)) yield parse(value);
  }

  async *of(jobId: string): AsyncIterable<Delivery> {
    for await (const { value } of this.#records.list(prefixOf(jobId))) yield parse(value);
  }
}

const parse = (text: string) => JSON.parse(text) as Delivery;
