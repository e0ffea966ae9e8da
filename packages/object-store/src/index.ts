/** Where pictures, sheets and manifests lie. Knows nothing of what is in them. */
export type { LinkOptions, ObjectStore, OpenObject, PutOptions, StoredObject } from "./object-store.ts";
