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

/** All of several directories together; an address that more than one has counts once. */
export function joinedDirectory(directories: readonly WorkerDirectory[]): WorkerDirectory {
  return {
    watch: (listener) => {
      const lists: (readonly string[])[] = directories.map(() => []);
      let started = false;
      const tell = () => listener([...new Set(lists.flat())]);
      const ends = directories.map((directory, i) =>
        directory.watch((addresses) => {
          lists[i] = addresses;
          if (started) tell();
        }),
      );
      started = true;
      tell();
      return () => {
        for (const end of ends) end();
      };
    },
  };
}
