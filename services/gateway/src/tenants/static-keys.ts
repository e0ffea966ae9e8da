import { readFile } from "node:fs/promises";
import { ConfigError } from "@atelier/core";
import { type Holdings, readHoldings } from "./records.ts";

/** Keys that the configuration brings: this gateway reads them and never writes them. */
export interface StaticKeys {
  readonly name: "file" | "environment";
  /** Undefined where nothing changed since the last call. Rejects where it cannot be read. */
  read(): Promise<Holdings | undefined>;
}

/** ATELIER_KEYS_FILE. A Kubernetes secret is mounted as such a file, and swapped behind a symbolic link when it changes. */
export function keysFile(path: string): StaticKeys {
  let known: string | undefined;
  return {
    name: "file",
    read: async () => {
      // Read whole each time: it is small, and time stamps of a mounted secret say little.
      const text = await readFile(path, "utf8");
      if (text === known) return undefined;
      const holdings = wrap(() => readHoldings(text), `ATELIER_KEYS_FILE=${path}`);
      known = text;
      return holdings;
    },
  };
}

/** ATELIER_KEYS: the same JSON. */
export function environmentKeys(text: string): StaticKeys {
  let read = false;
  return {
    name: "environment",
    read: async () => {
      if (read) return undefined;
      read = true;
      return wrap(() => readHoldings(text), "ATELIER_KEYS");
    },
  };
}

function wrap<T>(read: () => T, where: string): T {
  try {
    return read();
  } catch (error) {
    throw new ConfigError(`${where} does not hold keys: ${(error as Error).message}`, { cause: error });
  }
}
