import { mkdirSync } from "node:fs";
import { createRequire } from "node:module";
import { homedir } from "node:os";
import { join } from "node:path";
import type { DatabaseSync } from "node:sqlite";
import { CliError } from "../cli-error.ts";

/** Where what a system keeps lies unless it is told: the same at each start, wherever it is started from. */
export function usualDataFolder(env: Readonly<Record<string, string | undefined>>): string {
  return join(env["XDG_DATA_HOME"] || join(homedir(), ".local", "share"), "atelier");
}

const SQLITE_BUSY = 5;

/** The locks that this process holds: collected as garbage, they would be open again. */
const held: DatabaseSync[] = [];

/**
 * Makes the folder, and makes it this process's own until that ends: two systems in one would each hand out the same
 * jobs. The lock is one of the operating system's, which it takes back however the process ends.
 *
 * @throws CliError where another process has it, or it cannot be used.
 */
export function takeDataFolder(folder: string): void {
  const sqlite = createRequire(import.meta.url)("node:sqlite") as typeof import("node:sqlite");
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    const lock = new sqlite.DatabaseSync(join(folder, "lock.sqlite"), { timeout: 0 });
    lock.exec("BEGIN EXCLUSIVE");
    held.push(lock);
  } catch (error) {
    if ((error as { errcode?: number }).errcode === SQLITE_BUSY) {
      throw new CliError(`another Atelier that runs keeps its bulk jobs in ${folder}. Choose a folder: --data DIR`);
    }
    throw new CliError(`the data folder ${folder} cannot be used (--data): ${(error as Error).message}`, {
      cause: error,
    });
  }
}
