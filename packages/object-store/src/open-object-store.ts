import { isAbsolute } from "node:path";
import type { Clock, ServingError } from "@atelier/core";
import { FilesStore } from "./files-store.ts";
import { checkKey } from "./keys.ts";
import type { ObjectStore } from "./object-store.ts";
import type { S3Settings } from "./s3-store.ts";

export type ObjectsAddress =
  | { readonly kind: "files"; readonly folder: string }
  | { readonly kind: "s3"; readonly bucket: string; readonly prefix: string };

/** @throws RangeError saying what an address is. */
export function parseObjectsAddress(text: string): ObjectsAddress {
  const folder = /^file:(?:\/\/(?=\/))?(.+)$/.exec(text)?.[1];
  if (folder !== undefined && isAbsolute(folder)) return { kind: "files", folder };
  const [, bucket, prefix = ""] =
    /^s3:\/\/([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:\/([A-Za-z0-9._/-]*))?$/.exec(text) ?? [];
  if (bucket !== undefined) return { kind: "s3", bucket, prefix: prefixOf(prefix, text) };
  throw new RangeError(`${JSON.stringify(text)} is neither file:/absolute/folder nor s3://bucket/prefix`);
}

function prefixOf(given: string, text: string): string {
  const prefix = given.replace(/\/+$/, "");
  try {
    if (prefix !== "") checkKey(prefix);
  } catch (error) {
    throw new RangeError(`${JSON.stringify(text)}: ${(error as ServingError).detail}`, { cause: error });
  }
  return prefix;
}

/** @throws ServingError STORAGE_UNAVAILABLE where it cannot be used now; RangeError of a bad address. */
export async function openObjectStore(
  address: string,
  world: { readonly clock: Clock },
  settings: S3Settings = AWS,
): Promise<ObjectStore> {
  const parsed = parseObjectsAddress(address);
  const store = parsed.kind === "files" ? new FilesStore(parsed.folder, world) : await s3Store(parsed, world, settings);
  await store.open();
  return store;
}

const AWS: S3Settings = { endpoint: undefined, region: "us-east-1", pathStyle: false };

/** A service that uses files need not load what speaks to S3. */
async function s3Store(...args: ConstructorParameters<typeof import("./s3-store.ts").S3Store>) {
  const { S3Store } = await import("./s3-store.ts");
  return new S3Store(...args);
}
