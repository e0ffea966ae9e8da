import { type SharedStore, StoreUnavailable } from "../shared/shared-store.ts";

/** A store for tests that can be away, or lose what is published. */
export class BreakableStore implements SharedStore {
  away = false;
  /** Nobody hears what is published. */
  mute = false;
  /** Every key that was ever written. */
  readonly keys = new Set<string>();
  readonly inner: SharedStore;

  constructor(inner: SharedStore) {
    this.inner = inner;
  }

  get = (key: string) => this.#reach(() => this.inner.get(key));
  delete = (key: string) => this.#reach(() => this.inner.delete(key));
  replaceIf: SharedStore["replaceIf"] = (...args) => this.#reach(() => this.inner.replaceIf(...args));
  deleteIf: SharedStore["deleteIf"] = (...args) => this.#reach(() => this.inner.deleteIf(...args));
  set: SharedStore["set"] = (key, ...args) => this.#reach(() => this.inner.set(this.#seen(key), ...args));
  setIfAbsent: SharedStore["setIfAbsent"] = (key, ...args) =>
    this.#reach(() => this.inner.setIfAbsent(this.#seen(key), ...args));
  publish: SharedStore["publish"] = (...args) =>
    this.#reach(async () => (this.mute ? undefined : this.inner.publish(...args)));
  subscribe: SharedStore["subscribe"] = (...args) => this.inner.subscribe(...args);

  #seen(key: string): string {
    this.keys.add(key);
    return key;
  }

  async #reach<T>(run: () => Promise<T>): Promise<T> {
    await Promise.resolve();
    if (this.away) throw new StoreUnavailable("the store is away");
    return run();
  }
}
