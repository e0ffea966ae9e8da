import { randomUUID } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, rename, rm } from "node:fs/promises";
import { homedir } from "node:os";
import { dirname, join } from "node:path";

/** What was brought from elsewhere and is kept between runs; ATELIER_CACHE names another folder. */
const cache = process.env["ATELIER_CACHE"] ?? join(homedir(), ".cache", "atelier");

/** A program cannot be had on this machine; the message says what was tried. */
export class NotToBeHad extends Error {
  override readonly name = "NotToBeHad";
}

/**
 * The folder `name` of the cache, filled by `fill` the first time. It appears whole or not at all: two processes that
 * fill it at once do the work twice, and one's is kept.
 */
export async function cached(name: string, fill: (folder: string) => Promise<void>): Promise<string> {
  const folder = join(cache, name);
  if (existsSync(folder)) return folder;
  console.error(`bringing ${name} into ${cache} (once)`);
  const building = join(cache, `${name}.${randomUUID()}`);
  await mkdir(building, { recursive: true });
  await mkdir(dirname(folder), { recursive: true });
  try {
    await fill(building);
    await rename(building, folder).catch((error: unknown) => {
      if (!existsSync(folder)) throw error;
    });
  } finally {
    await rm(building, { recursive: true, force: true });
  }
  return folder;
}
