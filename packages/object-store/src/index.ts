/** Where pictures, sheets and manifests lie. Knows nothing of what is in them. */
export { checkKey } from "./keys.ts";
export type { LinkOptions, ObjectStore, OpenObject, PutOptions, StoredObject } from "./object-store.ts";
export { type ObjectsAddress, openObjectStore, parseObjectsAddress } from "./open-object-store.ts";
export type { S3Settings } from "./s3-store.ts";
