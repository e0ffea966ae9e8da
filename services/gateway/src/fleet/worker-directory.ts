/** Where workers are. Tells its listener the whole list, once at the start and then whenever it changes. */
export interface WorkerDirectory {
  /** The result ends the watch. */
  watch(listener: (addresses: readonly string[]) => void): () => void;
}

/** The workers that the configuration names; the list never changes. */
export function staticDirectory(addresses: readonly string[]): WorkerDirectory {
  return {
    watch: (listener) => {
      listener(addresses);
      return () => {};
    },
  };
}
