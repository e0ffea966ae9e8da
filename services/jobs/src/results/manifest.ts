import type { ObjectStore, OpenObject } from "@atelier/object-store";
import { pictureKey } from "../engine/work-item.ts";
import { type ItemSpec, type JobRecord, jobKeys } from "../job.ts";
import type { ItemSource, ItemStates, Jobs, JobView } from "../ports.ts";
import type { MadePictures } from "./made-pictures.ts";
import type { PictureBook } from "./picture-book.ts";

export interface ManifestOptions {
  readonly items: ItemSource;
  readonly jobs: Pick<Jobs, "get" | "states">;
  readonly book: PictureBook;
  readonly objects: Pick<ObjectStore, "put" | "get">;
}

export const MANIFEST_TYPE = "application/x-ndjson";

/** Lines go out together: a chunk for each would cost more than the line. */
const LINES_TOGETHER = 200;

/**
 * A job's manifest: a line of JSON for each of its items, in their order, with all that it takes to make the picture again
 * and to know it. Written where the job's pictures are once it has ended; of one that runs it is made as it is read. Holds
 * the numbers of MadePictures and one chunk of items, however many there are.
 */
export class Manifest {
  readonly #options: ManifestOptions;

  constructor(options: ManifestOptions) {
    this.#options = options;
  }

  /** Before a job's end is told. Again after a retry. */
  async write(jobId: string): Promise<void> {
    const job = this.#options.jobs.get(jobId);
    if (job === undefined) return; // it was deleted meanwhile
    await this.#options.objects.put(jobKeys(jobId).manifest, this.live(job), { mediaType: MANIFEST_TYPE });
  }

  /** As it was written at the job's end; undefined while it may still change. */
  async written({ record, status, endedAtMs }: JobView): Promise<OpenObject | undefined> {
    if (status !== "done" || endedAtMs === null) return undefined;
    return this.#options.objects.get(jobKeys(record.id).manifest);
  }

  /** As it is now. */
  async *live({ record }: JobView): AsyncIterable<Buffer> {
    const { items, jobs, book } = this.#options;
    const pictures = await book.of(record);
    let lines: string[] = [];
    for await (const item of items.read(record.id, 0)) {
      const states = jobs.states(record.id);
      if (states === undefined) return; // deleted
      lines.push(JSON.stringify(manifestEntry(item, { record, states, pictures })));
      if (lines.length < LINES_TOGETHER) continue;
      yield Buffer.from(`${lines.join("\n")}\n`);
      lines = [];
    }
    if (lines.length > 0) yield Buffer.from(`${lines.join("\n")}\n`);
  }
}

export interface Results {
  readonly record: JobRecord;
  readonly states: ItemStates;
  readonly pictures: MadePictures;
}

export function manifestEntry(item: ItemSpec, { record, states, pictures }: Results) {
  const { model, format, quality, ...shape } = record.shapes[item.shape]!;
  const made = pictures.get(item.index);
  const reason = states.reason(item.index);
  return {
    index: item.index,
    row: item.row,
    sku: item.sku,
    variant: item.variant,
    preset: item.preset,
    prompt: item.prompt,
    negative_prompt: item.negativePrompt,
    seed: item.seed,
    model,
    model_digest: made?.modelDigest ?? null,
    parameters: {
      width: shape.width,
      height: shape.height,
      steps: shape.steps,
      guidance_scale: shape.guidanceScale,
      sampler: shape.sampler,
      karras_sigmas: shape.karrasSigmas,
      format,
      quality,
    },
    file: item.file,
    object_key: made === undefined ? null : pictureKey(record, item),
    sha256: made?.sha256 ?? null,
    bytes: made?.bytes ?? null,
    // The log may be ahead of the ledger by a moment.
    state: made === undefined ? states.of(item.index) : ("done" as const),
    reason: made !== undefined || reason === undefined ? null : { code: reason.code, message: reason.message },
    attempts: made?.attempts ?? reason?.attempts ?? null,
    worker: made?.workerId ?? null,
    device_ms: made?.deviceMs ?? null,
    simulated: made?.simulated ?? null,
    /** Room for a check of what the picture shows. */
    verdict: null,
  };
}
