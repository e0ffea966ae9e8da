import { isAbsolute } from "node:path";
import type { Clock } from "@atelier/core";
import { FilesStore } from "./files-store.ts";
import type { ObjectStore } from "./object-store.ts";

export type ObjectsAddress =
  | { readonly kind: "files"; readonly folder: string }
  | { readonly kind: "s3"; readonly bucket: string; readonly prefix: string };

/** @throws RangeError saying what an address is. */
export function parseObjectsAddress(text: string): ObjectsAddress {
  const folder = /^file:(?:\/\/(?=\/))?(.+)$/.exec(text)?.[1];
  if (folder !== undefined && isAbsolute(folder)) return { kind: "files", folder };
  const [, bucket, prefix = ""] =
    /^s3:\/\/([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:\/([A-Za-z0-9._/-]*))?$/.exec(text) ?? [];
  if (bucket !== undefined) return { kind: "s3", bucket, prefix: prefix.replace(/\/+$/, "") };
  throw new RangeError(`${JSON.stringify(text)} is neither file:/absolute/folder nor s3://bucket/prefix`);
}

/** @throws ServingError STORAGE_UNAVAILABLE where it cannot be used now; RangeError of a bad address. */
export async function openObjectStore(address: string, world: { readonly clock: Clock }): Promise<ObjectStore> {
  const parsed = parseObjectsAddress(address);
  if (parsed.kind === "s3") throw new RangeError(`${address}: S3 is not supported yet`);
  const store = new FilesStore(parsed.folder, world);
  await store.open();
  return store;
}
