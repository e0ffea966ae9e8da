import type { EventLog } from "@atelier/job-queue";
import type { JobRecord } from "../job.ts";
import { MadePictures } from "./made-pictures.ts";

/** Of all jobs together: some 110 MB. */
const ITEMS_KEPT_MAX = 2_000_000;

interface Page {
  readonly pictures: MadePictures;
  /** Reads what is new in the log; one after another. */
  reading: Promise<void>;
}

/** What the event log says of the pictures of jobs that were looked at of late. A job is read once, and then what is new of it. */
export class PictureBook {
  readonly #events: Pick<EventLog, "read">;
  /** Last used last. */
  readonly #pages = new Map<string, Page>();

  constructor(events: Pick<EventLog, "read">) {
    this.#events = events;
  }

  /** As the log is now. Rejects with STORAGE_UNAVAILABLE. */
  async of({ id, itemCount }: Pick<JobRecord, "id" | "itemCount">): Promise<MadePictures> {
    const page = this.#pages.get(id) ?? { pictures: new MadePictures(itemCount), reading: Promise.resolve() };
    this.#pages.delete(id);
    this.#pages.set(id, page);
    this.#forgetOldest();
    page.reading = page.reading.catch(() => {}).then(() => this.#read(id, page.pictures));
    await page.reading;
    return page.pictures;
  }

  forget(id: string): void {
    this.#pages.delete(id);
  }

  async #read(id: string, pictures: MadePictures): Promise<void> {
    for await (const { sequence, event } of this.#events.read(id, pictures.sequence)) {
      pictures.apply(event);
      pictures.sequence = sequence;
    }
  }

  #forgetOldest(): void {
    let items = [...this.#pages.values()].reduce((sum, { pictures }) => sum + pictures.size, 0);
    for (const [id, { pictures }] of this.#pages) {
      if (items <= ITEMS_KEPT_MAX || this.#pages.size === 1) return;
      this.#pages.delete(id);
      items -= pictures.size;
    }
  }
}
