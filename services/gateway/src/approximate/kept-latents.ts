import { sha256 } from "@atelier/core";
import { type SharedStore, StoreUnavailable } from "../shared/shared-store.ts";
import { type KeptStep, type LatentEntry, latentBytes } from "./latent-entry.ts";

/** The latents of entries, by entry and step. Nothing here rejects: what the store cannot do is not done. */
export class KeptLatents {
  readonly #store: SharedStore;

  constructor(store: SharedStore) {
    this.#store = store;
  }

  /** False where it is not kept. */
  async put(id: string, stepIndex: number, latent: Uint8Array, life: { ttlMs: number }): Promise<boolean> {
    return orElse(false, () => this.#store.set(keyOf(id, stepIndex), latent, life).then(() => true));
  }

  /** Float32 bytes; undefined where it is gone, out of reach or not what was put there. */
  async get(entry: LatentEntry, { stepIndex, digest }: KeptStep): Promise<Uint8Array | undefined> {
    const latent = await orElse(undefined, () => this.#store.get(keyOf(entry.id, stepIndex)));
    if (latent === undefined || latent.length !== latentBytes(entry)) return undefined;
    return sha256(latent) === digest ? latent : undefined;
  }

  async delete({ id, steps }: LatentEntry): Promise<void> {
    await Promise.all(steps.map(({ stepIndex }) => orElse(undefined, () => this.#store.delete(keyOf(id, stepIndex)))));
  }
}

const keyOf = (id: string, stepIndex: number): string => `approximate:latent:${id}:${stepIndex}`;

async function orElse<T>(otherwise: T, ask: () => Promise<T>): Promise<T> {
  try {
    return await ask();
  } catch (error) {
    if (error instanceof StoreUnavailable) return otherwise;
    throw error;
  }
}
