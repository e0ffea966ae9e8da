import { mkdirSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import type { DatabaseSync } from "node:sqlite";
import { ConfigError } from "@atelier/core";
import { StoreUnavailable } from "../shared/shared-store.ts";

/** @throws StoreUnavailable where the database fails `use`, as on a full disk. */
export function inDatabase<T>(use: () => T): T {
  try {
    return use();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ERR_SQLITE_ERROR") throw error;
    throw new StoreUnavailable(`the database: ${(error as Error).message}`, { cause: error });
  }
}

/**
 * An embedded gateway's database: `gateway.sqlite` in `folder`, or in memory where there is none, and then gone with the
 * process.
 *
 * @throws ConfigError where the folder or the file cannot be used.
 */
export function openDatabase(folder: string | undefined): DatabaseSync {
  // Loaded here, since Node prints a warning of its own with the first import.
  const sqlite = createRequire(import.meta.url)("node:sqlite") as typeof import("node:sqlite");
  if (folder === undefined) return new sqlite.DatabaseSync(":memory:");
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    const database = new sqlite.DatabaseSync(join(folder, "gateway.sqlite"), { timeout: 2_000 });
    // WAL with NORMAL survives the process's death; of the machine's, the last moments may be lost.
    database.exec("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;");
    return database;
  } catch (error) {
    throw new ConfigError(`ATELIER_DATA_DIR=${folder} cannot be used: ${(error as Error).message}`, { cause: error });
  }
}
