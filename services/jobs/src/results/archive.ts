import { ServingError } from "@atelier/core";
import type { ObjectStore } from "@atelier/object-store";
import { pictureKey } from "../engine/work-item.ts";
import type { ItemSource, JobView } from "../ports.ts";
import type { Manifest } from "./manifest.ts";
import type { PictureBook } from "./picture-book.ts";
import { type ZipEntry, zipOf } from "./zip.ts";

export interface ArchiveOptions {
  readonly items: ItemSource;
  readonly book: PictureBook;
  readonly manifest: Pick<Manifest, "live">;
  readonly objects: Pick<ObjectStore, "get">;
}

/** Pictures that are fetched before their turn: a store far away would be waited for once for each. */
const AHEAD_MAX = 4;
const MANIFEST_NAME = "manifest.jsonl";

/**
 * A ZIP of the pictures that a job has made, under the names of its items, and its manifest behind them. Pictures are stored
 * as they are, since they do not compress. It is made as it is read: whoever stops reading stops all of it. Holds the
 * pictures that are next and a line for each that went out.
 */
export function archiveOf(job: JobView, options: ArchiveOptions): AsyncIterable<Buffer> {
  return zipOf(entriesOf(job, options));
}

async function* entriesOf(job: JobView, options: ArchiveOptions): AsyncGenerator<ZipEntry> {
  const { record } = job;
  const modified = new Date(record.createdAtMs);
  const ahead: Promise<ZipEntry>[] = [];
  const pictures = await options.book.of(record);
  for await (const item of options.items.read(record.id, 0)) {
    if (!pictures.has(item.index)) continue;
    const next = contentOf(pictureKey(record, item), options).then((content) => ({
      name: item.file,
      modified,
      content,
    }));
    next.catch(() => {}); // it is thrown in its turn
    ahead.push(next);
    if (ahead.length === AHEAD_MAX) yield await ahead.shift()!;
  }
  while (ahead.length > 0) yield await ahead.shift()!;
  yield { name: MANIFEST_NAME, modified, stream: options.manifest.live(job) };
}

async function contentOf(key: string, { objects }: ArchiveOptions): Promise<Buffer> {
  const object = await objects.get(key);
  if (object === undefined) {
    throw new ServingError("NOT_FOUND", `the picture ${key} is not in the object store any more`);
  }
  // Node's own consumer goes by way of a Blob, which is let go of late: half a gigabyte of them pile up.
  const parts: Buffer[] = [];
  for await (const part of object.body) parts.push(part as Buffer);
  return parts.length === 1 ? parts[0]! : Buffer.concat(parts, object.bytes);
}
