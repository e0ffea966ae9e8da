import type { Clock } from "@atelier/core";
import { sha256 } from "@atelier/core";
import { type SharedStore, StoreUnavailable } from "../shared/shared-store.ts";
import { type GenerationRecord, parseRecord } from "./generation-record.ts";

/** Newest of a tenant's that are listed; older ones are still found by their id. */
export const LISTED_MAX = 100;

/** A record with the very bytes that the store has of it. */
export interface StoredRecord {
  readonly record: GenerationRecord;
  readonly bytes: Buffer;
}

/** Where records of generations lie for every gateway to read. Every method rejects with StoreUnavailable. */
export class GenerationStore {
  readonly #store: SharedStore;
  readonly #clock: Clock;

  constructor(store: SharedStore, clock: Clock) {
    this.#store = store;
    this.#clock = clock;
  }

  async read(id: string): Promise<StoredRecord | undefined> {
    const bytes = await this.#store.get(recordKey(id));
    const record = bytes && parseRecord(bytes);
    return bytes && record && { record, bytes };
  }

  async write(record: GenerationRecord): Promise<StoredRecord> {
    const bytes = bytesOf(record);
    await this.#store.set(recordKey(record.id), bytes, this.#life(record));
    return { record, bytes };
  }

  /** Undefined where the store has something else than `last` by now. */
  async replace(last: StoredRecord, record: GenerationRecord): Promise<StoredRecord | undefined> {
    const bytes = bytesOf(record);
    const done = await this.#store.replaceIf(recordKey(record.id), last.bytes, bytes, this.#life(record));
    return done ? { record, bytes } : undefined;
  }

  readPicture(id: string, index: number): Promise<Buffer | undefined> {
    return this.#store.get(pictureKey(id, index));
  }

  writePicture(record: GenerationRecord, index: number, data: Uint8Array): Promise<void> {
    return this.#store.set(pictureKey(record.id, index), data, this.#life(record));
  }

  /** The gateway lives, for as long as nobody need ask again. */
  keepAlive(gateway: string, ttlMs: number): Promise<void> {
    return this.#store.set(gatewayKey(gateway), "alive", { ttlMs });
  }

  async isAlive(gateway: string): Promise<boolean> {
    return (await this.#store.get(gatewayKey(gateway))) !== undefined;
  }

  /** Whoever sees to the generation is to end it: it looks here, should it miss the word. */
  askToCancel(record: GenerationRecord): Promise<void> {
    return this.#store.set(cancelKey(record.id), "asked", this.#life(record));
  }

  async isAskedToCancel(id: string): Promise<boolean> {
    return (await this.#store.get(cancelKey(id))) !== undefined;
  }

  /** Ids, newest first. */
  async list(tenant: string): Promise<readonly string[]> {
    return parseList(await this.#store.get(listKey(tenant)));
  }

  /** Puts ids in front of the tenant's list, the last given first. Gateways that do so at once do not lose each other's. */
  async addToList(tenant: string, ids: readonly string[], ttlMs: number): Promise<void> {
    const key = listKey(tenant);
    const added = [...ids].reverse();
    for (let tries = 0; tries < LIST_TRIES_MAX; tries++) {
      const before = await this.#store.get(key);
      const listed = parseList(before).filter((id) => !ids.includes(id));
      const next = JSON.stringify([...added, ...listed].slice(0, LISTED_MAX));
      const done =
        before === undefined
          ? await this.#store.setIfAbsent(key, next, { ttlMs })
          : await this.#store.replaceIf(key, before, next, { ttlMs });
      if (done) return;
    }
    throw new StoreUnavailable(`the list of a tenant's generations was changed ${LIST_TRIES_MAX} times meanwhile`);
  }

  /** Every gateway, this one too, hears what happens. */
  announce(what: GenerationNews, id: string): Promise<void> {
    return this.#store.publish(CHANNEL, `${what} ${id}`);
  }

  /** The result ends it. */
  onNews(listener: (what: GenerationNews, id: string) => void): () => void {
    return this.#store.subscribe(CHANNEL, (message) => {
      const [what, id] = message.split(" ");
      if (id !== undefined && (what === "cancel" || what === "ended")) listener(what, id);
    });
  }

  #life({ expiresAtMs }: GenerationRecord) {
    return { ttlMs: Math.max(1, expiresAtMs - this.#clock.nowMs()) };
  }
}

/** cancel: somebody wants it to end; ended: it has. */
export type GenerationNews = "cancel" | "ended";

/** Far more than there are gateways that write at one moment. */
const LIST_TRIES_MAX = 50;
const CHANNEL = "generations";

const recordKey = (id: string) => `generation:${id}`;
const pictureKey = (id: string, index: number) => `generation:${id}:picture:${index}`;
const cancelKey = (id: string) => `generation:${id}:cancel`;
const gatewayKey = (gateway: string) => `gateway:${gateway}`;
const listKey = (tenant: string) => `generations:${sha256(tenant).slice("sha256:".length)}`;

const bytesOf = (record: GenerationRecord) => Buffer.from(JSON.stringify(record));

function parseList(value: Buffer | undefined): readonly string[] {
  if (value === undefined) return [];
  try {
    const read: unknown = JSON.parse(value.toString());
    return Array.isArray(read) ? read.filter((id) => typeof id === "string") : [];
  } catch {
    return [];
  }
}
